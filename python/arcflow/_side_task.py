# SPDX-License-Identifier: Apache-2.0
"""What a Spark task does that feeds nodes which live on, or asks them: finds their agents, writes, claims.

docs/design/side-feed.md has the picture.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from . import _executor, _task, errors, parquet

# The row that each feeding task returns.
ROW_SCHEMA = "partition bigint, rows bigint, counted boolean, enough boolean"
_WAIT_S = 5.0
_LEAST_SEGMENT = 64 * 1024
# Segments of a stage hold so many of Spark's batches: neither one for each nor much room unused.
_BATCHES_A_SEGMENT = 4


@dataclasses.dataclass
class SidePlan:
    """Everything such a task must know; travels inside Spark's own task channel."""

    run_id: str
    secret: str  # hex
    version: str
    agents: list[dict[str, Any]]  # rank, jvm_pid, host, port; those with fewest rows first
    feed: str
    schema: dict[str, Any]
    cache: str
    job: str
    segment_bytes: int
    wait_s: float = 0.0  # for a node that serves
    encrypt: bool = False  # what goes to another executor
    reader: Any = None  # parquet.Reader, where what the task gets says what to read


class _EnoughError(Exception):
    """The node wants no more rows."""


def feed(plan: SidePlan, batches: Iterable[Any]) -> Iterator[Any]:
    """Feed the rows of one partition to the nodes of this executor, or to one of another.

    Yields
    ------
    pyarrow.RecordBatch
        One row of `ROW_SCHEMA`. Rows count when the coordinator grants this attempt the partition;
        those of any other attempt are thrown away.
    """
    import pyarrow as pa
    from pyspark import TaskContext

    context = TaskContext.get()
    who = {"partition": context.partitionId(), "attempt": context.taskAttemptId()}
    with _told():
        rows, counted, enough = _feed(plan, who, batches)
    yield pa.RecordBatch.from_pydict(
        {
            "partition": pa.array([who["partition"]], pa.int64()),
            "rows": pa.array([rows], pa.int64()),
            "counted": pa.array([counted], pa.bool_()),
            "enough": pa.array([enough], pa.bool_()),
        }
    )


def _feed(plan: SidePlan, who: dict[str, int], batches: Iterable[Any]) -> tuple[int, bool, bool]:
    """Return how many rows were fed, whether they count, and whether all nodes here have enough."""
    with contextlib.ExitStack() as stack:
        stages = []
        for rank, link in _links(plan, who["partition"], stack):
            stage = _Stage(plan, rank, link)
            if stage.attach(who):
                stages.append(stage)
        written = 0
        rows = (one for batch in batches for one in parquet.rows_of(plan.reader, batch))
        for batch in rows if stages else ():
            if batch.num_rows:
                stages = _deal(stages, batch, turn=written)
                written += 1
            if not stages:
                return 0, False, True
        stages = [stage for stage in stages if stage.seal()]
        if not stages:
            return 0, False, True
        stages[0].claim([stage.rank for stage in stages])
        decisions = [stage.decided() for stage in stages]  # all agents have the rows then
        counted = all(decisions)
        return sum(stage.rows for stage in stages) if counted else 0, counted, False


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """Let the driver recognise what went wrong here in what Spark says about the job."""
    try:
        yield
    except errors.ArcflowError as error:
        if _task.recognise(error.message):
            raise
        raise _task.refuse(error.code, error.message) from error


def _deal(stages: list[_Stage], batch: Any, turn: int) -> list[_Stage]:
    """Give each stage an even share of a batch; return those that want more."""
    shares = shares_of(batch.num_rows, len(stages), turn)
    left, start = [], 0
    for stage, rows in zip(stages, shares, strict=True):
        if not rows or stage.write(batch.slice(start, rows)):
            left.append(stage)
        start += rows
    return left


def shares_of(rows: int, stages: int, turn: int) -> list[int]:
    """Split a number of rows evenly; what does not divide goes to other stages every turn.

    Examples
    --------
    >>> shares_of(7, 3, 0), shares_of(7, 3, 1)
    ([3, 2, 2], [2, 3, 2])
    """
    each, more = divmod(rows, stages)
    return [each + (1 if (number - turn) % stages < more else 0) for number in range(stages)]


class _Stage:
    """One attempt's rows at one agent."""

    def __init__(self, plan: SidePlan, rank: int, link: Any) -> None:
        self._plan = plan
        self._link = link
        self._name = ""
        self._begun = False
        self.rank = rank
        self.rows = 0

    def attach(self, who: dict[str, int]) -> bool:
        """Ask to be let in, which takes as long as the node is far behind; False: it has enough."""
        header = {"op": "attach", "kind": "feed", "feed": self._plan.feed, "job": self._plan.job}
        self._link.send(
            json.dumps({**header, **who, "cache": self._plan.cache}), json.dumps(self._plan.schema)
        )
        try:
            self._name = answer(self._link, "attached")[0]["stage"]
        except _EnoughError:
            return False
        return True

    def write(self, batch: Any) -> bool:
        if not self._begun:
            self._begun = True
            wanted = _BATCHES_A_SEGMENT * batch.nbytes
            size = max(_LEAST_SEGMENT, min(self._plan.segment_bytes, wanted))
            self._link.begin(self._name, json.dumps(self._plan.schema), size)
        return bool(self._link.write(batch))

    def seal(self) -> bool:
        """Say that the rows are complete; False: the node has enough."""
        try:
            if self._begun:
                self._link.finish()
            self._link.send('{"op": "seal"}')
            self.rows = int(answer(self._link, "sealed")[0]["rows"])
        except (_EnoughError, errors.CancelledError):  # the second: of rows that were on their way
            return False
        return True

    def claim(self, ranks: Sequence[int]) -> None:
        self._link.send(json.dumps({"op": "claim", "ranks": list(ranks)}))

    def decided(self) -> bool:
        return bool(answer(self._link, "decided")[0]["granted"])


def _links(plan: SidePlan, turn: int, stack: contextlib.ExitStack) -> list[tuple[int, Any]]:
    """Connect to the agents of this executor, by rank, or else to one of another."""
    from . import _core

    mine = _executor.versions()["arcflow"]
    if mine != plan.version:
        raise _task.refuse(
            "FAILED_PRECONDITION",
            f"arcflow {mine} is installed on an executor, {plan.version} in the driver: "
            "install the same version on both",
        )
    jvm = _executor.jvm_pid()
    found = []
    for agent in plan.agents:
        if agent["jvm_pid"] != jvm:
            continue
        with contextlib.suppress(errors.NotFoundError):  # of another host, or it has just gone
            address = f"arcflow/{plan.run_id}/{jvm}/{agent['rank']}"
            link = _core.SideLink(address, bytes.fromhex(plan.secret))
            stack.callback(link.close)
            found.append((int(agent["rank"]), link))
    return found or [_remote(plan, turn, stack)]


def _remote(plan: SidePlan, turn: int, stack: contextlib.ExitStack) -> tuple[int, Any]:
    """Connect to an agent of another executor: tasks in turn, those with fewest rows first."""
    from . import _core

    tried = []
    for number in range(len(plan.agents)):
        agent = plan.agents[(turn + number) % len(plan.agents)]
        try:
            link = _core.SideLink.remote(
                agent["host"], agent["port"], bytes.fromhex(plan.secret), plan.encrypt
            )
        except errors.ArcflowError as error:
            tried.append(
                f"rank {agent['rank']} at {agent['host']}:{agent['port']} ({error.message})"
            )
            continue
        stack.callback(link.close)
        return int(agent["rank"]), link
    raise _task.refuse(
        "UNAVAILABLE",
        "no node of this run lives on the executor of a task that feeds it, and none can be reached "
        f"from there: {'; '.join(tried)}. Open the ports between the executors' hosts, or give every "
        "executor a node (leave size= out)",
    )


def answer(link: Any, wanted: str, *others: str) -> tuple[dict[str, Any], bytes]:
    """Wait for an agent's answer; raise what it refused."""
    while True:
        heard = link.receive(_WAIT_S)
        if heard is None:
            continue
        packet = json.loads(heard[0])
        op = packet.get("op")
        if op in (wanted, *others):
            return packet, heard[1]
        if op == "refused" and packet["code"] == "CANCELLED":
            raise _EnoughError
        if op == "refused":
            raise _task.refuse(packet["code"], packet["message"])


def infer(plan: SidePlan, batches: Iterable[Any], spark_schema: Any) -> Iterator[Any]:
    """Ask a node, of this executor if it has one, about the rows of one partition, block by block, in order.

    Yields
    ------
    pyarrow.RecordBatch
        What the node answered.
    """
    from pyspark import TaskContext

    context = TaskContext.get()
    with contextlib.ExitStack() as stack:
        stack.enter_context(_told())
        links = _links(plan, context.partitionId(), stack)
        _, link = links[context.partitionId() % len(links)]
        header = {
            "op": "attach",
            "kind": "infer",
            "feed": plan.feed,
            "job": plan.job,
            "partition": context.partitionId(),
            "attempt": context.taskAttemptId(),
            "wait_s": plan.wait_s,
        }
        schema = json.dumps(plan.schema)
        link.send(json.dumps(header), schema)
        answer(link, "attached")
        for batch in batches:
            if batch.num_rows:
                yield from _ask(plan, link, batch, schema, spark_schema)


def _ask(plan: SidePlan, link: Any, batch: Any, schema: str, spark_schema: Any) -> Iterator[Any]:
    import pyarrow as pa

    link.send('{"op": "block"}')
    stage = answer(link, "block")[0]["stage"]
    size = max(_LEAST_SEGMENT, min(plan.segment_bytes, 2 * batch.nbytes))
    link.begin(stage, schema, size)
    link.write(batch)
    link.finish()
    link.send('{"op": "serve"}')
    while True:
        packet, rows = answer(link, "rows", "served")
        if packet["op"] == "served":
            return
        with pa.ipc.open_stream(rows) as stream:
            for block in stream:
                yield fitted(block, spark_schema)


def fitted(block: Any, wanted: Any) -> Any:
    """Return a block of answers with the columns, order and types that `infer` was told.

    Raises
    ------
    InvalidArgumentError
        A column is missing, or a value does not fit its type.
    """
    import pyarrow as pa

    columns = []
    for field in wanted:
        if field.name not in block.schema.names:
            raise _task.refuse(
                "INVALID_ARGUMENT",
                f"infer(schema=…) names column {field.name!r}, but the node answered with "
                f"{', '.join(block.schema.names)}",
            )
        column = block.column(field.name)
        try:
            columns.append(column.cast(field.type))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise _task.refuse(
                "INVALID_ARGUMENT",
                f"the node's answer {field.name!r} is {column.type}, which is no {field.type} as "
                f"infer(schema=…) says: {error}",
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=wanted)
