# SPDX-License-Identifier: Apache-2.0
"""Uneven and empty partitions: nodes hand rows to one another, and every row is used once an epoch."""

from __future__ import annotations

import sys

import cloudpickle
import pytest
from spark_testing import marks

from arcflow import Cluster, Feed

pytestmark = [pytest.mark.usefixtures("leftovers"), *marks("local")]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests


def partitions(spark, *rows):
    """So many rows in each partition, numbered through partition by partition."""
    most = max(rows)
    keep = " or ".join(
        f"(id >= {most * i} and id < {most * i + n})" for i, n in enumerate(rows) if n
    )
    return spark.range(0, most * len(rows), 1, len(rows)).where(keep)


def accounted(result, rows, nodes, epochs):
    """Check the account of every row, and return its nodes."""
    found = result.rows["train"]
    assert found["fed"] == rows
    assert found["given"] == found["taken"] > 0
    assert found["used"] + found["dropped"] == rows * epochs
    for node in found["nodes"]:
        assert abs(node["fed"] - rows / nodes) < 1
        assert len(node["epochs"]) == epochs
        for epoch in node["epochs"]:
            assert epoch["used"] + epoch["dropped"] == epoch["fed"] == node["fed"]
    return found["nodes"]


def read_shuffled(ctx):
    """The ids of each of three passes, by batches of a program that steps with others."""
    passes = []
    for shuffle in (None, 5, None):
        ids = []
        for columns, padding in ctx.reader("train", 32, shuffle=shuffle):
            assert (columns["x"][:, 0] == columns["id"]).all()
            assert [t.decode() for t in columns["t"]] == [f"row {i}" for i in columns["id"]]
            ids += columns["id"][: len(columns["id"]) - padding].tolist()
        passes.append(ids)
    return passes


@pytest.mark.parametrize("cache", ["auto", "disk"])
def test_a_giant_partition_and_empty_ones_are_read_evenly_whatever_the_memory(spark, cache):
    df = partitions(spark, 10, 6000, 0, 1).selectExpr(
        "id", "array_repeat(float(id), 100) as x", "concat('row ', id) as t"
    )
    with Cluster(spark, size=4, progress=False, feed_memory="1m") as cluster:
        result = cluster.run(read_shuffled, data=Feed(df, cache=cache))
    accounted(result, 6011, 4, 3)
    wanted = sorted(row.id for row in df.select("id").collect())
    for epoch in range(3):
        assert sorted(i for value in result.values for i in value[epoch]) == wanted
    for first, shuffled, third in result.values:
        assert first == third != shuffled
        assert sorted(first) == sorted(shuffled)
    # Own rows come first, then the giant's, in the order of ranks.
    assert result.values[1][0] == list(range(6000, 6000 + 1503))
    assert result.values[0][0][:10] == list(range(10))
    assert result.values[0][0][10] == 6000 + 1503


def fit(ctx):
    """Keras `fit` over two epochs; the weights and what the loss was."""
    import keras
    import numpy as np

    with ctx.strategy().scope():
        model = keras.Sequential([keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    rows = ctx.dataset("train", 16, features="x", label="y")
    history = model.fit(rows, epochs=2, verbose=0)
    return [w.tolist() for w in model.get_weights()], bool(
        np.isfinite(history.history["loss"]).all()
    )


@pytest.mark.tf
def test_keras_fits_uneven_and_empty_partitions(spark):
    df = partitions(spark, 1000, 0, 61).selectExpr(
        "array(float(id % 7) / 7, float(id % 3) / 3) as x", "float(id % 5) / 5 as y"
    )
    with Cluster(spark, size=3, progress=False) as cluster:
        result = cluster.run(fit, data=df)
    nodes = accounted(result, 1061, 3, 2)
    assert [node["given"] for node in nodes] == [1000 - 354, 0, 0]
    assert all(epoch["used"] + epoch["padded"] == 16 * 23 for n in nodes for epoch in n["epochs"])
    assert result.values[0] == result.values[1] == result.values[2]
    assert result.values[0][1], "a loss is not finite"
