# SPDX-License-Identifier: Apache-2.0
"""Epochs 2 to n: rows replayed from the feed log, against `tf.data` over the same arrays in memory."""

from __future__ import annotations

from local_run import LocalRun
from node_functions import replay
from shapes import SHAPES

from harness import Row, make_row

BATCH = 256
BATCHES = 256  # producer's batches: 784 float32 rows take 0.8 GB


def measure(repeats: int) -> list[Row]:
    rows = []
    for name in ("784 float32", "1 KB binary"):
        shape = SHAPES[name]
        args = {"shape": name, "batch": BATCH, "passes": repeats}
        with LocalRun(
            replay, {"train": name}, args=args, cache="memory", feed_memory_bytes=2 << 30
        ) as run:
            run.write("train", name, BATCHES * 1024 // shape.batch)
            run.producer.receive()
            _, seconds = run.finish()
        count = seconds["rows"][0]
        rows.append(
            make_row(
                f"epochs 2 to n, {name}, batches of {BATCH}",
                "rows read",
                [count / s for s in seconds["feed"]],
                "rows/s",
                baseline="tf.data, same rows in memory",
                baseline_values=[count / s for s in seconds["tf.data"]],
                goal=">= 0.9 x",
            )
        )
    return rows
