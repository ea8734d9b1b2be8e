# SPDX-License-Identifier: Apache-2.0
"""Programs of nodes that are killed in the middle, and what kills them."""

from __future__ import annotations

import os
import signal

import numpy as np

MODULUS = 1_000_003


class Number:
    """A variable without TensorFlow; every rank has its own value."""

    trainable = False

    def __init__(self, value: int, name: str = "number") -> None:
        self.name, self._value = name, np.array(value, np.int64)
        self.shape, self.dtype = self._value.shape, self._value.dtype

    def assign(self, value):
        self._value = np.array(value)

    def numpy(self):
        return self._value


def parent_of(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rsplit(")", 1)[1].split()[1])


def kill(what: str) -> None:
    """Kill this node, or one of the processes it hangs on, without a word."""
    from arcflow import _executor

    agent = os.getppid()
    feeder = parent_of(agent)
    victim = {"node": os.getpid, "agent": lambda: agent, "feeder": lambda: feeder,
              "executor": lambda: _executor.jvm_pid(feeder)}[what]()  # fmt: skip
    os.kill(victim, signal.SIGKILL)
    if what != "node":
        import time

        time.sleep(600)


def ask_to_be_cut_off(ctx, where):
    """Tell the test this node's address, and wait for the end of the world."""
    import time

    with open(where + ".part", "w") as file:
        file.write(ctx.cluster["worker"][0].rsplit(":", 1)[0])
    os.rename(where + ".part", where)
    time.sleep(600)


def count(ctx):
    """Fold the ids that this rank reads, in their order, into a number; die where args say."""
    import time

    args = ctx.args
    total = Number(1)
    state = ctx.checkpoint(total, directory=args["directory"], every=args.get("every", 5), keep=2)
    began = state.step
    for _ in state.epochs(args.get("epochs", 2)):
        rows = ctx.reader("train", 10, shuffle=args.get("shuffle", False))
        for columns, padding in state.batches(rows):
            doomed = ctx.attempt <= args.get("deaths", 1) and ctx.rank == args.get("rank", 1)
            if doomed and state.step == args["step"]:
                if args["how"] == "raise":
                    raise ValueError(f"bad row at step {state.step}")
                if args["how"] == "wait":
                    ask_to_be_cut_off(ctx, args["where"])
                kill(args["how"])
            ids = columns["id"][: len(columns["id"]) - padding]
            for number in ids.tolist():
                total.assign((int(total.numpy()) * 31 + number) % MODULUS)
            time.sleep(args.get("pause", 0))
    return {
        "total": int(total.numpy()),
        "attempt": ctx.attempt,
        "began": began,
        "restored": ctx.restored and ctx.restored.step,
        "steps": state.step,
    }


def train(ctx):
    """Train a Keras model on a feed with `fit` or a loop; return the weights' bytes."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    import keras
    import tensorflow as tf

    args = ctx.args
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(args["seed"])
    strategy = ctx.strategy()
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((4,)),
                keras.layers.Dense(8, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.2),
                keras.layers.Dense(1),
            ]
        )
        model.compile(keras.optimizers.Adam(0.01), "mse")
    if args["program"] == "callback":
        return _fit_by_epochs(ctx, model)
    state = ctx.checkpoint(model, directory=args["directory"], every=args.get("every", 7), keep=2)
    began = state.step
    rows = ctx.dataset("train", 10, features="x", label="y", shuffle=args["shuffle"])
    die = _death(ctx, state)
    if args["program"] == "fit":

        class Death(keras.callbacks.Callback):
            arcflow_local_logs = True

            def on_train_batch_begin(self, batch, logs=None):
                die()

        history = state.fit(rows, epochs=args["epochs"], callbacks=[Death()], verbose=0)
        assert len(history["loss"]) >= 1
    else:
        _loop(strategy, model, state, rows, die)
    weights = [np.asarray(v.numpy()).tobytes() for v in model.weights]
    return {"weights": weights, "began": began, "steps": state.step, "attempt": ctx.attempt}


def _fit_by_epochs(ctx, model):
    """A program with its own call of `fit`."""
    import keras
    import numpy as np

    class Death(keras.callbacks.Callback):
        arcflow_local_logs = True

        def on_train_batch_begin(self, batch, logs=None):
            if ctx.attempt == 1 and ctx.rank == 1 and keeper.state.step == ctx.args["step"]:
                kill("node")

    keeper = ctx.checkpoint_callback(ctx.args["directory"])
    rows = ctx.dataset("train", 10, features="x", label="y", shuffle=ctx.args["shuffle"])
    history = model.fit(rows, epochs=3, verbose=0, callbacks=[keeper, Death()])
    weights = [np.asarray(v.numpy()).tobytes() for v in model.weights]
    began = 0 if ctx.restored is None else ctx.restored.step
    epochs = history.epoch
    return {"weights": weights, "began": began, "steps": keeper.state.step, "epochs": epochs}


def _loop(strategy, model, state, rows, die):
    import tensorflow as tf

    @tf.function
    def step(x, y, w):
        def replica(x, y, w):
            with tf.GradientTape() as tape:
                error = tf.reduce_sum(w * tf.square(model(x, training=True)[:, 0] - y)) / 10.0
            grads = tape.gradient(error, model.trainable_variables)
            model.optimizer.apply(grads, model.trainable_variables)

        strategy.run(replica, args=(x, y, w))

    for _ in state.epochs(3):
        for x, y, w in state.batches(rows):
            die()
            step(x, y, w)


def _death(ctx, state):
    def die():
        args = ctx.args
        doomed = ctx.attempt <= args.get("deaths", 1) and ctx.rank == args.get("rank", 1)
        if doomed and state.step == args["step"]:
            kill("node")

    return die
