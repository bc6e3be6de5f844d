"""What a run on disk has done so far, read without the run."""

from __future__ import annotations

import os
from pathlib import Path

from opifex.training.multilevel.checkpointing.checkpoints import Checkpoints
from opifex.training.multilevel.checkpointing.recorder import Recorder
from opifex.training.multilevel.history import History
from opifex.training.processes import Processes

__all__ = ["saved_history"]


def saved_history(folder: str | os.PathLike[str]) -> History | None:
    """The record of the newest good checkpoint: what a run that is taken up there goes on from.

    Nothing is written, so that the folder of a run that is going on may be read, too.

    Args:
        folder: that of `Checkpoints`.

    Returns:
        The record; ``None`` if nothing was saved.

    Raises:
        TypeError: if ``folder`` is no path.
        ValueError: if there are checkpoints, and none is good.

    Warns:
        UserWarning: naming each checkpoint that is passed over.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import CascadeTrainer, Checkpoints, saved_history
        >>> trainer = CascadeTrainer(input_dim=1, output_dim=1, base_hidden_dims=[8], rngs=nnx.Rngs(0))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     before = saved_history(folder)
        ...     history = trainer.fit(
        ...         lambda model: model(jnp.ones(1))[0] ** 2,
        ...         epochs=[5, 5, 5],
        ...         checkpoint=Checkpoints(folder),
        ...     )
        ...     after = saved_history(folder)
        >>> before is None, after.num_steps, bool(jnp.all(after.losses == history.losses))
        (True, 15, True)
    """
    checkpoints = Checkpoints(folder)
    if not Path(folder).is_dir():
        return None
    recorder = Recorder(checkpoints, Processes())
    try:
        found = recorder.newest()
    finally:
        recorder.close(None)
    if found is None:
        return None
    arrays, document = found
    history = History()
    history.restore(document["record"], arrays["losses"])
    return history
