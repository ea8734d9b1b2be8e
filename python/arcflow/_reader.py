# SPDX-License-Identifier: Apache-2.0
"""A node's rows as NumPy batches, without TensorFlow; what `Context.reader` returns."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

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
    """

    def __init__(
        self,
        reader: Any,
        source: tuple[str, int],
        timeout_s: float | None,
        compose: Callable[[dict[str, Any]], dict[str, Any]],
    ) -> None:
        self._reader = reader
        self.arcflow_source = source  # for checkpoints, which count steps
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

    def close(self) -> None:
        """End the pass."""
        self._reader.cancel()

    def __del__(self) -> None:
        with contextlib.suppress(Exception):  # at the end of the interpreter there may be no reader
            self._reader.cancel()
