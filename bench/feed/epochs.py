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
        count = seconds["count"][0]
        for baseline, title in (
            ("rows", "from_tensor_slices(rows).batch"),
            ("batches", "from_tensor_slices(batches)"),
        ):
            rows.append(
                make_row(
                    f"epochs 2 to n, {name}, batches of {BATCH}",
                    "rows read",
                    [count / s for s in seconds["feed"]],
                    "rows/s",
                    baseline=title,
                    baseline_values=[count / s for s in seconds[baseline]],
                    goal=">= 0.9 x",
                )
            )
    return rows
