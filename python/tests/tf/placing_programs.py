# SPDX-License-Identifier: Apache-2.0
"""What test_placing runs, in a process whose one processor counts as three devices."""

from __future__ import annotations

import collections

import keras
import numpy as np
import tensorflow as tf

from arcflow import errors
from arcflow.tf import Pipeline, place

DEVICES = [f"/device:CPU:{i}" for i in range(3)]


def _start() -> None:
    one = tf.config.LogicalDeviceConfiguration()
    tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [one] * 3)


def _dense(units: int, seed: int, **options):
    made = keras.initializers.GlorotUniform(seed)
    return keras.layers.Dense(units, kernel_initializer=made, **options)


def _rows(count: int = 24):
    chance = np.random.default_rng(0)
    x = chance.normal(size=(count, 6)).astype("float32")
    return x, np.sin(x.sum(axis=1, keepdims=True)), chance.uniform(size=count).astype("float32")


def _devices_of(graph, kind: str) -> dict[str, int]:
    """How many operations of a kind each device has in a graph and the functions within it."""
    found = collections.Counter(op.device[-5:] for op in graph.get_operations() if op.type == kind)
    return dict(found)


def placed() -> dict:
    """Train with `fit` a model of which one layer is placed; and the same in one place."""
    _start()
    x, y, weight = _rows()
    result = {}
    weights = []
    for where in (DEVICES[1], None):
        layer = _dense(8, 1, activation="tanh")
        layer = place(layer, where) if where else layer
        model = keras.Sequential(
            [keras.Input((6,)), _dense(5, 0), layer, keras.layers.Dropout(0.0), _dense(1, 2)]
        )
        model.compile(keras.optimizers.Adam(0.01), "mse")
        model.fit(x, y, sample_weight=weight, batch_size=8, epochs=3, shuffle=False, verbose=0)
        weights.append(model.get_weights())
        if where:
            result["jit"] = model.jit_compile
            result["lies"] = [v.value.device[-5:] for v in layer.variables]

            @tf.function
            def gradients(x, y, model=model):
                with tf.GradientTape() as tape:
                    loss = tf.reduce_mean(tf.square(model(x) - y))
                return tape.gradient(loss, model.trainable_weights)

            graph = gradients.get_concrete_function(
                tf.constant(x), tf.constant(y, tf.float32)
            ).graph
            result["matmuls"] = _devices_of(graph, "MatMul")
            result["tanh"] = {**_devices_of(graph, "Tanh"), **_devices_of(graph, "TanhGrad")}
            try:
                place(layer, DEVICES[2])
            except errors.FailedPreconditionError as error:
                result["refused"] = str(error)
    result["difference"] = max(float(np.abs(a - b).max()) for a, b in zip(*weights, strict=True))
    result["pipelines"] = _refused()
    return result


def _stages(devices):
    def first():
        return keras.Sequential(
            [keras.Input((6,)), _dense(8, 0, activation="tanh", kernel_regularizer="l2")]
        )

    def second():
        return keras.Sequential([keras.Input((8,)), _dense(4, 1, activation="tanh")])

    def third():
        return keras.Sequential([keras.Input((4,)), _dense(1, 2, kernel_regularizer="l2")])

    return list(zip(devices, (first, second, third), strict=True))


def pipelined(micro_batches: int, rows: int) -> dict:
    """Train a pipeline of three stages with weights and regularizers, and the model in one piece."""
    _start()
    x, y, weight = _rows(rows)
    data = tf.data.Dataset.from_tensor_slices((x, y.astype("float32"), weight)).batch(8)
    loss = keras.losses.MeanSquaredError()
    optimizer = lambda: keras.optimizers.Adam(0.01)  # noqa: E731
    pipeline = Pipeline(
        _stages(DEVICES), loss=loss, optimizer=optimizer, micro_batches=micro_batches
    )
    history = pipeline.fit(data, epochs=3)
    whole = keras.Sequential([make() for _, make in _stages(DEVICES)])
    whole.compile(optimizer(), loss)
    alone = whole.fit(data, epochs=3, verbose=0).history
    graph = pipeline._function.get_concrete_function(*next(iter(data))).graph
    pairs = zip(pipeline.model.get_weights(), whole.get_weights(), strict=True)
    return {
        "difference": max(float(np.abs(a - b).max()) for a, b in pairs),
        "losses": (history["loss"], alone["loss"]),
        "matmuls": _devices_of(graph, "MatMul"),
        "lies": [one.variables[0].value.device[-5:] for one in pipeline.stages],
        "slots": [one.optimizer.variables[-1].value.device[-5:] for one in pipeline._stages],
    }


def _refused() -> list[str]:
    """Return what pipelines that cannot be say."""
    said = []
    loss, optimizer = keras.losses.MeanSquaredError(), lambda: keras.optimizers.SGD(0.1)
    unbuilt = [("/device:CPU:0", lambda: keras.Sequential([_dense(1, 0)]))]
    for stages, parts in (([], 4), (unbuilt, 4), (unbuilt, 0)):
        try:
            Pipeline(stages, loss=loss, optimizer=optimizer, micro_batches=parts)
        except errors.InvalidArgumentError as error:
            said.append(str(error))
    return said
