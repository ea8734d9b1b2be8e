# SPDX-License-Identifier: Apache-2.0
"""The program of the restart bench: trains, writes down what each step reads, dies when told."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any


def train(ctx: Any) -> dict[str, Any]:
    """Train a small Keras model in a loop; return the bytes of its weights."""
    os.environ["TF_ENABLE_ONEDNN_OPTS"] = "0"
    args = ctx.args
    notes = Path(args["notes"], f"attempt{ctx.attempt}-rank{ctx.rank}.jsonl")

    def note(**fields: Any) -> None:
        place = {"attempt": ctx.attempt, "rank": ctx.rank, "time": time.time()}
        with notes.open("a", encoding="utf-8") as file:
            file.write(json.dumps(place | fields) + "\n")

    note(what="began")
    import keras
    import numpy as np
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.experimental.enable_op_determinism()
    keras.utils.set_random_seed(args["seed"])
    strategy = ctx.strategy()
    with strategy.scope():
        model = keras.Sequential(
            [
                keras.Input((8,)),
                keras.layers.Dense(16, activation="relu"),
                keras.layers.BatchNormalization(),
                keras.layers.Dropout(0.3),
                keras.layers.Dense(1),
            ]
        )
        optimizer = keras.optimizers.Adam(0.01)
    state = ctx.checkpoint(model, optimizer, directory=args["directory"], every=args["every"])

    @tf.function
    def step(x: Any, y: Any, w: Any) -> None:
        def replica(x: Any, y: Any, w: Any) -> None:
            with tf.GradientTape() as tape:
                error = w * tf.square(model(x, training=True)[:, 0] - y)
                loss = tf.reduce_sum(error) / float(args["batch"] * ctx.size)
            grads = tape.gradient(loss, model.trainable_variables)
            optimizer.apply(grads, model.trainable_variables)

        strategy.run(replica, args=(x, y, w))

    rows = ctx.dataset("train", args["batch"], features=["x", "id"], label="y")
    death = args["death"] or {}
    for epoch in state.epochs(args["epochs"]):
        for x, y, w in state.batches(rows):
            real = int(np.count_nonzero(w.numpy()))
            if ctx.attempt == 1 and death == {"rank": ctx.rank, "step": state.step}:
                note(what="kill")
                os.kill(os.getpid(), signal.SIGKILL)
            step(x["x"], y, w)
            note(step=state.step, epoch=epoch, ids=x["id"].numpy()[:real].tolist())
    return {"weights": [np.asarray(v.numpy()).tobytes() for v in model.variables]}
