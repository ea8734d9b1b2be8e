# SPDX-License-Identifier: Apache-2.0
"""Asynchronous training of Keras 3 models over parameter servers: nothing is lost, and a worker may be."""

from __future__ import annotations

import os
import sys
import time

import cloudpickle
import pytest
from spark_testing import on

from arcflow import Cluster, errors

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests


def make_model(ctx, learning_rate=0.05, metrics=("mae",)):
    import keras

    with ctx.strategy().scope():
        keras.utils.set_random_seed(1)
        model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
        model.compile(keras.optimizers.SGD(learning_rate), "mse", metrics=list(metrics))
    return model


def rows(ctx, name="train"):
    import tensorflow as tf

    def shaped(x, y):
        return tf.reshape(x, [-1, 1]), tf.reshape(y, [-1, 1])

    return ctx.dataset(name, 8, features="x", label="y").map(shaped)


def all_that_workers_read(ctx, folder):
    """Read files on both workers until each number was seen; which worker saw what."""
    import tensorflow as tf

    from arcflow.tf.async_fit import _Trainer

    trainer = object.__new__(_Trainer)
    trainer._ctx, trainer._strategy = ctx, ctx.strategy()
    trainer._coordinator = ctx.coordinator()
    iterator = trainer._iterators(
        lambda: (
            ctx.read_files(
                folder + "/*.txt", format="text", shard="records", parse=tf.strings.to_number
            )
            .repeat()
            .batch(4)
        )
    )

    @tf.function
    def step(one):
        return next(one)

    found = [ctx.coordinator().schedule(step, args=(iterator,)) for _ in range(60)]
    return [sorted(map(int, one.fetch().tolist())) for one in found]


def train(ctx):
    import keras
    import numpy as np
    import tensorflow as tf

    from arcflow.tf import fit_async

    model = make_model(ctx)
    told = {"steps": [], "epochs": []}

    class Tell(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            told["steps"].append((batch, logs["loss"]))

        def on_epoch_end(self, epoch, logs=None):
            told["epochs"].append((epoch, sorted(logs)))

    class Rows(keras.metrics.Metric):
        def __init__(self):
            super().__init__(name="rows")
            self.total = self.add_variable((), "zeros", name="total")

        def update_state(self, y_true, y_pred, sample_weight=None):
            self.total.assign_add(tf.cast(tf.shape(y_true)[0], tf.float32))

        def result(self):
            return self.total

    def alike():  # batches of which each has the same errors: which worker read how many is left to them
        x = tf.reshape(tf.range(8, dtype=tf.float32) / 8, [-1, 1])
        return rows(ctx).map(lambda _, __: (x, 3 * x))

    # With a learning rate of nothing, results over the epoch are those of the rows, and none is lost.
    with ctx.strategy().scope():
        counted = Rows()
    still = make_model(ctx, learning_rate=0.0, metrics=("mae", counted))
    still.set_weights([np.full((1, 1), 2.0), np.zeros(1)])
    exact = fit_async(still, ctx, alike, steps_per_epoch=40)
    history = fit_async(
        model, ctx, lambda: rows(ctx), steps_per_epoch=40, epochs=4,
        validation_data=lambda: rows(ctx, "validation"), validation_steps=6, callbacks=[Tell()],
    )  # fmt: skip
    x = tf.constant([[0.5], [1.0]])
    more = fit_async(
        model, ctx, lambda: rows(ctx), steps_per_epoch=5, validation_data=(x, 3 * x),
        callbacks=[keras.callbacks.EarlyStopping("val_loss", patience=1)],
    )  # fmt: skip
    return {
        "exact": exact,
        "history": history,
        "more": more,
        "told": told,
        "read": all_that_workers_read(ctx, ctx.args),
        "iterations": int(model.optimizer.iterations.numpy()),
    }


def linear(spark, count):
    return spark.range(0, count, 1, 4).selectExpr(
        f"cast(id / {count} as float) as x", f"cast(3 * id / {count} as float) as y"
    )


@on("local")
@pytest.mark.tf
@pytest.mark.usefixtures("leftovers")
@pytest.mark.timeout(900)
class TestOnSpark:
    def test_a_model_learns_from_spark_and_from_files_with_metrics_and_validation(
        self, spark, tmp_path
    ):
        for number in range(3):
            lines = "\n".join(str(10 * number + i) for i in range(10))
            (tmp_path / f"{number}.txt").write_text(lines + "\n")
        data = {"train": linear(spark, 160), "validation": linear(spark, 80)}
        with Cluster(spark, size=3, ps=1, progress=False, start_timeout=300) as cluster:
            run = cluster.run(train, data=data, args=str(tmp_path))
        (chief,) = [report for report in run.metrics["transport"] if report]
        assert chief["protocol"] == "grpc+arc"
        assert chief["fallbacks"] == {}
        result = run.values[0]
        history = result["history"]
        assert sorted(history) == ["loss", "mae", "val_loss", "val_mae"]
        assert len(history["loss"]) == 4
        assert history["loss"][-1] < history["loss"][0] / 4
        assert history["val_mae"][-1] < history["val_mae"][0]
        # Errors are x: 0/8 to 7/8 in every batch.
        assert result["exact"]["loss"][0] == pytest.approx(140 / 8 / 64)
        assert result["exact"]["mae"][0] == pytest.approx(28 / 8 / 8)
        assert result["exact"]["rows"] == [40 * 8]
        assert [batch for batch, _ in result["told"]["steps"]] == 4 * list(range(40))
        assert [epoch for epoch, _ in result["told"]["epochs"]] == [0, 1, 2, 3]
        assert result["told"]["epochs"][0][1] == ["loss", "mae", "val_loss", "val_mae"]
        assert list(result["more"]) == ["loss", "mae", "val_loss", "val_mae"]
        assert result["iterations"] == 5  # of the last fit, as the server counted them
        shares = merged(result["read"])
        assert [len(share) for share in shares] == [15, 15]
        assert set.union(*shares) == set(range(30))

    def test_a_worker_that_is_killed_is_started_again_and_no_step_is_lost(
        self, spark, tmp_path, capfd
    ):
        with Cluster(spark, size=3, ps=1, start_timeout=300, grace=1) as cluster:
            result = cluster.run(lose_a_worker, data=linear(spark, 160), args=str(tmp_path))
        (attempt,) = result.attempts
        assert attempt.error in (None, "")
        chief = result.values[0]
        assert chief["steps"] >= 120
        assert len(chief["history"]["loss"]) == 3
        assert chief["history"]["loss"][-1] < chief["history"]["loss"][0]
        assert chief["saved"] == 120
        assert "worker:0 on 127.0.0.1 died" in capfd.readouterr().err

    def test_training_goes_on_from_its_checkpoint_when_a_server_is_lost(self, spark, tmp_path):
        with Cluster(
            spark, size=2, ps=1, max_restarts=1, restart_backoff=0.1, progress=False, grace=1,
            start_timeout=300,
        ) as cluster:  # fmt: skip
            result = cluster.run(lose_the_server, data=linear(spark, 160), args=str(tmp_path))
        epochs, steps, restored = result.values[0]
        assert restored >= 20
        assert restored % 10 == 0
        assert steps >= 60
        assert epochs <= 2  # those that this attempt made
        assert result.attempts[0].node == "ps:0"


def merged(batches):
    """What each worker has read: batches with a record in common are of one worker."""
    shares: list[set] = []
    for batch in map(set, batches):
        touched = [one for one in shares if one & batch]
        shares = [one for one in shares if not one & batch] + [batch.union(*touched)]
    return shares


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


def at_step(number, act):
    import keras

    class Act(keras.callbacks.Callback):
        seen = 0

        def on_train_batch_end(self, batch, logs=None):
            self.seen += 1
            if self.seen == number:
                act()

    return Act()


def lose_a_worker(ctx):
    from arcflow.tf import fit_async

    model = make_model(ctx)
    trainer_steps = []
    stock = ctx.step_counter

    def counted(*args):
        trainer_steps.append(stock(*args))
        return trainer_steps[-1]

    ctx.step_counter = counted
    history = fit_async(
        model, ctx, lambda: rows(ctx), steps_per_epoch=40, epochs=3, directory=ctx.args,
        callbacks=[at_step(50, lambda: kill_rank(ctx, 1))],
    )  # fmt: skip
    return {"history": history, "steps": int(trainer_steps[0]), "saved": ctx._checkpoint.step}


def lose_the_server(ctx):
    from arcflow.tf import fit_async

    def lose():
        kill_rank(ctx, 2)
        time.sleep(120)

    model = make_model(ctx)
    callbacks = [at_step(35, lose)] if ctx.attempt == 1 else []
    history = fit_async(
        model, ctx, lambda: rows(ctx), steps_per_epoch=20, epochs=3, directory=ctx.args, every=10,
        callbacks=callbacks,
    )  # fmt: skip
    return len(history["loss"]), ctx._checkpoint.step, ctx.restored.step


class FakeRoles:
    ps = 1


class FakeContext:
    role = "chief"
    _roles = FakeRoles()


@pytest.mark.tf
@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"role": "worker"}, errors.UnimplementedError, "is the chief's"),
        ({"data": [1]}, errors.InvalidArgumentError, "has to be a function"),
        ({"steps_per_epoch": 0}, errors.InvalidArgumentError, "steps_per_epoch=0"),
        ({"validation_data": lambda: 1}, errors.InvalidArgumentError, "validation_steps="),
    ],
)
def test_what_cannot_be_is_refused_before_a_worker_is_asked(change, error, reason):
    from arcflow.tf import fit_async

    ctx = FakeContext()
    ctx.role = change.pop("role", "chief")
    options = {"data": lambda: 1, "steps_per_epoch": 1} | change
    with pytest.raises(error, match=reason):
        fit_async(None, ctx, options.pop("data"), **options)
