# SPDX-License-Identifier: Apache-2.0
"""Reads every byte of every tensor of a dataset, inside TensorFlow, as cheaply as memory allows."""

from __future__ import annotations

import functools
import itertools
import os
from pathlib import Path
from typing import Any

# Sums of so many batches are fetched at once, so that Python's share of a step does not count.
GROUP = 16


def library_path() -> Path:
    """Path of the op library that only benches use; `make bench-feed` builds it."""
    named = os.environ.get("ARC_BENCH_OPS")
    return (
        Path(named)
        if named
        else Path(__file__).resolve().parents[2] / "build/bench/ops/libarcflow_bench_ops.so"
    )


@functools.cache
def _ops() -> Any:
    import tensorflow as tf

    path = library_path()
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: `make bench-feed` builds it")
    return tf.load_op_library(str(path))


def touched(dataset: Any) -> Any:
    """Map batches of one tensor to (rows, checksum of every byte), GROUP batches at a time."""
    import tensorflow as tf

    def touch(batch: Any) -> tuple[Any, Any]:
        values = batch["x"] if isinstance(batch, dict) else batch
        return tf.shape(values, out_type=tf.int64)[0], _ops().touch_bytes(values)

    return dataset.map(touch).batch(GROUP)


def read_rows(iterator: Any, batches: int | None = None) -> int:
    """Take so many batches (a multiple of GROUP; None: all) from an iterator over `touched`.

    Returns the rows seen.
    """
    groups = None if batches is None else batches // GROUP
    return sum(int(counts.numpy().sum()) for counts, _ in itertools.islice(iterator, groups))
