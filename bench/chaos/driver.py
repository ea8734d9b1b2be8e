# SPDX-License-Identifier: Apache-2.0
"""The driver of the fault table: one Spark application that makes a run for each line it reads."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import programs
from cells import SILENCE_S

import arcflow
from arcflow import errors


def session(settings: dict[str, str]) -> Any:
    """Return a Spark session on the cluster of the bench."""
    from pyspark.sql import SparkSession

    builder = SparkSession.builder.appName("arcflow chaos")
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def run(spark: Any, command: dict[str, Any]) -> dict[str, Any]:
    """Make one run; return how it ended, as the user sees it."""
    layout = command["layout"]
    answer: dict[str, Any] = {"error": None}
    try:
        with arcflow.Cluster(
            spark,
            size=2,
            ps=layout["ps"],
            evaluator=layout["evaluator"],
            evaluator_grace=5,
            heartbeat_timeout=SILENCE_S,
            stall_timeout=SILENCE_S,
            grace=2,
            progress=False,
        ) as cluster:
            cluster.run(programs.program, args=command["args"])
    except BaseException as error:  # Ctrl-C too: it is one of the faults
        answer = {"error": type(error).__name__, "text": str(error)[:2000]}
        if isinstance(error, errors.NodeFailedError):
            answer |= {"node": error.node, "cause": error.cause}
    return {**answer, "ended": time.time()}


def main() -> None:
    spark = session(json.loads(sys.argv[1]))
    out = os.fdopen(os.dup(1), "w")  # whatever prints to standard output does not disturb
    os.dup2(2, 1)
    print(json.dumps({"ready": os.getpid()}), file=out, flush=True)
    for line in sys.stdin:
        print(json.dumps(run(spark, json.loads(line))), file=out, flush=True)
    spark.stop()


if __name__ == "__main__":
    main()
