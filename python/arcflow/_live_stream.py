# SPDX-License-Identifier: Apache-2.0
"""Structured Streaming into nodes that live on: every micro-batch once, however often Spark tries it."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from . import _job, _spark_errors, errors

if TYPE_CHECKING:
    from .live import Running

_POLL_S = 0.2


class Stream:
    """A streaming query that feeds nodes; made by `Running.feed_stream`.

    Attributes
    ----------
    query : pyspark.sql.streaming.StreamingQuery
        Spark's own handle.
    rows
        Rows fed so far.
    batches
        Numbers of the micro-batches fed so far.
    """

    def __init__(self, running: Running, name: str, key: str) -> None:
        self._running = running
        self._name = name
        self._key = key
        self._error: BaseException | None = None
        self.query: Any = None
        self.rows = 0
        self.batches: list[int] = []

    def take(self, frame: Any, batch_id: int) -> None:
        """Feed one micro-batch, unless it was fed before; Spark calls it, in a thread of its own."""
        done = self._running._published.setdefault(self._key, set())
        if batch_id in done or self._running._stopping:
            return
        try:
            fed = self._feed(frame, batch_id)
        except BaseException as error:
            self._error = error  # what wait() raises; Spark only keeps its text
            raise
        done.add(batch_id)
        if fed is None:
            return
        self.batches.append(batch_id)
        self.rows += fed.rows
        if self._running._has_enough(self._name):
            # The query cannot be stopped from inside its batch.
            threading.Thread(target=self.halt, name="arcflow-enough", daemon=True).start()

    def _feed(self, frame: Any, batch_id: int) -> Any:
        self._running._check_open("feed_stream")
        known = self._running._feeds_known.knows(self._name)
        if not known and frame.isEmpty():  # nothing to learn the shapes from, and nothing to feed
            return None
        planned = self._running._feeds_known.plan(self._name, frame)
        job = f"batch-{batch_id}-{next(self._running._jobs)}"
        return self._running._feed_once(planned, job, whole=True)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the query has ended by itself; False when `timeout` seconds are over first.

        Raises
        ------
        NodeFailedError
            A node has failed.
        ArcflowError
            The stream failed; says why.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.query.isActive:
            self._running._check_failed()
            if deadline is not None and time.monotonic() > deadline:
                return False
            time.sleep(_POLL_S)
        self._check()
        return True

    def drain(self) -> None:
        """Wait until all rows that are there now are fed (`processAllAvailable`)."""
        try:
            self.query.processAllAvailable()
        except Exception:
            self._check()
            raise
        self._check()

    def _check(self) -> None:
        self._running._check_failed()
        if isinstance(self._error, errors.ArcflowError):
            raise self._error
        failed = self.query.exception()
        if failed is not None and not self._running._has_enough(self._name):
            raise errors.AbortedError(
                f"the stream that feeds {self._name!r} failed: {_spark_errors.summary(failed)}"
            ) from failed

    def stop(self) -> None:
        """Stop the query after the micro-batch at hand; raises what made it fail before."""
        self.halt()
        self._check()

    def halt(self) -> None:
        """Stop the query, whatever it did."""
        with contextlib.suppress(Exception):  # a session that is gone has no query
            self.query.stop()


def start(
    running: Running,
    stream: Any,
    name: str,
    checkpoint: str | None,
    trigger: Mapping[str, Any] | None,
) -> Stream:
    """Start a query; see `Running.feed_stream`."""
    if _job.is_connect(running._spark):
        raise errors.UnimplementedError(
            "feed_stream() works on Spark Classic only: on Connect the function that takes a "
            "micro-batch runs in the server, away from this run. Read the stream's files or topics in "
            "batches and feed() these, or run the program on the driver (spark-submit)"
        )
    if not getattr(stream, "isStreaming", False):
        raise errors.InvalidArgumentError(
            "feed_stream() takes a streaming DataFrame (spark.readStream…); feed() takes others"
        )
    key = os.path.abspath(checkpoint) if checkpoint else f"stream {len(running._streams)}"
    made = Stream(running, name, key)
    writer = stream.writeStream.foreachBatch(made.take)
    if checkpoint:
        writer = writer.option("checkpointLocation", checkpoint)
    if trigger:
        writer = writer.trigger(**trigger)
    made.query = writer.start()
    return made
