# SPDX-License-Identifier: Apache-2.0
"""Rows with four features and a target that a small network can learn; the same in NumPy and in Spark."""

from __future__ import annotations

COUNT = 2000


def arrays():
    """Return features ``[COUNT, 4]`` and targets ``[COUNT, 1]``."""
    import numpy as np

    x = np.random.default_rng(3).uniform(-1, 1, (COUNT, 4)).astype("float32")
    y = x[:, :1] * x[:, 1:2] + np.sin(2 * x[:, 2:3]) - x[:, 3:]
    return x, y.astype("float32")


def write(folder: str, parts: int = 4) -> str:
    """Write the rows as text, one ``x,x,x,x,y`` a line; return a pattern for the files."""
    from pathlib import Path

    import numpy as np

    Path(folder).mkdir(parents=True, exist_ok=True)
    rows = np.hstack(arrays())
    for part in range(parts):
        np.savetxt(f"{folder}/rows-{part}.csv", rows[part::parts], fmt="%.6f", delimiter=",")
    return f"{folder}/rows-*.csv"


def read(pattern: str, batch_size: int):
    """Return all rows in files, in batches."""
    import tensorflow as tf

    names = sorted(tf.io.gfile.glob(pattern))
    return tf.data.TextLineDataset(names).batch(batch_size).map(parse)


def parse(lines):
    """Make features and targets of a batch of lines."""
    import tensorflow as tf

    values = tf.strings.to_number(tf.strings.split(lines, ",").to_tensor(shape=[None, 5]))
    return values[:, :4], values[:, 4:]


def share(ctx, pattern: str, batch_size: int):
    """Return a worker's share of the rows in files."""
    return ctx.read_files(
        pattern, format="text", shard="records", batch_size=batch_size, parse=parse
    )


def frame():
    """Return the rows as a DataFrame of ``x`` (four floats) and ``y`` (one)."""
    from pyspark.sql import SparkSession

    x, y = arrays()
    rows = [(a.tolist(), b.tolist()) for a, b in zip(x, y, strict=True)]
    return SparkSession.active().createDataFrame(rows, "x array<float>, y array<float>")
