# SPDX-License-Identifier: Apache-2.0
"""Shuffled passes whose rows two nodes exchange, against passes that stay on their node, and a shuffle by Spark."""

from __future__ import annotations

import time

from cluster import two_executors
from node_functions import shuffled_passes
from uneven import EXPRESSION, RAW

from harness import Row, make_row, note

ROWS = 200_000  # of 3,136 bytes
BATCH = 256


def measure(repeats: int) -> list[Row]:
    from pyspark.sql import functions

    import arcflow

    with two_executors() as spark:
        frame = spark.range(0, ROWS, 1, 2).select(functions.expr(EXPRESSION).alias("x")).cache()
        frame.count()
        with arcflow.Cluster(spark, size=2, progress=False) as cluster:
            data = {
                "kept": arcflow.Feed(frame, raw=RAW),
                "exchanged": arcflow.Feed(frame, raw=RAW, exchange=True),
            }
            args = {"batch": BATCH, "passes": repeats + 1}  # the first is where its rows came to
            result = cluster.run(shuffled_passes, data=data, args=args)
        for name in data:
            found = result.rows[name]
            given = sum(node["given"] for node in found["nodes"])
            note(f"{name}: {found['used']} rows used, {given} handed over")
            if found["used"] != ROWS * (repeats + 1):
                raise RuntimeError(f"{name}: {found['used']} of {ROWS * (repeats + 1)} rows used")
        shuffles = []
        for seed in range(repeats):
            begun = time.perf_counter()
            frame.repartition(2, functions.rand(seed)).write.format("noop").mode("overwrite").save()
            shuffles.append(time.perf_counter() - begun)
    slowest = {}  # of the nodes, pass by pass
    for name in data:
        passes = zip(*(node[name] for node in result.values), strict=True)
        slowest[name] = [max(times) for times in passes]
    case = f"a shuffled pass over {ROWS:,} rows of 3,136 bytes, 2 nodes"
    return [
        make_row(
            case, "time, rows exchanged", slowest["exchanged"], "s", baseline=baseline,
            baseline_values=values,
        )
        for baseline, values in (
            ("rows stay on their node", slowest["kept"]),
            ("Spark's repartition alone", shuffles),
        )
    ]  # fmt: skip
