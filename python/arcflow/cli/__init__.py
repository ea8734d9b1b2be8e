# SPDX-License-Identifier: Apache-2.0
"""The command `arcflow`."""

from __future__ import annotations

import argparse
import os
import sys
import urllib.parse
from collections.abc import Sequence
from typing import Any

from .. import _executor, errors
from . import submit
from .arguments import add_arguments, cluster, options

__all__ = ["add_arguments", "cluster", "main", "options"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Parameters
    ----------
    argv
        Arguments without the program's name; those of the process by default.

    Returns
    -------
    int
        Exit status: 0 when all is well, 1 when a check failed, 2 for wrong usage.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["submit"]:  # what follows is for the most part not ours
        return _submit(words[1:])
    parser = argparse.ArgumentParser(prog="arcflow", description="TensorFlow on Apache Spark.")
    parser.add_argument("--version", action="store_true", help="print the version and end")
    commands = parser.add_subparsers(dest="command", metavar="command")
    _add_doctor(commands)
    commands.add_parser("submit", help="print and run the spark-submit line of a program")
    chosen = parser.parse_args(words)
    if chosen.version:
        from .._version import version

        print(version())
        return 0
    if chosen.command is None:
        parser.print_help()
        return 2
    return int(chosen.run(chosen))


def _submit(words: Sequence[str]) -> int:
    try:
        return submit.main(words)
    except errors.ArcflowError as error:
        print(f"arcflow submit: {error}", file=sys.stderr)
        return 2


def _add_doctor(commands: Any) -> None:
    doctor = commands.add_parser(
        "doctor", help="check this machine, and a cluster, for what a run needs"
    )
    where = doctor.add_mutually_exclusive_group()
    where.add_argument(
        "--master", help="Spark master to check, such as spark://host:7077 or local[4]"
    )
    where.add_argument("--remote", help="Spark Connect server to check, such as sc://host:15002")
    doctor.add_argument("--size", type=int, help="number of nodes that you want")
    doctor.add_argument("--gpus", type=int, help="accelerators that a node shall have")
    doctor.add_argument("--feed-memory", default="1g", help="memory of a node's rows, such as 2g")
    doctor.add_argument("--network", help="network or interface of the nodes, such as 10.0.0.0/8")
    doctor.add_argument("--ports", help="port or range of the nodes, such as 40000-40100")
    doctor.add_argument(
        "--conf",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="a Spark setting; repeatable",
    )
    doctor.set_defaults(run=_doctor)


def _doctor(chosen: argparse.Namespace) -> int:
    from .._doctor import Check, Report, machine_checks, session_checks

    checks = list(machine_checks())
    if chosen.master or chosen.remote:
        spark = None
        try:
            _check_reachable(chosen)
            spark = _session(chosen)
            names = ("gpus", "feed_memory", "network", "ports")
            wishes = {name: getattr(chosen, name) for name in names}
            checks += session_checks(spark, chosen.size, wishes)
        except Exception as error:  # a cluster that cannot be reached is a finding
            checks.append(
                Check(
                    "spark",
                    "failed",
                    f"no session: {_first_line(error)}",
                    "check the address, and that the cluster runs",
                )
            )
        finally:
            if spark is not None:
                spark.stop()
    report = Report(tuple(checks))
    print(report)
    if not report.ok:
        print("\nSomething has to be mended; see the lines with ->", file=sys.stderr)
    return 0 if report.ok else 1


def _check_reachable(chosen: argparse.Namespace) -> None:
    """Refuse a server that does not answer at once; Spark's clients go on trying for minutes."""
    url = urllib.parse.urlsplit(chosen.remote or chosen.master)
    if url.scheme not in ("sc", "spark") or not url.hostname or "," in url.netloc:
        return
    port = url.port or (15002 if url.scheme == "sc" else 7077)
    if not _executor.can_connect(url.hostname, port, timeout_s=5.0):
        raise errors.UnavailableError(f"nobody listens at {url.hostname}:{port}")


def _session(chosen: argparse.Namespace) -> Any:
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("arcflow doctor")
    builder = builder.remote(chosen.remote) if chosen.remote else builder.master(chosen.master)
    if chosen.master:
        builder = builder.config("spark.ui.enabled", "false").config("spark.log.level", "OFF")
    for setting in chosen.conf:
        key, equals, value = setting.partition("=")
        if not equals:
            raise errors.InvalidArgumentError(f"--conf {setting}: KEY=VALUE is needed")
        builder = builder.config(key, value)
    return builder.getOrCreate()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
