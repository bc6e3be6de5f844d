"""Which arrays of a file are inputs, and which outputs."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from opifex.core.checks import check_choice
from opifex.data.field_files import FieldFile

__all__ = ["LAYOUTS", "Part", "Selection", "select"]

LAYOUTS = ("pairs", "trajectory", "pdebench")
"""What `opifex.data.read_fields` may be told about a file."""

# What files call a pair, the clearest names first.
_PAIRS = (
    ("inputs", "outputs"),
    ("input", "output"),
    ("train_x", "train_y"),
    ("x", "y"),
    ("a", "u"),
    ("coeff", "sol"),
)
_FLOW = ("density", "pressure", "Vx", "Vy", "Vz")


@dataclass(frozen=True)
class Part:
    """An array, or its values at one time.

    Attributes:
        name: of the array, or names of arrays that each hold one sample.
        time: index of the time on the axis after the samples; ``None`` if there is no such axis.
    """

    name: str | tuple[str, ...]
    time: int | None = None


@dataclass(frozen=True)
class Selection:
    """Parts whose channels, one after the other, are the inputs and the outputs."""

    inputs: tuple[Part, ...]
    outputs: tuple[Part, ...]


def select(
    file: FieldFile,
    inputs: str | Sequence[str] | None,
    outputs: str | Sequence[str] | None,
    layout: str | None,
    times: tuple[int, int],
) -> Selection:
    """Find inputs and outputs in a file.

    Args:
        file: what the file holds.
        inputs: names of arrays; ``None`` to look for usual names.
        outputs: likewise.
        layout: one of `LAYOUTS`, or ``None`` to see from the names.
        times: of the inputs and of the outputs in a trajectory.

    Raises:
        ValueError: if an array is missing, or the names do not say what is what.
        TypeError: if names are no strings.
    """
    if layout is not None:
        check_choice("layout", layout, LAYOUTS)
    given = _names("inputs", inputs), _names("outputs", outputs)
    for argument, names in zip(("inputs", "outputs"), given, strict=True):
        for name in names:
            _check_present(file, argument, name)
    if layout is None:
        layout = _detected(file, *given)
    if layout == "pdebench":
        return _pdebench(file, *given, times)
    if layout == "trajectory":
        return _trajectory(file, *given, times)
    return _pairs(file, *given)


def _names(argument: str, given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given is None:
        return ()
    names = (given,) if isinstance(given, str) else given
    if not (isinstance(names, Sequence) and names and all(isinstance(n, str) for n in names)):
        raise TypeError(f"{argument} must be a name or a sequence of names, got {given!r}")
    return tuple(names)


def _listed(file: FieldFile) -> str:
    """Names and shapes of at most twenty arrays."""
    shown = [f"{name} {array.shape}" for name, array in sorted(file.arrays.items())]
    return ", ".join(shown[:20]) + (f" and {len(shown) - 20} more" if len(shown) > 20 else "")


def _check_present(file: FieldFile, argument: str, name: str) -> None:
    if name not in file.arrays:
        near = difflib.get_close_matches(name, file.arrays, n=1, cutoff=0.5)
        raise ValueError(
            f"{argument} must name an array of the file, got {name!r}"
            + (f" (did you mean {near[0]!r}?)" if near else "")
            + f"; there are {_listed(file)}"
        )


def _detected(file: FieldFile, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> str:
    if inputs and inputs == outputs:
        return "trajectory"
    if inputs or outputs:
        return "pairs"
    if _samples_in_groups(file) or (file.coordinates and ("tensor" in file.arrays or _flow(file))):
        return "pdebench"
    timed = [a for a in file.arrays.values() if a.dimensions and "time" in a.dimensions]
    return "trajectory" if len(file.arrays) == 1 and timed else "pairs"


def _flow(file: FieldFile) -> tuple[str, ...]:
    """The fields of compressible flow that are there, if density and a velocity are."""
    found = tuple(name for name in _FLOW if name in file.arrays)
    return found if {"density", "Vx"} <= set(found) else ()


def _samples_in_groups(file: FieldFile) -> tuple[str, ...]:
    """Arrays ``0000/data``, ``0001/data``, ... of one sample each."""
    names = [name for name in file.arrays if name.endswith("/data")]
    return tuple(sorted(n for n in names if n.removesuffix("/data").isdigit()))


def _pairs(file: FieldFile, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Selection:
    if not (inputs and outputs):
        for one, other in _PAIRS:
            chosen = inputs or (one,), outputs or (other,)
            fits = set(chosen[0]).isdisjoint(chosen[1])
            if fits and all(name in file.arrays for names in chosen for name in names):
                inputs, outputs = chosen
                break
        else:
            missing = " and ".join(
                name for name, given in (("inputs", inputs), ("outputs", outputs)) if not given
            )
            raise ValueError(
                f"{missing} must be given, since no array of the file has a usual name "
                f"({', '.join('/'.join(pair) for pair in _PAIRS)}); there are {_listed(file)}"
            )
    return Selection(tuple(map(Part, inputs)), tuple(map(Part, outputs)))


def _trajectory(
    file: FieldFile, inputs: tuple[str, ...], outputs: tuple[str, ...], times: tuple[int, int]
) -> Selection:
    if not (inputs or outputs):
        if len(file.arrays) != 1:
            raise ValueError(f"inputs must name the trajectory; there are {_listed(file)}")
        inputs = (next(iter(file.arrays)),)
    inputs, outputs = inputs or outputs, outputs or inputs
    first, last = times
    return Selection(
        tuple(Part(name, first) for name in inputs), tuple(Part(name, last) for name in outputs)
    )


def _pdebench(
    file: FieldFile, inputs: tuple[str, ...], outputs: tuple[str, ...], times: tuple[int, int]
) -> Selection:
    groups = _samples_in_groups(file)
    if groups:
        return Selection((Part(groups, times[0]),), (Part(groups, times[1]),))
    if not outputs:
        outputs = _flow(file) or ("tensor",)
        for name in outputs:
            _check_present(file, "layout 'pdebench': outputs", name)
    # A coefficient that varies in space is the input of a steady problem.
    if not inputs and "nu" in file.arrays and len(file.arrays["nu"].shape) > 1:
        inputs = ("nu",)
    if inputs and inputs != outputs:
        return Selection(tuple(map(Part, inputs)), tuple(Part(name, -1) for name in outputs))
    return _trajectory(file, outputs, outputs, times)
