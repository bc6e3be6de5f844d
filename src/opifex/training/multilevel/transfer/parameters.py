r"""Transfer operators: pure maps between the parameters of two neighbouring levels.

Three maps share one plan of where the coarse entries sit, see
`opifex.training.multilevel.transfer.inference`:

* copy-and-pad, $P x_H = $ coarse entries in place, the rest as the fine model has them;
* truncation, $R x_h = $ the entries that have a coarse counterpart, so $R P = I$ exactly;
* function-preserving prolongation, which pads with zeros wherever an *old* output would read a
  *new* feature or mode. The fine model then computes the coarse function to rounding, while the
  rows that feed new units keep their random start: their outgoing weights see a gradient at once
  and no two new units are copies of each other (compare Net2Net, arXiv:1511.05641, section 2,
  whose copies are symmetric). Only where a statistic runs over features (layer normalisation) do new
  features repeat old ones, as in LEMON (arXiv:2310.07999, section 4): mean and variance stay the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array

from opifex.core.checks import check_module, check_positive
from opifex.models import SpectralConv
from opifex.training.multilevel.transfer.inference import plan_transfer
from opifex.training.multilevel.transfer.placements import entries, placed_like
from opifex.training.multilevel.transfer.tracing import path_text

ModelT = TypeVar("ModelT", bound=nnx.Module)
Transfer = Callable[..., Any]
"""A map between levels: ``transfer(source_model, target_model) -> new target model``.

One that promises that the new model computes the source model's function says so by an attribute,
``transfer.preserves_function = True``; `verify_transfer` checks such a promise."""

__all__ = [
    "Transfer",
    "prolongate",
    "prolongate_correction",
    "prolongate_fno_modes",
    "prolongate_preserving",
    "restrict",
    "restrict_fno_modes",
    "restrict_gradient",
]


def _with_variables(model: ModelT, state: Any) -> ModelT:
    return nnx.merge(nnx.graphdef(model), state, copy=True)


def prolongate(coarse_model: ModelT, fine_model: ModelT, *inputs: Any) -> ModelT:
    """Copy and pad: coarse entries in place, all other entries as ``fine_model`` has them.

    The result does **not** compute the coarse model's function: old units now also read new, random
    ones. `prolongate_preserving` does.

    Args:
        coarse_model: model of the coarser level.
        fine_model: model of the finer level, whose values fill the new entries.
        *inputs: what both models take, see `plan_transfer`.

    Returns:
        A new model with the structure of ``fine_model``; neither argument is changed.

    Raises:
        TypeError: if an argument is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match; the message names the layer.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_network_hierarchy, prolongate
        >>> coarse, fine = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> new = prolongate(coarse, fine)
        >>> bool((new.output.kernel[:4] == coarse.output.kernel[:]).all())
        True
        >>> bool((new.output.kernel[4:] == fine.output.kernel[4:]).all())
        True
    """
    plan = plan_transfer(coarse_model, fine_model, *inputs)
    return _with_variables(fine_model, plan.prolong(nnx.state(coarse_model), nnx.state(fine_model)))


def restrict(fine_model: ModelT, coarse_model: ModelT, *inputs: Any) -> ModelT:
    """Truncate: the entries of ``fine_model`` that have a coarse counterpart.

    ``restrict(prolongate(c, f), c)`` has the dtypes, the sharding, the ties between layers and
    exactly the values of ``c``, and so has ``restrict(prolongate_preserving(c, f), c)``; provided
    that the dtypes of ``f`` hold the values of ``c``, which bfloat16 does not for float32. Parameters
    that a transfer has to scale (queries of attention whose heads become wider) come back to one
    rounding error.

    Args:
        fine_model: model of the finer level.
        coarse_model: model of the coarser level, which gives the structure.
        *inputs: what both models take, see `plan_transfer`.

    Returns:
        A new model with the structure of ``coarse_model``; neither argument is changed.

    Raises:
        TypeError: if an argument is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match; the message names the layer.

    Example:
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_network_hierarchy, restrict
        >>> coarse, fine = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> bool((restrict(fine, coarse).output.kernel[:] == fine.output.kernel[:4]).all())
        True
    """
    plan = plan_transfer(coarse_model, fine_model, *inputs)
    state = plan.restrict(nnx.state(fine_model), nnx.state(coarse_model))
    return _with_variables(coarse_model, state)


def prolongate_preserving(coarse_model: ModelT, fine_model: ModelT, *inputs: Any) -> ModelT:
    """Prolongate so that the fine model computes the coarse model's function, to rounding.

    Which entries that concerns is inferred from what the models do. Entries through which old outputs
    would read new features or modes start at zero, and so does the last layer of every residual branch
    that only the fine model has; every other new entry keeps the value it has in ``fine_model``. In
    front of a normalisation over features that widens, new features repeat the old ones.

    Args:
        coarse_model: model of the coarser level.
        fine_model: model of the finer level, whose values start the incoming weights of new units.
        *inputs: what both models take, see `plan_transfer`.

    Returns:
        A new model with the structure of ``fine_model``; neither argument is changed.

    Raises:
        TypeError: if an argument is not an ``nnx.Module`` or the classes differ.
        ValueError: if the structures do not match, or the function cannot be preserved (a normalisation
            whose width grows by no whole number, a softmax over features, an added layer that is no
            term of a sum); the message says where and why.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import create_network_hierarchy, prolongate_preserving
        >>> coarse, fine = create_network_hierarchy(2, 1, [8], num_levels=2, rngs=nnx.Rngs(0))
        >>> new, x = prolongate_preserving(coarse, fine), jnp.ones((5, 2))
        >>> bool(jnp.allclose(new(x), coarse(x), atol=1e-4))
        True
    """
    plan = plan_transfer(coarse_model, fine_model, *inputs)
    if plan.obstacles:
        raise ValueError(
            "the coarse function cannot be preserved: "
            + "; ".join(plan.obstacles)
            + ". prolongate copies what both models have, without that promise"
        )
    state = plan.preserve(nnx.state(coarse_model), nnx.state(fine_model))
    return _with_variables(fine_model, state)


prolongate_preserving.preserves_function = True  # type: ignore[attr-defined]


def _zeros(array: Array) -> Array:
    return placed_like(np.zeros(array.shape, array.dtype), array)


def _check_parameters(name: str, tree: Any, model_name: str, model: nnx.Module) -> None:
    """Raise unless a tree is like the parameters of a model."""
    check_module(model_name, model)
    if not isinstance(tree, nnx.State):
        raise TypeError(
            f"{name} must be an nnx.State like the parameters of {model_name}, got "
            f"{type(tree).__name__}"
        )
    found, wanted = (
        {path: jnp.shape(leaf) for path, leaf in entries(state).items()}
        for state in (tree, nnx.state(model, nnx.Param))
    )
    for path in [*wanted, *found]:
        if found.get(path) != wanted.get(path):
            raise ValueError(
                f"{name} must be like the parameters of {model_name}, with {wanted.get(path)} at "
                f"{path_text(path)}, got {found.get(path)}"
            )


def prolongate_correction(
    coarse_tree: Any, coarse_model: nnx.Module, fine_model: nnx.Module
) -> Any:
    """The linear prolongation $P$: a fine tree that holds a coarse one, and is zero elsewhere.

    Differences of parameters and search directions move this way.

    Args:
        coarse_tree: a tree like the parameters of ``coarse_model``.
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.

    Returns:
        A tree like the parameters of ``fine_model``.

    Raises:
        TypeError: if a model is not an ``nnx.Module``, the classes differ, or ``coarse_tree`` is no
            ``nnx.State``.
        ValueError: if the structures do not match; the message names the layer.
    """
    _check_parameters("coarse_tree", coarse_tree, "coarse_model", coarse_model)
    check_module("fine_model", fine_model)
    zeros = jax.tree.map(_zeros, nnx.state(fine_model, nnx.Param))
    return plan_transfer(coarse_model, fine_model).prolong(coarse_tree, zeros)


def restrict_gradient(
    fine_tree: Any, coarse_model: nnx.Module, fine_model: nnx.Module, *, scale: float = 1.0
) -> Any:
    r"""The variational restriction $c P^T$: the entries of a fine tree with a coarse counterpart.

    Gradients, which are dual to parameters, move this way: $\langle P x, y \rangle =
    \langle x, P^T y \rangle$.

    Args:
        fine_tree: a tree like the parameters of ``fine_model``.
        coarse_model: model of the coarser level.
        fine_model: model of the finer level.
        scale: the factor $c$.

    Returns:
        A tree like the parameters of ``coarse_model``.

    Raises:
        TypeError: if a model is not an ``nnx.Module``, the classes differ, or ``fine_tree`` is no
            ``nnx.State``.
        ValueError: if the structures do not match, or ``scale`` is not positive.
    """
    scale = check_positive("scale", scale)
    _check_parameters("fine_tree", fine_tree, "fine_model", fine_model)
    plan = plan_transfer(coarse_model, fine_model)
    restricted = plan.restrict(fine_tree, nnx.state(coarse_model, nnx.Param), dual=True)
    return jax.tree.map(lambda leaf: scale * leaf, restricted)


def _check_has_spectral_layers(name: str, model: nnx.Module) -> None:
    check_module(name, model)
    if not any(isinstance(module, SpectralConv) for _, module in nnx.iter_modules(model)):
        raise TypeError(
            f"{name} must contain SpectralConv layers, got a {type(model).__name__} without any"
        )


def prolongate_fno_modes(coarse_model: ModelT, fine_model: ModelT) -> ModelT:
    """`prolongate` for Fourier neural operators: each mode goes to its own frequency.

    Arguments, result and errors are those of `prolongate`.

    Raises:
        TypeError: also if a model has no `SpectralConv` layer.
        ValueError: if the structures do not match.
    """
    _check_has_spectral_layers("coarse_model", coarse_model)
    _check_has_spectral_layers("fine_model", fine_model)
    return prolongate(coarse_model, fine_model)


def restrict_fno_modes(fine_model: ModelT, coarse_model: ModelT) -> ModelT:
    """`restrict` for Fourier neural operators: drops the frequencies the coarse model lacks.

    Arguments, result and errors are those of `restrict`.

    Raises:
        TypeError: also if a model has no `SpectralConv` layer.
        ValueError: if the structures do not match.
    """
    _check_has_spectral_layers("fine_model", fine_model)
    _check_has_spectral_layers("coarse_model", coarse_model)
    return restrict(fine_model, coarse_model)
