# SPDX-License-Identifier: Apache-2.0
"""A run on Spark whose nodes read HDFS themselves: nothing to register, even shares, a model saved there."""

from __future__ import annotations

import sys

import cloudpickle
import pytest
import spark_testing

from arcflow import Cluster, files

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
pytestmark = [pytest.mark.hdfs, pytest.mark.spark, pytest.mark.tf, pytest.mark.slow]


def write_and_read(ctx):
    import tensorflow as tf

    base = ctx.args["base"]
    if ctx.is_chief:
        tf.io.gfile.makedirs(f"{base}/in")
        with tf.io.TFRecordWriter(f"{base}/in/a.tfrecord") as writer:
            for i in range(101):
                writer.write(str(i).encode())
    ctx.barrier("written")
    mine = [int(r) for r in ctx.read_files(f"{base}/in/*.tfrecord").as_numpy_iterator()]
    with tf.io.gfile.GFile(f"{base}/sum-{ctx.rank}", "w") as file:
        file.write(str(sum(mine)))
    return len(mine)


@spark_testing.on("local")
def test_nodes_read_and_write_hdfs(spark, hdfs_servers, leftovers):
    base = f"webhdfs://{hdfs_servers.http}/run"  # needs no configuration
    with Cluster(spark, size=2) as cluster:
        result = cluster.run(write_and_read, args={"base": base})
    assert result.values == [50, 50]
    sums = [int(files.read_bytes(f"{base}/sum-{rank}")) for rank in (0, 1)]
    assert sum(sums) == sum(range(100))
