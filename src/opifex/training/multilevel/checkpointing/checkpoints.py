"""Where and how often a run is kept."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

from opifex.core.checks import check_nonnegative, check_positive_int

__all__ = ["Checkpoints", "Resume"]

Resume = Literal["auto"] | None
"""``"auto"`` goes on from the newest good checkpoint, and starts where there is none; ``None`` starts,
and refuses a folder that holds checkpoints."""


@dataclass(frozen=True)
class Checkpoints:
    """Keeps a call of ``fit`` in a folder while it goes on; give it to ``fit`` as ``checkpoint``.

    A checkpoint holds everything that later steps depend on: models and optimizer states of all
    levels, the place in the cycle, random keys, the order of the samples, data that were drawn anew,
    weights of residual terms, the record, and what callbacks remember that have `saved_state` and
    `restore_state` (`EarlyStopping` has). It is written in a thread while training goes on, and is
    there as a whole or not at all. A process that is killed at any moment and started again with the
    same call and ``resume="auto"`` ends with the same parameters and losses, bit for bit, on the same
    machine with the same versions.

    Each call of ``fit`` needs a folder of its own. Of several processes that share a run the first one
    writes and reads.

    Attributes:
        folder: where; made if it is not there. On a cluster, in the shared file system.
        every: seconds from the end of one save to the next; zero saves whenever a save is possible.
        keep: how many of the newest checkpoints stay.

    Raises:
        TypeError: if an attribute has the wrong type.
        ValueError: if ``every`` is negative or ``keep`` not positive.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from opifex.training.multilevel import CascadeTrainer, Checkpoints
        >>> def train(folder):
        ...     trainer = CascadeTrainer(
        ...         input_dim=1, output_dim=1, base_hidden_dims=[8], rngs=nnx.Rngs(0)
        ...     )
        ...     x = jnp.linspace(-1.0, 1.0, 16)[:, None]
        ...     return trainer.fit(
        ...         lambda model, x: jnp.mean((model(x) - x**2) ** 2),
        ...         (x,),
        ...         epochs=[5, 5, 5],
        ...         checkpoint=Checkpoints(folder, every=10.0),
        ...         resume="auto",
        ...     )
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     first, again = train(folder), train(folder)
        >>> bool(jnp.all(first.losses == again.losses)), again.num_steps
        (True, 15)
    """

    folder: str | os.PathLike[str]
    every: float = 30.0
    keep: int = 3

    def __post_init__(self) -> None:
        if not isinstance(self.folder, str | os.PathLike) or not os.fspath(self.folder):
            raise TypeError(f"folder must be the path of a folder, got {self.folder!r}")
        check_nonnegative("every", self.every)
        check_positive_int("keep", self.keep)
