# SPDX-License-Identifier: Apache-2.0
"""Nodes that serve the chief as devices of its TensorFlow: their names, and Keras layers placed on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import tensorflow as tf

from .. import errors
from . import transport

if TYPE_CHECKING:
    from ..context import Context

_Layer = TypeVar("_Layer")
_connected: dict[str, Any] = {}  # a process connects to its servers only once


def connect(ctx: Context) -> None:
    """Make the devices of all nodes that serve this chief its own; later calls do nothing."""
    if ctx._roles.ps:
        ctx.strategy()
        return
    if _connected:
        return
    cluster = {role: who for role, who in ctx.cluster.items() if role != "evaluator"}
    tf.config.experimental_connect_to_cluster(
        tf.train.ClusterSpec(cluster), job_name="chief", task_index=0, protocol=transport.prepare()
    )
    _connected.update(cluster)


def device(ctx: Context, node: int | str, number: int) -> str:
    """Do what `Context.device` says."""
    role, index = _which(ctx, node)
    connect(ctx)
    found = _devices(role, index)
    if not 0 <= number < len(found):
        raise errors.NotFoundError(
            f"{role}:{index} has no device {number}; it has {', '.join(found) or 'none'}"
        )
    return found[number]


def _which(ctx: Context, node: int | str) -> tuple[str, int]:
    """Role and index of a node that is given by rank or by name."""
    names = [
        f"{role}:{index}"
        for role in ("chief", "worker", "ps")
        for index in range(len(ctx.cluster.get(role, ())))
    ]
    if isinstance(node, str) and node in names:
        role, _, index = node.partition(":")
        return role, int(index)
    if isinstance(node, int) and not isinstance(node, bool) and 0 <= node < ctx._roles.total:
        role, number = ctx._roles.of(node)
        if role != "evaluator":
            return role, number
    raise errors.NotFoundError(
        f"there is no node {node!r} to place on; there are {', '.join(names)}"
    )


def _devices(role: str, index: int) -> list[str]:
    """Accelerators of a node; its processor when it has none."""
    for kind in ("GPU", "CPU"):
        found = [
            one.name
            for one in tf.config.list_logical_devices(kind)
            for spec in (tf.DeviceSpec.from_string(one.name),)
            if spec.job == role and spec.task == index
        ]
        if found:
            return found
    return []


def place(layer: _Layer, device: str) -> _Layer:
    """Let a Keras layer (or model) keep its variables on a device, and compute there in both directions.

    It stays the layer that it was: a model that holds it is saved and loaded as any other, and then
    is placed nowhere. Keras's `fit` works; XLA does not, and is switched off for the model.

    Parameters
    ----------
    layer
        A layer without variables so far: right after it was made, and not a model with an ``Input``
        (make that inside ``with tf.device(device)``, or place its layers).
    device
        Of `Context.device`, or any name of TensorFlow's.

    Returns
    -------
    keras.Layer
        The same.

    Raises
    ------
    FailedPreconditionError
        The layer has variables already, which would stay where they are.
    """
    if layer.built and layer.variables:  # type: ignore[attr-defined]
        raise errors.FailedPreconditionError(
            f"layer {layer.name!r} has been built, so its variables lie elsewhere: place it right "  # type: ignore[attr-defined]
            "after it is made, before it is called"
        )
    layer.build = _inside(device, layer.build)  # type: ignore[attr-defined]
    layer.call = _there_and_back(device, layer.call)  # type: ignore[attr-defined]
    layer.supports_jit = False  # type: ignore[attr-defined]  # XLA compiles for one device
    return layer


def _inside(device: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def inside(*args: Any, **kwargs: Any) -> Any:
        with tf.device(device):
            return method(*args, **kwargs)

    return inside


def _there_and_back(device: str, call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a layer's `call`: a tape alone would compute gradients where the tape is asked for them."""

    @functools.wraps(call)
    def there(*args: Any, **kwargs: Any) -> Any:
        leaves = tf.nest.flatten((args, kwargs))
        places = [i for i, leaf in enumerate(leaves) if tf.is_tensor(leaf)]
        if not places:  # shapes only
            with tf.device(device):
                return call(*args, **kwargs)
        result: list[Any] = []

        @tf.custom_gradient
        def compute(*tensors: Any) -> Any:
            with tf.device(device), tf.GradientTape(persistent=True) as tape:
                # One copy of each goes over, however often it is used there.
                inputs = [tf.identity(one) for one in tensors]
                tape.watch([one for one in inputs if one.dtype.is_floating])
                given = list(leaves)
                for i, one in zip(places, inputs, strict=True):
                    given[i] = one
                new_args, new_kwargs = tf.nest.pack_sequence_as((args, kwargs), given)
                structure = call(*new_args, **new_kwargs)
                outputs = [tf.identity(one) for one in tf.nest.flatten(structure)]
            result[:] = [structure]

            def gradient(*upstream: Any, variables: Any = ()) -> Any:
                with tf.device(device):
                    wanted = [inputs, list(variables)]
                    found = tape.gradient(outputs, wanted, output_gradients=list(upstream))
                return (found[0], found[1]) if variables else found[0]

            return outputs, gradient

        outputs = compute(*(leaves[i] for i in places))
        return tf.nest.pack_sequence_as(result[0], tf.nest.flatten(outputs))

    return there
