# SPDX-License-Identifier: Apache-2.0
"""JPEG files in one folder for each class, as ImageNet is usually unpacked: ``<folder>/<class>/<name>.JPEG``."""

from __future__ import annotations

import tempfile
from pathlib import Path


def files(path: str | None) -> list[str]:
    """All pictures under a folder; without a folder, generated ones of two classes."""
    if path is None:
        path = write_generated(Path(tempfile.gettempdir()) / "arcflow-example-imagenet")
    found = [str(p) for p in Path(path).glob("*/*") if p.suffix.lower() in (".jpg", ".jpeg")]
    if not found:
        raise FileNotFoundError(f"{path} holds no <class>/<name>.jpg or .JPEG")
    # Mixed, but in the same order everywhere: classes follow one another in a listing.
    return sorted(found, key=lambda name: (hash_of(name), name))


def hash_of(name: str) -> int:
    import zlib

    return zlib.crc32(Path(name).name.encode())


def classes(path: str | None) -> list[str]:
    """Names of the classes, in order; a picture's label is the place of its class."""
    return sorted({Path(name).parent.name for name in files(path)})


def records(name):
    """Return the one record of a file: its name and its bytes; `name` may be a tensor."""
    import tensorflow as tf

    return tf.data.Dataset.from_tensors((name, tf.io.read_file(name)))


def parse(names: list[str], side: int):
    """Return a function from a record to a picture ``[side, side, 3]`` from -1 to 1 and its label."""
    import tensorflow as tf

    def picture(name, content):
        image = tf.io.decode_jpeg(content, channels=3)
        image = tf.image.resize(image, [side, side]) / 127.5 - 1
        label = tf.argmax(tf.strings.split(name, "/")[-2] == tf.constant(names))
        return tf.ensure_shape(image, [side, side, 3]), label

    return picture


def parse_batch(names: list[str], side: int):
    """Return a function from a batch of rows, names and contents, to pictures and labels."""
    import tensorflow as tf

    one = parse(names, side)

    def pictures(rows):
        kinds = (tf.TensorSpec([side, side, 3], tf.float32), tf.TensorSpec([], tf.int64))
        return tf.map_fn(
            lambda row: one(*row), (rows["name"], rows["content"]), fn_output_signature=kinds
        )

    return pictures


def frame(args):
    """Return a DataFrame of ``name`` and ``content``, the bytes of the file."""
    from pyspark.sql import SparkSession

    read = (
        SparkSession.active().read.format("binaryFile").option("pathGlobFilter", "*.[jJ][pP]*[gG]")
    )
    folders = sorted({str(Path(name).parent) for name in files(args.images)})
    return read.load(folders).selectExpr("path as name", "content")


def write_generated(folder: Path, count: int = 16, side: int = 96) -> str:
    """Write pictures of two classes, reddish and bluish noise; return the folder."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(2)
    for number in range(count):
        name = ("blue", "red")[number % 2]
        pixels = random.integers(0, 90, (side, side, 3), np.uint8)
        pixels[:, :, 0 if name == "red" else 2] += 150
        (folder / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / name / f"{number}.jpg", quality=90)
    return str(folder)
