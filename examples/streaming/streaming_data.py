# SPDX-License-Identifier: Apache-2.0
"""Rows that arrive as files, one ``x,x,x,x,y`` a line: written here (generated), read by Keras and by Spark."""

from __future__ import annotations

FILE_ROWS = 500


def write(folder: str, files: int = 8) -> str:
    """Write some files of rows, as a collector would over time; return the folder."""
    from pathlib import Path

    import numpy as np

    Path(folder).mkdir(parents=True, exist_ok=True)
    for number in range(files):
        x = np.random.default_rng(number).uniform(-1, 1, (FILE_ROWS, 4))
        y = x[:, :1] * x[:, 1:2] + np.sin(2 * x[:, 2:3]) - x[:, 3:]
        part = Path(folder, f".part-{number}")
        np.savetxt(part, np.hstack([x, y]), fmt="%.6f", delimiter=",")
        part.rename(Path(folder, f"rows-{number}.csv"))  # a stream must not see half a file
    return folder


def read(folder: str, batch_size: int):
    """Return all rows that are in the folder now, in batches."""
    import tensorflow as tf

    def parse(lines):
        values = tf.strings.to_number(tf.strings.split(lines, ",").to_tensor(shape=[None, 5]))
        return values[:, :4], values[:, 4:]

    names = sorted(tf.io.gfile.glob(f"{folder}/rows-*.csv"))
    return tf.data.TextLineDataset(names).batch(batch_size).map(parse)


def stream(folder: str):
    """Return the rows that are in the folder, and those that will be, as a streaming DataFrame."""
    from pyspark.sql import SparkSession

    columns = [f"x{i}" for i in range(4)]
    schema = ", ".join(f"{name} float" for name in [*columns, "target"])
    rows = SparkSession.active().readStream.schema(schema).option("maxFilesPerTrigger", 1)
    return rows.csv(folder).selectExpr(f"array({', '.join(columns)}) as x", "array(target) as y")
