"""Where the arrays of a training lie when several devices share its work.

Samples are cut into equal parts along their first axis, one for each device; every device evaluates
its own part, and one sum over the devices (an all-reduce) makes the gradient of all. Parameters and
optimizer state are the same on all devices, or, with a second axis of the mesh, in pieces: each
device then keeps and updates its piece, and the whole is put together once in every step (in the
manner of FSDP; Rajbhandari et al., arXiv:1910.02054, whose third stage this is but for the gradient).

The compiler places what lies between: a mesh with explicit axes, whose types say where every
intermediate result lies, is taken as one with automatic axes.

A level may use fewer devices than there are. Its samples are then shared among so many neighbouring
devices, and the other groups of devices do the same work once more: nothing has to be sent when a
level is left for another, no device (and no process of a cluster) drops out of the program, and the
sums run within a group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from opifex.core.checks import check_nonnegative, check_positive_int

__all__ = ["LevelPlacement", "Placement", "Put", "moved", "shape_on"]

Put = Callable[[Any, NamedSharding], Any]
"""What to do with a leaf and where it belongs: move it there, say so to the compiler, or note it."""


def moved(leaf: Any, sharding: NamedSharding) -> jax.Array:
    """An array where it belongs.

    Args:
        leaf: an array. Where other processes have a part of the devices, it is one that all of them
            share already, or one that each has as a whole.
        sharding: where it belongs.
    """
    if sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if (
        isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    ):  # a program moves it, if at all
        there = leaf.sharding == sharding
        return leaf if there else jax.jit(jnp.copy, out_shardings=sharding)(leaf)
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        numbers = moved(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(numbers, impl=jax.random.key_impl(leaf))
    return jax.device_put(np.asarray(leaf), sharding)


def shape_on(leaf: Any, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    """The shape of an array that will lie somewhere, for tracing a program.

    Args:
        leaf: an array or a shape.
        sharding: where it will lie.
    """
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding, weak_type=weak)


@dataclass(frozen=True)
class LevelPlacement:
    """Where the arrays of one level lie.

    The methods that place something take what to do with a leaf and its sharding: by default it is
    moved there; `jax.lax.with_sharding_constraint` says so to the compiler, `shape_on` makes a shape.

    Attributes:
        mesh: all devices, with automatic axes.
        data_axes: axes of the mesh over which samples are shared.
        model_axis: the axis over which parameters lie in pieces, ``None`` where there is none.
        parts: parts of the samples from which mini-batches are drawn, as many from each.
    """

    mesh: Mesh
    data_axes: tuple[str, ...]
    model_axis: str | None = None
    parts: int = 1

    @property
    def devices(self) -> int:
        """How many devices share the samples."""
        return math.prod(self.mesh.shape[axis] for axis in self.data_axes)

    def sharding(self, *axes: Any) -> NamedSharding:
        """A sharding on the mesh, by the axes of the mesh for each axis of an array."""
        return NamedSharding(self.mesh, PartitionSpec(*axes))

    @property
    def rows_spec(self) -> PartitionSpec:
        """How arrays with samples along their first axis are cut."""
        return PartitionSpec(self.data_axes)

    def rows(self, tree: Any, put: Put = moved) -> Any:
        """Arrays with samples along their first axis; single numbers go to all devices."""
        cut, whole = NamedSharding(self.mesh, self.rows_spec), self.sharding()
        return jax.tree.map(lambda leaf: put(leaf, cut if np.ndim(leaf) else whole), tree)

    def whole(self, tree: Any, put: Put = moved) -> Any:
        """Arrays that all devices have."""
        return jax.tree.map(lambda leaf: put(leaf, self.sharding()), tree)

    def together(self, tree: Any) -> Any:
        """Parameters, and what is like them, as transfers read them: no array in pieces."""
        return tree if self.model_axis is None else self.whole(tree)

    def parameters(self, tree: Any, put: Put = moved) -> Any:
        """Parameters, and a state with arrays of their shapes.

        With a model axis an array is cut along the longest of its axes that can be cut evenly, the
        first of several; what cannot be cut, and what has fewer than two numbers for each device,
        goes to all devices.
        """
        return jax.tree.map(lambda leaf: put(leaf, self._piece(leaf)), tree)

    def _piece(self, leaf: Any) -> NamedSharding:
        if self.model_axis is None or jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
            return self.sharding()
        pieces = self.mesh.shape[self.model_axis]
        even = [(size, -axis) for axis, size in enumerate(leaf.shape) if size % pieces == 0]
        if not even or leaf.size < 2 * pieces:
            return self.sharding()
        return self.sharding(*[None] * -max(even)[1], self.model_axis)


@dataclass(frozen=True)
class Placement:
    """How several devices share a training; give it to `MultilevelConfig`.

    All processes of a cluster must give the same arrays, or arrays that are placed already.

    Attributes:
        mesh: the devices. Axes that are not named below hold copies.
        data_axis: the axis over which samples are shared.
        model_axis: a second axis: parameters and optimizer state lie in pieces over it, and samples
            are shared over both axes.
        devices: how many places of the data axis share the samples of each level, coarsest first;
            divisors of its size. By default all of them on every level.
        least_work: samples of a step times parameters that a device should have at least: a level
            takes the largest number of devices that leaves each so much, or one. Zero is no limit.
        parts: parts of the samples from which mini-batches are drawn, as many from each; a multiple of
            the number of devices of every level, by default that number. Two runs with equal parts
            take the same steps on whatever number of devices, up to rounding.

    Raises:
        TypeError: if an argument has the wrong type.
        ValueError: if the mesh has no such axis, or a number of devices does not divide its size.

    Example:
        >>> import jax
        >>> from opifex.training.multilevel import MultilevelConfig, Placement
        >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
        >>> config = MultilevelConfig(num_levels=2, placement=Placement(mesh))
    """

    mesh: Mesh
    data_axis: str = "data"
    model_axis: str | None = None
    devices: Sequence[int] | None = None
    least_work: float = 0.0
    parts: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.mesh, Mesh):
            raise TypeError(f"mesh must be a jax.sharding.Mesh, got {self.mesh!r}")
        names = {"data_axis": self.data_axis}
        if self.model_axis is not None:
            names["model_axis"] = self.model_axis
        for name, axis in names.items():
            if axis not in self.mesh.axis_names:
                raise ValueError(
                    f"{name} must be one of the axes {self.mesh.axis_names} of the mesh, got {axis!r}"
                )
        if self.model_axis == self.data_axis:
            raise ValueError(
                f"model_axis must be another axis than data_axis, got {self.data_axis!r}"
            )
        check_nonnegative("least_work", self.least_work)
        if self.parts is not None:
            check_positive_int("parts", self.parts)
        if self.devices is None:
            return
        if self.least_work:
            raise ValueError(
                f"devices and least_work={self.least_work} both choose the devices of a level: give one"
            )
        if isinstance(self.devices, str) or not isinstance(self.devices, Sequence):
            raise TypeError(f"devices must be a sequence of integers, got {self.devices!r}")
        size = self.mesh.shape[self.data_axis]
        for level, number in enumerate(self.devices):
            if size % check_positive_int(f"devices[{level}]", number):
                raise ValueError(
                    f"devices[{level}] must divide the {size} places of the axis {self.data_axis!r}, "
                    f"got {number}"
                )
        object.__setattr__(self, "devices", tuple(self.devices))

    @classmethod
    def found(cls, data: Any = ()) -> Placement | None:
        """The placement that the surroundings ask for, if their mesh has an axis ``"data"``.

        Args:
            data: training data; if ``jax.set_mesh`` was not called, the mesh is the one over which an
                array among them is spread.

        Returns:
            A placement with the axes ``"data"``, and ``"model"`` where the mesh has one; or ``None``.
        """
        leaves = jax.tree.leaves(data, is_leaf=lambda leaf: isinstance(leaf, Iterator))
        shardings = [getattr(leaf, "sharding", None) for leaf in leaves]
        meshes = [one.mesh for one in shardings if isinstance(one, NamedSharding)]
        for mesh in (jax.sharding.get_mesh(), *meshes):
            if isinstance(mesh, Mesh) and mesh.size > 1 and "data" in mesh.axis_names:
                return cls(mesh, model_axis="model" if "model" in mesh.axis_names else None)
        return None

    @cached_property
    def automatic(self) -> Mesh:
        """The mesh with automatic axes; the data axis in prime factors where levels may use a part."""
        names, shape = list(self.mesh.axis_names), list(self.mesh.devices.shape)
        if self.devices is not None or self.least_work:
            where = names.index(self.data_axis)
            factors = tuple(_prime_factors(shape[where])) or (1,)
            names[where : where + 1] = [f"{self.data_axis}_{i}" for i in range(len(factors))]
            shape[where : where + 1] = factors
        return _with_automatic_axes(Mesh(self.mesh.devices.reshape(shape), names))

    def active(self) -> AbstractContextManager[Any]:
        """A context in which new arrays lie on the devices, and the compiler places what it makes."""
        return jax.set_mesh(self.automatic)

    @property
    def outside(self) -> LevelPlacement:
        """Where the user expects parameters and states: on the mesh that was given.

        JAX lets arrays on explicit axes work with others only while their mesh is the surrounding one.
        """
        surrounding = jax.sharding.get_mesh() == self.mesh
        mesh = self.mesh if surrounding else _with_automatic_axes(self.mesh)
        return LevelPlacement(mesh, (), self.model_axis)

    def at(self, level: int, samples: int, parameters: int) -> LevelPlacement:
        """Where the arrays of a level lie.

        Args:
            level: the level; 0 is the coarsest.
            samples: those of one step; of several terms the most.
            parameters: number of trainable numbers.

        Raises:
            ValueError: if ``devices`` has no entry for the level, or ``parts`` is no multiple of the
                number of devices.
        """
        mesh = self.automatic
        others = () if self.model_axis is None else (self.model_axis,)
        number = self._number(level, samples * parameters)
        axes: list[str] = []
        for axis in reversed(mesh.axis_names):  # the last axes hold neighbouring devices
            own = axis == self.data_axis or axis not in self.mesh.axis_names
            if own and number % mesh.shape[axis] == 0:
                axes.insert(0, axis)
                number //= mesh.shape[axis]
        placement = LevelPlacement(mesh, (*axes, *others), self.model_axis)
        parts = placement.devices if self.parts is None else self.parts
        if parts % placement.devices:
            raise ValueError(
                f"parts must be a multiple of the {placement.devices} devices of level {level}, "
                f"got {parts}"
            )
        return LevelPlacement(mesh, placement.data_axes, self.model_axis, parts)

    def _number(self, level: int, work: int) -> int:
        """How many places of the data axis a level uses."""
        size = self.mesh.shape[self.data_axis]
        if self.devices is not None:
            if level >= len(self.devices):
                raise ValueError(
                    f"devices must have an entry for every level, got {len(self.devices)} and no "
                    f"entry for level {level}"
                )
            return self.devices[level]
        others = 1 if self.model_axis is None else self.mesh.shape[self.model_axis]
        divisors = [number for number in range(1, size + 1) if size % number == 0]
        enough = [n for n in divisors if work >= self.least_work * n * others]
        return max(enough, default=1)


def _with_automatic_axes(mesh: Mesh) -> Mesh:
    types = (AxisType.Auto,) * len(mesh.axis_names)
    return Mesh(mesh.devices, mesh.axis_names, axis_types=types)


def _prime_factors(number: int) -> Iterator[int]:
    factor = 2
    while number > 1:
        if number % factor == 0:
            yield factor
            number //= factor
        else:
            factor += 1
