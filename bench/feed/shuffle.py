# SPDX-License-Identifier: Apache-2.0
"""Shuffled replay of rows in the feed log, against memcpy on one core and `tf.data`'s shuffle of the same rows.

ARCFLOW_BENCH_SHUFFLE_MB sets the size; 4096 by default.
"""

from __future__ import annotations

import os

from local_run import LocalRun
from node_functions import replay_shuffled
from shapes import SHAPES

from harness import Row, make_row

BATCH = 256
NAME = "784 float32"


def measure(repeats: int) -> list[Row]:
    shape = SHAPES[NAME]
    megabytes = int(os.environ.get("ARCFLOW_BENCH_SHUFFLE_MB", "4096"))
    batches = max(1, (megabytes << 20) // shape.batch_bytes)
    args = {"shape": NAME, "batch": BATCH, "passes": repeats}
    memory = (megabytes + 256) << 20
    with LocalRun(
        replay_shuffled, {"train": NAME}, args=args, cache="memory", feed_memory_bytes=memory
    ) as run:
        run.write("train", NAME, batches)
        run.producer.receive()
        _, found = run.finish()
    rows, size = found["rows"][0], found["rows"][0] * shape.row_bytes / 1e9
    case = f"shuffled replay of {size:.1f} GB, {NAME}, batches of {BATCH}"
    return [
        make_row(
            case,
            "bytes gathered",
            [size / s for s in found["feed"]],
            "GB/s",
            baseline="memcpy, one core",
            baseline_values=[size / s for s in found["memcpy"]],
            goal=">= 0.6 x",
        ),
        make_row(
            case,
            "rows read",
            [rows / s for s in found["feed"]],
            "rows/s",
            baseline="from_tensor_slices(rows).shuffle(all).batch",
            baseline_values=[rows / s for s in found["tf"]],
            goal=">= 5 x",
        ),
    ]
