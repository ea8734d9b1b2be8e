# SPDX-License-Identifier: Apache-2.0
"""What test_yarn submits: trains on two nodes, writes to hdfs://, tells where everything came from."""

from __future__ import annotations

import argparse
import json
import os

from pyspark.sql import SparkSession

import arcflow.cli


def train(ctx):
    import keras
    import numpy
    import pyarrow
    import tensorflow as tf

    import arcflow

    if ctx.args["fail"] == ctx.rank:
        raise ValueError("rows are bad on purpose")
    with ctx.strategy().scope():
        model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
        model.compile("sgd", "mse")
    rows = ctx.dataset("train", 10, features="x", label="y")
    losses = model.fit(rows, epochs=2, verbose=0).history["loss"]
    tf.io.gfile.makedirs(ctx.args["target"])
    with tf.io.gfile.GFile(f"{ctx.args['target']}/rank-{ctx.rank}", "w") as file:
        file.write(str(losses))
    return {
        "size": ctx.size,
        "losses": losses,
        "container": os.environ.get("CONTAINER_ID", ""),
        "from": {one.__name__: one.__file__ for one in (arcflow, numpy, pyarrow)},
    }


if __name__ == "__main__":
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--target", required=True)
    parser.add_argument("--fail", type=int, default=-1, help="rank that fails")
    args = parser.parse_args()
    spark = SparkSession.builder.appName("arcflow-yarn-test").getOrCreate()
    data = spark.range(0, 400, 1, 4).selectExpr(
        "transform(sequence(1, 4), i -> cast(sin(id * i) as float)) as x",
        "cast(sin(id) - sin(2 * id) as float) as y",
    )
    feed = arcflow.Feed(data, shapes={"x": (4,)})
    with arcflow.cli.cluster(spark, args) as cluster:
        result = cluster.run(train, data=feed, args={"target": args.target, "fail": args.fail})
    path = spark._jvm.org.apache.hadoop.fs.Path(args.target)
    files = path.getFileSystem(spark._jsc.hadoopConfiguration()).listStatus(path)
    told = {
        "values": result.values,
        "fed": result.rows["train"]["fed"],
        "driver": os.environ.get("CONTAINER_ID", ""),
        "files": sorted(one.getPath().getName() for one in files),
    }
    print("RESULT " + json.dumps(told), flush=True)
    spark.stop()
