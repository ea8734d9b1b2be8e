# SPDX-License-Identifier: Apache-2.0
"""The flags of a training program: a `Cluster` from what stands behind ``script.py`` on the command line."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from ..errors import InvalidArgumentError

# Flags that `Cluster` takes under another name, or that are settled here.
_SETTLED = (
    "cluster_size",
    "num_ps_tasks",
    "sync_replicas",
    "rdma",
    "tensorboard",
    "tensorboard_dir",
)


def add_arguments(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add the flags that say which nodes a program runs on, and how.

    What `cluster` makes of them is in ``docs/guide/command-line.md``. A flag that is left out leaves
    the default of `arcflow.Cluster`.

    Parameters
    ----------
    parser
        The program's own; its other arguments stay as they are.

    Returns
    -------
    argparse.ArgumentParser
        The same.

    Examples
    --------
    >>> parser = add_arguments(argparse.ArgumentParser())
    >>> parser.parse_args(["--cluster_size", "4", "--num_ps_tasks", "1"]).num_ps_tasks
    1
    """
    group = parser.add_argument_group("arcflow: the nodes, and how they train")
    for add in (_add_roles, _add_training, _add_tensorboard, _add_host, _add_limits):
        add(group.add_argument)
    return parser


def _add_roles(add: Callable[..., Any]) -> None:
    add(
        "--cluster_size",
        type=int,
        metavar="N",
        help="nodes that run on executors, parameter servers and evaluators included; by default "
        "one for each executor",
    )
    add("--num_ps_tasks", type=int, default=0, metavar="N", help="how many are parameter servers")
    add("--evaluator", type=int, default=0, metavar="N", help="how many are evaluators")
    add(
        "--ps_on_driver",
        action="store_true",
        help="parameter servers run on the driver's host, and count no more to --cluster_size",
    )
    add(
        "--workers_serve",
        action="store_true",
        help="only the chief runs the program, and places layers on the other nodes",
    )
    add(
        "--num_gpus",
        type=int,
        metavar="N",
        help="accelerators of each node; 0 hides all. By default what Spark gave the task",
    )
    add("--share_gpus", action="store_true", help="nodes of an executor may share accelerators")


def _add_training(add: Callable[..., Any]) -> None:
    add(
        "--sync_replicas",
        action="store_true",
        help="all nodes train in step; the way without --num_ps_tasks",
    )
    add(
        "--replicas_to_aggregate",
        type=int,
        metavar="M",
        help="gradients that make one update: a multiple of the nodes; needs --sync_replicas",
    )
    add(
        "--remainder",
        choices=("pad", "drop", "refuse", "partial"),
        help="what happens when nodes hold different numbers of rows",
    )
    add(
        "--worker_restarts",
        type=int,
        metavar="N",
        help="how often a worker of parameter servers that died is started again",
    )
    add("--max_restarts", type=int, metavar="N", help="restarts after a loss that may heal")
    add("--restart_backoff", type=float, metavar="SECONDS", help="wait before the first restart")
    add(
        "--transport",
        choices=("auto", "shm", "tcp", "rdma", "grpc"),
        help="how tensors travel between nodes",
    )
    add("--rdma", action="store_true", help="the same as --transport rdma: RDMA, or an error")
    add(
        "--transport_compression",
        choices=("bf16", "fp16"),
        help="round values of an all-reduce on their way between hosts: half the bytes",
    )


def _add_tensorboard(add: Callable[..., Any]) -> None:
    add("--tensorboard", action="store_true", help="start TensorBoard for the run, on loopback")
    add(
        "--tensorboard_dir",
        metavar="DIR",
        help="folder of its logs, local or hdfs://; implies --tensorboard",
    )


def _add_host(add: Callable[..., Any]) -> None:
    add("--feed_memory", metavar="SIZE", help="shared memory for a node's rows, such as 2g")
    add("--network", help="network or interface of the nodes, such as 10.0.0.0/8 or eth1")
    add("--ports", help="port or range that nodes listen on, such as 40000-40100")
    add("--encrypt", action="store_true", default=None, help="TLS between driver and agents")
    add("--log_dir", metavar="DIR", help="folder for the whole output of every node")
    add("--log_lines", type=int, metavar="N", help="lines of a node's output in an error")
    add("--no_progress", dest="progress", action="store_false", default=None, help="no bar")


def _add_limits(add: Callable[..., Any]) -> None:
    for name, what in (
        ("start_timeout", "that nodes may take to start"),
        ("heartbeat_timeout", "of silence after which a node is lost"),
        ("stall_timeout", "without progress after which a node is ended; 0: for ever"),
        ("stop_timeout", "that a node may be stopped by a signal; 0: for ever"),
        ("grace", "between SIGTERM and SIGKILL"),
        ("evaluator_grace", "that evaluators may go on after training"),
    ):
        add(f"--{name}", type=float, metavar="SECONDS", help=f"seconds {what}")


def options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the keyword arguments of `arcflow.Cluster` that the flags stand for.

    Raises
    ------
    InvalidArgumentError
        Flags that contradict each other; says what to leave out or to add.
    """
    known = argparse.ArgumentParser()
    names = [a.dest for a in add_arguments(known)._actions if a.dest != "help"]
    given = {name: getattr(args, name, None) for name in names}
    _refuse(given)
    found = {
        name: value
        for name, value in given.items()
        if name not in _SETTLED and value is not None and value is not False
    }
    if given["progress"] is False:
        found["progress"] = False
    if given["num_gpus"] is not None:
        found["gpus"] = given["num_gpus"]
    found.pop("num_gpus", None)
    found["size"] = _size(given)
    if given["num_ps_tasks"]:
        found["ps"] = given["num_ps_tasks"]
    if given["rdma"]:
        found["transport"] = "rdma"
    if given["tensorboard"] or given["tensorboard_dir"]:
        found["tensorboard"] = given["tensorboard_dir"] or True
    return found


def cluster(spark: Any, args: argparse.Namespace, **more: Any) -> Any:
    """Make the `arcflow.Cluster` that the flags ask for.

    Parameters
    ----------
    spark : pyspark.sql.SparkSession
        The session; None: the active one, or a new one as spark-submit was told.
    args
        What a parser with `add_arguments` returned.
    more
        Further arguments of `arcflow.Cluster`; they win over flags.

    Raises
    ------
    ArcflowError
        A flag cannot have its effect, here or together with another one.

    Examples
    --------
    >>> with cluster(spark, args) as nodes:  # doctest: +SKIP
    ...     nodes.run(train, data=df, args=args)
    """
    from ..cluster import Cluster

    wishes = options(args)  # what is refused is refused before Spark starts
    if spark is None:
        from pyspark.sql import SparkSession

        spark = SparkSession.builder.getOrCreate()
    return Cluster(spark, **{**wishes, **more})


def _size(given: dict[str, Any]) -> int | None:
    """How many nodes train."""
    if given["cluster_size"] is None:
        return None
    servers = 0 if given["ps_on_driver"] else given["num_ps_tasks"]
    size = int(given["cluster_size"] - servers - given["evaluator"])
    least = 2 if given["num_ps_tasks"] or given["workers_serve"] else 1
    if size < least:
        others = ", ".join(
            f"--{name} {given[name]}" for name in ("num_ps_tasks", "evaluator") if given[name]
        )
        raise InvalidArgumentError(
            f"--cluster_size {given['cluster_size']}"
            + (f" with {others} leaves {max(size, 0)} to train" if others else " is no cluster")
            + (": a chief and a worker that serves it are the least" if least == 2 else "")
            + f". Say --cluster_size {given['cluster_size'] - size + least} or more"
        )
    return size


def _refuse(given: dict[str, Any]) -> None:
    if given["rdma"] and given["transport"] not in (None, "rdma"):
        raise InvalidArgumentError(
            f"--rdma and --transport {given['transport']} contradict each other: leave one out"
        )
    if given["ps_on_driver"] and not given["num_ps_tasks"]:
        raise InvalidArgumentError("--ps_on_driver without parameter servers: add --num_ps_tasks 1")
    if given["workers_serve"] and (given["num_ps_tasks"] or given["sync_replicas"]):
        other = "num_ps_tasks" if given["num_ps_tasks"] else "sync_replicas"
        raise InvalidArgumentError(
            f"--workers_serve with --{other}: one program of the chief's on all nodes is another way "
            "to train. Leave one of the two out"
        )
    if given["sync_replicas"] and given["num_ps_tasks"]:
        raise InvalidArgumentError(
            f"--sync_replicas with --num_ps_tasks {given['num_ps_tasks']}: nodes that train in step "
            "keep the variables themselves and average gradients among each other, so parameter "
            "servers would have nothing to do. Leave out --num_ps_tasks (those nodes then train "
            "too), or --sync_replicas to train asynchronously"
        )
    if given["replicas_to_aggregate"] is not None and not given["sync_replicas"]:
        raise InvalidArgumentError(
            f"--replicas_to_aggregate {given['replicas_to_aggregate']} without --sync_replicas: "
            "asynchronous updates are made of one gradient each. Add --sync_replicas"
        )
