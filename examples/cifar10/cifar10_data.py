# SPDX-License-Identifier: Apache-2.0
"""CIFAR-10 in its binary format: records of one byte for the label and 3,072 for the pixels."""

from __future__ import annotations

import tempfile
from pathlib import Path

PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS


def files(path: str | None) -> list[str]:
    """``*.bin`` of a folder; without a folder, generated pictures that are no CIFAR-10."""
    if path is None:
        path = write_generated(Path(tempfile.gettempdir()) / "arcflow-example-cifar10")
    if "://" in path:
        import tensorflow as tf

        found = tf.io.gfile.glob(f"{path}/data_batch*.bin")
    else:
        found = [str(one) for one in Path(path).glob("data_batch*.bin")]
    if not found:
        raise FileNotFoundError(f"{path} holds no data_batch*.bin")
    return sorted(found)


def records(name):
    """Raw records of one file; `name` may be a tensor."""
    import tensorflow as tf

    return tf.data.FixedLengthRecordDataset(name, RECORD)


def parse(record):
    """Make pictures, 32 x 32 x 3 from 0 to 1, and labels of a batch of records."""
    import tensorflow as tf

    values = tf.io.decode_raw(record, tf.uint8)
    values = tf.ensure_shape(values, [None, RECORD])
    return pictures(values[:, 1:]), tf.cast(values[:, 0], tf.int64)


def pictures(values):
    """Make pictures of bytes as they lie in a record, channel after channel."""
    import tensorflow as tf

    planes = tf.reshape(tf.cast(values, tf.float32) / 255, [-1, 3, 32, 32])
    return tf.transpose(planes, [0, 2, 3, 1])


def frame(spark, path: str | None):
    """Return ``image`` (3,072 bytes) and ``label``, cut out of the files by Spark SQL."""
    whole = spark.read.format("binaryFile").load(files(path))
    record = whole.selectExpr(
        f"explode(transform(sequence(0, cast(length / {RECORD} as int) - 1), "
        f"i -> substring(content, i * {RECORD} + 1, {RECORD}))) as record"
    )
    return record.selectExpr(
        "substring(record, 2) as image",
        "cast(conv(hex(substring(record, 1, 1)), 16, 10) as bigint) as label",
    )


def feed(args):
    """Return the frame as a feed whose images are tensors of 3,072 bytes."""
    from pyspark.sql import SparkSession

    import arcflow

    return arcflow.Feed(
        frame(SparkSession.active(), args.images), raw={"image": ("uint8", (PIXELS,))}
    )


def write_generated(folder: Path, count: int = 200) -> str:
    """Write pictures whose colours tell their label, in CIFAR-10's format; return the folder."""
    import numpy as np

    random = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for part in range(2):
        labels = random.integers(0, 10, count // 2)
        colours = np.stack([labels * 25, 255 - labels * 25, (labels % 3) * 100], axis=1)
        pixels = colours[:, :, None] + random.integers(-20, 20, (count // 2, 3, 32 * 32))
        pixels = np.clip(pixels, 0, 255).astype(np.uint8).reshape(-1, PIXELS)
        record = np.column_stack([labels.astype(np.uint8), pixels])
        (folder / f"data_batch_{part + 1}.bin").write_bytes(record.tobytes())
    return str(folder)
