# SPDX-License-Identifier: Apache-2.0
"""A cached DataFrame to tensors on two executors, against a bare `mapInArrow` that only counts its rows."""

from __future__ import annotations

import functools
import json
from typing import Any

from cluster import two_executors
from node_functions import count, drain

from harness import Row, interleaved, make_row, note

# Rows in each of the two partitions of the cached DataFrame: about 1 GB.
ROWS_EACH = {"784 float32 as binary": 400_000, "1 KB binary": 800_000}
# Rates are taken from here to the end, when processes are started, memory is warm and both sides run.
STEADY_FROM = 0.3
# Less than the rows before that: what was fed while TensorFlow was imported must not count.
FEED_MEMORY_BYTES = 128 << 20


def count_rows(batches: Any) -> Any:
    """Look at each batch and note the time: what `mapInArrow` runs as the yardstick."""
    import json
    import time

    import pyarrow as pa

    marks, rows = [], 0
    for batch in batches:
        rows += batch.num_rows
        marks.append((time.time(), rows))
    yield pa.RecordBatch.from_pydict({"marks": [json.dumps(marks)]})


def steady_rate(marks: list[tuple[float, int]]) -> float:
    """Rows a second between STEADY_FROM of the rows and the last."""
    total = marks[-1][1]
    start = next(mark for mark in marks if mark[1] >= STEADY_FROM * total)
    return (total - start[1]) / (marks[-1][0] - start[0])


def cached_rows(spark: Any, expression: str, rows: int) -> Any:
    """Return a cached DataFrame of two partitions with so many rows in each."""
    from pyspark.sql import functions

    frame = spark.range(0, 2 * rows, 1, 2).select(functions.expr(expression).alias("x")).cache()
    frame.count()
    return frame


def measure(repeats: int) -> list[Row]:
    import arcflow
    from arcflow._job import small_batches

    # 3136 and 1024 bytes that differ from row to row.
    kinds = {
        "784 float32 as binary": (
            "unhex(rpad(hex(xxhash64(id)), 6272, hex(xxhash64(id + 1))))",
            {"x": ("float32", (784,))},
        ),
        "1 KB binary": (
            "unhex(rpad(hex(xxhash64(id)), 2048, hex(xxhash64(id + 1))))",
            {"x": ("uint8", (1024,))},
        ),
    }
    rows = []
    with (
        two_executors(memory_mib=4096) as spark,
        arcflow.Cluster(spark, size=2, feed_memory=FEED_MEMORY_BYTES) as cluster,
    ):
        for name, (expression, raw) in kinds.items():
            row_bytes = 3136 if "float32" in name else 1024
            if STEADY_FROM * ROWS_EACH[name] * row_bytes < 1.5 * FEED_MEMORY_BYTES:
                raise ValueError(f"{name}: too few rows for a steady rate")
            frame = cached_rows(spark, expression, ROWS_EACH[name])

            def counted(frame: Any = frame) -> float:
                answers = frame.mapInArrow(count_rows, "marks string").collect()
                return sum(steady_rate(json.loads(answer.marks)) for answer in answers)

            def fed(function: Any, frame: Any = frame, raw: Any = raw) -> float:
                feed = arcflow.Feed(frame, raw=raw, cache="none")
                result = cluster.run(function, data={"train": feed}, args={"batch": 1024})
                note(f"rows in the nodes: {[value['rows'] for value in result.values]}")
                return sum(steady_rate(value["marks"]) for value in result.values)

            def counted_small(spark: Any = spark, counted: Any = counted) -> float:
                with small_batches(spark):
                    return counted()

            cases = {
                "mapInArrow": counted,
                "mapInArrow, small batches": counted_small,
                "counted": functools.partial(fed, count),  # as the yardstick does
                "read": functools.partial(fed, drain),
            }
            got = interleaved(cases, repeats)
            for metric, baseline, goal in (
                ("counted", "mapInArrow", ">= 0.9 x"),
                ("counted", "mapInArrow, small batches", None),
                ("read", "mapInArrow", None),
            ):
                small = ", in our batches" if "small" in baseline else ""
                rows.append(
                    make_row(
                        f"Spark to tensor, {name}, two executors",
                        "rows counted" if metric == "counted" else "every byte read",
                        got[metric],
                        "rows/s",
                        baseline=f"bare mapInArrow that counts{small}",
                        baseline_values=got[baseline],
                        goal=goal,
                    )
                )
            frame.unpersist(True)
    return rows
