# SPDX-License-Identifier: Apache-2.0
"""A node's rows as NumPy batches, without TensorFlow; what `Context.reader` returns."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Iterator
from typing import Any

from .errors import InvalidArgumentError

_POLL_S = 3600.0


class Batches(Iterator[tuple[dict[str, Any], int]]):
    """One pass over a feed.

    Parameters
    ----------
    reader
        ``arcflow._core.FeedReader``.
    source
        Name of the feed, and rows of a batch.
    timeout_s
        Seconds to wait for a batch; None: as long as it takes.
    compose
        Makes the values of a batch of its flat columns.
    seed
        Of the rows' order; None: as they came.
    """

    def __init__(
        self,
        reader: Any,
        source: tuple[str, int],
        timeout_s: float | None,
        compose: Callable[[dict[str, Any]], dict[str, Any]],
        seed: int | None = None,
    ) -> None:
        self._reader = reader
        self.arcflow_source = source  # for checkpoints, which count steps
        self.arcflow_seed = seed
        self._timeout_s = timeout_s
        self._compose = compose

    def __next__(self) -> tuple[dict[str, Any], int]:
        batch = self._reader.next(_POLL_S if self._timeout_s is None else self._timeout_s)
        if batch is None:
            raise StopIteration
        parts, padding = batch
        return self._compose(parts), padding

    def skip(self, count: int) -> Batches:
        """Begin after `count` batches, without reading them."""
        self._reader.seek(count)
        return self

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch this is, for the order of its rows; before the first batch."""
        if self.arcflow_seed is not None:
            self._reader.seek(0, epoch)

    def close(self) -> None:
        """End the pass."""
        self._reader.cancel()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the end of the interpreter there may be no reader
            self._reader.cancel()


def shuffle_seed(shuffle: bool | int, feed: str, run_id: str) -> int | None:
    """Return the seed that ``shuffle=`` means; True: one of the run, the same in all its attempts.

    Examples
    --------
    >>> shuffle_seed(7, "train", ""), shuffle_seed(False, "train", "")
    (7, None)
    """
    if shuffle is True:
        return int.from_bytes(hashlib.sha256(f"{run_id}/{feed}".encode()).digest()[:8], "big") >> 1
    if shuffle is False or shuffle is None:
        return None
    if not isinstance(shuffle, int) or not 0 <= shuffle < 1 << 63:
        raise InvalidArgumentError(
            f"feed {feed!r}: shuffle={shuffle!r} is neither True, False nor a seed (0 … 2**63 - 1)"
        )
    return shuffle
