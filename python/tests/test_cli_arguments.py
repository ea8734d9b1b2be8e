# SPDX-License-Identifier: Apache-2.0
"""The flags of a program: each has its effect on the cluster, or is refused with the reason."""

from __future__ import annotations

import argparse
import inspect
import sys

import cloudpickle
import pytest
from spark_testing import on

from arcflow import Cluster, _replicas, cli, errors
from arcflow._roles import Roles

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests

# What a program says itself, because no word on a command line can.
NOT_FLAGS = {"self", "spark", "profile", "host", "bind_host", "port", "python", "env"}
NOT_FLAGS |= {"metrics_dir"}  # of programs that read scalars without TensorBoard
RENAMED = {"size": "cluster_size", "ps": "num_ps_tasks", "gpus": "num_gpus"}


def parsed(*words: str) -> argparse.Namespace:
    return cli.add_arguments(argparse.ArgumentParser()).parse_args(words)


def test_every_setting_of_a_cluster_is_a_flag():
    settings = set(inspect.signature(Cluster.__init__).parameters) - NOT_FLAGS
    flags = set(vars(parsed()))
    assert {RENAMED.get(name, name) for name in settings} <= flags
    assert flags - {RENAMED.get(name, name) for name in settings} == {
        "sync_replicas",
        "rdma",
        "tensorboard_dir",
    } - (settings & {"tensorboard_dir"})


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ("", {"size": None}),
        ("--cluster_size 4", {"size": 4}),
        ("--cluster_size 4 --num_ps_tasks 1 --evaluator 1", {"size": 2, "ps": 1, "evaluator": 1}),
        (
            "--cluster_size 2 --num_ps_tasks 3 --ps_on_driver",
            {"size": 2, "ps": 3, "ps_on_driver": True},
        ),
        ("--cluster_size 3 --workers_serve", {"size": 3, "workers_serve": True}),
        ("--num_gpus 0", {"size": None, "gpus": 0}),
        ("--num_gpus 2 --share_gpus", {"size": None, "gpus": 2, "share_gpus": True}),
        (
            "--cluster_size 2 --sync_replicas --replicas_to_aggregate 4",
            {"size": 2, "replicas_to_aggregate": 4},
        ),
        ("--rdma", {"size": None, "transport": "rdma"}),
        ("--rdma --transport rdma", {"size": None, "transport": "rdma"}),
        ("--transport_compression bf16", {"size": None, "transport_compression": "bf16"}),
        ("--transport grpc", {"size": None, "transport": "grpc"}),
        ("--tensorboard", {"size": None, "tensorboard": True}),
        ("--tensorboard_dir hdfs:///logs", {"size": None, "tensorboard": "hdfs:///logs"}),
        ("--stall_timeout 0 --no_progress", {"size": None, "stall_timeout": 0, "progress": False}),
        (
            "--max_restarts 2 --log_dir /logs --encrypt --feed_memory 2g",
            {
                "size": None,
                "max_restarts": 2,
                "log_dir": "/logs",
                "encrypt": True,
                "feed_memory": "2g",
            },
        ),
    ],
)
def test_flags_become_settings_of_the_cluster(line, wanted):
    found = cli.options(parsed(*line.split()))
    found = {k: v for k, v in found.items() if not (k == "evaluator" and v == 0)}
    assert found == wanted


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--cluster_size 2 --num_ps_tasks 1", r"leaves 1 to train.*--cluster_size 3 or more"),
        ("--cluster_size 1 --evaluator 1", r"leaves 0 to train.*--cluster_size 2 or more"),
        ("--cluster_size 0", r"is no cluster.*--cluster_size 1 or more"),
        ("--sync_replicas --num_ps_tasks 2", "parameter servers would have nothing to do"),
        ("--replicas_to_aggregate 4", "Add --sync_replicas"),
        ("--rdma --transport shm", "contradict each other"),
        ("--ps_on_driver", "add --num_ps_tasks 1"),
        ("--workers_serve --num_ps_tasks 1", "--num_ps_tasks: one program of the chief's"),
        ("--cluster_size 1 --workers_serve", r"--cluster_size 2 or more"),
    ],
)
def test_flags_that_contradict_each_other_are_refused_with_the_reason(line, reason):
    with pytest.raises(errors.InvalidArgumentError, match=reason):
        cli.options(parsed(*line.split()))


@pytest.mark.parametrize(
    ("wanted", "roles", "steps"),
    [(None, Roles(3), 1), (3, Roles(3), 1), (6, Roles(3), 2), (5, Roles(1), 5)],
)
def test_gradients_of_an_update_are_shared_out_over_the_nodes(wanted, roles, steps):
    assert _replicas.checked(wanted, roles) == steps


@pytest.mark.parametrize(
    ("wanted", "roles", "reason"),
    [
        (2, Roles(3), "backup workers"),
        (7, Roles(3), "say 6 or 9"),
        (0, Roles(1), "1 or more"),
        (True, Roles(1), "not a number"),
        (4, Roles(2, ps=1), "asynchronous updates"),
    ],
)
def test_numbers_of_gradients_that_cannot_be_are_refused(wanted, roles, reason):
    with pytest.raises(errors.InvalidArgumentError, match=reason):
        _replicas.checked(wanted, roles)


def learn(ctx):
    """Train without Keras's `fit` knowing anything of accumulation; return the weights after each step."""
    import keras
    import numpy as np
    import tensorflow as tf

    with ctx.strategy().scope():
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
        model.compile(keras.optimizers.SGD(0.1), "mse")
        model.set_weights([np.zeros((1, 1))])
    weights = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            weights.append(float(model.get_weights()[0][0, 0]))

    rows = ctx.dataset("train", 2, features="x", label="y", remainder="drop")
    rows = rows.map(lambda x, y: (tf.reshape(x, [-1, 1]), tf.reshape(y, [-1, 1])))
    model.fit(rows, epochs=1, verbose=0, callbacks=[Look()])
    try:
        keras.optimizers.SGD(0.1, gradient_accumulation_steps=7)
        refused = ""
    except errors.InvalidArgumentError as error:
        refused = str(error)
    return weights, refused


@on("local")
@pytest.mark.usefixtures("leftovers")
class TestOnSpark:
    @pytest.mark.tf
    @pytest.mark.timeout(600)
    def test_gradients_are_accumulated_until_there_are_as_many_as_asked_for(self, spark):
        rows = spark.range(0, 16, 1, 2).selectExpr("cast(1 as float) as x", "cast(1 as float) as y")
        args = parsed(
            "--cluster_size", "2", "--sync_replicas", "--replicas_to_aggregate", "4",
            "--no_progress", "--start_timeout", "300",
        )  # fmt: skip
        with cli.cluster(spark, args) as cluster:
            (first, refused), (second, _) = cluster.run(learn, data=rows).values
        # The gradient of (w - 1)² is the same in all rows: 2 (w - 1), and a mean stays what it is.
        once, twice = 0.2, 0.2 + 0.2 * 0.8
        assert first == pytest.approx([0, once, once, twice], abs=1e-6)
        assert second == first
        assert "gradient_accumulation_steps=7" in refused

    def test_rdma_is_the_clusters_transport(self, spark):
        with cli.cluster(spark, parsed("--cluster_size", "2", "--rdma"), progress=False) as cluster:
            assert cluster._options.transport == "rdma"

    def test_what_the_program_says_wins_over_flags(self, spark):
        with cli.cluster(spark, parsed("--cluster_size", "4"), size=1, progress=False) as cluster:
            assert cluster.size == 1
