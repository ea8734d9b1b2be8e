# SPDX-License-Identifier: Apache-2.0
"""Roles: chief, workers, evaluators and parameter servers; who is fed, who is called, who ends when."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import cloudpickle
import pytest
from spark_testing import on

from arcflow import Cluster, _roles, _rows, errors, preflight
from arcflow._roles import Roles

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests


def test_ranks_are_chief_workers_evaluators_and_parameter_servers():
    roles = Roles(3, ps=2, evaluator=1)
    assert [roles.of(rank) for rank in range(roles.total)] == [
        ("chief", 0), ("worker", 0), ("worker", 1), ("evaluator", 0), ("ps", 0), ("ps", 1),
    ]  # fmt: skip
    assert list(roles.fed) == [1, 2]
    assert [roles.runs_function(rank) for rank in range(6)] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]
    assert (roles.tasks, Roles(3, 2, 1, ps_on_driver=True).tasks) == (6, 4)
    assert list(Roles(3, evaluator=1).fed) == [0, 1, 2]
    assert Roles.from_json(json.loads(json.dumps(roles.to_json()))) == roles


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ({"size": 1, "ps": 1}, "size=2 or more"),
        ({"size": 2, "ps": -1}, "ps=-1"),
        ({"size": 2, "evaluator": 1.5}, "evaluator=1.5"),
        ({"size": 2, "ps_on_driver": True}, "ps=1 or more"),
    ],
)
def test_roles_that_cannot_be_are_refused(arguments, advice):
    arguments = {"ps": 0, "evaluator": 0, "ps_on_driver": False} | arguments
    with pytest.raises(errors.InvalidArgumentError, match=advice):
        _roles.checked(**arguments)


def describe_me(ctx):
    """Where this node is, what it reads, and that barriers are those of training."""
    config = json.loads(os.environ.get("TF_CONFIG", "{}"))
    said = {
        "role": ctx.role,
        "index": ctx.index,
        "rank": ctx.rank,
        "size": ctx.size,
        "task": config.get("task"),
        "cluster": {role: len(who) for role, who in config.get("cluster", {}).items()},
    }
    if ctx.role == "evaluator":
        assert not ctx.training_over
        Path(ctx.args["seen"]).touch()
        assert ctx.feeds == {}
        with pytest_free_raises(errors.UnimplementedError):
            ctx.barrier("no")
        assert ctx.wait_for_end(120)
        assert ctx.training_over
        return said
    while not Path(
        ctx.args["seen"]
    ).exists():  # training is not over before the evaluator has looked
        time.sleep(0.05)
    assert len(ctx.barrier("mine", str(ctx.rank).encode())) == ctx.size
    ids = []
    for columns, padding in ctx.reader("train", 16):
        ids += columns["id"][: len(columns["id"]) - padding].tolist()
    return said | {"ids": ids}


class pytest_free_raises:
    def __init__(self, error):
        self._error = error

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        assert kind is not None
        assert issubclass(kind, self._error), kind
        return True


@on("local", "connect")
@pytest.mark.usefixtures("leftovers")
def test_an_evaluator_trains_with_nobody_and_ends_with_the_chief(spark, tmp_path):
    args = {"seen": str(tmp_path / "seen")}
    with Cluster(spark, size=2, evaluator=1, progress=False) as cluster:
        result = cluster.run(describe_me, data=spark.range(0, 100, 1, 4), args=args)
    assert [value["role"] for value in result.values] == ["chief", "worker"]
    assert sorted(result.values[0]["ids"] + result.values[1]["ids"]) == list(range(100))
    (evaluator,) = result.evaluators
    assert evaluator["task"] == {"type": "evaluator", "index": 0}
    for value in [*result.values, evaluator]:
        assert value["cluster"] == {"chief": 1, "worker": 1}
        assert value["size"] == 2
    assert result.rows["train"]["fed"] == result.rows["train"]["used"] == 100
    assert len(result.metrics["nodes"]) == 3


@on("local")
@pytest.mark.usefixtures("leftovers")
class TestEvaluator:
    def test_one_that_does_not_listen_is_stopped_and_that_is_no_failure(self, spark):
        def deaf(ctx):
            import time

            if ctx.role == "evaluator":
                time.sleep(3600)
            return ctx.rank

        with Cluster(spark, size=1, evaluator=1, evaluator_grace=0.5, progress=False) as cluster:
            result = cluster.run(deaf)
        assert (result.values, result.evaluators) == ([0], [None])

    def test_what_it_raises_after_the_end_of_training_is_no_failure(self, spark):
        def late(ctx):
            if ctx.role == "evaluator":
                ctx.wait_for_end()
                raise RuntimeError("the checkpoint is gone")
            return "trained"

        with Cluster(spark, size=1, evaluator=1, progress=False) as cluster:
            assert cluster.run(late).values == ["trained"]

    def test_what_it_raises_before_is_one_and_names_it(self, spark):
        def broken(ctx):
            if ctx.role == "evaluator":
                raise RuntimeError("no such metric")
            ctx.barrier("never", timeout=60) if ctx.size > 1 else __import__("time").sleep(60)

        with (
            Cluster(spark, size=1, evaluator=1, progress=False, grace=1) as cluster,
            pytest.raises(errors.NodeFailedError) as caught,
        ):
            cluster.run(broken)
        assert caught.value.node == "evaluator:0"
        assert "no such metric" in str(caught.value)

    def test_slots_for_all_roles_are_checked_before_anything_starts(self, spark):
        with (
            Cluster(spark, size=3, ps=1, evaluator=1, progress=False) as cluster,
            pytest.raises(errors.InvalidArgumentError, match=r"need 5 slots.*lower size= to 2"),
        ):
            cluster.run(lambda ctx: None)

    def test_rows_go_only_to_those_who_are_fed_and_evenly(self, spark):
        frame = _rows.spread(spark.range(0, 1000, 1, 8), 4, range(1, 3))
        counts = dict(frame.selectExpr("spark_partition_id() as p").groupBy("p").count().collect())
        assert set(counts) == {1, 2}
        assert sum(counts.values()) == 1000
        assert max(counts.values()) - min(counts.values()) <= 16

    def test_slots_of_a_size_alone_are_told_as_before(self, spark):
        with pytest.raises(errors.InvalidArgumentError, match=r"size=9, but .* lower size= to 4"):
            preflight.check_slots(spark, 9)


def count_up(ctx):
    """Train with a coordinator; steps are counted on the parameter server by two workers at once."""
    import tensorflow as tf

    strategy = ctx.strategy()
    coordinator = ctx.coordinator()
    counter = ctx.step_counter()
    with strategy.scope():
        total = tf.Variable(tf.zeros([], tf.int64))

    def feed():
        return strategy.distribute_datasets_from_function(
            lambda _: ctx.dataset("train", 10, label=False).repeat()
        )

    rows = iter(coordinator.create_per_worker_dataset(feed))

    @tf.function
    def step(iterator):
        def replica(ids):
            total.assign_add(tf.reduce_sum(ids))
            counter.add()
            return ids

        return strategy.run(replica, args=(next(iterator),))

    seen = [coordinator.schedule(step, args=(rows,)) for _ in range(ctx.args["steps"])]
    coordinator.join()
    values = [one.fetch() for one in seen]
    ids = [i for one in values for i in getattr(one, "numpy", lambda one=one: one)().tolist()]
    told = ""
    try:
        import keras

        with strategy.scope():
            model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
            model.compile("sgd", "mse")
        model.fit(tf.data.Dataset.from_tensors((tf.zeros([2, 1]), tf.zeros([2, 1]))), verbose=0)
    except errors.UnimplementedError as error:
        told = str(error)
    config = json.loads(os.environ["TF_CONFIG"])
    return {
        "steps": int(counter),
        "total": int(total.numpy()),
        "ids": ids,
        "told": told,
        "device": counter.variable.device,
        "cluster": {role: len(who) for role, who in config["cluster"].items()},
    }


@on("local")
@pytest.mark.tf
@pytest.mark.usefixtures("leftovers")
@pytest.mark.timeout(600)
def test_workers_of_parameter_servers_read_their_own_feeds_and_no_step_is_lost(spark):
    with Cluster(spark, size=3, ps=1, progress=False, start_timeout=300) as cluster:
        result = cluster.run(count_up, data=spark.range(0, 200, 1, 4), args={"steps": 120})
    chief, *workers = result.values
    assert workers == [None, None]
    assert chief["steps"] == 120
    assert chief["cluster"] == {"chief": 1, "worker": 2, "ps": 1}
    assert "/job:ps" in chief["device"]
    assert chief["total"] == sum(chief["ids"])
    assert set(chief["ids"]) == set(range(200))  # both workers' halves, many times
    assert "do not work with parameter servers" in chief["told"]
    fed = [node["fed"] for node in result.rows["train"]["nodes"]]
    assert fed[0] == 0
    assert sum(fed) == 200


def fit_legacy(ctx):
    """`fit` of tf_keras under a parameter server; an evaluator looks on."""
    if ctx.role == "evaluator":
        return ctx.wait_for_end(600)
    import tensorflow as tf
    import tf_keras

    strategy = ctx.strategy()
    with strategy.scope():
        model = tf_keras.Sequential([tf_keras.layers.Input((1,)), tf_keras.layers.Dense(1)])
        model.compile(tf_keras.optimizers.SGD(0.1), "mse")

    def rows(_):
        one = ctx.dataset("train", 10, features="x", label="y")
        return one.map(lambda x, y: (tf.reshape(x, [-1, 1]), y)).repeat()

    creator = tf_keras.utils.experimental.DatasetCreator(rows)
    history = model.fit(creator, epochs=3, steps_per_epoch=20, verbose=0).history["loss"]
    try:
        ctx.dataset("train", 10, remainder="pad")
        refused = ""
    except errors.UnimplementedError as error:
        refused = str(error)
    return history, refused


@on("local")
@pytest.mark.tf
@pytest.mark.usefixtures("leftovers")
@pytest.mark.timeout(600)
def test_a_parameter_server_on_the_driver_serves_tf_keras(spark):
    data = spark.range(0, 100, 1, 4).selectExpr(
        "cast(id / 100 as float) as x", "cast(3 * id / 100 as float) as y"
    )
    environment = {"TF_USE_LEGACY_KERAS": "1"}
    with Cluster(
        spark, size=2, ps=1, evaluator=1, ps_on_driver=True, env=environment, progress=False,
        start_timeout=300,
    ) as cluster:  # fmt: skip
        result = cluster.run(fit_legacy, data=data)
    history, refused = result.values[0]
    assert history[-1] < history[0] / 2
    assert "do not" in refused
    assert result.evaluators == [True]
    assert len(result.metrics["nodes"]) == 4


def kill_rank(ctx, rank):
    """Kill the node of a rank on this host."""
    import glob
    import signal
    from pathlib import Path

    mark = f"ARCFLOW_NODE_MARK={ctx.run_id}:{rank}:".encode()
    for path in glob.glob("/proc/[0-9]*"):
        try:
            if b"\0" + mark in b"\0" + Path(path, "environ").read_bytes():
                os.kill(int(path.rsplit("/", 1)[1]), signal.SIGKILL)
        except OSError:
            continue


def lose_a_server(ctx):
    import time

    ctx.coordinator()
    steps = ctx.step_counter(7)
    state = ctx.checkpoint(steps.variable, directory=ctx.args, every=1)
    if ctx.attempt == 1:
        steps.add(34)
        state.advance()
        kill_rank(ctx, 2)
        time.sleep(120)
    return int(steps), ctx.restored.step


@on("local")
@pytest.mark.tf
@pytest.mark.usefixtures("leftovers")
@pytest.mark.timeout(600)
def test_a_lost_parameter_server_is_named_and_the_run_goes_on_from_its_checkpoint(spark, tmp_path):
    with Cluster(
        spark, size=2, ps=1, max_restarts=1, restart_backoff=0.1, progress=False, grace=1,
        start_timeout=300,
    ) as cluster:  # fmt: skip
        result = cluster.run(lose_a_server, args=str(tmp_path))
    assert result.values == [(41, 1), None]
    first, _ = result.attempts
    assert (first.node, first.cause) == ("ps:0", "signal")


def follow(ctx):
    """Train in the chief, with a checkpoint each epoch; evaluate each in the evaluator."""
    import keras
    import numpy as np

    x = np.linspace(0, 1, 40, dtype="float32")[:, None]
    keras.utils.set_random_seed(1)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    if ctx.role == "evaluator":
        model.compile(loss="mse", optimizer=None)
        state = ctx.checkpoint(model, directory=ctx.args)
        seen = []
        over = False
        while not over:
            over = ctx.wait_for_end(0.2)
            if state.refresh():
                seen.append((state.step, model.evaluate(x, 3 * x, verbose=0)))
        return seen
    model.compile("sgd", "mse")
    state = ctx.checkpoint(model, directory=ctx.args)
    rows = ctx.dataset("train", 10, features="x", label="y")
    state.fit(rows.map(lambda x, y, w: (x[:, None], y[:, None], w)), epochs=4, verbose=0)
    return state.step, model.evaluate(x, 3 * x, verbose=0)


@on("local")
@pytest.mark.tf
@pytest.mark.usefixtures("leftovers")
@pytest.mark.timeout(600)
def test_an_evaluator_sees_what_training_has_learnt(spark, tmp_path):
    data = spark.range(0, 40, 1, 4).selectExpr(
        "cast(id / 39 as float) as x", "cast(3 * id / 39 as float) as y"
    )
    with Cluster(spark, size=1, evaluator=1, progress=False, start_timeout=300) as cluster:
        result = cluster.run(follow, data=data, args=str(tmp_path))
    (evaluations,) = result.evaluators
    assert evaluations[-1] == pytest.approx(result.values[0])
    assert result.values[0][0] == 16
    assert [step for step, _ in evaluations] == sorted({step for step, _ in evaluations})
