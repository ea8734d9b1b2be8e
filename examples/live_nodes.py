#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Nodes that live on: trained by several jobs and a stream, asked while they train, stopped at the end.

.venv/bin/python examples/live_nodes.py --master 'local[4]'
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from typing import Any

from pyspark.sql import SparkSession

import arcflow


def learn_and_answer(ctx: Any) -> dict[str, float]:
    """Fit ``y = a * x + b`` by stochastic gradient descent while the driver asks for predictions."""
    import threading

    import numpy as np

    weights = np.zeros(2)
    served = 0

    def answer() -> None:
        nonlocal served
        served = ctx.serve(
            lambda columns: {"x": columns["x"], "y": weights[0] * columns["x"] + weights[1]}
        )

    server = threading.Thread(target=answer)
    server.start()
    rows = 0
    for columns, _ in ctx.reader("train", 32, remainder="partial"):  # ends with the feed
        x, y = columns["x"], columns["y"]
        wrong = weights[0] * x + weights[1] - y
        weights -= 0.5 * np.array([(wrong * x).mean(), wrong.mean()])
        rows += len(x)
    server.join()  # ends with the run
    return {"rows": rows, "served": served, "a": float(weights[0]), "b": float(weights[1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--master", default="local[4]")
    arguments = parser.parse_args()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    spark = SparkSession.builder.master(arguments.master).appName("live nodes").getOrCreate()
    line = spark.range(20_000).selectExpr("rand(1) as x").selectExpr("x", "3 * x + 1 as y")
    with (
        tempfile.TemporaryDirectory() as folder,
        arcflow.Cluster(spark, size=1, progress=False) as cluster,
    ):
        cluster.start(learn_and_answer)
        print(cluster.feed(line))
        print(cluster.feed(line, epochs=2))
        asked = spark.createDataFrame([(0.0,), (0.5,), (1.0,)], "x double")
        cluster.infer(asked, "x double, y double").show()
        line.write.parquet(f"{folder}/rows")
        files = spark.readStream.schema("x double, y double").parquet(f"{folder}/rows")
        stream = cluster.feed_stream(files, trigger={"availableNow": True})
        stream.wait()
        print("from the stream:", stream.rows)
        print(cluster.stop().values[0])
    spark.stop()


if __name__ == "__main__":
    main()
