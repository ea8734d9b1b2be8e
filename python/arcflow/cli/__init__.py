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
    parser = argparse.ArgumentParser(prog="arcflow", description="TensorFlow on Apache Spark.")
    parser.add_argument("--version", action="store_true", help="print the version and end")
    commands = parser.add_subparsers(dest="command", metavar="command")
    _add_doctor(commands)
    options = parser.parse_args(argv)
    if options.version:
        from .._version import version

        print(version())
        return 0
    if options.command is None:
        parser.print_help()
        return 2
    return int(options.run(options))


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


def _doctor(options: argparse.Namespace) -> int:
    from .._doctor import Check, Report, machine_checks, session_checks

    checks = list(machine_checks())
    if options.master or options.remote:
        spark = None
        try:
            _check_reachable(options)
            spark = _session(options)
            names = ("gpus", "feed_memory", "network", "ports")
            wishes = {name: getattr(options, name) for name in names}
            checks += session_checks(spark, options.size, wishes)
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


def _check_reachable(options: argparse.Namespace) -> None:
    """Refuse a server that does not answer at once; Spark's clients go on trying for minutes."""
    url = urllib.parse.urlsplit(options.remote or options.master)
    if url.scheme not in ("sc", "spark") or not url.hostname or "," in url.netloc:
        return
    port = url.port or (15002 if url.scheme == "sc" else 7077)
    if not _executor.can_connect(url.hostname, port, timeout_s=5.0):
        raise errors.UnavailableError(f"nobody listens at {url.hostname}:{port}")


def _session(options: argparse.Namespace) -> Any:
    from pyspark.sql import SparkSession

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("arcflow doctor")
    builder = builder.remote(options.remote) if options.remote else builder.master(options.master)
    if options.master:
        builder = builder.config("spark.ui.enabled", "false").config("spark.log.level", "OFF")
    for setting in options.conf:
        key, equals, value = setting.partition("=")
        if not equals:
            raise errors.InvalidArgumentError(f"--conf {setting}: KEY=VALUE is needed")
        builder = builder.config(key, value)
    return builder.getOrCreate()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
