# SPDX-License-Identifier: Apache-2.0
"""What one task of the barrier job does: starts the agent, feeds it, returns its outcome as one row."""

from __future__ import annotations

import base64
import dataclasses
import itertools
import json
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from . import _executor, _gpus, _liveness, _logs, _network, _serve, errors, parquet
from ._roles import Roles
from .schema import inputs

# The row that each task returns; `result` is what the node returned, pickled.
ROW_SCHEMA = "rank bigint, outcome string, result binary"
# How a feeder's failure begins when Spark could not compute the rows.
INPUT_ENDED = "Spark ended the rows of this task early"
_WAIT_S = 1.0
_INPUT_ENDED_WAIT_S = 3.0
_REACH_TIMEOUT_S = 3.0
_MARK = re.compile(r"\[\[arcflow (\w+) ([A-Za-z0-9+/=]*)\]\]")


class _InputEndedError(Exception):
    """Spark's stream of rows broke off."""


@dataclasses.dataclass
class Plan:
    """Everything a task must know of the run; travels inside Spark's own task channel."""

    run_id: str
    secret: str  # hex
    size: int
    version: str
    coordinator: tuple[str, int]
    tuning: dict[str, Any]
    ask_reach: bool  # find out whether the coordinator can be reached; else rank 0 hosts it
    feeds: dict[str, dict[str, Any]]
    tagged: bool  # rows are (tag, struct of feed 0, struct of feed 1, …)
    python: list[str] | None
    env: dict[str, str]
    agent: dict[str, Any]  # passed to the agent as it is
    job: dict[str, Any]  # passed to the node
    payload: bytes
    log_dir: str | None = None
    roles: dict[str, Any] = dataclasses.field(default_factory=dict)  # none: all train
    network: str = ""  # that the node's address is in; "": as Spark's executor
    gpus: int | None = None  # a node; None: as Spark or the environment says
    share_gpus: bool = False
    live: bool = False  # the nodes outlive the tasks
    readers: dict[str, Any] = dataclasses.field(default_factory=dict)  # of feeds: parquet.Reader
    respawns: int = 0  # of a worker that serves a parameter server's chief

    @property
    def who(self) -> Roles:
        """Roles of all ranks."""
        return Roles.from_json(self.roles or {"size": self.size})

    def for_rank(self, rank: int) -> Plan:
        """Return the plan as the task of one rank sees it: servers have no feeds."""
        if self.who.of(rank)[0] in ("chief", "worker"):
            return self
        return dataclasses.replace(self, feeds={}, tagged=False)


def refuse(code: str, message: str) -> errors.ArcflowError:
    """Return an error that fails the whole barrier stage and that the driver recognises."""
    text = base64.b64encode(message.encode()).decode()
    return errors.from_code(code, f"{message} [[arcflow {code} {text}]]")


def recognise(spark_message: str) -> errors.ArcflowError | None:
    """Return the error that a task refused with, out of what Spark says about the failed stage."""
    found = _MARK.search(spark_message)
    if not found:
        return None
    return errors.from_code(found[1], base64.b64decode(found[2]).decode())


def run(plan: Plan, batches: Iterable[Any]) -> Iterator[Any]:
    """Run one node from inside a barrier task.

    Parameters
    ----------
    plan
        The run.
    batches
        Arrow record batches of this task's partition.

    Yields
    ------
    pyarrow.RecordBatch
        One row of `ROW_SCHEMA`. The failure of a node is such a row, not an exception.
    """
    import pyarrow as pa
    from pyspark import BarrierTaskContext

    context = BarrierTaskContext.get()
    rank = context.partitionId()
    _check_task(plan, context)
    plan = plan.for_rank(rank)
    config = _configure(plan, context, rank)
    with _logs.written(plan.log_dir, config, _executor.local_dirs()):
        outcome, result = _drive(plan, config, batches)
    yield pa.RecordBatch.from_pydict(
        {
            "rank": pa.array([rank], pa.int64()),
            "outcome": pa.array([json.dumps(outcome)], pa.string()),
            "result": pa.array([result], pa.binary()),
        }
    )


def _check_task(plan: Plan, context: Any) -> None:
    mine = _executor.versions()["arcflow"]
    if mine != plan.version:
        raise refuse(
            "FAILED_PRECONDITION",
            f"arcflow {mine} is installed on an executor, {plan.version} in the driver: "
            "install the same version on both",
        )
    if context.attemptNumber() > 0:
        raise refuse("ABORTED", "Spark started a task of the run again; a run has one attempt")
    tasks = len(context.getTaskInfos())
    if tasks != plan.who.tasks:
        raise refuse("INTERNAL", f"the barrier stage has {tasks} tasks for {plan.who.tasks} nodes")


def _configure(plan: Plan, context: Any, rank: int) -> dict[str, Any]:
    address = context.getTaskInfos()[rank].address
    if plan.network:
        host = _or_refuse(lambda: _network.choose(plan.network))
    elif not plan.ask_reach and _executor.is_loopback(plan.coordinator[0]):
        host = "127.0.0.1"  # the driver's loopback is ours: one machine
    else:
        host = _executor.advertised_host(address, plan.coordinator[0])
    config = _base_config(plan, rank, host)
    config["jvm_pid"] = _executor.jvm_pid()
    config["env"] = {**config["env"], **_gpu_environment(plan, context, rank), **plan.env}
    config.update(_find_coordinator(plan, context, rank, host))
    return config


def _or_refuse(act: Callable[[], Any]) -> Any:
    """Return what `act` returns; its error fails the whole stage and is raised in the driver."""
    try:
        return act()
    except errors.ArcflowError as error:
        raise refuse(error.code, error.message) from error


def _gpu_environment(plan: Plan, context: Any, rank: int) -> dict[str, str]:
    """Return what hides all accelerators but this node's from it; must be set before TensorFlow starts."""
    resources = {name: list(one.addresses) for name, one in context.resources().items()}
    if plan.gpus == 0 or plan.who.of(rank)[0] == "ps":
        return _gpus.nothing()
    if plan.gpus is None and not resources.get("gpu"):
        return {}  # as the executor's environment has it
    found = _gpus.find(resources, os.environ)
    if plan.gpus is None:
        return _gpus.environment_of(found, found.addresses)
    addresses = [info.address for info in context.getTaskInfos()]
    if found.per_host:
        addresses = [address.rsplit(":", 1)[0] for address in addresses]
    place = addresses[:rank].count(addresses[rank])
    wanted = plan.gpus
    chosen = _or_refuse(lambda: _gpus.choose(found, wanted, place, plan.share_gpus))
    return _gpus.environment_of(found, chosen)


def _base_config(plan: Plan, rank: int, host: str) -> dict[str, Any]:
    """Return what an agent must know wherever it runs; where the coordinator is comes later."""
    role, index = plan.who.of(rank)
    return {
        "run_id": plan.run_id,
        "secret": plan.secret,
        "rank": rank,
        "size": plan.size,
        "feed_ranks": plan.who.size,
        "role": role,
        "index": index,
        "host": host,
        "python": [*(plan.python or [sys.executable]), "-m", "arcflow._node"],
        "env": {**_node_environment(), "ARCFLOW_NODE": f"{role}:{index}", **plan.env},
        "cwd": _working_directory(),
        "versions": _executor.versions(),
        "feeds": plan.feeds,
        "respawns": plan.respawns if role == "worker" and plan.who.ps else 0,
        "serving_at": _serve.EXIT_BARRIER,
        "local_dirs": _executor.local_dirs(),
        "forward_log": rank == 0,
        "job": {**plan.job, "local_dirs": _executor.local_dirs()},
        **plan.agent,
    }


def run_beside(plan: Plan, rank: int, host: str) -> tuple[Any, bytes]:
    """Run one node without a Spark task, in the driver's process: a parameter server on its host.

    Returns its outcome and result, as the row of a task holds them.
    """
    plan = plan.for_rank(rank)
    config = _base_config(plan, rank, host)
    config["env"] = {**config["env"], **_gpus.nothing(), **plan.env}
    config["coordinator"] = {"host": plan.coordinator[0], "port": plan.coordinator[1]}
    with _logs.written(plan.log_dir, config, _executor.local_dirs()):
        return _drive(plan, config, ())


def _node_environment() -> dict[str, str]:
    """Environment of the node; a user's own settings win where they exist."""
    defaults = {
        "PYTHONUNBUFFERED": "1",  # the last lines before a death must be there
        "PYTHONFAULTHANDLER": "1",
        "KERAS_BACKEND": "tensorflow",
        "TF_CPP_MIN_LOG_LEVEL": "1",
    }
    found = {name: os.environ.get(name, value) for name, value in defaults.items()}
    tunables = _executor.with_large_pages(os.environ.get("GLIBC_TUNABLES", ""))
    return {"PYTHONPATH": _executor.node_python_path(), "GLIBC_TUNABLES": tunables, **found}


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _find_coordinator(plan: Plan, context: Any, rank: int, host: str) -> dict[str, Any]:
    """Where this task's agent finds the coordinator, or that it hosts it."""
    where = {"host": plan.coordinator[0], "port": plan.coordinator[1]}
    if not plan.ask_reach:
        return {"coordinator": where}
    first, last = plan.agent.get("first_port", 0), plan.agent.get("last_port", 0)
    bound = _or_refuse(lambda: _network.bind_in(host, first, last))
    with bound as reserved:  # rank 0 keeps a port until all know who hosts
        port = reserved.getsockname()[1]
        reached = _executor.can_connect(*plan.coordinator, timeout_s=_REACH_TIMEOUT_S)
        word = {"rank": rank, "reached": reached, "host": host, "port": port}
        words = [json.loads(text) for text in context.allGather(json.dumps(word))]
    if all(one["reached"] for one in words):
        return {"coordinator": where}
    if plan.who.ps_on_driver:
        lost = [one["rank"] for one in words if not one["reached"]]
        raise refuse(
            "FAILED_PRECONDITION",
            f"ranks {lost} cannot reach the driver at {plan.coordinator[0]}, where the parameter "
            "servers would run: leave ps_on_driver out, or open the driver's ports to the executors",
        )
    chief = next(one for one in words if one["rank"] == 0)
    found: dict[str, Any] = {"coordinator": {"host": chief["host"], "port": chief["port"]}}
    if rank == 0:
        found["host_coordinator"] = {"bind": host, "port": port, **plan.tuning}
    return found


def _drive(plan: Plan, config: dict[str, Any], batches: Iterable[Any]) -> tuple[Any, bytes]:
    """Start the agent, feed it, and wait for its outcome."""
    from . import _core, _live_task

    if plan.live:
        return _live_task.leave(plan, config)
    link = _core.AgentLink.launch(_executor.agent_path(), json.dumps(config), plan.payload)
    watch = _liveness.watch_agent(link.pid, float(config.get("stop_timeout_s") or 0))
    try:
        try:
            _feed(link, plan, batches)
        except errors.UnavailableError:
            pass  # the agent is gone; wait() says how
        except _InputEndedError as error:  # Spark tells the driver why, better than we could
            link.abort("ABORTED", f"{INPUT_ENDED}: {error}", "")
            link.wait(_INPUT_ENDED_WAIT_S)  # the task has failed; nobody would end us
            raise
        except Exception as error:  # becomes the failure of this node
            code = getattr(error, "code", "UNKNOWN")
            link.abort(code, f"{type(error).__name__}: {error}", traceback.format_exc())
        while (ended := link.wait(_WAIT_S)) is None:
            pass
        return json.loads(ended[0]), bytes(ended[1])
    except errors.ArcflowError as error:
        return {"status": "failed", "failure": _agent_lost(config, error, watch)}, b""
    finally:
        watch.end()  # before the agent's process id can become another's
        link.close()


def _agent_lost(
    config: dict[str, Any], error: errors.ArcflowError, watch: _liveness.Watch
) -> dict[str, Any]:
    return {
        "rank": config["rank"],
        "role": config["role"],
        "host": config["host"],
        "cause": "agent lost",
        "message": f"{error.message}{watch.explanation}",
        "traceback": "",
        "log_tail": [],
    }


def _feed(link: Any, plan: Plan, batches: Iterable[Any]) -> None:
    """Write all batches, until the node wants no more; then end every feed."""
    names = list(plan.feeds)
    if not names:  # the rows of spark.range() only make the tasks
        return
    wanted = set(names)
    for batch in _from_spark(batches):
        for name, part in split(batch, plan) if plan.tagged else ((names[0], batch),):
            if name not in wanted:
                continue
            for rows in parquet.rows_of(plan.readers.get(name), part):
                if rows.num_rows and not link.write(name, rows):
                    wanted.discard(name)
                    break
        if not wanted:
            break
    for name in names:
        link.end(name)


def _from_spark(batches: Iterable[Any]) -> Iterator[Any]:
    iterator = iter(batches)
    while True:
        try:
            batch = next(iterator)
        except StopIteration:
            return
        except Exception as error:  # the stream from the JVM broke off
            raise _InputEndedError(f"{type(error).__name__}: {error}") from error
        yield batch


def split(batch: Any, plan: Plan) -> Iterator[tuple[str, Any]]:
    """Split a batch of tagged rows into runs of one feed each, without copying a value.

    Parameters
    ----------
    batch : pyarrow.RecordBatch
        Column 0: number of the feed; column 1 + i: struct of the columns of feed i.

    Yields
    ------
    tuple of str, pyarrow.RecordBatch
        Name of the feed, and its rows with their own column names.
    """
    import pyarrow as pa

    names = list(plan.feeds)
    for tag, start, length in runs(batch.column(0).to_numpy(zero_copy_only=False)):
        name = names[tag]
        rows = batch.column(1 + tag).slice(start, length)
        reader = plan.readers.get(name)
        columns = reader.inputs if reader else inputs(plan.feeds[name]["schema"])
        arrays = [rows.field(i) for i in range(len(columns))]
        yield name, pa.RecordBatch.from_arrays(arrays, names=columns)


def runs(tags: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yield (tag, start, length) for each run of equal tags.

    Examples
    --------
    >>> list(runs(np.array([1, 1, 0])))
    [(1, 0, 2), (0, 2, 1)]
    """
    if not len(tags):
        return
    edges = [0, *(np.flatnonzero(np.diff(tags)) + 1).tolist(), len(tags)]
    for start, stop in itertools.pairwise(edges):
        yield int(tags[start]), start, stop - start
