# SPDX-License-Identifier: Apache-2.0
"""What runs in the node: functions of `ctx`, as a user would write them, that time themselves."""

from __future__ import annotations

import json
import socket
import time
from typing import Any


def serve_reads(ctx: Any) -> None:
    """Read as many batches of a feed as the bench asks for, again and again, without leaving the pass."""
    from shapes import SHAPES
    from touch import read_rows, touched

    iterators = {}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(ctx.args["socket"])
        with connection.makefile("rw") as file:
            for line in file:
                command = json.loads(line)
                shape = SHAPES[command["shape"]]
                name = command["feed"]
                start = time.perf_counter()
                if name not in iterators:
                    dataset = ctx.dataset(name, batch_size=shape.batch, remainder="partial")
                    iterators[name] = iter(touched(dataset))
                rows = read_rows(iterators[name], command["batches"])
                seconds = time.perf_counter() - start
                file.write(json.dumps({"rows": rows, "seconds": seconds}) + "\n")
                file.flush()


def count_all(ctx: Any) -> int:
    """Read one epoch; how many rows there were."""
    return sum(len(columns["x"]) - padding for columns, padding in ctx.reader("train", 1024))


def wait_for_the_end(ctx: Any) -> None:
    """Look at a feed that nobody ends."""
    for _ in ctx.reader("never"):
        pass


def epochs_of_steps(ctx: Any) -> int:
    """Read all epochs, busy for a while after each batch, as a program that steps with others."""
    steps = 0
    for _ in range(ctx.args["epochs"]):
        for _columns, _padding in ctx.reader("train", ctx.args["batch"]):
            time.sleep(ctx.args["step_s"])
            steps += 1
    return steps


def shuffled_passes(ctx: Any) -> dict[str, list[float]]:
    """Read each feed in seeded orders, in turn; seconds of each pass after the first, which waits for rows."""
    found: dict[str, list[float]] = {"kept": [], "exchanged": []}
    for number in range(ctx.args["passes"]):
        for name, seconds in found.items():
            begun = time.perf_counter()
            rows = 0
            for columns, padding in ctx.reader(name, ctx.args["batch"], shuffle=11):
                rows += len(columns["x"]) - padding
            if number > 0:
                seconds.append(time.perf_counter() - begun)
    return found


def replay(ctx: Any) -> dict[str, list[float]]:
    """Read the feed several times over; beside it, interleaved, `tf.data` over arrays in memory."""
    import numpy as np
    import tensorflow as tf
    from shapes import SHAPES
    from touch import read_rows, touched

    shape, batch, passes = SHAPES[ctx.args["shape"]], ctx.args["batch"], ctx.args["passes"]
    feed = touched(ctx.dataset("train", batch_size=batch, remainder="partial"))
    first = read_rows(iter(feed))  # epoch 1: rows are still coming
    rng = np.random.default_rng(3)
    if shape.dtype == "float32":
        values = rng.random((first, shape.elements), dtype=np.float32)
    else:
        values = rng.integers(0, 256, (first, shape.elements), dtype=np.uint8)
    batches = values.reshape(-1, batch, shape.elements)
    datasets = {
        "feed": feed,
        "rows": touched(tf.data.Dataset.from_tensor_slices(values).batch(batch)),
        "batches": touched(
            tf.data.Dataset.from_tensor_slices(batches)
        ),  # nothing left to put together
    }
    seconds: dict[str, list[float]] = {name: [] for name in datasets}
    for number in range(passes + 1):
        for name, dataset in datasets.items():
            start = time.perf_counter()
            rows = read_rows(iter(dataset))
            took = time.perf_counter() - start
            if rows != first:
                raise RuntimeError(f"{name}: {rows} rows in pass {number}, {first} in the first")
            if number:  # the first of these is warm-up
                seconds[name].append(took)
    return {"count": [first], **seconds}


def replay_shuffled(ctx: Any) -> dict[str, list[float]]:
    """Read the feed in seeded orders; beside it, interleaved, memcpy and `tf.data` over the same rows."""
    import numpy as np
    import tensorflow as tf
    from shapes import SHAPES
    from touch import counted, read_rows

    shape, batch = SHAPES[ctx.args["shape"]], ctx.args["batch"]
    feed = counted(ctx.dataset("train", batch_size=batch, remainder="partial", shuffle=11))
    first = read_rows(iter(feed))  # waits for all rows
    values = np.zeros((first, shape.elements), shape.dtype)
    values += 1  # so that it is memory of its own, not the page of zeros
    part = max(1, min(first, (1 << 30) // shape.row_bytes))  # memory is scarce
    target = np.ones_like(values[:part])
    slices = tf.data.Dataset.from_tensor_slices(values)
    shuffled = slices.shuffle(first, seed=1).batch(batch)
    ahead = ctx.dataset("train", batch_size=batch, remainder="partial", shuffle=12)

    arrays, arrays_ahead = counted(shuffled), counted(shuffled.prefetch(2))
    fed_ahead = counted(ahead.prefetch(2))

    def read(dataset: Any) -> None:
        if read_rows(iter(dataset)) != first:
            raise RuntimeError("a pass has another number of rows than the first")

    cases = {
        "feed": lambda: read(feed),
        "memcpy": lambda: np.copyto(target, values[:part]),
        "tf": lambda: read(arrays),
        "feed_ahead": lambda: read(fed_ahead),
        "tf_ahead": lambda: read(arrays_ahead),
    }
    scale = {"memcpy": first / part}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(ctx.args["passes"] + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if number:  # the first of these is warm-up
                seconds[name].append((time.perf_counter() - start) * scale.get(name, 1.0))
    return {"rows": [first], **seconds}


def drain(ctx: Any) -> dict[str, Any]:
    """Read every byte of a feed to its end, noting when every so many rows had come."""
    from touch import touched

    return _marked(touched(ctx.dataset("train", batch_size=ctx.args["batch"], remainder="partial")))


def count(ctx: Any) -> dict[str, Any]:
    """As `drain`, but look at the tensors' shapes only."""
    from touch import counted

    return _marked(counted(ctx.dataset("train", batch_size=ctx.args["batch"], remainder="partial")))


def _marked(groups: Any) -> dict[str, Any]:
    marks: list[tuple[float, int]] = []
    rows = 0
    for counts, _ in groups:
        rows += int(counts.numpy().sum())
        marks.append((time.time(), rows))
    return {"marks": marks, "rows": rows}


def entered(ctx: Any) -> dict[str, float]:
    """Say when the user's function was entered, and what TensorFlow's import has cost or costs."""
    import sys

    now = time.time()
    before = "tensorflow" in sys.modules
    start = time.perf_counter()
    import tensorflow  # noqa: F401

    return {
        "entered": now,
        "imported_before": float(before),
        "import_s": time.perf_counter() - start,
    }


def fit_and_loop(ctx: Any) -> dict[str, list[float]]:
    """Time an epoch of Keras `fit` and of a custom loop over the same model and data, in turn; ms a step."""
    import keras
    import numpy as np
    import tensorflow as tf

    batch, steps, rounds = ctx.args["batch"], ctx.args["steps"], ctx.args["rounds"]
    strategy = ctx.strategy()
    rng = np.random.default_rng(ctx.rank)
    x = rng.random((batch * steps, 784), dtype=np.float32)
    y = rng.integers(0, 10, batch * steps)

    def make_model() -> Any:
        return keras.Sequential(
            [
                keras.Input((784,)),
                keras.layers.Dense(128, activation="relu"),
                keras.layers.Dense(10),
            ]
        )

    def make_data() -> Any:
        from arcflow.tf import per_node

        return per_node(
            tf.data.Dataset.from_tensor_slices((x, y)).batch(batch, drop_remainder=True)
        )

    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True, reduction=None)
    with strategy.scope():
        fitted = make_model()
        fitted.compile(
            keras.optimizers.SGD(0.01),
            keras.losses.SparseCategoricalCrossentropy(from_logits=True),
            metrics=["accuracy"],
        )
        looped, optimizer = make_model(), keras.optimizers.SGD(0.01)
        mean_loss, accuracy = keras.metrics.Mean(), keras.metrics.SparseCategoricalAccuracy()
        optimizer.build(looped.trainable_variables)

    @tf.function
    def step(features: Any, labels: Any) -> Any:
        def replica(features: Any, labels: Any) -> Any:
            with tf.GradientTape() as tape:
                outputs = looped(features, training=True)
                mine = tf.reduce_mean(loss_of(labels, outputs))
                loss = mine / strategy.num_replicas_in_sync
            variables = looped.trainable_variables
            optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
            mean_loss.update_state(mine)  # what `fit` keeps count of too
            accuracy.update_state(labels, outputs)
            return loss

        return strategy.run(replica, args=(features, labels))

    class Epoch(keras.callbacks.Callback):  # steps, without what `fit` does once before them
        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.start = time.perf_counter()

        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.seconds = time.perf_counter() - self.start

    def loop() -> float:
        data = make_data()
        start = time.perf_counter()
        for features, labels in data:
            loss = step(features, labels)
        loss.numpy(), mean_loss.result(), accuracy.result()  # as `fit` has them when an epoch ends
        return time.perf_counter() - start

    def fit() -> float:
        epoch = Epoch()
        fitted.fit(make_data(), epochs=1, verbose=0, callbacks=[epoch])
        return epoch.seconds

    took: dict[str, list[float]] = {"fit": [], "loop": []}
    for number in range(rounds + 1):
        for name, run in (("fit", fit), ("loop", loop)):
            seconds = run()
            if number:  # the first round traces
                took[name].append(seconds / steps * 1e3)
    return took
