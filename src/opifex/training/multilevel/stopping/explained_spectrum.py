r"""Stopping by the spectrum of a level's Fourier layers.

George et al. (iFNO, TMLR 2024, arXiv:2211.15188, section 4) measure how much of a layer's strength
lies below its highest frequencies, $\sum_{k < K - b} S_k / \sum_{k < K} S_k$ with $S_k$ the squared
norm of what belongs to frequency $k$, and add modes while this share stays below a threshold: the
outermost modes are then in use, and more would be. $S_k$ is taken from the weights, or from their
gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from flax import nnx

from opifex.core.checks import check_callable, check_fraction, check_positive_int
from opifex.models import SpectralConv
from opifex.training.multilevel.monitor import LevelProgress

__all__ = ["ExplainedSpectrum", "frequency_strengths"]


def _shells(layer: SpectralConv) -> np.ndarray:
    """The largest frequency over all axes, for each entry of the mode axes."""
    last = len(layer.modes) - 1
    axes = [
        np.arange(m) if axis == last else np.abs(np.arange(-(m - 1), m))
        for axis, m in enumerate(layer.modes)
    ]
    return np.max(np.stack(np.meshgrid(*axes, indexing="ij")), axis=0)


def frequency_strengths(layer: SpectralConv, real: Any, imag: Any) -> np.ndarray:
    """Squared norms of spectral weights, or of their gradient, by frequency.

    Args:
        layer: the layer, for the meaning of the axes.
        real: array shaped like ``layer.weight_real``.
        imag: array shaped like ``layer.weight_imag``.

    Returns:
        One number for each largest frequency over the axes, from zero on, shape (max(modes),).
    """
    squares = np.sum(np.asarray(real) ** 2 + np.asarray(imag) ** 2, axis=(-2, -1))
    return np.bincount(_shells(layer).ravel(), weights=squares.ravel(), minlength=max(layer.modes))


@dataclass(frozen=True)
class ExplainedSpectrum:
    """Stop when the outermost modes of a level carry more than a small share of the strength.

    Random initial weights have a flat spectrum, so that the criterion waits for ``min_epochs``.

    Attributes:
        explained: stay while at least this share, averaged over the layers, lies below the
            outermost ``buffer`` frequencies.
        buffer: number of outermost frequencies.
        min_epochs: stay at least this long.
        loss: ``loss(model)``, a scalar; if given, the strengths are those of its gradient. It is
            compiled once for models of one structure, so that all else it reads stays as it was.

    Raises:
        TypeError: if an attribute has the wrong type.
        ValueError: if a number is out of range.
    """

    explained: float = 0.99
    buffer: int = 1
    min_epochs: int = 10
    loss: Callable[[Any], Any] | None = None

    def __post_init__(self) -> None:
        check_fraction("explained", self.explained)
        check_positive_int("buffer", self.buffer)
        check_positive_int("min_epochs", self.min_epochs)
        if self.loss is not None:
            check_callable("loss", self.loss)

    @cached_property
    def _gradient(self) -> Callable[[Any], Any]:
        """Kept for all evaluations: a new compiled function would be traced at each."""
        assert self.loss is not None
        return nnx.jit(nnx.grad(self.loss))

    def explained_share(self, model: nnx.Module) -> float:
        """The share of the strength below the outermost frequencies, averaged over the layers.

        Raises:
            TypeError: if the model has no Fourier layer.
        """
        layers = {p: m for p, m in nnx.iter_modules(model) if isinstance(m, SpectralConv)}
        if not layers:
            raise TypeError(
                f"ExplainedSpectrum needs SpectralConv layers, {type(model).__name__} has none"
            )
        values = nnx.state(model, nnx.Param) if self.loss is None else self._gradient(model)
        flat = {
            path: leaf
            for path, leaf in nnx.to_flat_state(values)
            if str(path[-1]) in ("weight_real", "weight_imag")
        }
        shares = []
        for path, layer in layers.items():
            strengths = frequency_strengths(
                layer, *(flat[(*path, name)][...] for name in ("weight_real", "weight_imag"))
            )
            total = float(np.sum(strengths))
            inner = float(np.sum(strengths[: max(1, len(strengths) - self.buffer)]))
            shares.append(inner / total if total > 0 else 1.0)
        return float(np.mean(shares))

    def should_stop(self, progress: LevelProgress) -> bool:
        """Whether the share of the present model is below ``explained``."""
        if progress.epoch < self.min_epochs:
            return False
        return self.explained_share(progress.model) < self.explained
