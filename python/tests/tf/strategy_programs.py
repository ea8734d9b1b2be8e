# SPDX-License-Identifier: Apache-2.0
"""What the ranks of test_strategy.py run."""

from __future__ import annotations

import itertools
import json
import os
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from arcflow import errors
from arcflow.tf import ClusterStrategy, default_strategy, is_per_node, per_node

BATCH = 32  # rows a node and step
FEATURES = 20


def rank_and_size() -> tuple[int, int]:
    config = json.loads(os.environ.get("TF_CONFIG") or "{}")
    if not config:
        return 0, 1
    size = sum(len(v) for v in config["cluster"].values())
    task = config["task"]
    return (0 if task["type"] == "chief" else 1 + task["index"]), size


def rows(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(count, FEATURES)).astype("f4")
    y = (x @ rng.normal(size=FEATURES) + 0.5 * rng.normal(size=count) > 0).astype("f4")[:, None]
    return x, y


def make_model(**kwargs: Any) -> keras.Model:
    keras.utils.set_random_seed(7)
    model = keras.Sequential([
        keras.Input((FEATURES,)),
        keras.layers.Dense(16, activation="relu", kernel_regularizer=kwargs.pop("regularizer", None)),
        keras.layers.Dense(1, activation="sigmoid"),
    ])  # fmt: skip
    compile_model(model, **kwargs)
    return model


def compile_model(model: keras.Model, **kwargs: Any) -> None:
    model.compile(**{
        "optimizer": keras.optimizers.SGD(0.1, momentum=0.9), "loss": "binary_crossentropy",
        "metrics": ["accuracy", keras.metrics.AUC(name="auc")], **kwargs,
    })  # fmt: skip


def own_dataset(x: np.ndarray, y: np.ndarray, rank: int, size: int) -> tf.data.Dataset:
    """Batch k of rank r holds rows r, r + size, … of global batch k."""
    ds = tf.data.Dataset.from_tensor_slices((x[rank::size], y[rank::size]))
    return per_node(ds.batch(BATCH, drop_remainder=True))


def padded_dataset(x: np.ndarray, y: np.ndarray, steps: int) -> tf.data.Dataset:
    """As a feed gives it under remainder="pad"."""
    missing = steps * BATCH - len(x)
    last = max(len(x) - 1, 0)
    order = np.concatenate([np.arange(len(x)), np.full(missing, last)])
    weight = np.concatenate([np.ones(len(x)), np.zeros(missing)]).astype("f4")
    return per_node(
        tf.data.Dataset.from_tensor_slices((x[order], y[order], weight)).batch(BATCH),
        remainder="pad",
    )


def weights_of(model: keras.Model) -> list[np.ndarray]:
    return [np.array(w) for w in model.get_weights()]


def floats(history: dict) -> dict:
    return {k: [float(x) for x in v] for k, v in history.items()}


def error_of(call: Any) -> tuple[str, str]:
    try:
        call()
    except errors.ArcflowError as e:
        return type(e).__name__, str(e)
    return "", ""


class StepLogs(keras.callbacks.Callback):
    def __init__(self, local: bool) -> None:
        super().__init__()
        self.arcflow_local_logs = local
        self.seen: list[dict] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.seen.append({k: float(v) for k, v in logs.items()})


def train_equal_shares(total_ranks: int, epochs: int = 3) -> dict:
    """The same global batches on any number of ranks."""
    rank, size = rank_and_size()
    strategy = default_strategy()
    x, y = rows(BATCH * total_ranks * 6)
    with strategy.scope():
        model = make_model(regularizer=keras.regularizers.L2(1e-3))
    if size > 1:
        data = own_dataset(x, y, rank, size).map(lambda a, b: (a, b)).prefetch(1)
        assert is_per_node(data)
    else:
        data = tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH * total_ranks)
    history = model.fit(data, epochs=epochs, verbose=0, validation_data=data)
    return {
        "strategy": type(strategy).__name__, "history": floats(history.history), "weights": weights_of(model),
        "optimizer": [np.asarray(v) for v in model.optimizer.variables],
        "evaluate": model.evaluate(data, verbose=0, return_dict=True),
    }  # fmt: skip


def count_reductions(strategy: Any) -> list[str]:
    """A list that grows by one with each collective that `strategy` makes outside of steps."""
    made: list[str] = []
    stock = strategy.extended._reduce_to

    def reduce_to(reduce_op: Any, *args: Any, **kwargs: Any) -> Any:
        made.append(str(reduce_op))
        return stock(reduce_op, *args, **kwargs)

    strategy.extended._reduce_to = reduce_to
    return made


def everything(folder: str) -> dict:
    """Two ranks; one process start for many behaviours."""
    rank, size = rank_and_size()
    strategy = ClusterStrategy()
    result: dict[str, Any] = {
        "is_mwms": isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)
    }
    x, y = rows(BATCH * size * 4)
    data = own_dataset(x, y, rank, size)
    with strategy.scope():
        model = make_model()

    # Logs of steps: this rank's own, unless a callback reads them.
    for name, local in (("local", True), ("read", False)):
        seen = StepLogs(local)
        model.fit(data, epochs=1, verbose=0, callbacks=[seen])
        result[f"steps_{name}"] = seen.seen
    # A callback on one rank only decides for all.
    seen = StepLogs(local=False)
    model.fit(data, epochs=1, verbose=0, callbacks=[seen] if rank == 0 else [])
    result["steps_one_rank"] = len(seen.seen)

    # Callbacks of Keras; the progress bar; resuming.
    callbacks = keras.callbacks
    ckpt = f"{folder}/m.keras"  # all ranks name one file
    history = model.fit(
        data, epochs=20, verbose=1, validation_data=data,
        callbacks=[
            callbacks.ModelCheckpoint(ckpt, monitor="val_loss", save_best_only=True),
            callbacks.EarlyStopping(monitor="val_accuracy", mode="min", patience=1),
            callbacks.ReduceLROnPlateau(monitor="val_loss"),
            callbacks.CSVLogger(f"{folder}/log{rank}.csv"),
        ],
    )  # fmt: skip
    result["early_epochs"] = len(history.epoch)
    loaded = keras.models.load_model(ckpt, compile=False)
    result["loaded"] = [np.array(w) for w in loaded.get_weights()]
    model.fit(
        data,
        epochs=2,
        verbose=0,
        callbacks=[callbacks.BackupAndRestore(f"{folder}/bk", delete_checkpoint=False)],
    )
    before = weights_of(model)
    with strategy.scope():
        resumed = make_model()
    again = resumed.fit(
        data, epochs=5, verbose=0, callbacks=[callbacks.BackupAndRestore(f"{folder}/bk")]
    )
    result["resumed_epochs"] = again.epoch
    result["resumed_from"] = float(np.abs(before[0]).sum())
    result["weights"] = weights_of(resumed)
    result["left"] = sorted(os.listdir(folder))
    other = f"{folder}/bk-of-{rank}"
    if rank == 0:
        os.makedirs(other)
        with open(f"{other}/training_metadata.json", "w") as file:
            json.dump({"epoch": 3, "batch": 0}, file)
    result["backups"] = error_of(
        lambda: model.fit(data, verbose=0, callbacks=[callbacks.BackupAndRestore(other)])
    )

    # Predict and evaluate.
    single = keras.models.clone_model(model)
    single.set_weights(model.get_weights())
    compile_model(single)
    count = 3 + 10 * (rank + 1)  # ranks of different size
    xs, ys = rows(count, seed=rank)
    partial = per_node(tf.data.Dataset.from_tensor_slices(xs).batch(8), remainder="partial")
    result["predict_own"] = float(
        np.abs(model.predict(partial, verbose=0) - single(xs).numpy()).max()
    )
    result["predict_shape"] = model.predict(partial, verbose=0).shape
    result["predict_on_batch"] = model.predict_on_batch(xs).shape
    array = model.predict(x[:50], batch_size=16, verbose=0)
    result["predict_array"] = array.shape, float(np.abs(array - single(x[:50]).numpy()).max())
    both = [rows(3 + 10 * (r + 1), seed=r) for r in range(size)]
    xa, ya = (np.concatenate([b[i] for b in both]) for i in (0, 1))
    pairs = tf.data.Dataset.from_tensor_slices((xs, ys)).batch(8)
    reduced = count_reductions(strategy)
    result["evaluate_partial"] = model.evaluate(
        per_node(pairs, remainder="partial"), verbose=0, return_dict=True
    )
    result["evaluate_reductions"] = len(reduced)
    result["evaluate_padded"] = model.evaluate(
        padded_dataset(xs, ys, steps=2), verbose=0, return_dict=True
    )
    result["fit_array"] = floats(model.fit(x, y, batch_size=64, epochs=1, verbose=0).history)

    # Refusals.
    result["partial"] = error_of(lambda: model.fit(per_node(pairs, remainder="partial"), verbose=0))
    with strategy.scope():
        compile_model(model, steps_per_execution=4)
    result["spe"] = error_of(lambda: model.fit(data, verbose=0))
    result["evaluated_weights"] = weights_of(single)
    result["rows"] = xa, ya
    return result


def evaluate_alone(weights: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> dict:
    model = make_model()
    model.set_weights(weights)
    return model.evaluate(x, y, batch_size=len(x), verbose=0, return_dict=True)


class OwnStep(keras.Sequential):
    def train_step(self, data: Any) -> dict:
        x, y = data[0], data[1]
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"my_loss": loss}


def own_train_step() -> dict:
    """Keras takes the last step's logs for the epoch's when their names are not those of metrics."""
    rank, size = rank_and_size()
    strategy = ClusterStrategy()
    x, y = rows(BATCH * size * 4)
    with strategy.scope():
        keras.utils.set_random_seed(7)
        model = OwnStep([keras.Input((FEATURES,)), keras.layers.Dense(1, activation="sigmoid")])
        compile_model(model, metrics=[])
    history = model.fit(own_dataset(x, y, rank, size), epochs=2, verbose=0)
    return floats(history.history)


def stops_on_nan() -> dict:
    """One rank's rows give a NaN; all ranks have to leave the epoch at the same step."""
    rank, size = rank_and_size()
    strategy = ClusterStrategy()
    x, y = rows(BATCH * 10)
    if rank == size - 1:
        y[BATCH * 3] = np.nan
    with strategy.scope():
        model = make_model(metrics=[])
    seen = StepLogs(local=True)
    data = per_node(tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH))
    model.fit(data, epochs=3, verbose=0, callbacks=[seen, keras.callbacks.TerminateOnNaN()])
    return {"steps": len(seen.seen)}


def padded_training(counts: list[int], steps: int) -> dict:
    """Ranks with different numbers of rows, padded; one of them may have none at all."""
    rank, size = rank_and_size()
    strategy = default_strategy()
    x, y = rows(sum(counts))
    with strategy.scope():
        model = make_model(
            optimizer=keras.optimizers.SGD(0.1), regularizer=keras.regularizers.L2(1e-3)
        )
    ends = np.cumsum([0, *counts])
    parts = [(x[a:b], y[a:b]) for a, b in itertools.pairwise(ends)]
    if size > 1:
        own = (
            parts[rank]
            if len(parts[rank][0])
            else (np.zeros((1, FEATURES), "f4"), np.zeros((1, 1), "f4"))
        )
        data = padded_dataset(*own, steps)
        if not len(parts[rank][0]):
            data = per_node(data.map(lambda a, b, w: (a, b, 0.0 * w)), remainder="pad")
    else:  # the same rows in the same steps, without a strategy
        batches = []
        for k in range(steps):
            chosen = [slice(k * BATCH, (k + 1) * BATCH)] * len(parts)
            bx, by = (
                np.concatenate([p[i][s] for p, s in zip(parts, chosen, strict=True)])
                for i in (0, 1)
            )
            missing = BATCH * len(parts) - len(bx)
            weight = np.concatenate([np.ones(len(bx)), np.zeros(missing)]).astype("f4")
            batches.append(
                (np.pad(bx, ((0, missing), (0, 0))), np.pad(by, ((0, missing), (0, 0))), weight)
            )
        data = tf.data.Dataset.from_tensor_slices(
            tuple(np.concatenate([b[i] for b in batches]) for i in range(3))
        ).batch(BATCH * len(parts))
    history = model.fit(data, epochs=2, verbose=0)
    return {"weights": weights_of(model), "history": floats(history.history)}


def padded_metrics(counts: list[int], steps: int) -> dict:
    """History of an epoch that changes nothing, on padded ranks, and the exact values."""
    rank, _size = rank_and_size()
    strategy = ClusterStrategy()
    x, y = rows(sum(counts))
    with strategy.scope():
        model = make_model(
            optimizer=keras.optimizers.SGD(0.0), regularizer=keras.regularizers.L2(1e-2),
            metrics=["accuracy", keras.metrics.Precision(name="precision")], weighted_metrics=["mae"],
        )  # fmt: skip
    ends = np.cumsum([0, *counts])
    data = padded_dataset(x[ends[rank] : ends[rank + 1]], y[ends[rank] : ends[rank + 1]], steps)
    history = floats(model.fit(data, epochs=1, verbose=0).history)
    p = model(x).numpy()
    return {
        "history": {k: v[0] for k, v in history.items()},
        "exact": {
            "accuracy": float(((p > 0.5) == (y > 0.5)).mean()),
            "precision": float((y[p > 0.5] > 0.5).mean()),
            "mae": float(np.abs(p - y).mean()),
            "loss": float(keras.losses.binary_crossentropy(y, p).numpy().mean() + sum(map(float, model.losses))),
        },
    }  # fmt: skip
