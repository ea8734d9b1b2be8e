# SPDX-License-Identifier: Apache-2.0
"""MNIST as it is published: idx files (also .gz) or CSV lines; scikit-learn's small digits without a path."""

from __future__ import annotations

import gzip
import struct
import tempfile
from pathlib import Path

SIDE = 28
_IDX_NAMES = "*images-idx3-ubyte*"


def files(path: str | None) -> list[str]:
    """Files of images under a folder: idx, else CSV. Without a folder, digits are written as CSV."""
    if path is None:
        path = write_digits(Path(tempfile.gettempdir()) / "arcflow-example-digits")
    if "://" in path:
        import tensorflow as tf

        find = tf.io.gfile.glob
    else:
        import glob

        find = glob.glob
    found = find(f"{path}/{_IDX_NAMES}") or find(f"{path}/*.csv")
    if not found:
        raise FileNotFoundError(f"{path} holds neither {_IDX_NAMES} nor *.csv")
    return sorted(found)


def records(name):
    """Images of one file, 784 grey levels from 0 to 1, with labels; `name` may be a tensor."""
    import tensorflow as tf

    name = tf.convert_to_tensor(name)
    is_idx = tf.strings.regex_full_match(name, ".*images-idx3-ubyte.*")
    is_gzip = tf.strings.regex_full_match(name, r".*\.gz")
    csv = tf.boolean_mask([name], [tf.logical_not(is_idx)])
    found = tf.data.TextLineDataset(csv).map(_parse_line)
    for compression, chosen in (("GZIP", is_idx & is_gzip), ("", is_idx & tf.logical_not(is_gzip))):
        images = tf.boolean_mask([name], [chosen])
        labels = tf.strings.regex_replace(images, "images-idx3", "labels-idx1")
        pixels = tf.data.FixedLengthRecordDataset(
            images, SIDE * SIDE, header_bytes=16, compression_type=compression
        )
        digits = tf.data.FixedLengthRecordDataset(
            labels, 1, header_bytes=8, compression_type=compression
        )
        found = found.concatenate(tf.data.Dataset.zip((pixels, digits)).map(_parse_idx))
    return found


def _parse_idx(pixels, digit):
    import tensorflow as tf

    image = tf.ensure_shape(tf.io.decode_raw(pixels, tf.uint8), [SIDE * SIDE])
    label = tf.io.decode_raw(digit, tf.uint8)[0]
    return tf.cast(image, tf.float32) / 255, tf.cast(label, tf.int64)


def _parse_line(line):
    """``label,pixel,pixel,…`` with grey levels from 0 to 255."""
    import tensorflow as tf

    values = tf.strings.to_number(tf.strings.split(line, ","))
    image = tf.ensure_shape(values[1:], [SIDE * SIDE])
    return image / 255, tf.cast(values[0], tf.int64)


def frame(args):
    """Return the same as a DataFrame: a column of 784 floats, and a label."""
    from pyspark.sql import SparkSession

    spark = SparkSession.active()
    found = files(args.images)
    if found[0].endswith(".csv"):
        values = spark.read.text(found).selectExpr("split(value, ',') as v")
        return values.selectExpr(
            "transform(slice(v, 2, 784), p -> cast(p as float) / 255.0f) as image",
            "cast(v[0] as bigint) as label",
        )
    return spark.createDataFrame(
        spark.sparkContext.parallelize(found, len(found)).flatMap(_rows_of_idx),
        "image array<float>, label bigint",
    )


def _rows_of_idx(name: str):
    import numpy as np

    opener = gzip.open if name.endswith(".gz") else open
    with (
        opener(name, "rb") as images,
        opener(name.replace("images-idx3", "labels-idx1"), "rb") as labels,
    ):
        _, count, rows, columns = struct.unpack(">4i", images.read(16))
        labels.read(8)
        for _ in range(count):
            pixels = np.frombuffer(images.read(rows * columns), np.uint8)
            yield (pixels / 255.0).tolist(), labels.read(1)[0]


def write_digits(folder: Path, count: int | None = None) -> str:
    """Write scikit-learn's digits, 8 x 8, in the middle of 28 x 28 pixels, as CSV; return the folder."""
    import numpy as np
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.zeros((len(bunch.images), SIDE, SIDE), int)
    # Each pixel becomes three by three, and four at the edges stay empty, as in MNIST.
    big = bunch.images.repeat(3, axis=1).repeat(3, axis=2)
    images[:, 2:26, 2:26] = (big * 255 / 16).astype(int)
    folder.mkdir(parents=True, exist_ok=True)
    lines = np.column_stack([bunch.target, images.reshape(len(images), -1)])[:count]
    for part in range(2):
        np.savetxt(folder / f"digits-{part}.csv", lines[part::2], fmt="%d", delimiter=",")
    return str(folder)
