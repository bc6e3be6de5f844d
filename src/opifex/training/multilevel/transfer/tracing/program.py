"""A model as a flat list of operations, so that two models can be compared operation by operation.

Calls of compiled or checkpointed functions are written out. The body of a loop appears once: what it
carries along begins as the value from outside and ends as the value of the body (``carry`` and
``carried``), and what it consumes and produces step by step are slices and stacks along the axis of
steps. Of the branches of a condition all appear. That is enough for the question what belongs together;
nothing of it is ever run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.extend.core import Literal

from opifex.models import SpectralConv

Path = tuple[Any, ...]

__all__ = [
    "Operation",
    "Path",
    "Program",
    "Value",
    "named",
    "needed",
    "path_text",
    "trace",
    "transferable",
]


@dataclass(eq=False)
class Value:
    """An array in a program.

    Attributes:
        shape: its shape.
        dtype: its dtype.
        producer: the operation that computes it; of inputs, parameters and constants ``None``.
        parameter: path of the variable that it is, if it is one.
        constant: its value, if it is a constant.
    """

    shape: tuple[int, ...]
    dtype: Any
    producer: Operation | None = None
    parameter: Path | None = None
    constant: Any = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)


@dataclass(eq=False)
class Operation:
    """One operation of a program.

    Attributes:
        name: name of the primitive, or of a piece of a loop.
        primitive: the primitive of JAX, if it is one.
        settings: its static parameters.
        inputs: what it reads.
        outputs: what it computes.
        place: where in the source of the model it stands.
        partner: of the beginning of a carried value, the operation that ends it.
    """

    name: str
    primitive: Any
    settings: dict[str, Any]
    inputs: list[Value]
    outputs: list[Value]
    place: str
    partner: Operation | None = None


@dataclass
class Program:
    """A model as a list of operations.

    Attributes:
        parameters: its variables by their paths.
        inputs: its arguments.
        outputs: what it returns.
        operations: the operations, in order.
    """

    parameters: dict[Path, Value]
    inputs: list[Value]
    outputs: list[Value] = field(default_factory=list)
    operations: list[Operation] = field(default_factory=list)


def named(text: str) -> frozenset[str]:
    """The names of operations in a text."""
    return frozenset(text.split())


def path_text(path: Path) -> str:
    """The path of a variable or module as text."""
    return ".".join(str(part) for part in path) or "the model itself"


def transferable(model: nnx.Module) -> dict[Path, nnx.Variable]:
    """Every array variable but random keys and the states of random number generators."""
    flat = nnx.to_flat_state(nnx.state(model, nnx.Not(nnx.RngState)))
    return {p: v for p, v in flat if not jnp.issubdtype(v[...].dtype, jax.dtypes.extended)}


_CALLS = ("jaxpr", "call_jaxpr", "fun_jaxpr")
_OUTSIDE = ("/jax/", "/jaxlib/", "/flax/", "/equinox/", "/functools.py", "/contextlib.py")


def _place(source: Any, within: str) -> str:
    frames = getattr(getattr(source, "traceback", None), "frames", ())
    for frame in frames:
        if not any(part in frame.file_name for part in _OUTSIDE):
            if frame.function_name == "evaluate" and frame.file_name == __file__:
                break
            name = frame.file_name.rsplit("/", 1)[-1]
            return f"{name}, line {frame.line_num}, in {frame.function_name}"
    return within


class _Writer:
    """Writes a program of JAX out into a list of operations."""

    def __init__(self, program: Program) -> None:
        self.program = program

    def emit(
        self,
        name: str,
        inputs: Sequence[Value],
        shapes: Sequence[Any],
        place: str,
        *,
        primitive: Any = None,
        settings: dict[str, Any] | None = None,
    ) -> Operation:
        operation = Operation(name, primitive, settings or {}, list(inputs), [], place)
        operation.outputs = [
            Value(tuple(aval.shape), getattr(aval, "dtype", None), operation) for aval in shapes
        ]
        self.program.operations.append(operation)
        return operation

    def write(
        self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Value], within: str
    ) -> list[Value]:
        """Append the operations of a jaxpr; the values of its results."""
        values: dict[Any, Value] = dict(zip(jaxpr.invars, arguments, strict=True))
        for variable, constant in zip(jaxpr.constvars, constants, strict=True):
            values[variable] = Value(np.shape(constant), constant.dtype, constant=constant)

        def read(atom: Any) -> Value:
            if isinstance(atom, Literal):
                return Value(np.shape(atom.val), np.asarray(atom.val).dtype, constant=atom.val)
            return values[atom]

        for equation in jaxpr.eqns:
            inputs = [read(atom) for atom in equation.invars]
            place = _place(equation.source_info, within)
            values.update(
                zip(equation.outvars, self.equation(equation, inputs, place), strict=True)
            )
        return [read(atom) for atom in jaxpr.outvars]

    def inner(self, jaxpr: Any, arguments: Sequence[Value], place: str) -> list[Value]:
        """Append the operations of a jaxpr, closed over its constants or not."""
        if hasattr(jaxpr, "consts"):
            return self.write(jaxpr.jaxpr, jaxpr.consts, arguments, place)
        return self.write(jaxpr, (), arguments, place)

    def equation(self, equation: Any, inputs: list[Value], place: str) -> list[Value]:
        name, settings = equation.primitive.name, equation.params
        shapes = [variable.aval for variable in equation.outvars]
        if name == "scan":
            return self.scan(settings, inputs, shapes, place)
        if name == "while":
            return self.loop(settings, inputs, place)
        if name == "cond":
            branches = [self.inner(b, inputs[1:], place) for b in settings["branches"]]
            merged = zip(*branches, strict=True)
            return [
                self.emit("branches", [inputs[0], *values], [shape], place).outputs[0]
                for values, shape in zip(merged, shapes, strict=True)
            ]
        if name in ("copy", "copy_p", "optimization_barrier", "sharding_constraint"):
            return inputs
        for call in _CALLS:
            if call in settings:
                return self.inner(settings[call], inputs, place)
        if name in ("stack", "unstack", "tile"):
            return getattr(self, name)(settings, inputs, shapes, place)
        if _does_nothing(name, settings, inputs, shapes):
            return inputs[:1]
        return self.emit(
            name, inputs, shapes, place, primitive=equation.primitive, settings=settings
        ).outputs

    def reshaped(self, value: Value, shape: Sequence[int], place: str) -> Value:
        settings = {"dimensions": None, "new_sizes": tuple(shape), "sharding": None}
        aval = jax.ShapeDtypeStruct(tuple(shape), value.dtype)
        primitive = jax.lax.reshape_p
        return self.emit(
            "reshape", [value], [aval], place, primitive=primitive, settings=settings
        ).outputs[0]

    def stack(self, settings: Any, inputs: Any, shapes: Any, place: str) -> list[Value]:
        axis = settings["axis"]
        parts = [self.reshaped(i, (*i.shape[:axis], 1, *i.shape[axis:]), place) for i in inputs]
        return self.emit(
            "concatenate", parts, shapes, place, primitive=jax.lax.concatenate_p,
            settings={"dimension": axis},
        ).outputs  # fmt: skip

    def unstack(self, settings: Any, inputs: Any, shapes: Any, place: str) -> list[Value]:
        axis, whole = settings["axis"], inputs[0]
        results = []
        for number, shape in enumerate(shapes):
            starts, ends = [0] * whole.ndim, list(whole.shape)
            starts[axis], ends[axis] = number, number + 1
            bounds = {"start_indices": tuple(starts), "limit_indices": tuple(ends), "strides": None}
            sizes = tuple(e - b for b, e in zip(starts, ends, strict=True))
            part = self.emit(
                "slice", [whole], [jax.ShapeDtypeStruct(sizes, whole.dtype)], place,
                primitive=jax.lax.slice_p, settings=bounds,
            ).outputs[0]  # fmt: skip
            results.append(self.reshaped(part, shape.shape, place))
        return results

    def tile(self, settings: Any, inputs: Any, shapes: Any, place: str) -> list[Value]:
        value = inputs[0]
        sizes = [n for pair in zip(settings["reps"], value.shape, strict=True) for n in pair]
        kept = tuple(range(1, 2 * value.ndim, 2))
        spread = self.emit(
            "broadcast_in_dim", [value], [jax.ShapeDtypeStruct(tuple(sizes), value.dtype)], place,
            primitive=jax.lax.broadcast_in_dim_p,
            settings={"shape": tuple(sizes), "broadcast_dimensions": kept, "sharding": None},
        ).outputs[0]  # fmt: skip
        return [self.reshaped(spread, shapes[0].shape, place)]

    def carried(self, starts: Sequence[Value], place: str) -> list[Operation]:
        return [self.emit("carry", [start], [start], place) for start in starts]

    def ended(self, begun: Sequence[Operation], ends: Sequence[Value], place: str) -> list[Value]:
        results = []
        for begin, end in zip(begun, ends, strict=True):
            begin.partner = self.emit("carried", [begin.outputs[0], end], [end], place)
            results.append(begin.partner.outputs[0])
        return results

    def scan(
        self, settings: dict[str, Any], inputs: list[Value], shapes: Sequence[Any], place: str
    ) -> list[Value]:
        fixed, starts, sequences = _parts_of_scan(settings, inputs)
        begun = self.carried(starts, place)
        steps = [
            self.emit("step of", [x], [jax.ShapeDtypeStruct(x.shape[1:], x.dtype)], place).outputs[
                0
            ]
            for x in sequences
        ]
        body = [*fixed, *(b.outputs[0] for b in begun), *steps]
        results = self.inner(settings["jaxpr"], body, place)
        ends = self.ended(begun, results[: len(begun)], place)
        stacked = zip(results[len(begun) :], shapes[len(begun) :], strict=True)
        return ends + [self.emit("steps", [y], [shape], place).outputs[0] for y, shape in stacked]

    def loop(self, settings: dict[str, Any], inputs: list[Value], place: str) -> list[Value]:
        asked, fixed = settings["cond_nconsts"], settings["body_nconsts"]
        begun = self.carried(inputs[asked + fixed :], place)
        carry = [b.outputs[0] for b in begun]
        self.inner(settings["cond_jaxpr"], [*inputs[:asked], *carry], place)
        body = self.inner(settings["body_jaxpr"], [*inputs[asked : asked + fixed], *carry], place)
        return self.ended(begun, body, place)


def _parts_of_scan(settings: dict[str, Any], inputs: list[Value]) -> list[list[Value]]:
    """What a scan reads at every step, what it carries along, and what it consumes step by step."""
    if "num_consts" in settings:
        fixed = settings["num_consts"]
        carried = fixed + settings["num_carry"]
        return [inputs[:fixed], inputs[fixed:carried], inputs[carried:]]
    # From JAX 0.11 on.
    return [list(part) for part in settings["ft_in"].update(inputs).unpack()]


def _does_nothing(name: str, settings: Any, inputs: list[Value], shapes: Sequence[Any]) -> bool:
    """Whether an operation only appears where sizes agree by chance."""
    if name in ("reshape", "broadcast_in_dim", "slice", "squeeze", "reduce_sum", "reduce_max"):
        unchanged = inputs[0].shape == tuple(shapes[0].shape) and settings.get("strides") is None
        return unchanged and len(inputs) == 1 and settings.get("axes", ()) == ()
    if name != "convert_element_type":
        return False
    # Levels may compute in other precisions: of one and the same program.
    kinds = [jnp.issubdtype(dtype, jnp.inexact) for dtype in (inputs[0].dtype, shapes[0].dtype)]
    return inputs[0].dtype == shapes[0].dtype or all(kinds)


def trace(
    model: nnx.Module, inputs: Sequence[Any], call: Callable[..., Any] | None = None
) -> Program:
    """The program that a model runs for inputs like the given ones; nothing is computed.

    Args:
        model: the model; it is called as in evaluation, without dropout.
        inputs: its arguments: arrays, or their shapes and dtypes; trees of them are fine.
        call: ``call(model, *inputs)``; by default the model itself is called.
    """
    state = nnx.state(model)
    graphdef = nnx.graphdef(model)
    flat = nnx.to_flat_state(state)
    paths = set(transferable(model))
    order = [p for p, _ in flat if p in paths]
    shapes = [jax.ShapeDtypeStruct(v[...].shape, v[...].dtype) for p, v in flat if p in paths]

    def evaluate(values: list[Any], arguments: tuple[Any, ...]) -> Any:
        given = dict(zip(order, values, strict=True))
        filled = [(p, v.replace(given[p]) if p in given else v) for p, v in flat]
        copy: Any = nnx.merge(graphdef, nnx.from_flat_state(filled), copy=True)
        copy.eval()
        for _, module in nnx.iter_modules(copy):
            if isinstance(module, SpectralConv):
                module.transform = "fft"  # "auto" may choose by the number of modes; same function
        result = copy(*arguments) if call is None else call(copy, *arguments)
        return [leaf for leaf in jax.tree.leaves(result) if isinstance(leaf, jax.Array)]

    closed = jax.make_jaxpr(evaluate)(shapes, tuple(inputs))
    arguments = [Value(tuple(v.aval.shape), v.aval.dtype) for v in closed.jaxpr.invars]
    for path, argument in zip(order, arguments, strict=False):
        argument.parameter = path
    program = Program(dict(zip(order, arguments, strict=False)), arguments[len(order) :])
    program.outputs = _Writer(program).write(closed.jaxpr, closed.consts, arguments, "the model")
    return program


def needed(program: Program) -> list[Operation]:
    """The operations on which the outputs depend, in order."""
    wanted: set[int] = set()
    todo = [value.producer for value in program.outputs]
    while todo:
        operation = todo.pop()
        if operation is None or id(operation) in wanted:
            continue
        wanted.add(id(operation))
        todo += [value.producer for value in operation.inputs]
        todo.append(operation.partner)
    return [operation for operation in program.operations if id(operation) in wanted]
