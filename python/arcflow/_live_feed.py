# SPDX-License-Identifier: Apache-2.0
"""What may be fed to nodes that live on: DataFrames and RDDs, and the feeds that a run has so far."""

from __future__ import annotations

import dataclasses
import threading
from typing import Any

from . import _job, files
from .errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError
from .feed import Feed, PlannedFeed

_DYNAMIC = "spark.dynamicAllocation.enabled"


def check_cluster(cluster: Any) -> None:
    """Refuse what nodes that outlive their task cannot have.

    Raises
    ------
    UnimplementedError, FailedPreconditionError
        Says what to change.
    """
    roles, options = cluster._roles, cluster._options
    if roles.chief_alone or roles.evaluator:
        raise UnimplementedError(
            "start() runs nodes that call the function only: leave ps=, workers_serve= and evaluator= "
            "out, or use run()"
        )
    if cluster._policy.max_restarts:
        raise UnimplementedError(
            "nodes of start() are not started again, because rows that were fed are gone: leave "
            "max_restarts out, catch NodeFailedError, and start and feed again"
        )
    if options.profile is not None:
        raise UnimplementedError(
            "start() cannot hold executors of a resource profile, which Spark gives back when the "
            "starting job ends: leave profile out and size the executors of the application"
        )
    if options.log_dir is not None and files.is_hdfs(options.log_dir):
        raise UnimplementedError(
            f"log_dir={options.log_dir!r}: nodes of start() write to a folder that they see as files (a "
            "shared mount, or a local one on each host), not to HDFS"
        )
    if str(cluster.spark.conf.get(_DYNAMIC, "false")).lower() == "true":
        raise FailedPreconditionError(
            "dynamic allocation takes executors away that run no task, and the nodes of start() with "
            f"them: set {_DYNAMIC}=false and a fixed number of executors"
        )


def to_frame(spark: Any, data: Any, schema: Any, what: str) -> Any:
    """Return a `Feed` as it is, a DataFrame, or an RDD as a DataFrame.

    Raises
    ------
    InvalidArgumentError
        It is neither, or the rows of an RDD do not tell a schema.
    """
    if isinstance(data, Feed):
        return data
    if hasattr(data, "mapInArrow") and hasattr(data, "schema"):
        if data.isStreaming:
            raise InvalidArgumentError(f"{what}() takes no streaming DataFrame: use feed_stream()")
        return data
    is_rdd = type(data).__module__.startswith(("pyspark.core.rdd", "pyspark.rdd"))
    if not is_rdd or _job.is_connect(spark):
        through = (
            " through Spark Connect, which has no RDDs" if _job.is_connect(spark) else " or RDD"
        )
        raise InvalidArgumentError(
            f"{what}() takes a DataFrame{through}, not {type(data).__name__}: make one by "
            "spark.createDataFrame"
        )
    try:
        return spark.createDataFrame(data, schema)
    except Exception as error:
        raise InvalidArgumentError(
            f"the rows of the RDD do not tell their columns ({str(error).splitlines()[0]}): say "
            "schema='x array<float>, y int', and let each row be a tuple"
        ) from error


def answer_schema(schema: Any) -> Any:
    """Return a schema as a StructType."""
    from pyspark.sql.types import DataType, StructType

    if isinstance(schema, str):
        schema = DataType.fromDDL(schema)
    if not isinstance(schema, StructType) or not schema.fields:
        raise InvalidArgumentError(
            f"schema={schema!r} is not the schema of answers: 'id bigint, score float', or a StructType"
        )
    return schema


@dataclasses.dataclass
class _Entry:
    kind: str
    columns: list[tuple[str, str]]  # of the DataFrame that was fed first
    options: Any
    planned: PlannedFeed
    ended: bool = False


class Known:
    """The feeds of one run. Threads: any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: dict[str, _Entry] = {}

    def plan(self, name: str, data: Any, kind: str = "feed") -> PlannedFeed:
        """Check rows against what was fed under the name before; the first fixes it.

        Raises
        ------
        InvalidArgumentError
            Another schema, or rows that cannot be fed.
        FailedPreconditionError
            The feed has ended.
        """
        if not isinstance(name, str) or not name or len(name) > 100 or not name.isprintable():
            raise InvalidArgumentError(f"{name!r} is not a name for a feed")
        feed = data if isinstance(data, Feed) else Feed(data, cache="none")
        if feed.exchange:
            raise InvalidArgumentError(
                "exchange=True is for the feeds of a run, whose passes begin together; here, "
                "repartition the DataFrame by rand(seed) before each feed"
            )
        names = feed.df.columns if feed.columns is None else feed.columns
        fields = {field.name: field.dataType.json() for field in feed.df.schema.fields}
        columns = [(each, fields.get(each, "")) for each in names]
        with self._lock:
            entry = self._entries.get(name)
        if entry is None:
            planned = feed.plan(name)
            entry = _Entry(kind, columns, feed.options, planned)
            with self._lock:
                entry = self._entries.setdefault(name, entry)
        if entry.kind != kind:
            raise InvalidArgumentError(
                f"{name!r} is the name of rows to {entry.kind} in this run; choose another one"
            )
        if entry.ended:
            raise FailedPreconditionError(
                f"feed {name!r} has ended (end_feed): feed under another name"
            )
        if entry.columns == columns and entry.options == feed.options:
            frame, reader = feed.frame(names), feed.reader(names)
        else:
            planned = feed.plan(name)
            _check_same(name, entry.planned.schema, planned.schema)
            frame, reader = planned.frame, planned.reader
        if isinstance(data, Feed) and feed.cache != entry.planned.cache:
            raise InvalidArgumentError(
                f"feed {name!r} was fed with cache={entry.planned.cache!r} first, now {feed.cache!r}: "
                "the same for every call"
            )
        return dataclasses.replace(entry.planned, frame=frame, reader=reader)

    def knows(self, name: str) -> bool:
        """Whether rows were planned under the name."""
        with self._lock:
            return name in self._entries

    def end(self, name: str) -> None:
        """Note that a feed is over."""
        with self._lock:
            if name not in self._entries:
                raise InvalidArgumentError(f"nothing was fed under {name!r} in this run")
            self._entries[name].ended = True


def _check_same(name: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    if before == now:
        return
    raise InvalidArgumentError(
        f"feed {name!r} had the columns {described(before)} before, and now has {described(now)}: a "
        "feed keeps its schema as long as the nodes run. Select or cast to the same columns, or feed "
        "under another name"
    )


def described(schema: dict[str, Any]) -> str:
    """Columns of a feed as a message shows them: ``id int64, x float32[784]``."""
    return ", ".join(
        f"{one['name']} {one['dtype']}{one['shape'] if one['shape'] else ''}"
        for one in schema["columns"]
    )
