"""What the processes of a cluster agree on while they carry out one run in step.

Each process runs the same program, and what it reads off its own clock or its own disk the others do
not know. The first process decides there, and says so to all: the calls below are meeting points, at
which all processes must arrive in the same order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

__all__ = ["Processes"]

# Bytes of a message that arrive with its length: most messages are a number.
_SHORT = 56
# Bytes that are sent, or put together from the devices, in one piece: what a device needs to spare.
_PIECE = 2**24


@dataclass(frozen=True)
class Processes:
    """The processes of a run: this one alone, or all of a cluster.

    Attributes:
        several: whether it is all of a cluster. Else every answer is this process's own.
    """

    several: bool = False

    @classmethod
    def of(cls, mesh: Mesh) -> Processes:
        """Those that have the devices of a mesh.

        Args:
            mesh: devices of this process, or of all.

        Raises:
            ValueError: if the mesh has devices of some other processes, but not of all.
        """
        found = {device.process_index for device in mesh.devices.flat}
        if found == {jax.process_index()}:
            return cls()
        if len(found) < jax.process_count():
            raise ValueError(
                f"mesh must have devices of all {jax.process_count()} processes, or of this one "
                f"alone, got those of {sorted(found)}"
            )
        return cls(several=True)

    @property
    def first(self) -> bool:
        """Whether this process is the one that decides, reads and writes."""
        return not self.several or jax.process_index() == 0

    def told(self, find: Callable[[], bytes]) -> bytes:
        """What the first process finds, in all.

        Args:
            find: called in the first process only.

        Raises:
            OSError: if ``find`` raises one; so with ``ImportError`` and ``ValueError``.
            RuntimeError: in the other processes, if ``find`` raises anything else.
        """
        if not self.several:
            return find()
        message, failure = b"", None
        if self.first:
            try:
                message = b"\0" + find()
            except Exception as error:  # the others must not wait for what does not come
                kind = next((k for k in _ERRORS if isinstance(error, k)), RuntimeError)
                message, failure = bytes([1 + _ERRORS.index(kind)]) + str(error).encode(), error
        start = _sent(len(message).to_bytes(8, "big") + message[:_SHORT], 8 + _SHORT)
        size = int.from_bytes(start[:8], "big")
        parts = [start[8 : 8 + size]]
        for begin in range(_SHORT, size, _PIECE):
            end = min(begin + _PIECE, size)
            parts.append(_sent(message[begin:end], end - begin))
        if failure is not None:
            raise failure
        said = b"".join(parts)
        if said[0]:
            raise _ERRORS[said[0] - 1](f"the first process says: {said[1:].decode()}")
        return said[1:]

    def number(self, find: Callable[[], int]) -> int:
        """A number that the first process finds, in all; raises what `told` raises.

        Args:
            find: called in the first process only.
        """
        return int.from_bytes(
            self.told(lambda: int(find()).to_bytes(8, "big", signed=True)), "big", signed=True
        )

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in one of them.

        Args:
            flag: that of this process.
        """
        if not self.several:
            return flag
        return bool(np.any(multihost_utils.process_allgather(np.uint8(flag))))

    def whole(self, leaf: Any) -> Any:
        """An array that this process can read: itself, or put together from all devices on the host.

        Args:
            leaf: an array or a number.
        """
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        count = leaf.shape[0]
        rows = max(1, _PIECE * count // leaf.nbytes)
        pieces = [
            multihost_utils.process_allgather(
                _rows(leaf, begin, min(rows, count - begin)), tiled=True
            )
            for begin in range(0, count, rows)
        ]
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)


_ERRORS = (OSError, ImportError, ValueError, RuntimeError)


def _sent(message: bytes, size: int) -> bytes:
    """So many bytes of the first process, in all; as bytes, since sums change the sign of a zero."""
    filled = np.frombuffer(message.ljust(size, b"\0"), np.uint8)
    return multihost_utils.broadcast_one_to_all(filled[:size]).tobytes()


@partial(jax.jit, static_argnums=2)
def _rows(leaf: jax.Array, begin: int, count: int) -> jax.Array:
    """Some rows of an array; where they begin is no constant of the program."""
    return jax.lax.dynamic_slice_in_dim(leaf, begin, count)
