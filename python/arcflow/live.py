# SPDX-License-Identifier: Apache-2.0
"""Nodes that live on: `Cluster.start` and what it returns, fed and asked by any number of Spark jobs."""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import itertools
import json
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import (
    _beside,
    _executor,
    _job,
    _live_feed,
    _live_stream,
    _run,
    _side_task,
    _spark_errors,
    _task,
    errors,
)
from .progress import Progress
from .schema import to_arrow

_POLL_S = 0.1
# Added to the grace period: how long nodes that are stopped by force may take to go.
_LEAVE_S = 20.0
# How long the verdict is waited for after a Spark job failed for it.
_VERDICT_S = 6.0


@dataclasses.dataclass(frozen=True)
class Fed:
    """What one call of `feed` has done.

    Attributes
    ----------
    rows
        Rows that were fed, over all epochs.
    partitions
        How many of Spark's partitions they came in, over all epochs.
    enough
        Whether nodes said that they have enough, so that the rest was not read.
    """

    rows: int
    partitions: int
    enough: bool = False


class Running(_run.Run):
    """Nodes that run until `stop`; made by `Cluster.start`.

    A node's failure is raised (`NodeFailedError`) by the call the user is in, or by the next one.
    Threads: `feed`, `infer` and `stop` from any thread, several at a time; streams have their own.
    """

    def _begin(self) -> None:
        self._stack = contextlib.ExitStack()
        self._lock = threading.Lock()
        self._jobs = itertools.count(1)
        self._feeds_known = _live_feed.Known()
        self._enough: dict[str, set[int]] = {}
        self._pieces: dict[int, list[bytes]] = {}
        self._told: dict[str, Any] = {}
        self._streams: list[_live_stream.Stream] = []
        self._published: dict[str, set[int]] = {}  # micro-batches of each stream
        self._side_ports: dict[int, int] = {}
        self._rows_now: dict[int, int] = {}  # that each node has, of all feeds
        self._stopping = False
        self._closed = False
        try:
            self._launch()
        except BaseException:
            self._stack.close()
            raise
        self._pump = threading.Thread(target=self._listen, name="arcflow-live", daemon=True)
        self._pump.start()

    def _launch(self) -> None:
        frame, tagged = _job.make_input(self._spark, [], self._roles.tasks, self._roles.fed)
        secret = secrets.token_bytes(32)
        bind, advertise = _run.coordinator_hosts(self._spark, self._options)
        self._coordinator_handle = self._stack.enter_context(
            self._coordinator(bind, advertise, secret)
        )
        address = _run.split_address(self._coordinator_handle.address)
        plan = dataclasses.replace(self._plan(secret, address, tagged), live=True, ask_reach=False)
        plan.agent["side"] = True
        plan.job["live"] = True
        self._secret = secret.hex()
        self._job = _job.BarrierJob(
            self._spark, frame, _job.make_task(plan), f"arcflow-{self.run_id}-1"
        )
        self._beside = _beside.NodesBeside(plan, advertise)  # none
        self._progress = self._stack.enter_context(Progress(self._size, [], self._options.progress))
        self._board = self._stack.enter_context(self._new_board())
        outcomes = self._see_through()
        self._agents = [
            {
                "rank": one.rank,
                "jvm_pid": one.outcome["jvm_pid"],
                "host": one.outcome["host"],
                "port": self._side_ports[one.rank],
            }
            for one in outcomes
            if one.rank in self._roles.fed
        ]
        self.logs.begin(self.run_id, self._coordinator_handle.request_log)
        self.logs.members({**one.outcome, "rank": one.rank} for one in outcomes)
        self._stack.callback(self.logs.end)

    def _judge(self, outcomes: list[_run.NodeOutcome]) -> list[_run.NodeOutcome]:
        if all(one.outcome.get("status") == "detached" for one in outcomes):
            return outcomes
        return super()._judge(outcomes)

    def _listen(self) -> None:
        while not self._closed and not self._all_finished:
            try:
                self._take_event(_POLL_S)
                self._board.poll()
            except errors.ArcflowError:  # the coordinator was closed
                return

    def _on_joined(self, event: dict[str, Any]) -> None:
        super()._on_joined(event)
        self._side_ports[int(event["rank"])] = int(event["side_port"])

    def _on_progress(self, event: dict[str, Any]) -> None:
        super()._on_progress(event)
        for one in event["ranks"]:
            feeds = (one.get("feeds") or {}).values()
            self._rows_now[int(one["rank"])] = sum(feed["rows"] for feed in feeds)

    def _on_enough(self, event: dict[str, Any]) -> None:
        self._enough.setdefault(str(event["feed"]), set()).add(int(event["rank"]))

    def _on_result(self, event: dict[str, Any]) -> None:
        piece = base64.b64decode(event["data"])
        self._pieces.setdefault(int(event["rank"]), []).append(piece)

    def _on_all_finished(self, event: dict[str, Any]) -> None:
        self._told = event
        super()._on_all_finished(event)

    # What users call.

    def feed(self, data: Any, name: str = "train", *, epochs: int = 1, schema: Any = None) -> Fed:
        """Append rows to a feed of the nodes; returns when Spark has handed over all of them.

        Parameters
        ----------
        data
            A DataFrame, a `Feed` (how columns become tensors), or on Classic an RDD of rows. A
            DataFrame's rows are kept for one pass (``cache="none"``); say otherwise by a `Feed`.
        name
            Of the feed. The first call fixes its columns and how they are kept.
        epochs
            How often the rows are fed, one whole pass after the other; a DataFrame that is costly
            to compute is worth caching then.
        schema
            Of an RDD whose rows do not tell their names and types.

        Raises
        ------
        NodeFailedError
            A node has failed; the run is over.
        FailedPreconditionError
            The run or the feed was stopped.
        InvalidArgumentError
            The rows have another schema than before under that name, or cannot be fed.
        """
        self._check_open("feed")
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise errors.InvalidArgumentError(f"epochs={epochs!r} is not a number above 0")
        frame = _live_feed.to_frame(self._spark, data, schema, "feed")
        planned = self._feeds_known.plan(name, frame)
        fed = Fed(0, 0)
        for _ in range(epochs):
            if self._has_enough(name):
                return dataclasses.replace(fed, enough=True)
            one = self._feed_once(planned, f"feed-{next(self._jobs)}", whole=False)
            fed = Fed(fed.rows + one.rows, fed.partitions + one.partitions, one.enough)
        return fed

    def feed_stream(
        self,
        stream: Any,
        name: str = "train",
        *,
        checkpoint: str | None = None,
        trigger: Mapping[str, Any] | None = None,
    ) -> _live_stream.Stream:
        """Append every micro-batch of a streaming DataFrame to a feed, each exactly once; returns at once.

        Parameters
        ----------
        stream
            A streaming DataFrame.
        name
            Of the feed.
        checkpoint
            Folder for Spark's checkpoint (``checkpointLocation``); a temporary one by default.
        trigger
            As ``DataStreamWriter.trigger`` takes it: ``{"processingTime": "5 seconds"}``,
            ``{"availableNow": True}``; as fast as it goes by default.

        Returns
        -------
        Stream
            ``wait(timeout)``, ``stop()``, and Spark's own ``query``.
        """
        self._check_open("feed_stream")
        self._streams.append(_live_stream.start(self, stream, name, checkpoint, trigger))
        return self._streams[-1]

    def infer(
        self, data: Any, schema: Any, *, timeout: float = 60.0, rows_schema: Any = None
    ) -> Any:
        """Let the nodes answer rows: what their `ctx.serve` or `ctx.requests` give, in order.

        The answers are computed before this returns and kept by Spark (memory and disk of the
        executors), so that they can be used several times, and after `stop`.

        Parameters
        ----------
        data
            As for `feed`. Every call must have the same columns.
        schema
            Of the answers: ``"id bigint, score float"`` or a StructType.
        timeout
            Seconds to wait for a node that does not serve yet.
        rows_schema
            Of an RDD, as `schema` of `feed`.

        Returns
        -------
        pyspark.sql.DataFrame
            Answers, in the order of the rows within each partition.

        Raises
        ------
        FailedPreconditionError
            The nodes do not serve, or the run was stopped.
        """
        self._check_open("infer")
        frame = _live_feed.to_frame(self._spark, data, rows_schema, "infer")
        planned = self._feeds_known.plan("infer", frame, kind="infer")
        if planned.reader is not None:
            raise errors.InvalidArgumentError(
                "infer() takes no ParquetFeed, whose rows Spark does not see: give "
                "spark.read.parquet(path)"
            )
        wanted = _live_feed.answer_schema(schema)
        plan = dataclasses.replace(
            self._side_plan(planned, f"infer-{next(self._jobs)}"), wait_s=float(timeout)
        )
        arrow = to_arrow(wanted)

        def task(batches: Any) -> Any:
            from arcflow import _side_task

            yield from _side_task.infer(plan, batches, arrow)

        answers = planned.frame.mapInArrow(task, wanted)
        return self._see(plan.job, lambda: answers.localCheckpoint(True), lambda: False)

    def end_feed(self, name: str = "train") -> None:
        """Say that a feed is over: nodes that iterate over it come to its end."""
        self._check_open("end_feed")
        self._feeds_known.end(name)
        self._tell({"act": "end", "feed": name})

    def stop(self, timeout: float | None = None) -> Any:
        """End all feeds, wait until the nodes have returned, and give what they returned.

        Parameters
        ----------
        timeout
            Seconds that nodes may take; then they are ended. By default as long as it takes.

        Returns
        -------
        Result
            As of `Cluster.run`.

        Raises
        ------
        NodeFailedError
            A node has failed.
        DeadlineExceededError
            Nodes did not return in time; they were ended.
        """
        if self._closed:
            raise errors.FailedPreconditionError("this run was stopped before")
        self._stopping = True
        try:
            for stream in self._streams:
                stream.halt()
            self._tell({"act": "end_all"})
            self._await_end(timeout)
            self._check_failed()
            return self._result()
        except KeyboardInterrupt:
            raise errors.RunInterruptedError(
                "the run was interrupted in the driver; all nodes were stopped"
            ) from None
        finally:
            self.close()

    def close(self) -> None:
        """End the nodes at once, without their results, unless they have ended; again: nothing."""
        with self._lock:
            if self._closed:
                return
            self._stopping = True
            for stream in self._streams:
                stream.halt()
            if not self._all_finished:
                with contextlib.suppress(errors.ArcflowError):
                    self._coordinator_handle.stop("CANCELLED", "the driver closed the run")
                self._wait_finished(self._options.grace_s + _LEAVE_S)
            self._closed = True
        self._pump.join(5)
        self._stack.close()

    # What they need.

    def _tell(self, message: Mapping[str, Any]) -> None:
        self._coordinator_handle.tell(json.dumps(message))

    def _has_enough(self, name: str) -> bool:
        return self._enough.get(name, set()) >= set(self._roles.fed)

    def _wait_finished(self, timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not self._all_finished and time.monotonic() < deadline and self._pump.is_alive():
            time.sleep(_POLL_S / 2)
        return self._all_finished

    def _await_end(self, timeout: float | None) -> None:
        limit = self._options.grace_s + _LEAVE_S
        deadline = None if timeout is None else time.monotonic() + timeout
        while not self._all_finished and self._pump.is_alive():
            if self._failure is not None or self._stopped is not None:
                self._wait_finished(limit)
                return
            if deadline is not None and time.monotonic() > deadline:
                text = (
                    f"nodes did not return within {timeout:g} s after all feeds had ended; they were "
                    "stopped. A function must return when its datasets and ctx.requests() end"
                )
                self._coordinator_handle.stop("DEADLINE_EXCEEDED", text)
                self._wait_finished(limit)
                raise errors.DeadlineExceededError(text)
            time.sleep(_POLL_S / 2)

    def _check_open(self, what: str) -> None:
        """Raise when nothing can be fed or asked any more."""
        self._check_failed()
        if self._closed or self._stopping:
            raise errors.FailedPreconditionError(
                f"{what}() after stop(): the nodes are gone; cluster.start() makes new ones"
            )
        if self._all_finished:
            raise errors.FailedPreconditionError(
                f"{what}(): the function has returned on all nodes; call stop() for its results. It "
                "must go on until its datasets and ctx.requests() end"
            )

    def _check_failed(self) -> None:
        if self._failure is not None:
            self._wait_finished(self._options.grace_s + _LEAVE_S)
            others = [self._named(one) for one in self._others]
            raise _spark_errors.node_failed(self._named(self._failure), None, others)
        if self._stopped is not None and not self._stopping:
            raise errors.CancelledError(f"the run was stopped: {self._stopped}")

    def _side_plan(self, planned: Any, job: str) -> _side_task.SidePlan:
        return _side_task.SidePlan(
            run_id=self.run_id,
            secret=self._secret,
            version=_executor.versions()["arcflow"],
            agents=sorted(self._agents, key=lambda one: self._rows_now.get(one["rank"], 0)),
            feed=planned.name,
            schema=planned.schema,
            cache=planned.cache,
            job=job,
            segment_bytes=self._options.segment_bytes,
            encrypt=self._options.encrypt,
            reader=planned.reader,
        )

    def _feed_once(self, planned: Any, job: str, *, whole: bool) -> Fed:
        """Run one Spark job that feeds; `whole`: its rows count together, or not at all."""
        plan = self._side_plan(planned, job)
        opened = {"feed": planned.name, "schema": planned.schema, "cache": planned.cache}
        self._tell({"act": "open", **opened})
        self._tell({"act": "job", "job": job, "whole": whole})

        def task(batches: Any) -> Any:
            from arcflow import _side_task

            yield from _side_task.feed(plan, batches)

        try:
            mapped = planned.frame.mapInArrow(task, _side_task.ROW_SCHEMA)
            rows = self._see(job, mapped.collect, lambda: self._has_enough(planned.name))
            if rows is None:
                return Fed(0, 0, enough=True)
            if self._stopping and not whole:
                raise errors.FailedPreconditionError(
                    f"stop() ended feed {planned.name!r} while rows were fed: stop when feed() has returned"
                )
            if whole:
                self._tell({"act": "publish", "job": job})
        finally:
            self._tell({"act": "over", "job": job})
        fed = [row for row in rows if row.counted]
        enough = len(fed) < len(rows) and self._has_enough(planned.name)
        return Fed(sum(int(row.rows) for row in fed), len(fed), enough)

    def _see(self, job: str, action: Callable[[], Any], enough: Callable[[], bool]) -> Any:
        """Wait for a Spark action; None when it was cancelled because the nodes have enough."""
        running = _job.TaggedJob(self._spark, f"arcflow-{self.run_id}-{job}", action)
        running.start()
        try:
            while not running.done:
                running.wait(_POLL_S)
                if self._failure is not None or self._stopped is not None:
                    running.cancel()
                    self._check_failed()
                if enough() and not running.done:
                    running.cancel()
                    return None
        except BaseException:  # Ctrl-C too: no job goes on without its caller
            running.cancel(5.0)
            raise
        if running.error is None:
            return running.rows()
        self._explain(running.error)
        return None

    def _explain(self, error: BaseException) -> None:
        """Raise what made a Spark job fail: a node, what a task refused, or Spark."""
        refused = _task.recognise(str(error))
        if refused is not None and not isinstance(refused, errors.UnavailableError):
            raise refused from error
        deadline = time.monotonic() + (_VERDICT_S if "arcflow" in str(error) else 0.0)
        while self._failure is None and not self._all_finished and time.monotonic() < deadline:
            time.sleep(_POLL_S)
        self._check_failed()
        raise _spark_errors.wrap(refused or error) from error

    def _result(self) -> Any:
        from .cluster import _result

        outcomes = []
        for one in sorted(self._told.get("ranks") or (), key=lambda each: each["rank"]):
            rank = int(one["rank"])
            outcome = {"rows": one.get("rows"), "metrics": one.get("metrics")}
            result = b"".join(self._pieces.get(rank, []))
            outcomes.append(_run.NodeOutcome(rank, outcome, result))
        if self._told.get("status") != "ok" or len(outcomes) < self._size:
            raise errors.InternalError(f"the run ended without a reason: {self._told}")
        return _result(outcomes, self._roles, [])


def start(cluster: Any, fn: Callable[[Any], Any], args: Any = None) -> Running:
    """Start the nodes of a cluster; see `Cluster.start`."""
    from .cluster import pickled

    _live_feed.check_cluster(cluster)
    running = Running(cluster.spark, cluster._roles, cluster._options, [], pickled(fn, args))
    running.logs, running.numbers = cluster._logs, cluster._numbers
    running._begin()
    return running
