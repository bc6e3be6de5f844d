"""Taking a run to the point where an earlier process was."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np

from opifex.storage.archive import checksum
from opifex.storage.trees import filled, named_leaves, on_host
from opifex.training.multilevel.checkpointing import VISIT_PARTS, Within, versions
from opifex.training.multilevel.cycle import Interpolate
from opifex.training.multilevel.run import Run
from opifex.training.multilevel.state import CoarseVisit, LevelState, RunState

__all__ = ["resume"]


def _identity(run: Run) -> dict[str, Any]:
    """What a run must have in common with the one whose checkpoint it takes up.

    Args:
        run: the run, before its first move.
    """
    state, task = run.state, run.task
    settings: Any = jax.config
    numbers: dict[int, int] = {}  # levels that share their arrays are read once

    def content(leaf: Any) -> int:
        if id(leaf) not in numbers:
            numbers[id(leaf)] = checksum(on_host(run.processes.whole(leaf)))
        return numbers[id(leaf)]

    plain = {
        "loss": _name(task.loss),
        "levels": [_shapes({"params": level.params, "rest": level.rest}) for level in state.levels],
        "optimizer": [
            _shapes(jax.eval_shape(smoother.init, level.params))
            for smoother, level in zip(task.smoothers, state.levels, strict=True)
        ],
        "moves of the cycle": [[type(move).__name__, *move] for move in run.moves],
        "coarse objective": run.cycle.coarse,
        "batches": [one._asdict() for one in task.sampling],
        "batches of a window": [stream.size for stream in task.streams],
        # What is drawn depends on them, and nothing else on how devices share the work.
        "parts of the samples": [
            place.parts if place is not None and (one.batch_size or one.window) else 1
            for place, one in zip(task.places, task.sampling, strict=True)
        ],
        "key": on_host(state.key).tolist(),
        "data": _shapes(state.data),
        "numbers of the data": [content(leaf) for leaf in jax.tree.leaves(state.data)],
        "calls of fit before": run.history.num_calls,
        "steps before": run.history.num_steps,
        "level at the start": state.level,
        "double precision": bool(jax.config.read("jax_enable_x64")),
        "precision of products": str(settings.jax_default_matmul_precision),
        "precision": task.config.precision,
    }
    return json.loads(json.dumps(plain))  # tuples as they will be read: as lists


def _name(loss: Any) -> Any:
    """What can be compared of a loss: the name of a function, those of residual terms."""
    if isinstance(loss, tuple):
        return [term.name for term in loss]
    return getattr(loss, "__qualname__", type(loss).__name__)


def _shapes(tree: Any) -> dict[str, str]:
    return {
        name: f"{leaf.dtype}{list(leaf.shape)}" for name, leaf in named_leaves("", tree).items()
    }


def resume(run: Run) -> tuple[int, Within | None] | None:
    """Take a run to the newest good checkpoint of its folder.

    Args:
        run: the run, whose ``predicted`` levels are known; its state and record change.

    Returns:
        Number of the move to go on with, and where in the middle of it; ``None`` where nothing was
        saved.

    Raises:
        ValueError: if the checkpoint is one of another run, or none can be read.
    """
    assert run.recorder is not None
    run.identity = _identity(run)
    found = run.recorder.newest()
    if found is None:
        return None
    arrays, document = found
    _check(run, document)
    try:
        state = _state(run, arrays, document)
    except ValueError as error:
        raise ValueError(
            f"{run.recorder.folder} holds a checkpoint of another run: {error}"
        ) from error
    run.keep(state)
    run.history.restore(document["record"], arrays["losses"])
    run.taken, run.damping = Counter(dict(document["taken"])), dict(document["damping"])
    run.last_loss = document["last_loss"]
    for number, observer in enumerate(run.remembering()):
        prefix = f"memory {number} "
        memory = {
            name.removeprefix(prefix): value
            for name, value in arrays.items()
            if name.startswith(prefix)
        }
        if hasattr(observer, "restore_state") and memory:
            observer.restore_state(memory)
    within = None
    if document["within"] is not None:
        steps, losses, faults = document["within"]
        within = Within(steps, losses, faults, arrays["order"])
    return document["move"], within


def _check(run: Run, document: Mapping[str, Any]) -> None:
    assert run.recorder is not None
    assert run.identity is not None
    saved = document["identity"]
    for what, here in run.identity.items():
        there = saved.get(what)
        if there != here:
            raise ValueError(
                f"{run.recorder.folder} holds the checkpoint of another run: {what}: "
                f"{_difference(there, here)}. Give each call of fit a folder of its own, and the same "
                "arguments when it is taken up"
            )
    earlier, used = document["versions"], versions()
    if used != earlier:
        warnings.warn(
            f"the checkpoint in {run.recorder.folder} was made with {earlier}, now it is {used}: the "
            "run goes on, but not bit for bit as it would have",
            stacklevel=2,
        )


def _difference(there: Any, here: Any) -> str:
    """What differs, shortly."""
    if isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        pairs = [(i, a, b) for i, (a, b) in enumerate(zip(there, here, strict=True)) if a != b]
        number, there, here = pairs[0]
        return f"(entry {number}) {_difference(there, here)}"
    if isinstance(there, dict) and isinstance(here, dict):
        name = next(n for n in [*there, *here] if there.get(n) != here.get(n))
        return f"({name}) {there.get(name, 'missing')} there and {here.get(name, 'missing')} here"
    return f"{there} there and {here} here"


def _state(run: Run, arrays: Mapping[str, np.ndarray], document: Mapping[str, Any]) -> RunState:
    fresh = run.state
    moved = {m.level for m in run.moves[: document["move"]] if isinstance(m, Interpolate)}
    levels = []
    for number, parts in enumerate(document["parts"]):
        like = run.predicted[number] if number in moved else fresh.levels[number]
        values = {
            part: filled(f"level {number} {part}", getattr(like, part), arrays)
            for part in ("params", "rest")
        }
        level = LevelState(like.graphdef, **values)
        if parts["smoother"]:
            shapes = jax.eval_shape(run.task.smoothers[number].init, level.params)
            level = level._replace(smoother=filled(f"level {number} smoother", shapes, arrays))
        if parts["balance"]:
            start = run.weights.of(level)
            level = level._replace(balance=filled(f"level {number} balance", start, arrays))
        levels.append(level)
    data = fresh.data
    if run.task.resampled is not None:
        data = filled("data", data, arrays)
    key = filled("key", fresh.key, arrays)
    for stream, position in zip(run.task.streams, document["streams"], strict=True):
        stream.restore(position)
    batches = tuple(position["batches"] for position in document["streams"])
    state = replace(
        fresh,
        level=document["level"],
        levels=tuple(levels),
        data=data,
        key=key,
        batches=batches,
    )
    run.keep(state)
    for number, level_number in enumerate(document["visits"]):
        state = replace(state, visits=(*state.visits, _visit(run, number, level_number, arrays)))
        run.keep(state)
    return state


def _visit(run: Run, number: int, level: int, arrays: Mapping[str, np.ndarray]) -> CoarseVisit:
    """An open visit of a coarser level: its objective is that of the cycle, with the saved leaves."""
    levels, owner = run.state.levels, run.owner(level)
    objective = run.objective(levels, level, owner)
    like = {
        "start": levels[level].params,
        "params": levels[level].params,
        "rest": levels[owner].rest,
        "shift": objective.shift,
        "frame": objective.frame,
        "weights": objective.weights,
    }
    parts = {part: filled(f"visit {number} {part}", like[part], arrays) for part in VISIT_PARTS}
    objective = objective.at(**{part: parts[part] for part in ("shift", "frame", "weights")})
    return CoarseVisit(level, objective, parts["start"], parts["params"], parts["rest"])
