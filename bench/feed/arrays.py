# SPDX-License-Identifier: Apache-2.0
"""Columns of arrays to tensors on two executors: from a DataFrame, and from Parquet files that the tasks read."""

from __future__ import annotations

import contextlib
import functools
import json
import tempfile
from collections.abc import Iterator
from typing import Any

from cluster import two_executors
from node_functions import drain
from spark_to_tensor import FEED_MEMORY_BYTES, count_rows, steady_rate

from harness import Row, interleaved, make_row, note

# About 0.8 GB in each of two partitions, and 16 row groups in each of two files.
ROWS_EACH = 250_000
EXPRESSION = "transform(sequence(0, 783), i -> float(pmod(xxhash64(id, i), 1000003)))"
CASE = "Spark to tensor, 784 float32 as array<float>, two executors"


def measure(repeats: int) -> list[Row]:
    import arcflow

    with (
        two_executors(memory_mib=4096) as spark,
        arcflow.Cluster(spark, size=2, feed_memory=FEED_MEMORY_BYTES) as cluster,
        written(spark) as path,
    ):
        cached = spark.read.parquet(path).repartition(2).cache()
        cached.count()

        def counted(frame: Any) -> float:
            answers = frame.mapInArrow(count_rows, "marks string").collect()
            return sum(steady_rate(json.loads(answer.marks)) for answer in answers)

        def fed(feed: Any) -> float:
            result = cluster.run(drain, data={"train": feed}, args={"batch": 1024})
            note(f"rows in the nodes: {[value['rows'] for value in result.values]}")
            return sum(steady_rate(value["marks"]) for value in result.values)

        shapes = {"x": (784,)}
        files = spark.read.parquet(path)
        got = interleaved(
            {
                "bare, cached": functools.partial(counted, cached),
                "ours, cached": lambda: fed(arcflow.Feed(cached, shapes=shapes, cache="none")),
                "ours, files": lambda: fed(arcflow.Feed(files, shapes=shapes, cache="none")),
                "native": lambda: fed(
                    arcflow.ParquetFeed(spark, path, shapes=shapes, cache="none")
                ),
            },
            repeats,
        )
        cached.unpersist(True)
    rows = []
    for metric, ours, bare, goal in (
        ("cached DataFrame, every byte read", "ours, cached", "bare, cached", ">= 0.95 x"),
        ("ParquetFeed, every byte read", "native", "bare, cached", ">= 0.95 x"),
        ("ParquetFeed, every byte read", "native", "ours, files", None),
    ):
        baseline = (
            "Feed(spark.read.parquet)" if bare == "ours, files" else "bare mapInArrow, cached"
        )
        rows.append(
            make_row(
                CASE,
                metric,
                got[ours],
                "rows/s",
                baseline=baseline,
                baseline_values=got[bare],
                goal=goal,
            )
        )
    return rows


@contextlib.contextmanager
def written(spark: Any) -> Iterator[str]:
    """Yield a folder of two Parquet files, as Spark writes them."""
    with tempfile.TemporaryDirectory(prefix="arcflow-bench-") as folder:
        path = f"{folder}/rows"
        rows = spark.range(0, 2 * ROWS_EACH, 1, 2).selectExpr(f"{EXPRESSION} as x")
        rows.write.option("parquet.block.size", 50 << 20).parquet(path)
        yield path
