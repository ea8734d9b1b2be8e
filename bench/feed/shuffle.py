# SPDX-License-Identifier: Apache-2.0
"""Shuffled replay of rows in the feed log, against memcpy on one core and `tf.data`'s shuffle of the same rows.

Each with and without `.prefetch(2)`, which gathers on another core. ARCFLOW_BENCH_SHUFFLE_MB sets the size;
4096 by default.
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
    lines = []
    for ours, theirs, how in (("feed", "tf", ""), ("feed_ahead", "tf_ahead", ".prefetch(2)")):
        lines += [
            make_row(
                case + how,
                "bytes gathered",
                [size / s for s in found[ours]],
                "GB/s",
                baseline="memcpy, one core",
                baseline_values=[size / s for s in found["memcpy"]],
                goal=">= 0.6 x",
            ),
            make_row(
                case + how,
                "rows read",
                [rows / s for s in found[ours]],
                "rows/s",
                baseline=f"from_tensor_slices(rows).shuffle(all).batch{how}",
                baseline_values=[rows / s for s in found[theirs]],
                goal=">= 5 x",
            ),
        ]
    return lines
