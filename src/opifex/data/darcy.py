r"""The solution operator of steady Darcy flow: permeability to pressure.

$-\nabla \cdot (a \nabla u) = f$ on the unit square, $u = 0$ on its boundary, with the binary
permeability of Li et al. (ICLR 2021, arXiv:2010.08895, section 5.2): 12 where a Gaussian random
field from $N(0, (-\Delta + 9 I)^{-2})$ with zero normal derivative is positive, 3 elsewhere, and
$f = 1$.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from functools import partial
from importlib import resources
from typing import NamedTuple

import numpy as np
import scipy  # loads its parts when they are used
from jaxtyping import Float

from opifex.core.checks import (
    check_array,
    check_nonnegative_int,
    check_positive,
    check_positive_int,
)
from opifex.data.cache import cached_arrays
from opifex.data.fields import OperatorData
from opifex.data.progress import track
from opifex.data.random_fields import gaussian_random_field

__all__ = ["DarcySmall", "generate_darcy_data", "load_darcy_small", "solve_darcy"]


class DarcySmall(NamedTuple):
    """The two parts of the data set that `load_darcy_small` returns.

    Attributes:
        train: 1000 samples of shape (16, 16, 1).
        test: 50 samples of the same shape.
    """

    train: OperatorData
    test: OperatorData


def _harmonic_mean(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return 2 * a * b / (a + b)


def solve_darcy(
    permeability: Float[np.ndarray, "rows columns"],
    source: float | Float[np.ndarray, "rows columns"] = 1.0,
) -> Float[np.ndarray, "rows columns"]:
    r"""Pressure of $-\nabla \cdot (a \nabla u) = f$ on the unit square, $u = 0$ on the boundary.

    Cell-centred finite volumes: the flux through a face is the difference of the two pressures
    times the harmonic mean of the two permeabilities, exact for layered media in one dimension;
    boundary faces are half a cell away. Second order for smooth coefficients. The symmetric
    positive definite system is solved by sparse factorisation.

    Args:
        permeability: $a > 0$ in each cell.
        source: $f$, one number or its cell averages.

    Returns:
        Pressure at the cell centres, float64.

    Raises:
        TypeError: if ``permeability`` or ``source`` does not hold real numbers.
        ValueError: if ``permeability`` is not two-dimensional, finite and positive, or so large or small
            that double precision cannot solve the system, or ``source`` is not finite or does not
            have its shape.
    """
    a = np.asarray(check_array("permeability", permeability, real=True), np.float64)
    if a.ndim != 2 or a.size == 0 or not np.all(np.isfinite(a)) or np.any(a <= 0):
        raise ValueError(
            f"permeability must hold finite positive numbers of shape (rows, columns), "
            f"got shape {a.shape}"
        )
    f = np.asarray(check_array("source", source, real=True), np.float64)
    if f.shape not in {(), a.shape} or not np.all(np.isfinite(f)):
        raise ValueError(
            f"source must be a finite number or have shape {a.shape}, got shape {f.shape}"
        )
    rows, columns = a.shape
    # Coefficient of a face: permeability times length over distance. Cells are 1/columns wide and
    # 1/rows high.
    along_rows = _harmonic_mean(a[:-1], a[1:]) * (rows / columns)
    along_columns = _harmonic_mean(a[:, :-1], a[:, 1:]) * (columns / rows)
    diagonal = np.zeros_like(a)
    diagonal[:-1] += along_rows
    diagonal[1:] += along_rows
    diagonal[:, :-1] += along_columns
    diagonal[:, 1:] += along_columns
    diagonal[0] += 2 * a[0] * (rows / columns)
    diagonal[-1] += 2 * a[-1] * (rows / columns)
    diagonal[:, 0] += 2 * a[:, 0] * (columns / rows)
    diagonal[:, -1] += 2 * a[:, -1] * (columns / rows)
    cells = np.arange(a.size).reshape(a.shape)
    faces = [(cells[:-1], cells[1:], along_rows), (cells[:, :-1], cells[:, 1:], along_columns)]
    one, other, weight = (np.concatenate([np.ravel(part[i]) for part in faces]) for i in range(3))
    here = cells.reshape(-1)
    matrix = scipy.sparse.csc_array(
        (
            np.concatenate([diagonal.reshape(-1), -weight, -weight]),
            (np.concatenate([here, one, other]), np.concatenate([here, other, one])),
        ),
        shape=(a.size, a.size),
    )
    volume = 1.0 / (rows * columns)
    try:
        factors = scipy.sparse.linalg.splu(
            matrix,
            permc_spec="MMD_AT_PLUS_A",
            diag_pivot_thresh=0.0,
            options={"SymmetricMode": True},
        )
    except RuntimeError as error:
        raise ValueError(
            f"permeability must have numbers that double precision can work with, got {a.min()} to "
            f"{a.max()}: {error}"
        ) from error
    return factors.solve(np.broadcast_to(f * volume, a.shape).reshape(-1)).reshape(a.shape)


def generate_darcy_data(
    num_samples: int,
    resolution: int = 64,
    *,
    low: float = 3.0,
    high: float = 12.0,
    smoothness: float = 2.0,
    inverse_length: float = 3.0,
    modes: int | None = None,
    source: float = 1.0,
    seed: int = 0,
    workers: int = 1,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> OperatorData:
    r"""Binary permeabilities and the pressures of Darcy flow.

    The permeability of a cell is the value at its centre; the pressure is that of `solve_darcy` on
    the same cells.

    Args:
        num_samples: number of pairs.
        resolution: number of cells per axis; data live at the cell centres.
        low: permeability where the random field is negative.
        high: permeability elsewhere.
        smoothness: power $\alpha$ of the covariance, see `gaussian_random_field`.
        inverse_length: shift $\tau$ of the covariance.
        modes: modes of the random field per axis; with it given, one seed gives the same
            permeabilities, sampled on every grid.
        source: the constant right-hand side $f$.
        seed: of the random fields.
        workers: processes that solve side by side; more than one needs the usual
            ``if __name__ == "__main__"`` guard in scripts.
        cache_dir: folder of the cache; see `opifex.data.cache.default_cache_dir`.
        progress: show a progress bar.

    Returns:
        Permeabilities and pressures of shape (num_samples, resolution, resolution, 1), float32.

    Raises:
        ValueError: if a number is out of range.
        TypeError: if a count or the seed is not an integer.
    """
    check_positive_int("workers", workers)
    parameters = {
        "version": 1,
        "num_samples": check_positive_int("num_samples", num_samples),
        "resolution": check_positive_int("resolution", resolution),
        "low": check_positive("low", low),
        "high": check_positive("high", high),
        "smoothness": check_positive("smoothness", smoothness),
        "inverse_length": check_positive("inverse_length", inverse_length),
        "modes": None if modes is None else check_positive_int("modes", modes),
        "source": check_positive("source", source),
        "seed": check_nonnegative_int("seed", seed),
    }

    def compute() -> dict[str, np.ndarray]:
        field = gaussian_random_field(
            num_samples,
            (resolution, resolution),
            smoothness=smoothness,
            inverse_length=inverse_length,
            boundary="neumann",
            modes=modes,
            random_mean=False,
            seed=seed,
        )
        permeability = np.where(field >= 0, high, low)
        pressure = _solve_all(permeability, source, workers, progress)
        return {
            "inputs": permeability[..., None].astype(np.float32),
            "outputs": pressure[..., None].astype(np.float32),
        }

    return OperatorData(**cached_arrays("darcy", parameters, compute, cache_dir))


def _solve_all(
    permeabilities: Sequence[np.ndarray] | np.ndarray, source: float, workers: int, visible: bool
) -> np.ndarray:
    solve = partial(solve_darcy, source=source)
    count = len(permeabilities)
    if workers == 1:
        one_by_one = map(solve, permeabilities)
        return np.stack(list(track(one_by_one, "Darcy flow", visible=visible, total=count)))
    # Fresh processes: a forked one would inherit the locks of JAX's threads.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        side_by_side = pool.imap(solve, permeabilities, chunksize=8)
        return np.stack(list(track(side_by_side, "Darcy flow", visible=visible, total=count)))


def load_darcy_small() -> DarcySmall:
    """The small Darcy data set of the neuraloperator project, shipped with this package.

    Its licence (MIT) and contents are in ``opifex/data/files/README.md``. Inputs are the indicator
    of the binary permeability, outputs the pressure in that project's own scaling.

    Returns:
        Train (1000 samples) and test (50 samples) data of shape (samples, 16, 16, 1), float32.
    """
    file = resources.files("opifex.data").joinpath("files", "darcy_small.npz")
    with resources.as_file(file) as path, np.load(path, allow_pickle=False) as stored:
        arrays = {key: stored[key][..., None].astype(np.float32) for key in stored.files}
    return DarcySmall(
        train=OperatorData(arrays["train_x"], arrays["train_y"]),
        test=OperatorData(arrays["test_x"], arrays["test_y"]),
    )
