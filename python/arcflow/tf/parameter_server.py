# SPDX-License-Identifier: Apache-2.0
"""Training with parameter servers: the strategy of the chief, and steps counted where none is lost."""

from __future__ import annotations

import functools
import sys
from typing import Any

import tensorflow as tf

from .. import errors
from . import transport


class ServerStrategy(tf.distribute.ParameterServerStrategy):
    """A ``ParameterServerStrategy`` that says so at once where Keras 3 cannot work under it.

    For loops around a `ClusterCoordinator`, and for `fit` of ``tf_keras``.
    """

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """As in TensorFlow; refused when Keras 3 asks."""
        if sys._getframe(1).f_globals.get("__name__", "").startswith("keras.src."):
            raise errors.UnimplementedError(
                "fit, evaluate and predict of Keras 3 do not work with parameter servers: write the "
                "loop with ctx.coordinator(), use tf_keras (pip install tf_keras, and "
                "Cluster(env={'TF_USE_LEGACY_KERAS': '1'})), or train without ps="
            )
        return super().experimental_distribute_dataset(dataset, options)


class StepCounter:
    """A number that many workers count up at once, kept by the parameter server.

    Keras 3's ``optimizer.iterations`` is read, added to and written by each worker on its own, so
    that steps made at the same time count once. This one is added to where it lies.

    Parameters
    ----------
    strategy
        Where the number lives.
    initial
        First value.
    """

    def __init__(self, strategy: Any, initial: int = 0) -> None:
        with strategy.scope():
            self.variable = tf.Variable(
                tf.constant(initial, tf.int64),
                trainable=False,
                name="arcflow_steps",
                aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
            )

    def add(self, steps: int = 1) -> Any:
        """Count; may be called inside a `tf.function` on any worker."""
        return self.variable.assign_add(tf.cast(steps, tf.int64))

    def __int__(self) -> int:
        return int(self.variable.numpy())

    def __repr__(self) -> str:
        return f"<arcflow steps: {int(self)}>"


_made: dict[str, Any] = {}  # a process connects to its servers only once


def server_strategy(variable_partitioner: Any = None) -> Any:
    """Return the strategy of this process, the chief; connects to workers and parameter servers.

    Parameters
    ----------
    variable_partitioner
        How variables are split; only for the call that makes the strategy.

    Raises
    ------
    FailedPreconditionError
        The strategy has been made with another one.
    """
    if not _made:
        resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver(
            rpc_layer=transport.prepare()
        )
        _made["strategy"] = ServerStrategy(resolver, variable_partitioner)
        _made["partitioner"] = variable_partitioner
    elif variable_partitioner not in (None, _made["partitioner"]):
        raise errors.FailedPreconditionError(
            "the strategy of this process splits variables in another way already: give "
            "variable_partitioner= to the first ctx.strategy(), before ctx.coordinator()"
        )
    return _made["strategy"]


@functools.cache
def coordinator() -> Any:
    """Return the `ClusterCoordinator` of this process."""
    return tf.distribute.coordinator.ClusterCoordinator(server_strategy())
