# SPDX-License-Identifier: Apache-2.0
"""Cluster: runs a function in TensorFlow nodes on Spark's executors, fed by DataFrames."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import cloudpickle

from . import (
    _encryption,
    _logs,
    _metrics,
    _network,
    _prometheus,
    _replicas,
    _restart,
    _roles,
    _run,
    _scalars,
    _tensorboard,
    _transport,
    live,
    preflight,
)
from .errors import FailedPreconditionError, InternalError, InvalidArgumentError
from .feed import plan_feeds

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_REMAINDERS = ("pad", "drop", "refuse", "partial")
_MIN_FEED_MEMORY = 1 << 20
_ROW_COUNTS = ("fed", "given", "taken", "used", "padded", "dropped", "skipped", "unfinished")


@dataclasses.dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes
    ----------
    values
        What the function returned in each training node, by rank; None for workers that serve the
        chief.
    evaluators
        What it returned in each evaluator; None for one that was stopped at the end of training.
    rows
        For each feed: rows ``fed``; of those ``given`` to and ``taken`` from other nodes to even
        them out (``fed`` counts each where it then was); rows ``used``, ``padded``, ``dropped`` and
        ``skipped`` (used by an earlier attempt) in all passes that were read to their end; rows taken in passes left
        ``unfinished`` (Keras looks at a batch before it trains); and ``nodes``, the same for each
        rank, with its ``epochs``: the passes that reached their end, where ``fed`` is the sum of
        ``used``, ``dropped`` and ``skipped``, and ``passes``, all, as the agent told them.
    metrics
        ``nodes``: counters, times and memory of each rank, as its agent measured them; ``feeds``:
        for each feed what every node's part cost, in all and by epoch: rows and bytes a second,
        waiting times of reader and writer, how far the writer was ahead (see
        ``docs/guide/feeding.md``); ``transport``: what `Context.transport` said at the end.
    attempts
        What happened in each attempt; the last one is the good one.
    """

    values: list[Any]
    rows: dict[str, dict[str, Any]]
    metrics: dict[str, Any]
    evaluators: list[Any] = dataclasses.field(default_factory=list)
    attempts: list[_restart.Attempt] = dataclasses.field(default_factory=list)


class Cluster:
    """Nodes on the executors of a Spark application.

    Parameters
    ----------
    spark : pyspark.sql.SparkSession
        Classic or Connect; the active session by default.
    size
        Number of training nodes: the chief and the workers. By default one for each executor
        that other roles leave (Classic only).
    ps, evaluator
        Parameter servers and evaluators, on top of `size`: that many more slots are needed. With
        parameter servers only the chief calls the function; the workers serve it.
    ps_on_driver
        Whether the parameter servers run on the driver's host instead of in Spark tasks.
    workers_serve
        Whether only the chief calls the function, and puts variables and layers on the workers by
        `Context.device`: one model over several nodes. Rows go to the chief.
    feed_memory
        Bound of the shared memory that holds one node's rows: bytes, or text such as ``"2g"``.
    start_timeout
        Seconds that nodes may take to start while the cluster does nothing else for this run.
    heartbeat_timeout
        Seconds of silence after which a node counts as lost.
    stall_timeout
        Seconds that a node which lives may take without progress (a step of a dataset, a batch of
        Keras, `ctx.log`, `ctx.alive`) before it is described and ended; four times that until its
        third step. None or 0: for ever. Time in `ctx.busy`, in `ctx.save`, at barriers and waiting
        for rows does not count.
    stop_timeout
        Seconds that a node, its Spark task or executor may be stopped by a signal (SIGSTOP, a
        debugger) before it counts as failed; at most `stall_timeout`. None or 0: for ever.
    grace
        Seconds between SIGTERM and SIGKILL when nodes are stopped.
    evaluator_grace
        Seconds that an evaluator may go on after training has ended.
    remainder
        What `ctx.dataset` does by default when ranks hold different numbers of rows: ``"pad"``,
        ``"drop"``, ``"refuse"`` or ``"partial"``.
    replicas_to_aggregate
        How many gradients make one update of synchronous training: the number of training nodes
        (the default), or a multiple, for which every Keras optimizer accumulates on each node.
    worker_restarts
        How often each worker under parameter servers is started again when its process dies,
        while the others go on; no restart of the run.
    max_restarts
        How often a run is started again after a failure that may heal, on the executors that are
        there then. Programs go on from their newest checkpoint (`Context.checkpoint`).
    restart_backoff
        Seconds before the first restart; twice as long before each further one.
    transport
        How tensors travel between nodes: ``"auto"`` (collectives by shared memory within a host and
        TCP between hosts), ``"shm"`` (shared memory, or an error), ``"tcp"`` (TCP, also within a
        host), ``"rdma"`` (RDMA, or an error), ``"grpc"`` (TensorFlow's alone).
    transport_compression
        ``"bf16"`` or ``"fp16"``: float32 values of an all-reduce of more than 64 KiB are rounded to
        that type on their way between hosts, which halves the bytes there; within a host nothing
        changes. By default nothing is rounded.
    tensorboard
        TensorBoard for the length of each run: True, a folder (local or ``hdfs://``) for its logs,
        or a dict of ``dir``, ``host`` (loopback by default), ``port`` and ``where`` (``"driver"``,
        ``"chief"`` or ``"auto"``). Programs write to `Context.tensorboard_dir`.
    progress
        Whether to show a progress bar and rank 0's output.
    log_lines
        How many of a node's last lines an error shows; `logs` gives more.
    log_dir
        Folder for the whole output of every node, one file for each node and run:
        ``<log_dir>/<run id>/<role>-<index>.log``. On a file system that all hosts share, on
        each executor's own disk, or at ``hdfs://``, which gets a file when its node has ended.
    metrics_dir
        Folder for TensorBoard scalars of every node: rates and waiting times of its feeds, in
        ``<metrics_dir>/<run id>/<role>-<index>``. On a file system that TensorBoard sees too.
    gpus
        Accelerators of each node: those of Spark's task resources, else of the executor's
        ``CUDA_VISIBLE_DEVICES`` (``HIP_VISIBLE_DEVICES``, ``ROCR_VISIBLE_DEVICES``), else those that
        are there. 0: none. By default what Spark gave the task, or all that the executor sees.
    share_gpus
        Whether nodes of one executor may have the same accelerators.
    profile : pyspark.resource.ResourceProfile
        Cores, memory and resources of executors and tasks of the run alone; not in local mode.
    network
        Network (``"10.0.0.0/8"``) or interface (``"eth1"``) whose address nodes tell each other; by
        default the executor's own.
    ports
        Port, or range (``"40000-40100"``), that nodes listen on; any by default.
    host, bind_host, port
        Where the coordinator listens: the address that executors are told, the address that is
        bound, and a port (0: any). By default as Spark's driver.
    encrypt
        Whether what driver and agents say to each other is encrypted (TLS 1.3, keyed by the run's
        secret). None: as Spark's own connections are (``spark.network.crypto.enabled``,
        ``spark.ssl.enabled`` or ``spark.ssl.rpc.enabled``). TensorFlow's own connections never are.
    python
        Interpreter of the nodes (path, or argv); by default that of Spark's Python workers.
    env
        Environment variables of the nodes.

    Examples
    --------
    >>> with Cluster(spark, size=2) as cluster:  # doctest: +SKIP
    ...     result = cluster.run(train, data={"train": df}, args={"epochs": 3})
    """

    def __init__(
        self,
        spark: Any = None,
        size: int | None = None,
        *,
        ps: int = 0,
        evaluator: int = 0,
        ps_on_driver: bool = False,
        workers_serve: bool = False,
        feed_memory: int | str = "1g",
        start_timeout: float = 120.0,
        heartbeat_timeout: float = 15.0,
        stall_timeout: float | None = 600.0,
        stop_timeout: float | None = 30.0,
        grace: float = 5.0,
        evaluator_grace: float = 30.0,
        remainder: str = "pad",
        replicas_to_aggregate: int | None = None,
        worker_restarts: int = 3,
        max_restarts: int = 0,
        restart_backoff: float = 1.0,
        transport: str = "auto",
        transport_compression: str | None = None,
        tensorboard: bool | str | os.PathLike[str] | Mapping[str, Any] | None = None,
        progress: bool = True,
        log_lines: int = 50,
        log_dir: str | os.PathLike[str] | None = None,
        metrics_dir: str | os.PathLike[str] | None = None,
        gpus: int | None = None,
        share_gpus: bool = False,
        profile: Any = None,
        network: str | None = None,
        ports: int | str | None = None,
        host: str | None = None,
        bind_host: str | None = None,
        port: int = 0,
        encrypt: bool | None = None,
        python: str | list[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.spark = preflight.session(spark)
        others = _roles.checked_others(ps, evaluator, ps_on_driver)
        self.size = preflight.checked_size(self.spark, size, others)
        self._roles = _roles.checked(self.size, ps, evaluator, ps_on_driver, workers_serve)
        if remainder not in _REMAINDERS:
            raise InvalidArgumentError(f"remainder={remainder!r} is not one of {_REMAINDERS}")
        for name, value in (
            ("start_timeout", start_timeout),
            ("heartbeat_timeout", heartbeat_timeout),
        ):
            if not value > 0:
                raise InvalidArgumentError(f"{name}={value!r} is not a number of seconds above 0")
        for name, limit in (("stall_timeout", stall_timeout), ("stop_timeout", stop_timeout)):
            if limit is not None and not limit >= 0:
                raise InvalidArgumentError(f"{name}={limit!r} is not a number of seconds, or None")
        for name, times in (("max_restarts", max_restarts), ("worker_restarts", worker_restarts)):
            if isinstance(times, bool) or not isinstance(times, int) or times < 0:
                raise InvalidArgumentError(f"{name}={times!r} is not a number (0 or more)")
        self._options = _run.Options(
            feed_memory_bytes=parse_bytes(feed_memory),
            start_timeout_s=float(start_timeout),
            heartbeat_timeout_s=float(heartbeat_timeout),
            grace_s=float(grace),
            evaluator_grace_s=float(evaluator_grace),
            log_lines=int(log_lines),
            progress=progress,
            host=host,
            bind_host=bind_host,
            port=port,
            python=(python,) if isinstance(python, str) else tuple(python) if python else None,
            env={str(key): str(value) for key, value in (env or {}).items()},
            remainder=remainder,
            log_dir=_logs.checked_dir(log_dir),
            metrics_dir=_scalars.checked_dir(metrics_dir),
            encrypt=_encryption.wanted(self.spark, encrypt),
            stall_timeout_s=float(stall_timeout or 0),
            stop_timeout_s=min(float(stop_timeout or 0), float(stall_timeout or math.inf)),
            network=_network.checked(network),
            ports=_network.port_range(ports),
            gpus=preflight.checked_gpus(gpus),
            share_gpus=share_gpus,
            profile=preflight.checked_profile(self.spark, profile),
            transport=_transport.check_mode(transport),
            transport_compression=_transport.check_compression(transport_compression, transport),
            tensorboard=_tensorboard.checked(tensorboard),
            worker_restarts=worker_restarts,
            accumulate=_replicas.checked(replicas_to_aggregate, self._roles),
        )
        if not restart_backoff >= 0:
            raise InvalidArgumentError(f"restart_backoff={restart_backoff!r} is not 0 s or more")
        self._policy = _restart.Policy(max_restarts, float(restart_backoff))
        self._logs = _logs.NodeLogs(self._options.log_dir)
        self._numbers = _prometheus.Live()
        self._servers: list[_prometheus.Server] = []
        self._closed = False
        self._live: live.Running | None = None

    def run(self, fn: Callable[[Any], Any], data: Any = None, args: Any = None) -> Result:
        """Run ``fn(ctx)`` in every node that computes, and wait for all.

        Parameters
        ----------
        fn
            Called with its `Context` in the chief, in the workers (unless they serve it), and in
            evaluators, where ``ctx.role == "evaluator"``. Import TensorFlow inside it.
        data
            None, a DataFrame or `Feed` (named ``"train"``), or a dict of them by name.
        args
            Anything that can be pickled; ``ctx.args`` in the nodes.

        Returns
        -------
        Result
            Values, rows and metrics.

        Raises
        ------
        InvalidArgumentError
            Something about the arguments; nothing was started.
        NodeFailedError
            A node failed; the first one is named, with its traceback and last output. With
            ``max_restarts``, that of the last attempt.
        PoisonBatchError
            The same step killed the same node twice; names the rows.
        RunInterruptedError
            Ctrl-C; all nodes were stopped.
        """
        if self._closed:
            raise FailedPreconditionError("this cluster is closed; make another one")
        self._check_idle("run")
        payload = pickled(fn, args)
        self._check_slots()
        feeds = plan_feeds(data)
        run_id = secrets.token_hex(8)
        runs: list[_run.Run] = []

        def attempt(number: int) -> list[_run.NodeOutcome]:
            runs.append(
                _run.Run(
                    self.spark,
                    self._roles,
                    self._options,
                    feeds,
                    payload,
                    run_id=run_id,
                    attempt=number,
                    stable=self._policy.max_restarts > 0,
                )
            )
            runs[-1].logs, runs[-1].numbers = self._logs, self._numbers
            return runs[-1].execute()

        supervisor = _restart.Supervisor(self._policy, self._before_restart)
        outcomes = supervisor.run(attempt, lambda: runs[-1].positions())
        return _result(outcomes, self._roles, supervisor.attempts)

    def _before_restart(self) -> None:
        """Wait for the executors that replace lost ones."""
        self._check_slots(self._options.start_timeout_s)

    def _check_slots(self, *wait_s: float) -> None:
        if self._options.profile is None:  # else Spark makes executors for the run
            preflight.check_slots(self.spark, self._roles, *wait_s)

    def start(self, fn: Callable[[Any], Any], args: Any = None) -> live.Running:
        """Start ``fn(ctx)`` in every node and return while it runs: for streams, several data sets, inference.

        The nodes live on their executors without holding a slot of Spark, until `stop` (or the end
        of this cluster, of the driver, or of an executor). Training nodes only.

        Parameters
        ----------
        fn
            As for `run`. Its ``ctx.dataset(name)`` and ``ctx.reader(name)`` wait for the first rows
            fed under that name and end when the feed does; ``ctx.serve(fn)`` and ``ctx.requests()``
            answer `infer`.
        args
            As for `run`.

        Returns
        -------
        Running
            ``feed``, ``feed_stream``, ``infer``, ``end_feed``, ``stop``; the methods of the same
            names here are those of the nodes started last.

        Raises
        ------
        NodeFailedError
            A node could not be started, or failed at once.
        """
        if self._closed:
            raise FailedPreconditionError("this cluster is closed; make another one")
        self._check_idle("start")
        self._check_slots()
        self._live = live.start(self, fn, args)
        return self._live

    def _check_idle(self, what: str) -> None:
        if self._live is not None and not self._live._closed:
            raise FailedPreconditionError(
                f"{what}() while nodes of start() run: call stop() first, or use another Cluster"
            )

    @property
    def _running(self) -> live.Running:
        if self._live is None:
            raise FailedPreconditionError("no nodes run: call start() first")
        return self._live

    def feed(self, data: Any, name: str = "train", **options: Any) -> live.Fed:
        """See `Running.feed`."""
        return self._running.feed(data, name, **options)

    def feed_stream(self, stream: Any, name: str = "train", **options: Any) -> Any:
        """See `Running.feed_stream`."""
        return self._running.feed_stream(stream, name, **options)

    def infer(self, data: Any, schema: Any, **options: Any) -> Any:
        """See `Running.infer`."""
        return self._running.infer(data, schema, **options)

    def end_feed(self, name: str = "train") -> None:
        """See `Running.end_feed`."""
        self._running.end_feed(name)

    def stop(self, timeout: float | None = None) -> Result:
        """See `Running.stop`."""
        result: Result = self._running.stop(timeout)
        return result

    def logs(self, node: int | str = 0, lines: int = 200) -> list[str]:
        """Return the last lines that a node wrote, in the run that goes on or in the last one.

        Parameters
        ----------
        node
            Rank, or ``"role:index"`` such as ``"worker:1"``.
        lines
            At most so many; agents keep the last 1000 (``log_dir`` keeps all).

        Raises
        ------
        NotFoundError
            There is no such node, or nothing is known of its output.
        """
        return self._logs.last(node, lines)

    def prometheus(self) -> str:
        """Return what the nodes count, in Prometheus's text format.

        Of the run under way, about a second old, or of the last one; empty before the first.
        """
        return self._numbers.text()

    def serve_prometheus(self, port: int = 0, *, host: str = "127.0.0.1") -> str:
        """Serve `prometheus` over HTTP, for Prometheus to scrape, until the cluster is closed.

        Parameters
        ----------
        port
            0: any that is free.
        host
            Address of this machine to listen on. Whoever reaches it can read the numbers.

        Returns
        -------
        str
            Where: ``"http://127.0.0.1:9464/metrics"``.

        Raises
        ------
        UnavailableError
            The address cannot be had.
        """
        if self._closed:
            raise FailedPreconditionError("this cluster is closed; make another one")
        self._servers.append(_prometheus.Server(self._numbers, host, port))
        return self._servers[-1].url

    def close(self) -> None:
        """End the cluster, and nodes of `start` with it; a second call does nothing."""
        if self._live is not None:
            self._live.close()
        self._closed = True
        while self._servers:
            self._servers.pop().close()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()


def parse_bytes(size: int | str) -> int:
    """Bytes from a number or from text such as ``"512m"``.

    Examples
    --------
    >>> parse_bytes("2k")
    2048
    """
    if isinstance(size, str):
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)i?b?\s*", size.lower())
        if not found:
            raise InvalidArgumentError(f"feed_memory={size!r} is not a size such as '512m' or '2g'")
        size = int(float(found[1]) * _UNITS[found[2]])
    if size < _MIN_FEED_MEMORY:
        raise InvalidArgumentError(f"feed_memory={size} is below {_MIN_FEED_MEMORY} bytes")
    return int(size)


def pickled(fn: Callable[[Any], Any], args: Any) -> bytes:
    """Return function and arguments as the nodes get them."""
    if not callable(fn):
        raise InvalidArgumentError(f"run() needs a function that takes a context, not {fn!r}")
    for name, value in (("the function", fn), ("args=", args)):
        try:
            cloudpickle.dumps(value)
        except Exception as error:
            raise InvalidArgumentError(
                f"{name} cannot be sent to the nodes: {type(error).__name__}: {error}. It must not hold "
                "a SparkSession, a DataFrame, a lock, an open file or the like: make or open such "
                "things inside the function"
            ) from error
    return cloudpickle.dumps((fn, args))


def _result(
    outcomes: list[_run.NodeOutcome], roles: _roles.Roles, attempts: list[_restart.Attempt]
) -> Result:
    values: list[Any] = []
    transport: list[dict[str, Any]] = []
    for one in outcomes:
        try:
            value, report = cloudpickle.loads(one.result)
            values.append(value)
            transport.append(report)
        except Exception as error:
            raise InternalError(
                f"what rank {one.rank} returned cannot be read in the driver: "
                f"{type(error).__name__}: {error}. Return plain Python or NumPy values"
            ) from error
    rows: dict[str, dict[str, Any]] = {}
    for one in outcomes:
        for name, feed in (one.outcome.get("rows") or {}).items():
            node = _metrics.rows_of_node(feed)
            total = rows.setdefault(name, {**dict.fromkeys(_ROW_COUNTS, 0), "nodes": []})
            for key in _ROW_COUNTS:
                total[key] += node[key]
            total["nodes"].append(node)
    nodes = [one.outcome.get("metrics") or {} for one in outcomes]
    metrics = {
        "nodes": nodes,
        "feeds": _metrics.of_feeds([one.outcome for one in outcomes]),
        "transport": transport[: roles.size],
    }
    evaluators = values[roles.size : roles.size + roles.evaluator]
    return Result(values[: roles.size], rows, metrics, evaluators, attempts)
