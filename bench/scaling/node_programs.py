# SPDX-License-Identifier: Apache-2.0
"""What the nodes of the scaling bench do: compute that is a sleep, gradients that are real, and a real CNN."""

from __future__ import annotations

import statistics
import time
from typing import Any

PACK = 25 << 20  # bytes of gradients that are exchanged at once
FLOAT = 4
WARM_UP = 2
VARIES = 0.2  # how much a part of a worker's compute differs from step to step, where nobody waits
LAYERS = 4  # of a pack, on parameter servers: a variable each


def packs(model: dict[str, Any]) -> list[tuple[int, float]]:
    """Return (numbers, share of the backward pass before they are there), in the order in which gradients appear.

    An Inception-like network has its weights spread over its depth; of a VGG-like one, 86 % lie in the
    dense layers at its end, whose gradients come first and take a twentieth of the time.
    """
    total, early = model["parameters"], model["early"]
    found = []
    for numbers, share in (
        (int(total * early), 0.05 if early else 0.0),
        (total - int(total * early), 0.95 if early else 1.0),
    ):
        if numbers:
            count = -(-numbers * FLOAT // model["pack"])
            found += [(numbers // count, share / count)] * count
    return found


def large(model: dict[str, Any]) -> dict[str, Any]:
    """Return the same model with packs of the common size at least."""
    return {**model, "pack": max(PACK, model["pack"])}


def rest(token: Any, seconds: float) -> Any:
    """Return `token` after some seconds in which the processor does nothing: an accelerator works."""
    import tensorflow as tf

    def sleep(value: Any) -> Any:
        time.sleep(seconds)
        return value

    after = tf.numpy_function(sleep, [token], tf.float32)
    after.set_shape([])
    return after


def rest_anywhere(token: Any, seconds: float) -> Any:
    """Do the same on whatever worker the step runs, by tf.data's own sleep.

    A Python function would run, and wait for its turn, in the process of the coordinator.
    """
    import tensorflow as tf
    from tensorflow.python.data.experimental.ops import testing

    long = tf.random.uniform([], (1 - VARIES) * seconds, (1 + VARIES) * seconds)
    slow = tf.data.Dataset.from_tensors(token).repeat()
    slow = slow.apply(testing.sleep(tf.cast(long * 1e6, tf.int64)))
    plain = tf.data.Options()  # improving the pipeline would take longer than a sleep
    plain.autotune.enabled = False
    plain.experimental_optimization.apply_default_optimizations = False
    # It would sleep once more to learn that there is nothing else.
    return (
        slow.take(1)
        .with_options(plain)
        .reduce(tf.constant(0.0), lambda before, value: before + value)
    )


def set_threads() -> None:
    """Let sleep and exchange overlap also where there are few cores."""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(4)
    tf.config.threading.set_intra_op_parallelism_threads(1)


def synchronous(ctx: Any) -> dict[str, list[float]]:
    """Return seconds a step, by model and way, one for each round; all ranks in step."""
    import tensorflow as tf

    set_threads()
    strategy = ctx.strategy()
    steps = {}
    for name, model in ctx.args["models"].items():
        for way in ("overlapped", "after"):
            steps[f"{name}/{way}"] = make_step(ctx, strategy, model, way == "overlapped")
    found: dict[str, list[float]] = {name: [] for name in steps}
    for name in steps:
        for _ in range(WARM_UP):
            total = float(steps[name](tf.constant(0.0)))
        if total != ctx.size:  # an exchange that did not happen would be very fast
            raise AssertionError(f"gradients of {ctx.size} ranks add up to {total}")
    for _ in range(ctx.args["rounds"]):
        for name, step in steps.items():
            times = []
            for _ in range(ctx.args["steps"]):
                ctx.alive()
                begun = time.perf_counter()
                float(step(tf.constant(0.0)))
                times.append(time.perf_counter() - begun)
            found[name].append(statistics.median(times))
    return found


def make_step(ctx: Any, strategy: Any, model: dict[str, Any], overlapped: bool) -> Any:
    """Return a step: a third of the time forward, then backward, gradients exchanged as they appear, or at the end."""
    import tensorflow as tf

    parts = packs(model if overlapped else large(model))
    gradients = {numbers: tf.ones([numbers]) for numbers, _ in parts}
    compute_s = model["compute_s"]

    @tf.function
    def step(token: Any) -> Any:
        def replica(token: Any) -> Any:
            context = tf.distribute.get_replica_context()
            token = rest(token, compute_s / 3 if overlapped else compute_s)
            sums = []
            for numbers, share in parts:
                if overlapped:
                    token = rest(token, compute_s * 2 / 3 * share)
                with tf.control_dependencies([token]):
                    gradient = tf.identity(gradients[numbers])
                if ctx.size > 1:
                    gradient = context.all_reduce("SUM", gradient)
                sums.append(gradient[-1])
            return token + tf.add_n(sums) / len(sums)

        return strategy.run(replica, args=(token,))

    return step


def asynchronous(ctx: Any) -> dict[str, list[float]]:
    """Return seconds a step and worker, by model, one for each round; variables on parameter servers."""
    import tensorflow as tf

    strategy, coordinator = ctx.strategy(), ctx.coordinator()
    workers = ctx.size - 1
    found: dict[str, list[float]] = {}
    for name, model in ctx.args["models"].items():
        parts = packs(large(model))  # a sleep each, which costs processor time
        with strategy.scope():
            variables = [
                [tf.Variable(tf.zeros([numbers // LAYERS])) for _ in range(LAYERS)]
                for numbers, _ in parts
            ]
        shares = [share for _, share in parts]
        step = make_async_step(strategy, variables, shares, model["compute_s"])
        for _ in range(WARM_UP * workers):
            coordinator.schedule(step)
        coordinator.join()
        found[name] = []
        for _ in range(ctx.args["rounds"]):
            begun = time.perf_counter()
            for _ in range(ctx.args["steps"] * workers):
                coordinator.schedule(step)
            with ctx.busy("steps of all workers"):
                coordinator.join()
            found[name].append((time.perf_counter() - begun) / ctx.args["steps"])
        made = (WARM_UP + ctx.args["rounds"] * ctx.args["steps"]) * workers
        arrived = variables[0][0][-1].numpy()
        if arrived != made:
            raise AssertionError(f"{arrived} of {made} updates have arrived")
        del variables, step
    return found


def make_async_step(
    strategy: Any, variables: list[Any], shares: list[float], compute_s: float
) -> Any:
    """Return a step of one worker.

    As in a graph of layers: all variables are asked for at once, a third of the time goes forward from the
    last pack of `variables`, each waited for in its turn, and backward, each is added to as its gradients appear.
    """
    import tensorflow as tf

    @tf.function
    def step() -> None:
        def replica() -> None:
            token = tf.constant(0.0)
            for pack, share in reversed(list(zip(variables, shares, strict=True))):
                first = tf.add_n([tf.identity(one)[0] for one in pack])
                token = rest_anywhere(token + 0 * first, compute_s / 3 * share)
            for pack, share in zip(variables, shares, strict=True):
                token = rest_anywhere(token, compute_s * 2 / 3 * share)
                for one in pack:
                    with tf.control_dependencies([token]):
                        # Written once, as by a copy from an accelerator.
                        gradient = tf.fill([one.shape[0]], 1.0 + token)
                    one.assign_add(gradient)

        strategy.run(replica)

    return step


def entered(ctx: Any) -> float:
    """Say when it was, and stay for a while."""
    now = time.time()
    time.sleep(ctx.args["stay_s"])
    return now


def convolutional(ctx: Any) -> dict[str, Any]:
    """Train a real CNN until it is good enough; return the seconds, the epochs and the accuracy."""
    import keras
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(1)
    tf.config.threading.set_intra_op_parallelism_threads(1)
    keras.utils.set_random_seed(ctx.args["seed"])
    with ctx.strategy().scope():
        model = keras.Sequential(
            [
                keras.Input((64,)),
                keras.layers.Reshape((8, 8, 1)),
                keras.layers.UpSampling2D(2),
                keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
                keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
                keras.layers.MaxPooling2D(),
                keras.layers.Flatten(),
                keras.layers.Dense(10),
            ]
        )
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        # Twice the rows in a step: twice the step.
        model.compile(
            keras.optimizers.SGD(0.01 * ctx.size, momentum=0.9), loss, metrics=["accuracy"]
        )
    train = ctx.dataset("train", 32, features="x", label="y", shuffle=ctx.args["seed"])
    valid = ctx.dataset("validation", 64, features="x", label="y")
    begin = model.get_weights()
    model.fit(train, epochs=1, validation_data=valid, verbose=0)  # traces; not counted
    model.set_weights(begin)
    for one in model.optimizer.variables[2:]:
        one.assign(tf.zeros(one.shape, one.dtype))
    seconds, accuracy, epochs = 0.0, 0.0, 0
    while accuracy < ctx.args["accuracy"] and epochs < ctx.args["epochs"]:
        begun = time.perf_counter()
        history = model.fit(train, epochs=1, validation_data=valid, verbose=0).history
        seconds += time.perf_counter() - begun
        accuracy, epochs = history["val_accuracy"][-1], epochs + 1
    return {"seconds": seconds, "epochs": epochs, "accuracy": accuracy}
