"""What the axes of a parameter mean, so that a transfer knows how a layer grows.

A fan-in axis is indexed by features or Fourier modes that the layer consumes, a fan-out axis by
features that it produces; a fixed axis never grows. When a layer grows, the old entries stay where
they are and new ones are appended; symmetric frequency axes grow on both sides. That is all a
transfer needs: copying, truncating and function preservation follow.

The registry below knows the layers of Flax and of this library; `register_axes` adds others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from flax import nnx

from opifex.models import (
    FourierFeatures,
    FrequencyBand,
    HiddenLayer,
    MultiscaleMLP,
    RandomFeatures,
    SpectralConv,
)

__all__ = [
    "FAN_IN",
    "FAN_IN_CENTRED",
    "FAN_IN_MODES",
    "FAN_OUT",
    "FIXED",
    "Axis",
    "LayerAxes",
    "lookup_axes",
    "register_axes",
]


@dataclass(frozen=True)
class Axis:
    """The meaning of one parameter axis.

    Attributes:
        role: ``"fan-in"``, ``"fan-out"`` or ``"fixed"``.
        centred: new entries are added on both sides in equal number (an axis of frequencies
            from -(m-1) to m-1) instead of at the end.
        modes: the axis is indexed by Fourier modes, each of which acts on a component of its own, so
            that their number does not enlarge any sum.
    """

    role: Literal["fan-in", "fan-out", "fixed"]
    centred: bool = False
    modes: bool = False


FIXED = Axis("fixed")
"""An axis that never grows."""

FAN_IN = Axis("fan-in")
"""An axis of consumed features, which grows at its end."""

FAN_IN_MODES = Axis("fan-in", modes=True)
"""An axis of consumed frequencies from 0 to m - 1, which grows at its end."""

FAN_IN_CENTRED = Axis("fan-in", centred=True, modes=True)
"""An axis of consumed frequencies from -(m - 1) to m - 1, which grows on both sides."""

FAN_OUT = Axis("fan-out")
"""An axis of produced features, which grows at its end."""

AxesOf = tuple[Axis, ...] | Callable[[int], tuple[Axis, ...]]


@dataclass(frozen=True)
class LayerAxes:
    """The axes of every parameter of one layer class.

    Attributes:
        parameters: parameter name to its axes, or to a function from the number of axes to them.
            The name of a list or dictionary stands for all parameters in it. Further leading axes,
            as ``nnx.vmap`` makes them, are fixed.
        width_preserving: whether appending features leaves the old outputs alone. False for
            normalisations over features, whose statistics change with the width.
        identity_gates: names of parameters which, set to zero, make a model compute what it would
            compute without the layer: the identity for a layer in a chain, nothing for a term of a
            sum. A layer that exists only on the fine level needs one to preserve the function.
    """

    parameters: Mapping[str, AxesOf]
    width_preserving: bool = True
    identity_gates: tuple[str, ...] = ()

    def axes(self, name: str, ndim: int) -> tuple[Axis, ...] | None:
        """Axes of a parameter, or ``None`` if this layer does not describe it.

        Args:
            name: name of the parameter.
            ndim: number of its axes.

        Raises:
            ValueError: if the parameter has fewer axes than its description.
        """
        described = self.parameters.get(name)
        if described is None:
            return None
        axes = described(ndim) if callable(described) else described
        if len(axes) > ndim:
            raise ValueError(f"{name} is described with {len(axes)} axes, but has {ndim}")
        return (FIXED,) * (ndim - len(axes)) + axes


def _spectral(ndim: int) -> tuple[Axis, ...]:
    return (FAN_IN_CENTRED,) * (ndim - 3) + (FAN_IN_MODES, FAN_IN, FAN_OUT)


_REGISTRY: dict[type[nnx.Module], LayerAxes] = {
    nnx.Linear: LayerAxes({"kernel": (FAN_IN, FAN_OUT), "bias": (FAN_OUT,)}),
    nnx.Conv: LayerAxes({"kernel": (FAN_IN, FAN_OUT), "bias": (FAN_OUT,)}),
    nnx.Embed: LayerAxes({"embedding": (FIXED, FAN_OUT)}),
    nnx.LayerNorm: LayerAxes({"scale": (FAN_OUT,), "bias": (FAN_OUT,)}, width_preserving=False),
    nnx.BatchNorm: LayerAxes(
        {"scale": (FAN_OUT,), "bias": (FAN_OUT,), "mean": (FAN_OUT,), "var": (FAN_OUT,)}
    ),
    SpectralConv: LayerAxes(
        {"weight_real": _spectral, "weight_imag": _spectral, "bias": (FAN_OUT,)}
    ),
    HiddenLayer: LayerAxes({"gate": ()}, identity_gates=("gate",)),
    FourierFeatures: LayerAxes({"directions": (FIXED, FAN_OUT), "phases": (FAN_OUT,)}),
    RandomFeatures: LayerAxes({"weights": (FIXED, FAN_OUT), "biases": (FAN_OUT,)}),
    FrequencyBand: LayerAxes(
        {"frequency": (), "amplitudes": (FAN_IN, FAN_OUT)}, identity_gates=("amplitudes",)
    ),
    MultiscaleMLP: LayerAxes({"bias": (FAN_OUT,)}),
}


def register_axes(module_type: type[nnx.Module], axes: LayerAxes) -> None:
    """Describe the parameters of a layer class, so that models which use it can be transferred.

    Args:
        module_type: an ``nnx.Module`` subclass; subclasses of it are covered too.
        axes: the description.

    Raises:
        TypeError: if an argument has the wrong type.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import FAN_OUT, LayerAxes, prolongate, register_axes
        >>> class Scale(nnx.Module):
        ...     def __init__(self, factors):
        ...         self.factors = nnx.Param(jnp.array(factors))
        >>> register_axes(Scale, LayerAxes({"factors": (FAN_OUT,)}))
        >>> prolongate(Scale([5.0]), Scale([1.0, 2.0])).factors[...].tolist()
        [5.0, 2.0]
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nnx.Module)):
        raise TypeError(f"module_type must be an nnx.Module subclass, got {module_type!r}")
    if not isinstance(axes, LayerAxes):
        raise TypeError(f"axes must be a LayerAxes, got {axes!r} of type {type(axes).__name__}")
    _REGISTRY[module_type] = axes


def lookup_axes(module_type: type) -> LayerAxes | None:
    """The description of a layer class or of its nearest registered base class, else ``None``."""
    for base in module_type.__mro__:
        if base in _REGISTRY:
            return _REGISTRY[base]
    return None
