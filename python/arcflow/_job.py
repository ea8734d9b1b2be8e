# SPDX-License-Identifier: Apache-2.0
"""The barrier job of a run on Spark Classic and Spark Connect: its input, its thread, its end."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import _partitions, _rows, _task
from .feed import PlannedFeed
from .schema import quote

# Batches of this size stay in a core's cache on their way from the JVM to the feed's memory, which
# makes the way up to three times faster than Spark's 10,000 rows do (`make bench-feed`).
_BATCH_BYTES_SETTING = "spark.sql.execution.arrow.maxBytesPerBatch"
_BATCH_BYTES = 1 << 20
_BATCH_SETTINGS = (_BATCH_BYTES_SETTING, "spark.sql.execution.arrow.maxRecordsPerBatch")


def is_connect(spark: Any) -> bool:
    """Whether a session is a Spark Connect client."""
    return type(spark).__module__.startswith("pyspark.sql.connect")


def make_input(
    spark: Any,
    feeds: Sequence[PlannedFeed],
    size: int,
    fed: range | None = None,
    *,
    stable: bool = False,
) -> tuple[Any, bool]:
    """Return the DataFrame that the barrier job maps, and whether its rows are tagged.

    A barrier stage wants exactly `size` partitions and no union or coalesce inside it, so anything
    else goes through a shuffle.

    Parameters
    ----------
    feeds
        May be empty: nodes without data.
    size
        Number of tasks.
    fed
        Tasks that get rows; all by default.
    stable
        Whether every attempt must give each task the same rows in the same order.
    """
    if not feeds:
        return spark.range(0, size, 1, size), False
    everyone = fed is None or fed == range(size)
    if stable:
        return _rows.stable(spark, feeds, size, fed or range(size), _mixed)
    if len(feeds) == 1:
        frame = feeds[0].frame
        if fed is not None and not everyone:
            return _rows.spread(frame, size, fed), False
        if not is_connect(spark) and _partitions.goes_straight_in(frame, size):
            return frame, False
        return frame.repartition(size), False
    frame = _mixed(feeds)
    if fed is None or everyone:
        return frame.repartition(size), True
    return _rows.spread(frame, size, fed), True


def _mixed(feeds: Sequence[PlannedFeed]) -> Any:
    """Return one frame with the rows of all feeds, each tagged with the number of its feed."""
    tagged = None
    for number, feed in enumerate(feeds):
        fields = ", ".join(f"'c{i}', {quote(name)}" for i, name in enumerate(feed.inputs))
        rows = feed.frame.selectExpr(
            f"cast({number} as tinyint) as tag", f"named_struct({fields}) as f{number}"
        )
        tagged = rows if tagged is None else tagged.unionByName(rows, allowMissingColumns=True)
    ordered = ["tag", *(f"f{number}" for number in range(len(feeds)))]
    return tagged.select(*ordered)  # type: ignore[union-attr]


def make_task(plan: _task.Plan) -> Callable[[Any], Any]:
    """Return the function that `mapInArrow` runs.

    It is pickled by value, so that an executor without Arcflow can say so.
    """
    version = plan.version
    fields = vars(plan)

    def arcflow_task(batches: Any) -> Any:
        try:
            from arcflow import _task
        except ImportError as error:
            import base64
            import sys

            text = (
                f"arcflow cannot be imported on an executor ({error}; {sys.executable}): install "
                f"arcflow {version} there, or point spark.pyspark.python to an environment that has it"
            )
            code = base64.b64encode(text.encode()).decode()
            raise RuntimeError(f"{text} [[arcflow FAILED_PRECONDITION {code}]]") from None
        yield from _task.run(_task.Plan(**fields), batches)

    return arcflow_task


@contextlib.contextmanager
def small_batches(spark: Any) -> Iterator[None]:
    """Let Spark hand rows to Python in batches that fit a cache, unless the session says otherwise.

    Spark reads the setting when a job starts, so jobs that other threads of the session start
    meanwhile get small batches too, which changes no result.
    """
    ours = None
    with contextlib.suppress(Exception):  # an older Spark has no such setting
        if all(_is_default(spark, name) for name in _BATCH_SETTINGS):
            spark.conf.set(_BATCH_BYTES_SETTING, str(_BATCH_BYTES))
            ours = spark.conf.get(_BATCH_BYTES_SETTING)
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the session may be gone, and its settings with it
            if ours is not None and spark.conf.get(_BATCH_BYTES_SETTING) == ours:
                spark.conf.unset(_BATCH_BYTES_SETTING)


def _is_default(spark: Any, name: str) -> bool:
    """Whether a number among a session's settings has not been set: only then a default wins."""
    unlikely = "1234567"
    return str(spark.conf.get(name, unlikely)).rstrip("b") == unlikely


_MAX_TASKS = 100_000


class TaggedJob:
    """A Spark action in a thread of its own, that can be found and cancelled by its tag.

    Threads: methods from any thread but `start`, which copies the caller's Spark properties.

    Parameters
    ----------
    spark
        The session.
    tag
        No other job's.
    action
        Called once; what it returns are the rows of the job.
    """

    def __init__(self, spark: Any, tag: str, action: Callable[[], Any]) -> None:
        self._spark = spark
        self._tag = tag
        self._connect = is_connect(spark)
        self._action = action
        self._rows: Any = None
        self._error: BaseException | None = None
        self._inflight = 0
        self._thread = threading.Thread(target=self._run, name=f"arcflow-{tag}", daemon=True)

    def start(self) -> None:
        """Start the job."""
        if self._connect:
            self._inherited = set(self._spark.getTags())
        else:
            self._inherited = self._spark.sparkContext._jsc.sc().getLocalProperties().clone()
        self._thread.start()

    def _run(self) -> None:
        try:
            with self._tagged(), small_batches(self._spark):
                self._rows = self._action()
        except BaseException as error:  # the thread that asks for the result raises it
            self._error = error

    @contextlib.contextmanager
    def _tagged(self) -> Iterator[None]:
        """Mark what this thread starts, so that other threads can find and cancel it."""
        if self._connect:
            for tag in self._inherited:
                self._spark.addTag(tag)
            self._spark.registerProgressHandler(self._note_progress)
            self._spark.addTag(self._tag)
        else:
            context = self._spark.sparkContext
            context._jsc.sc().setLocalProperties(self._inherited)
            context.addJobTag(self._tag)
            context.setInterruptOnCancel(True)
        try:
            yield
        finally:
            if self._connect:
                self._spark.removeProgressHandler(self._note_progress)
                self._spark.removeTag(self._tag)

    def _note_progress(self, stages: Any, inflight_tasks: int, **_: Any) -> None:
        self._inflight = inflight_tasks

    @property
    def done(self) -> bool:
        """Whether the job has ended, in whatever way."""
        return self._rows is not None or self._error is not None or self._died()

    def _died(self) -> bool:
        return self._thread.ident is not None and not self._thread.is_alive()

    @property
    def error(self) -> BaseException | None:
        """What Spark raised."""
        return self._error

    def rows(self) -> Any:
        """Return the rows of a job that is done; raises what Spark raised."""
        if self._error is not None:
            raise self._error
        return [] if self._rows is None else self._rows

    def wait(self, timeout_s: float) -> bool:
        """Wait for the end; False when the time is over."""
        self._thread.join(timeout_s)
        return self.done

    def running_tasks(self) -> int:
        """Tasks of this job that run now; those of its shuffle count too."""
        if self._connect:
            return self._inflight
        context = self._spark.sparkContext._jsc.sc()
        tracker = context.statusTracker()
        running = 0
        for job in tracker.getJobIdsForTag(self._tag):
            info = tracker.getJobInfo(job)
            for stage in info.get().stageIds() if info.isDefined() else ():
                stage_info = tracker.getStageInfo(stage)
                if stage_info.isDefined():
                    running += stage_info.get().numActiveTasks()
        return running

    def unfinished(self) -> list[int]:
        """Partitions of the last stage whose tasks run now; empty where Spark does not tell."""
        if self._connect:
            return []
        context = self._spark.sparkContext._jsc.sc()
        found = set()
        with contextlib.suppress(Exception):  # an internal interface of Spark's
            for job in context.statusTracker().getJobIdsForTag(self._tag):
                stage = max(context.statusTracker().getJobInfo(job).get().stageIds())
                tasks = context.statusStore().taskList(stage, 0, _MAX_TASKS)
                for number in range(tasks.size()):
                    task = tasks.apply(number)
                    if str(task.status()) == "RUNNING":
                        found.add(int(task.partitionId()))
        return sorted(found)

    def cancel(self, timeout_s: float = 10.0) -> bool:
        """Cancel the job and wait for its thread; False when Spark did not let go in time."""
        deadline = time.monotonic() + timeout_s
        while not self.done and time.monotonic() < deadline:
            with contextlib.suppress(Exception):  # a lost session has no job to cancel
                if self._connect:
                    self._spark.interruptTag(self._tag)
                else:
                    self._spark.sparkContext.cancelJobsWithTag(self._tag)
            self._thread.join(0.5)
        return self.done


class BarrierJob(TaggedJob):
    """One `mapInArrow(barrier=True)` and its collect."""

    def __init__(
        self, spark: Any, frame: Any, task: Callable[[Any], Any], tag: str, profile: Any = None
    ) -> None:
        mapped = frame.mapInArrow(task, _task.ROW_SCHEMA, barrier=True, profile=profile)
        super().__init__(spark, tag, mapped.collect)
