# SPDX-License-Identifier: Apache-2.0
"""Reads every byte of every tensor of a dataset, inside TensorFlow, as cheaply as memory allows."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

# Sums of so many batches are fetched at once, so that Python's share of a step does not count.
GROUP = 16


@functools.cache
def _ops() -> Any:
    """Load the op library that only benches use; `make bench-feed` builds it."""
    import tensorflow as tf

    folder = Path(__file__).resolve().parents[2] / "build/bench/cpp/plugins/tensorflow"
    (path,) = folder.glob("libarcflow_bench_ops_tf*.so")
    return tf.load_op_library(str(path))


def touched(dataset: Any) -> Any:
    """Map batches of one tensor to (rows, checksum of every byte), GROUP batches at a time."""
    import tensorflow as tf

    def touch(batch: Any) -> tuple[Any, Any]:
        (values,) = tf.nest.flatten(batch)
        rows = tf.shape(values, out_type=tf.int64)[0]
        if values.dtype == tf.string:  # a hash at nearly the speed of memory
            return rows, tf.reduce_sum(tf.strings.to_hash_bucket_fast(values, 1 << 20))
        return rows, _ops().arcflow_touch_bytes(values)

    return _untuned(dataset.map(touch).batch(GROUP))


def counted(dataset: Any) -> Any:
    """As `touched`, without reading the tensors."""
    import tensorflow as tf

    def count(batch: Any) -> tuple[Any, Any]:
        (values,) = tf.nest.flatten(batch)
        rows = tf.shape(values, out_type=tf.int64)[0]
        return rows, rows

    return _untuned(dataset.map(count).batch(GROUP))


def _untuned(dataset: Any) -> Any:
    """Return the dataset without tf.data's autotuning.

    Its thread sleeps 10, 20, 40, … ms between looks and an iterator's end waits for it, so that a pass
    takes 150, 310 or 630 ms and nothing between (TensorFlow 2.21).
    """
    import tensorflow as tf

    options = tf.data.Options()
    options.autotune.enabled = False
    return dataset.with_options(options)


def read_rows(iterator: Any, batches: int | None = None) -> int:
    """Take so many batches (a multiple of GROUP; None: all) from an iterator over `touched`.

    Returns the rows seen.
    """
    groups = None if batches is None else batches // GROUP
    return sum(int(counts.numpy().sum()) for counts, _ in itertools.islice(iterator, groups))
