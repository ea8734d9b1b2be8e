# SPDX-License-Identifier: Apache-2.0
"""Partitions as 10 to 1 on four nodes against even ones: how long a run takes when rows are handed over."""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from node_functions import epochs_of_steps

from harness import ROOT, Row, interleaved, make_row, note

sys.path.insert(0, str(ROOT / "examples"))

NODES = 4
MOST = 40_000  # rows of the large partition; a tenth in each other one
# Of 3,136 bytes, which differ from row to row.
EXPRESSION = "unhex(rpad(hex(xxhash64(id)), 6272, hex(xxhash64(id + 1))))"
RAW = {"x": ("float32", (784,))}
ARGS = {"batch": 64, "epochs": 4, "step_s": 0.01}  # of a step: what an accelerator would be busy


def _cached(frame: Any) -> Any:
    from pyspark.sql import functions

    frame = frame.select("id", functions.expr(EXPRESSION).alias("x")).cache()
    frame.count()
    return frame


def measure(repeats: int) -> list[Row]:
    import arcflow
    from standalone import StandaloneCluster

    with tempfile.TemporaryDirectory(prefix="arcflow-bench-") as folder:
        options = {"workers": NODES, "memory_mib": 1536, "java_options": "-XX:+UseParallelGC"}
        with StandaloneCluster(Path(folder), **options) as servers:
            spark = servers.session("arcflow-bench", spark__driver__memory="1g")
            try:
                return _measure(arcflow, spark, repeats)
            finally:
                spark.stop()


def _measure(arcflow: Any, spark: Any, repeats: int) -> list[Row]:
    uneven = _cached(spark.range(0, NODES * MOST, 1, NODES).where(f"id < {MOST} or id % 10 = 0"))
    rows = uneven.count()
    even = _cached(spark.range(0, rows, 1, NODES))

    with arcflow.Cluster(spark, size=NODES, progress=False) as cluster:

        def seconds(frame: Any, balance: bool) -> float:
            feed = arcflow.Feed(frame, raw=RAW, balance=balance)
            start = time.perf_counter()
            result = cluster.run(epochs_of_steps, data=feed, args=ARGS)
            took = time.perf_counter() - start
            found = result.rows["train"]
            if found["used"] != rows * ARGS["epochs"]:
                raise RuntimeError(f"{found['used']} rows used, {rows * ARGS['epochs']} expected")
            handed = sum(node["given"] for node in found["nodes"])
            note(f"{rows} rows, {handed} handed over, {found['padded']} padded")
            return took

        got = interleaved(
            {
                "even": lambda: seconds(even, True),
                "uneven": lambda: seconds(uneven, True),
                "uneven, padded": lambda: seconds(uneven, False),
            },
            repeats,
        )
    case = f"a run of {ARGS['epochs']} epochs on {NODES} nodes, every row used"
    return [
        make_row(
            case,
            what,
            got[name],
            "s",
            baseline="even partitions",
            baseline_values=got["even"],
            goal=goal,
        )
        for what, name, goal in (
            ("partitions 10 : 1 : 1 : 1", "uneven", "<= 1.15 x"),
            ("the same, not evened out", "uneven, padded", None),
        )
    ]
