"""Data that are read batch by batch while a level trains, since they do not fit into memory.

`streamed` is what users say, `cursor` a place in what they give, and `stream` reads ahead of the
training.

The room may import `opifex.core`, `opifex.training` and its own package.
"""

from opifex.training.multilevel.streaming.stream import Stream
from opifex.training.multilevel.streaming.streamed import Streamed, is_source

__all__ = ["Stream", "Streamed", "is_source"]
