# SPDX-License-Identifier: Apache-2.0
"""Compare a Keras fit step under ClusterStrategy with a hand-written loop, on local nodes.

Prints a row per model, milliseconds a step: the loop, fit on a per-node dataset, the same with the
logs of every step reduced (what a callback that reads them costs), and fit on a dataset that
TensorFlow shards. All kinds run interleaved in the same processes.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "python" / "tests" / "tf")]
if importlib.util.find_spec("arcflow") is None:
    sys.path.insert(0, str(ROOT / "python"))

from harness import environment, make_row, print_table, write_json  # noqa: E402

BATCH = 64
MODELS = {"small": (20, [32]), "mid": (784, [512, 256])}  # inputs, hidden layers
KINDS = ("loop", "fit", "fit logs", "fit sharded")


def measure(model: str, steps: int, repeats: int) -> dict[str, list[float]]:
    """Return, in each rank, milliseconds a step of each kind, one number per repeat."""
    import numpy as np
    import tensorflow as tf

    from arcflow.tf import default_strategy, per_node

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(2)
    strategy = default_strategy()
    size = strategy.num_replicas_in_sync
    inputs, hidden = MODELS[model]
    x = np.random.default_rng(0).normal(size=(steps * BATCH, inputs)).astype("f4")
    y = (x[:, :1] > 0).astype("f4")
    own = per_node(tf.data.Dataset.from_tensor_slices((x, y)).batch(BATCH, drop_remainder=True))
    shared = tf.data.Dataset.from_tensor_slices((x, y)).repeat(size).batch(BATCH * size)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
    runs = {"loop": _loop(strategy, inputs, hidden, own)}
    for kind in KINDS[1:]:
        data = shared.with_options(options) if kind == "fit sharded" else own
        runs[kind] = _fit(strategy, inputs, hidden, data, kind)
    for run in runs.values():
        run()  # traces
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind, run in runs.items():
            times[kind].append(run() / steps * 1e3)
    return times


def _model(inputs: int, hidden: list[int]) -> Any:
    import keras

    layers = [keras.layers.Dense(units, activation="relu") for units in hidden]
    return keras.Sequential(
        [keras.Input((inputs,)), *layers, keras.layers.Dense(1, activation="sigmoid")]
    )


def _loop(strategy: Any, inputs: int, hidden: list[int], data: Any) -> Any:
    import keras
    import tensorflow as tf

    with strategy.scope():
        model = _model(inputs, hidden)
        optimizer = keras.optimizers.SGD(0.01)
        optimizer.build(model.trainable_variables)
    loss_fn = keras.losses.BinaryCrossentropy(reduction="sum")
    global_batch = float(BATCH * strategy.num_replicas_in_sync)

    def train_step(x: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            loss = loss_fn(y, model(x, training=True)) / global_batch
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        return loss

    @tf.function
    def step(batch: Any) -> Any:
        return strategy.run(train_step, args=batch)

    def run() -> float:
        start = time.perf_counter()
        for batch in data:
            loss = step(batch)
        float(loss)
        return time.perf_counter() - start

    return run


def _fit(strategy: Any, inputs: int, hidden: list[int], data: Any, kind: str) -> Any:
    import keras

    with strategy.scope():
        model = _model(inputs, hidden)
        model.compile(
            optimizer=keras.optimizers.SGD(0.01),
            loss="binary_crossentropy",
            metrics=["accuracy"],
        )

    class Epoch(keras.callbacks.Callback):
        seconds = 0.0

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds = time.perf_counter() - self.start

    class Reader(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            assert logs

    def run() -> float:
        epoch = Epoch()
        callbacks = [epoch, Reader()] if kind == "fit logs" else [epoch]
        model.fit(data, epochs=1, verbose=0, callbacks=callbacks)
        return epoch.seconds

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path("build/bench/strategy.json"))
    args = parser.parse_args()
    from cluster_testing import run_ranks

    env = environment(["tensorflow-cpu", "keras", "numpy"])
    rows = []
    for model in MODELS:
        ranks = run_ranks(
            __file__,
            "measure",
            args.nodes,
            timeout_s=900,
            model=model,
            steps=args.steps,
            repeats=args.repeats,
        )
        milliseconds = ranks[0]
        for kind in KINDS:
            if kind == "loop":
                continue
            rows.append(
                make_row(
                    f"{model} model, batch {BATCH} a node, {args.nodes} nodes",
                    f"{kind}, a step",
                    milliseconds[kind],
                    "ms",
                    baseline="custom loop, same model",
                    baseline_values=milliseconds["loop"],
                    goal="<= 1.3 x" if kind == "fit" else None,
                )
            )
    print_table(env, rows)
    write_json(args.output, env, rows)


if __name__ == "__main__":
    main()
