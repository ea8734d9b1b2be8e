# SPDX-License-Identifier: Apache-2.0
"""One run as the driver sees it: coordinator and Spark job side by side, until both have ended."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import (
    _beside,
    _causes,
    _executor,
    _job,
    _logs,
    _network,
    _prometheus,
    _spark_errors,
    _task,
    _tensorboard,
    errors,
)
from ._restart import Position
from ._roles import Roles
from .feed import PlannedFeed
from .progress import Progress

_POLL_S = 0.1
# Added to the grace period of nodes: how long a stopped run may take before its Spark job is cancelled.
_STOP_SLACK_S = 20.0
# How long the tasks of a failed run may take to return once all their agents have left; and when one will
# never return, since its host is cut off or its process stopped.
_LEFT_SLACK_S = 3.0
_STUCK_SLACK_S = 1.0
# How long the coordinator is asked for a better reason after the Spark job failed.
_VERDICT_S = 6.0
# Longer than any run waits: eleven days.
_LONGEST_S = 1e6


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of a cluster that have defaults; see `Cluster`."""

    feed_memory_bytes: int
    start_timeout_s: float
    heartbeat_timeout_s: float
    grace_s: float
    log_lines: int
    progress: bool
    host: str | None
    bind_host: str | None
    port: int
    python: tuple[str, ...] | None
    env: dict[str, str]
    remainder: str
    log_dir: str | None = None
    stall_timeout_s: float = 600.0
    stop_timeout_s: float = 30.0
    encrypt: bool = False
    evaluator_grace_s: float = 30.0
    network: str = ""
    ports: tuple[int, int] = (0, 0)
    gpus: int | None = None
    share_gpus: bool = False
    profile: Any = None  # pyspark.resource.ResourceProfile
    transport: str = "auto"
    transport_compression: str = ""
    accumulate: int = 1  # steps before an update
    worker_restarts: int = 3
    tensorboard: _tensorboard.Settings | None = None
    metrics_dir: str | None = None

    @property
    def segment_bytes(self) -> int:
        """Size of segments that a writer aims at: many in the budget, none tiny."""
        return max(64 * 1024, min(16 << 20, self.feed_memory_bytes // 16))


@dataclasses.dataclass
class NodeOutcome:
    """What the task of one rank returned."""

    rank: int
    outcome: dict[str, Any]
    result: bytes


class Run:
    """Starts one run and sees it through.

    Threads: one, the caller's. `execute` may be called once.
    """

    def __init__(
        self,
        spark: Any,
        roles: Roles,
        options: Options,
        feeds: Sequence[PlannedFeed],
        payload: bytes,
        *,
        run_id: str = "",
        attempt: int = 1,
        stable: bool = False,
    ) -> None:
        self._spark = spark
        self._attempt = attempt
        self._stable = stable
        self._said: dict[int, dict[str, Any]] = {}  # what checkpoints told, by rank
        self._steps: dict[int, int] = {}  # by rank
        self._roles = roles
        self._size = roles.total
        self._options = options
        self._feeds = feeds
        self._payload = payload
        self._connect = _job.is_connect(spark)
        self.run_id = run_id or secrets.token_hex(8)
        self.logs = _logs.NodeLogs(options.log_dir)
        self.numbers = _prometheus.Live()
        self._failure: dict[str, Any] | None = None
        self._others: list[dict[str, Any]] = []
        self._stopped: str | None = None
        self._joined: set[int] = set()
        self._first_joined_at: float | None = None
        self._started = False
        self._all_finished = False
        self._give_up_at: float | None = None
        self._all_finished_at: float | None = None

    def execute(self) -> list[NodeOutcome]:
        """Run all nodes; return their outcomes in order of rank.

        Raises
        ------
        NodeFailedError
            A node failed; the first one is named.
        RunInterruptedError
            The user pressed Ctrl-C.
        ArcflowError
            The run could not be started, or its Spark job failed.
        """
        frame, tagged = _job.make_input(
            self._spark, self._feeds, self._roles.tasks, self._roles.fed, stable=self._stable
        )
        secret = secrets.token_bytes(32)
        bind, advertise = coordinator_hosts(self._spark, self._options)
        with self._coordinator(bind, advertise, secret) as self._coordinator_handle:
            address = split_address(self._coordinator_handle.address)
            plan = self._plan(secret, address, tagged)
            self._job = _job.BarrierJob(
                self._spark,
                frame,
                _job.make_task(plan),
                f"arcflow-{self.run_id}-{self._attempt}",
                self._options.profile,
            )
            self._beside = _beside.NodesBeside(plan, self._own_address(advertise))
            with Progress(self._size, [f.name for f in self._feeds], self._options.progress) as bar:
                self._progress = bar
                with self._new_board() as self._board:
                    return self._see_through()

    def _new_board(self) -> _tensorboard.Board:
        wish = self._options.tensorboard
        return _tensorboard.Board(wish, self.run_id, self._progress.link, self._progress.line)

    @contextlib.contextmanager
    def _coordinator(self, bind: str, advertise: str, secret: bytes) -> Iterator[Any]:
        from . import _core

        settings = {"run_id": self.run_id, "encrypt": self._options.encrypt}
        options = json.dumps({**settings, **self._tuning(hosted=False)})
        coordinator = _core.Coordinator(
            bind, advertise, self._options.port, secret, self._size, options
        )
        try:
            yield coordinator
        finally:
            coordinator.close()

    def _tuning(self, *, hosted: bool) -> dict[str, Any]:
        """Return the coordinator's settings; the driver watches the start, as it knows what Spark does."""
        return {
            # `_watch_start` ends a start that takes too long; the queue for slots has no length.
            "join_timeout_s": self._options.start_timeout_s if hosted else _LONGEST_S,
            "heartbeat_timeout_s": self._options.heartbeat_timeout_s,
            "barrier_timeout_s": _LONGEST_S,
            "bye_timeout_s": self._options.grace_s + _STOP_SLACK_S,
            "expected_versions": _executor.versions(),
        }

    def _plan(self, secret: bytes, address: tuple[str, int], tagged: bool) -> _task.Plan:
        options = self._options
        return _task.Plan(
            run_id=self.run_id,
            secret=secret.hex(),
            size=self._size,
            version=_executor.versions()["arcflow"],
            coordinator=address,
            tuning=self._tuning(hosted=True),
            ask_reach=self._connect,
            feeds={
                feed.name: feed.to_json(in_step=not self._roles.chief_alone) for feed in self._feeds
            },
            tagged=tagged,
            python=list(options.python) if options.python else None,
            env=options.env,
            agent={
                "feed_memory_bytes": options.feed_memory_bytes,
                "segment_bytes": options.segment_bytes,
                "grace_s": options.grace_s,
                # A host that is cut off ends its node about when the driver gives it up.
                "silence_s": options.heartbeat_timeout_s,
                "connect_timeout_s": options.start_timeout_s,
                "log_tail_lines": options.log_lines,
                "log_report_bytes": _logs.report_bytes(self._size),
                "encrypt": options.encrypt,
                "stall_timeout_s": options.stall_timeout_s,
                "stop_timeout_s": options.stop_timeout_s,
                "first_port": options.ports[0],
                "last_port": options.ports[1],
            },
            job={
                "run_id": self.run_id,
                "attempt": self._attempt,
                "remainder": options.remainder,
                "roles": self._roles.to_json(),
                "evaluator_grace_s": options.evaluator_grace_s,
                "accumulate": options.accumulate,
                "tensorboard": options.tensorboard and vars(options.tensorboard),
                "metrics_dir": options.metrics_dir,
                # Nodes prove this one to each other; they never get that of the control plane.
                "transport": {
                    "mode": options.transport,
                    "compression": options.transport_compression,
                    "secret": secrets.token_hex(32),
                    "ports": list(options.ports),
                },
            },
            payload=self._payload,
            log_dir=options.log_dir,
            roles=self._roles.to_json(),
            network=options.network,
            gpus=options.gpus,
            share_gpus=options.share_gpus,
            readers={feed.name: feed.reader for feed in self._feeds if feed.reader},
            respawns=options.worker_restarts,
        )

    def _own_address(self, advertise: str) -> str:
        """Return the address of nodes on this host."""
        if self._roles.ps_on_driver and self._options.network:
            return _network.choose(self._options.network)
        return advertise

    def _see_through(self) -> list[NodeOutcome]:
        self._job.start()
        names = [f"{role}:{index}" for role, index in map(self._roles.of, range(self._size))]
        self.numbers.begin(self.run_id, self._attempt, names)
        self.logs.begin(self.run_id, self._coordinator_handle.request_log)
        self._beside.start()
        try:
            self._idle_since = time.monotonic()
            while not self._job.done:
                self._take_event(_POLL_S)
                self._watch_start()
                self._watch_return()
                self._board.poll()
                if self._give_up_at is not None and time.monotonic() > self._give_up_at:
                    break
            return self._conclude()
        except KeyboardInterrupt:
            self._end(errors.CancelledError.code, "interrupted in the driver", wait_s=5.0)
            raise errors.RunInterruptedError(
                "the run was interrupted in the driver; all nodes were stopped"
            ) from None
        finally:
            self.logs.end()
            if not self._job.done:
                self._end("CANCELLED", "the driver gave up", wait_s=1.0)
            self._beside.close(self._options.grace_s)

    def _end(self, code: str, reason: str, wait_s: float) -> None:
        """Stop the nodes; cancel the Spark job when they do not leave by themselves."""
        with contextlib.suppress(errors.ArcflowError):
            self._coordinator_handle.stop(code, reason)
        self._job.wait(wait_s)
        self._job.cancel()

    def _take_event(self, timeout_s: float) -> bool:
        """Handle at most one event of the coordinator; False when there was none."""
        if self._all_finished:
            self._job.wait(timeout_s)
            return False
        text = self._coordinator_handle.next_event(timeout_s)
        if text is None:
            return False
        event = json.loads(text)
        handler = getattr(self, f"_on_{event['event']}", None)
        if handler:
            handler(event)
        return True

    def _on_joined(self, event: dict[str, Any]) -> None:
        self._joined.add(int(event["rank"]))
        if self._first_joined_at is None:
            self._first_joined_at = time.monotonic()
        self._progress.note(f"{len(self._joined)} of {self._size} nodes joined")

    def _on_started(self, event: dict[str, Any]) -> None:
        self._started = True
        self.logs.members(event["cluster"])
        self._progress.note("all nodes started")

    def _on_progress(self, event: dict[str, Any]) -> None:
        for one in event["ranks"]:
            self._note_step(int(one["rank"]), one.get("counters") or {})
        self.numbers.update(event["ranks"])
        self._progress.update(event["ranks"])
        self._board.progress(event["ranks"])

    def _on_log(self, event: dict[str, Any]) -> None:
        self._progress.line(str(event["line"]))

    def _on_node(self, event: dict[str, Any]) -> None:
        said = event.get("progress") or {}
        if isinstance(told := said.pop("arcflow", None), dict):
            self._said[int(event["rank"])] = told
        self._board.said(int(event["rank"]), said)
        if said:
            self._progress.node(int(event["rank"]), said)

    def _note_step(self, rank: int, counters: Mapping[str, Any]) -> None:
        self._steps[rank] = max(self._steps.get(rank, 0), int(counters.get("user_step") or 0))

    def positions(self) -> dict[int, Position]:
        """Where each rank was when it was last heard of, by what its checkpoint told."""
        return {
            rank: Position(
                restored=told.get("restored"),
                feed=str(told.get("feed") or ""),
                batch=int(told.get("batch") or 0),
                first_step=int(told.get("first_step") or 0),
                step=self._steps.get(rank),
            )
            for rank, told in self._said.items()
        }

    def _on_node_log(self, event: dict[str, Any]) -> None:
        self.logs.take(int(event["rank"]), event["lines"])

    def _on_failed(self, event: dict[str, Any]) -> None:
        self._failure = event["failure"]
        self._others = list(event.get("others") or ())
        self._expect_end()

    def _on_stopped(self, event: dict[str, Any]) -> None:
        self._stopped = str(event.get("reason") or "")
        self._expect_end()

    def _on_all_finished(self, event: dict[str, Any]) -> None:
        self._all_finished = True
        for one in event.get("ranks") or ():
            self._note_metrics(int(one["rank"]), one.get("metrics"))
        if event.get("failure") and self._failure is None:
            self._failure = event["failure"]
        self._all_finished_at = time.monotonic()
        if self._failure is not None:
            stuck = self._failure.get("cause") == "stopped" or any(
                one.get("status") == "lost" for one in event.get("ranks") or ()
            )
            slack_s = _STUCK_SLACK_S if stuck else _LEFT_SLACK_S
            self._give_up_at = min(self._give_up_at or math.inf, time.monotonic() + slack_s)

    def _watch_return(self) -> None:
        """End a run whose nodes have all finished when tasks of Spark's do not return with the results."""
        if self._all_finished_at is None or self._give_up_at is not None:
            return
        late_s = time.monotonic() - self._all_finished_at
        if late_s < self._options.heartbeat_timeout_s or self._job.running_tasks() == 0:
            return  # Spark may take as long as it likes to bring large results
        ranks = self._job.unfinished()
        self._failure = {
            "rank": ranks[0] if ranks else -1,
            "cause": "stopped",
            "message": (
                f"every node finished {late_s:.0f} s ago, but the Spark tasks of ranks "
                f"{ranks or 'that Spark does not tell'} have not returned: a Python process of Spark is "
                "stopped by a signal (SIGSTOP, a debugger), or its executor is cut off"
            ),
        }
        self._give_up_at = time.monotonic()

    def _note_metrics(self, rank: int, metrics: Any) -> None:
        if isinstance(metrics, dict):
            self._note_step(rank, metrics.get("counters") or {})

    def _expect_end(self) -> None:
        if self._give_up_at is None:
            self._give_up_at = time.monotonic() + self._options.grace_s + _STOP_SLACK_S

    def _watch_start(self) -> None:
        """End a run whose nodes do not all come; a shuffle before them may take as long as it likes."""
        if self._started or self._give_up_at is not None:
            return
        now = time.monotonic()
        limit = self._options.start_timeout_s
        if self._first_joined_at is None:
            if now - self._idle_since < limit:
                return
            if self._job.running_tasks() > 0:
                self._idle_since = now
                return
            text = (
                f"no node started within {limit:g} s: the cluster has no {self._size} free slots "
                "at once; end other jobs, add executors, or lower size="
            )
        elif now - self._first_joined_at > limit:
            missing = sorted(set(range(self._size)) - self._joined)
            text = (
                f"ranks {missing} did not join within {limit:g} s of the first: their executors "
                "cannot reach the coordinator (firewall?), or Python does not start there"
            )
        else:
            return
        self._end("DEADLINE_EXCEEDED", text, wait_s=1.0)
        raise errors.DeadlineExceededError(text)

    def _conclude(self) -> list[NodeOutcome]:
        if not self._job.done:
            self._job.cancel()
        cause = self._job.error
        if cause is None and self._job.done:
            outcomes = [_outcome(row) for row in self._job.rows()]
            outcomes += [NodeOutcome(*one) for one in self._beside.wait(self._options.grace_s)]
            return self._judge(sorted(outcomes, key=lambda one: one.rank))
        refused = _task.recognise(str(cause))
        if refused:
            raise refused from cause
        self._ask_for_verdict()
        if self._failure and _task.INPUT_ENDED not in str(self._failure.get("message")):
            others = [self._named(one) for one in self._others]
            raise _spark_errors.node_failed(self._named(self._failure), cause, others) from cause
        raise _spark_errors.wrap(cause) from cause

    def _named(self, failure: dict[str, Any]) -> dict[str, Any]:
        """Add the node's number within its role, which the coordinator does not tell."""
        rank = int(failure.get("rank", -1))
        if not 0 <= rank < self._size:
            return failure
        role, index = self._roles.of(rank)
        return {**failure, "role": role, "index": index}

    def _ask_for_verdict(self) -> None:
        """Ask which node made the Spark job fail; the coordinator may know now or a little later."""
        deadline = time.monotonic() + _VERDICT_S
        while self._joined and self._failure is None and time.monotonic() < deadline:
            self._take_event(_POLL_S)
            if self._all_finished:
                return

    def _judge(self, outcomes: list[NodeOutcome]) -> list[NodeOutcome]:
        while self._take_event(0.0):  # what was said before the job ended
            pass
        for one in outcomes:
            self._note_metrics(one.rank, one.outcome.get("metrics"))
            counters = (one.outcome.get("metrics") or {}).get("counters")
            feeds = one.outcome.get("rows")
            self.numbers.update([{"rank": one.rank, "counters": counters, "feeds": feeds}])
            if "role" in one.outcome:  # on Connect nobody else may have told
                self.logs.members([{**one.outcome, "rank": one.rank}])
            self.logs.take(one.rank, one.outcome.get("log") or ())
        failures = [one.outcome["failure"] for one in outcomes if one.outcome.get("failure")]
        own = [one.outcome["own_failure"] for one in outcomes if one.outcome.get("own_failure")]
        if self._failure is None and failures:
            self._failure = dict(_causes.first(failures) or {})
        if self._failure:
            others = _causes.others(self._failure, self._others, own)
            others = [self._named(dict(one)) for one in others]
            raise _spark_errors.node_failed(self._named(self._failure), None, others)
        if self._stopped is not None:
            raise errors.CancelledError(f"the run was stopped: {self._stopped}")
        missing = sorted(set(range(self._size)) - {one.rank for one in outcomes})
        if missing or any(one.outcome.get("status") != "ok" for one in outcomes):
            said = {one.rank: one.outcome.get("status") for one in outcomes}
            raise errors.InternalError(f"the run ended without a reason: {said}, missing {missing}")
        return outcomes


def _outcome(row: Any) -> NodeOutcome:
    return NodeOutcome(int(row.rank), json.loads(row.outcome), bytes(row.result or b""))


def coordinator_hosts(spark: Any, options: Options) -> tuple[str, str]:
    """Return the address to bind in the driver and the address to tell the executors."""
    if _job.is_connect(spark):
        server = spark.client.host
        advertise = options.host or (
            "127.0.0.1" if _executor.is_loopback(server) else _executor.outward_address(server)
        )
        return options.bind_host or advertise, advertise
    conf = spark.sparkContext.getConf()
    if options.host:
        return options.bind_host or options.host, options.host
    if spark.sparkContext.master.startswith("local"):  # executors are on this machine
        return options.bind_host or "127.0.0.1", "127.0.0.1"
    advertise = conf.get("spark.driver.host")
    return options.bind_host or conf.get("spark.driver.bindAddress") or advertise, advertise


def split_address(address: Any) -> tuple[str, int]:
    """``"host:port"`` or a pair, as a pair."""
    if isinstance(address, str):
        host, port = address.rsplit(":", 1)
        return host, int(port)
    host, port = address
    return str(host), int(port)
