"""What the axes of a parameter mean, so that a transfer knows how a layer grows.

A parameter axis either *reads* (it is indexed by features or Fourier modes that the layer
consumes), *writes* (indexed by features that the layer produces) or is *fixed*. When a layer grows,
the old entries stay where they are and new ones are appended; symmetric frequency axes grow on
both sides. That is all a transfer needs: copying, truncating and function preservation follow.

The registry below knows the layers of Flax and of this library; `register_axes` adds others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from flax import nnx

from opifex.models import FourierFeatures, FrequencyBand, HiddenLayer, MultiscaleMLP, SpectralConv

__all__ = [
    "FIXED",
    "READS",
    "READS_CENTRED",
    "WRITES",
    "Axis",
    "LayerAxes",
    "lookup_axes",
    "register_axes",
]


@dataclass(frozen=True)
class Axis:
    """The meaning of one parameter axis.

    Attributes:
        role: ``"reads"``, ``"writes"`` or ``"fixed"``.
        centred: new entries are added on both sides in equal number (an axis of frequencies
            from -(m-1) to m-1) instead of at the end.
    """

    role: Literal["reads", "writes", "fixed"]
    centred: bool = False


FIXED = Axis("fixed")
READS = Axis("reads")
READS_CENTRED = Axis("reads", centred=True)
WRITES = Axis("writes")

AxesOf = tuple[Axis, ...] | Callable[[int], tuple[Axis, ...]]


@dataclass(frozen=True)
class LayerAxes:
    """The axes of every parameter of one layer class.

    Attributes:
        parameters: parameter name to its axes, or to a function from the number of axes to them.
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
        """Axes of parameter ``name``, or ``None`` if this layer does not describe it."""
        described = self.parameters.get(name)
        if described is None:
            return None
        return described(ndim) if callable(described) else described


def _convolution(ndim: int) -> tuple[Axis, ...]:
    return (FIXED,) * (ndim - 2) + (READS, WRITES)


def _spectral(ndim: int) -> tuple[Axis, ...]:
    return (READS_CENTRED,) * (ndim - 3) + (READS, READS, WRITES)


_REGISTRY: dict[type[nnx.Module], LayerAxes] = {
    nnx.Linear: LayerAxes({"kernel": (READS, WRITES), "bias": (WRITES,)}),
    nnx.Conv: LayerAxes({"kernel": _convolution, "bias": (WRITES,)}),
    nnx.Embed: LayerAxes({"embedding": (FIXED, WRITES)}),
    nnx.LayerNorm: LayerAxes({"scale": (WRITES,), "bias": (WRITES,)}, width_preserving=False),
    nnx.BatchNorm: LayerAxes(
        {"scale": (WRITES,), "bias": (WRITES,), "mean": (WRITES,), "var": (WRITES,)}
    ),
    SpectralConv: LayerAxes(
        {"weight_real": _spectral, "weight_imag": _spectral, "bias": (WRITES,)}
    ),
    HiddenLayer: LayerAxes({"gate": ()}, identity_gates=("gate",)),
    FourierFeatures: LayerAxes({"directions": (FIXED, WRITES), "phases": (WRITES,)}),
    FrequencyBand: LayerAxes(
        {"frequency": (), "amplitudes": (READS, WRITES)}, identity_gates=("amplitudes",)
    ),
    MultiscaleMLP: LayerAxes({"bias": (WRITES,)}),
}


def register_axes(module_type: type[nnx.Module], axes: LayerAxes) -> None:
    """Describe the parameters of a layer class, so that models which use it can be transferred.

    Args:
        module_type: an ``nnx.Module`` subclass; subclasses of it are covered too.
        axes: the description.

    Raises:
        TypeError: if an argument has the wrong type.
    """
    if not (isinstance(module_type, type) and issubclass(module_type, nnx.Module)):
        raise TypeError(f"module_type must be an nnx.Module subclass, got {module_type!r}")
    if not isinstance(axes, LayerAxes):
        raise TypeError(f"axes must be a LayerAxes, got {axes!r} of type {type(axes).__name__}")
    _REGISTRY[module_type] = axes


def lookup_axes(module_type: type) -> LayerAxes | None:
    """The description of a layer class or of its nearest registered base class, if any."""
    for base in module_type.__mro__:
        if base in _REGISTRY:
            return _REGISTRY[base]
    return None
