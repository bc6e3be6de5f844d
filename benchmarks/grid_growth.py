"""How the gain of a cascade grows with the grid: Darcy flow through a medium of three phases.

Every cell of the finest grid has one of three permeabilities, drawn independently of its neighbours;
how probable each one is varies smoothly. The pressure is smooth, but depends on the shares of the
phases. The medium has its scale in the cells of the finest grid, so that finer grids are other problems
of the same kind. It was chosen to see whether fine grids are needed where the input lives on them: the
cells of a coarse grid hold means, which tell less and less of the phases.

The rules are those of `race.py`, once for each finest grid. A network may be used on any grid that
carries its modes: its error is the lowest over them, where inputs are restricted and outputs
interpolated by cubics. Budgets grow with the number of cells.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from common import on_accelerator, parser, read_results, write_results
from operator_time_to_accuracy import OperatorCourse, in_parts
from opifex.core.metrics import relative_l2
from opifex.data import OperatorData, gaussian_random_field
from opifex.data.cache import cached_arrays
from opifex.training.multilevel import restrict_field
from race import Metric, Plan, race

PERMEABILITIES = 1.0, 5.0, 25.0
# Standard deviation of the logarithms of the probabilities' ratios.
DEVIATION = 1.5
RATES = (5e-3, 1e-2, 2e-2)


def three_phases(samples: int, shape: tuple[int, ...]) -> np.ndarray:
    """Permeabilities of shape (samples, *shape)."""
    logarithms = []
    for seed in (0, 1):
        field = gaussian_random_field(
            samples,
            shape,
            smoothness=3.0,
            inverse_length=6.0,
            boundary="neumann",
            modes=12,
            random_mean=False,
            seed=seed,
        )
        logarithms.append(DEVIATION * field / np.sqrt(np.mean(field**2)))
    odds = np.exp(np.stack([*logarithms, np.zeros_like(logarithms[0])]))
    first, second, _ = odds / np.sum(odds, axis=0)
    drawn = np.random.default_rng(0).random(first.shape)
    phase = np.where(drawn < first, 0, np.where(drawn < first + second, 1, 2))
    return np.asarray(PERMEABILITIES)[phase]


def pressure(permeability: jax.Array) -> jax.Array:
    """The pressure of cells of the unit square or cube that `solve_darcy` would find, in float64.

    Conjugate gradients, preconditioned by the Laplacian: its eigenvectors on cells with zero values
    at the walls are the sines of the cells' centres. The number of iterations is bounded by the
    contrast of the permeabilities whatever the grid.
    """
    size, dimensions = permeability.shape[0], permeability.ndim
    number, centre = jnp.arange(1, size + 1), jnp.arange(size) + 0.5
    sines = jnp.sin(jnp.pi * number[:, None] * centre / size)
    sines /= jnp.linalg.norm(sines, axis=1, keepdims=True)
    along = 4 * jnp.sin(jnp.pi * number / (2 * size)) ** 2
    eigenvalues = sum(
        along.reshape([-1 if axis == other else 1 for other in range(dimensions)])
        for axis in range(dimensions)
    )

    def transformed(field: jax.Array, matrix: jax.Array) -> jax.Array:
        for _ in range(dimensions):  # each product moves the first axis to the end
            field = jnp.tensordot(field, matrix, (0, 1), precision="highest")
        return field

    def fluxes(field: jax.Array) -> jax.Array:
        total = jnp.zeros_like(field)
        for axis in range(dimensions):
            a, u = (jnp.moveaxis(values, axis, 0) for values in (permeability, field))
            through = 2 * a[:-1] * a[1:] / (a[:-1] + a[1:]) * (u[:-1] - u[1:])
            through = jnp.concatenate([-2 * a[:1] * u[:1], through, 2 * a[-1:] * u[-1:]])
            total += jnp.moveaxis(through[1:] - through[:-1], 0, axis)
        return total

    def precondition(residual: jax.Array) -> jax.Array:
        return transformed(transformed(residual, sines) / eigenvalues, sines.T)

    source = jnp.full(permeability.shape, 1 / size**2)
    found, _ = jax.scipy.sparse.linalg.cg(fluxes, source, M=precondition, tol=1e-10)
    return found


def flow(samples: int, shape: tuple[int, ...]) -> OperatorData:
    """Permeabilities and pressures."""

    def compute() -> dict[str, np.ndarray]:
        permeability = three_phases(samples, shape)
        with jax.enable_x64(True):
            solve = jax.jit(jax.vmap(pressure))
            found = [
                np.asarray(solve(part)) for part in np.array_split(permeability, samples // 10)
            ]
        return {
            "inputs": permeability[..., None].astype(np.float32),
            "outputs": np.concatenate(found)[..., None].astype(np.float32),
        }

    parameters = {"version": 2, "samples": samples, "shape": shape}
    return OperatorData(**cached_arrays("three-phases", parameters, compute))


class MediumCourse(OperatorCourse):
    """Networks that are judged on the grid on which they do best."""

    def metric(self, which: str) -> Metric:
        """The lowest error over all grids that carry the modes of the network."""
        data = self.held_out(which)
        outputs = in_parts(data.outputs, 10)
        inputs = [
            in_parts(restrict_field(data.inputs, shape, grid_kind=self.grid_kind), 10)
            for shape in self.shapes
        ]

        def error(model: Any) -> Any:
            graph, state = nnx.split(model)

            def of_part(pair: tuple[Any, Any]) -> Any:
                fields = self.output_scale.denormalize(nnx.merge(graph, state)(pair[0]))
                fine = jax.image.resize(fields, pair[1].shape, "cubic")
                return relative_l2(fine, pair[1])

            found = [
                jnp.mean(jax.lax.map(of_part, (coarse, outputs)))
                for coarse, shape in zip(inputs, self.shapes, strict=True)
                if shape[0] >= 2 * max(model.modes) - 1
            ]
            return jnp.min(jnp.stack(found))

        return error


def course(resolution: int, dimensions: int) -> MediumCourse:
    """The finest grid, a half and a quarter of it."""
    shares = (0.35, 0.35, 0.3)
    points = [resolution // k for k in (4, 2, 1)]
    modes = (4, 8, 8) if dimensions == 2 else (4, 6, 6)
    return MediumCourse(
        f"grid_growth_{resolution}",
        lambda samples: flow(samples, (resolution,) * dimensions),
        train=500,
        validation=50,
        test=100,
        modes=tuple(min(m, n // 2) for m, n in zip(modes, points, strict=True)),
        shapes=tuple((n,) * dimensions for n in points),
        grid_kind="cell",
        cascades=(
            Plan((0, 1), (0.4, 0.6), (1.0, 1.0)),
            Plan((0, 1, 2), shares, (1.0, 1.0, 0.5)),
            Plan((1, 2), (0.7, 0.3), (1.0, 0.5)),
        ),
        rates=RATES,
        budget=120.0,
        width=16,
        batch_size=8,
        symmetries=True,
    )


def main() -> None:
    """All chosen grids."""
    options = parser(__doc__)
    options.add_argument("--dimensions", type=int, choices=(2, 3), default=2)
    options.add_argument("--grids", type=int, nargs="+", default=[64, 128])
    options.add_argument("--rates", type=float, nargs="+", default=list(RATES))
    options.add_argument("--budget", type=float, default=120.0, help="seconds on the largest grid")
    options.add_argument(
        "--samples", type=int, default=500, help="to train on; others are held out"
    )
    options.add_argument("--keep", action="store_true", help="keep results of other grids")
    options.add_argument(
        "--keep-programs", action="store_true", help="between runs: clocks without compilation"
    )
    options.add_argument("--evaluations", type=int, default=60, help="of the error during a run")
    given = options.parse_args()
    name = "grid_growth" + "_cube" * (given.dimensions == 3) + "_gpu" * on_accelerator()
    old = (read_results(name) or {"races": {}})["races"] if given.keep else {}
    races = {grid: found for grid, found in old.items() if int(grid) not in given.grids}
    for resolution in given.grids:
        share = (resolution / max(given.grids)) ** given.dimensions
        chosen = replace(
            course(resolution, given.dimensions),
            rates=given.rates,
            budget=given.budget * share,
            train=given.samples,
            keeps_programs=given.keep_programs,
            evaluations=given.evaluations,
        )
        races[str(resolution)] = race(chosen, given.seeds)
        races = dict(sorted(races.items(), key=lambda item: int(item[0])))
        write_results(name, races=races)


if __name__ == "__main__":
    main()
