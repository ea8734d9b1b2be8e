# SPDX-License-Identifier: Apache-2.0
"""What rows and what partitions cost: a run over 10 to 10,000 partitions, and over more and more rows."""

from __future__ import annotations

import functools
import time
from typing import Any

from cluster import two_executors
from node_functions import count_all

from harness import Row, interleaved, make_row

ROWS = 400_000
PARTITIONS = (10, 100, 1_000, 10_000)
TIMES = (1, 2, 4)  # as many rows
# Of 784 bytes, which differ from row to row.
EXPRESSION = "unhex(rpad(hex(xxhash64(id)), 1568, hex(xxhash64(id + 1)))) as x"


def _drain(batches: Any) -> Any:
    import pyarrow as pa

    yield pa.RecordBatch.from_pydict({"rows": [sum(batch.num_rows for batch in batches)]})


def measure(repeats: int) -> list[Row]:
    import arcflow

    with (
        two_executors(memory_mib=2048) as spark,
        arcflow.Cluster(spark, size=2, progress=False, feed_memory="1g") as cluster,
    ):

        def seconds(rows: int, partitions: int) -> float:
            frame = spark.range(0, rows, 1, partitions).selectExpr(EXPRESSION)
            feed = arcflow.Feed(frame, raw={"x": ("uint8", (784,))}, probe=False)
            start = time.perf_counter()
            result = cluster.run(count_all, data=feed)
            took = time.perf_counter() - start
            if result.rows["train"]["used"] != rows or sum(result.values) != rows:
                raise RuntimeError(f"{result.rows['train']['used']} of {rows} rows used")
            return took

        def bare(partitions: int) -> float:
            frame = spark.range(0, ROWS, 1, partitions).selectExpr(EXPRESSION).repartition(2)
            start = time.perf_counter()
            frame.mapInArrow(_drain, "rows bigint").collect()
            return time.perf_counter() - start

        cases = {}
        for number in PARTITIONS:
            cases[f"{number} partitions"] = functools.partial(seconds, ROWS, number)
            cases[f"{number} partitions, bare"] = functools.partial(bare, number)
        for number in TIMES:
            cases[f"{number} x rows"] = functools.partial(seconds, number * ROWS, 100)
        got = interleaved(cases, repeats)
    rows = [
        make_row(
            f"a run of {ROWS:,} rows on two nodes",
            f"{number:,} partitions",
            got[f"{number} partitions"],
            "s",
            baseline="bare mapInArrow after repartition(2)",
            baseline_values=got[f"{number} partitions, bare"],
        )
        for number in PARTITIONS
    ]
    # Spark's own tasks cost what they cost: what is added must not grow.
    added = {
        number: [
            max(run - alone, 1e-3)
            for run, alone in zip(
                got[f"{number} partitions"], got[f"{number} partitions, bare"], strict=True
            )
        ]
        for number in PARTITIONS
    }
    rows.append(
        make_row(
            "added to Spark's own time",
            f"{PARTITIONS[-1]:,} partitions",
            added[PARTITIONS[-1]],
            "s",
            baseline=f"{PARTITIONS[-2]:,} partitions",
            baseline_values=added[PARTITIONS[-2]],
            goal="<= 1.25 x",
        )
    )
    for number in TIMES[1:]:
        rows.append(
            make_row(
                "a run over 100 partitions",
                f"{number * ROWS:,} rows",
                got[f"{number} x rows"],
                "s",
                baseline=f"{ROWS:,} rows",
                baseline_values=got["1 x rows"],
                goal=f"<= {1.1 * number:.1f} x",
            )
        )
    return rows
