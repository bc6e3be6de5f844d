"""The state of a run in a folder: parameters, optimizer, position and record, always of one moment."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from opifex.cli.errors import CommandError
from opifex.storage.trees import is_key, on_host
from opifex.training.multilevel import CascadeTrainer, History
from opifex.training.objective import split_model

__all__ = [
    "Position",
    "Variables",
    "has_state",
    "load_history",
    "read_position",
    "restore",
    "save_state",
]


@dataclass(frozen=True)
class Position:
    """Where a run stands.

    Attributes:
        level: the level of the parameters.
        epochs_done: epochs trained so far on every level.
        cycles_done: complete multigrid cycles so far.
        step: steps so far.
    """

    level: int
    epochs_done: list[int]
    cycles_done: int
    step: int


@dataclass(frozen=True)
class Variables:
    """What a level holds.

    Attributes:
        params: trainable parameters.
        rest: all other variables.
        smoother: state of the optimizer, ``None`` if it is not known.
    """

    params: Any
    rest: Any
    smoother: Any

    @classmethod
    def of(cls, trainer: CascadeTrainer) -> Variables:
        """Those of the level on which a trainer stands."""
        _, params, rest = split_model(trainer.model)
        return cls(params, rest, trainer.optimizer.state)


def save_state(folder: Path, variables: Variables, position: Position, history: History) -> None:
    """Write a state, replacing the one that is there only when the new one is complete.

    Args:
        folder: where.
        variables: parameters, other variables and optimizer state.
        position: where the run stands.
        history: its record.
    """
    new, old = folder.with_name(f"{folder.name}.new"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    for name, tree in _parts(variables).items():
        if tree is not None:
            arrays: dict[str, Any] = _named_arrays(tree)
            np.savez(new / f"{name}.npz", **arrays)
    record, losses = history.to_record()
    np.savez(new / "losses.npz", losses=losses)
    (new / "history.json").write_text(json.dumps(record), encoding="utf-8")
    (new / "position.json").write_text(json.dumps(asdict(position)), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def _parts(variables: Variables) -> dict[str, Any]:
    """The parts by name, as they are."""
    return {"params": variables.params, "rest": variables.rest, "smoother": variables.smoother}


def has_state(folder: Path) -> bool:
    """Whether there is a saved state."""
    return _complete(folder) is not None


def _complete(folder: Path) -> Path | None:
    """The complete state: a crash between two renames leaves it under the name of the old one."""
    for candidate in (folder, folder.with_name(f"{folder.name}.old")):
        if (candidate / "position.json").exists():
            return candidate
    return None


def _existing(folder: Path) -> Path:
    found = _complete(folder)
    if found is not None:
        return found
    raise CommandError(
        f"{folder.parent} holds no saved state: the run ended before its first evaluation; "
        "start it again with opifex-multilevel run"
    )


def read_position(folder: Path) -> Position:
    """Where the saved run stands.

    Args:
        folder: of the state.

    Raises:
        CommandError: if there is no state.
    """
    text = (_existing(folder) / "position.json").read_text(encoding="utf-8")
    return Position(**json.loads(text))


def load_history(folder: Path) -> History:
    """The record of the saved run.

    Args:
        folder: of the state.

    Raises:
        CommandError: if there is no state.
    """
    existing = _existing(folder)
    record = json.loads((existing / "history.json").read_text(encoding="utf-8"))
    history = History()
    with np.load(existing / "losses.npz") as file:
        history.restore(record, file["losses"])
    return history


def restore(folder: Path, trainer: CascadeTrainer) -> bool:
    """Take a trainer from its coarsest level to the saved state.

    Args:
        folder: of the state.
        trainer: a new trainer of the same configuration.

    Returns:
        Whether the state of the optimizer was restored, too; otherwise it starts afresh.

    Raises:
        CommandError: if there is no state, or it does not fit the configuration.
    """
    existing, position = _existing(folder), read_position(folder)
    while trainer.current_level < position.level:
        if not trainer.advance_level():
            raise CommandError(
                f"the saved state is of level {position.level}, the configuration has only "
                f"{trainer.num_levels} levels"
            )
    _, params, rest = split_model(trainer.model)
    nnx.update(
        trainer.model,
        _filled(existing / "params.npz", params),
        _filled(existing / "rest.npz", rest),
    )
    trainer.optimizer.restore(trainer.model, None, position.level)
    trainer.history = load_history(folder)
    if not (existing / "smoother.npz").exists():
        return False
    state = _filled(existing / "smoother.npz", trainer.optimizer.state)
    trainer.optimizer.restore(trainer.model, state, position.level)
    return True


def _named_arrays(tree: Any) -> dict[str, np.ndarray]:
    return {
        f"{number:05d} {jax.tree_util.keystr(path)}": on_host(leaf)
        for number, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree))
    }


def _filled(path: Path, like: Any) -> Any:
    """A tree with saved values in the place of others of the same names and shapes."""
    wanted = _named_arrays(like)
    try:
        # NumPy would leave a damaged file open that it has opened itself.
        with path.open("rb") as stream, np.load(stream) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path} is damaged: {error}") from error
    for name in [*wanted, *found]:
        shapes = [side[name].shape if name in side else None for side in (wanted, found)]
        if shapes[0] != shapes[1]:
            raise CommandError(
                f"{path} does not fit the configuration: {name.split(maxsplit=1)[1]} has shape "
                f"{shapes[1]} there and should have {shapes[0]}"
            )
    leaves = [
        jax.random.wrap_key_data(jnp.asarray(value), impl=jax.random.key_impl(leaf))
        if is_key(leaf)
        else jnp.asarray(value, jnp.asarray(leaf).dtype)
        for value, leaf in zip(found.values(), jax.tree.leaves(like), strict=True)
    ]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)
