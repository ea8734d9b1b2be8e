# SPDX-License-Identifier: Apache-2.0
"""A Keras model cut into stages on several nodes; micro-batches flow through them, forward and back."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import tensorflow as tf

from .. import errors


@dataclasses.dataclass
class _Stage:
    """A part of the model, and where it lives."""

    device: str
    model: Any
    optimizer: Any


class Pipeline:
    """Stages of a model, each with its variables, gradients and optimizer on a device of its own.

    A step cuts the batch into micro-batches. While the second stage works on the first of them, the
    first stage works on the second one, and so on; activations and their gradients go from node to
    node directly. Gradients are summed over the micro-batches and applied once, so that a step does
    what a step of the unsplit model on the whole batch does (up to the order of sums). What
    looks at the rows of a batch together, such as BatchNormalization, sees those of a micro-batch.

    Parameters
    ----------
    stages
        Device (of `Context.device`) and a function that makes the stage there: a Keras model that
        knows its input shape, with one input and one output.
    loss
        Of ``keras.losses``, or ``loss(y, y_pred, sample_weight=None)``: the mean over rows.
    optimizer
        A function that makes a Keras optimizer; called once for each stage, and there.
    micro_batches
        Parts of a batch. More of them keep all stages busy for more of the time: with n stages and
        m parts each works m of m + n - 1 turns.

    Attributes
    ----------
    model
        The stages as one ``keras.Sequential``, for `evaluate`, `predict` and saving.

    Examples
    --------
    >>> pipeline = Pipeline(  # doctest: +SKIP
    ...     [(ctx.device(1), encoder), (ctx.device(2), decoder)],
    ...     loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    ...     optimizer=lambda: keras.optimizers.Adam(1e-3),
    ... )
    >>> pipeline.fit(ctx.dataset("train", 256), epochs=5)  # doctest: +SKIP
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, Callable[[], Any]]],
        *,
        loss: Callable[..., Any],
        optimizer: Callable[[], Any],
        micro_batches: int = 4,
    ) -> None:
        if not stages:
            raise errors.InvalidArgumentError("a pipeline needs stages: [(device, make), …]")
        if (
            isinstance(micro_batches, bool)
            or not isinstance(micro_batches, int)
            or micro_batches < 1
        ):
            raise errors.InvalidArgumentError(
                f"micro_batches={micro_batches!r} is not a number of parts (1 or more)"
            )
        import keras

        self._loss, self._parts = loss, micro_batches
        self._stages = [_made(number, *one, optimizer) for number, one in enumerate(stages)]
        self.model = keras.Sequential([one.model for one in self._stages])
        self._function = tf.function(self._step, reduce_retracing=True)

    @property
    def stages(self) -> list[Any]:
        """The stages' models, first to last."""
        return [one.model for one in self._stages]

    def train_step(self, x: Any, y: Any, sample_weight: Any = None) -> Any:
        """Train on one batch; return its loss, a scalar tensor.

        Parameters
        ----------
        x, y, sample_weight
            Tensors (or structures of such) of ``[rows, …]``; fewer rows than micro-batches are fine.
        """
        return self._function(x, y, sample_weight)

    def fit(
        self, data: Iterable[Any], *, epochs: int = 1, callbacks: Sequence[Any] = ()
    ) -> dict[str, list[float]]:
        """Train on batches ``(x, y)`` or ``(x, y, sample_weight)``, as Keras's `fit` would.

        Parameters
        ----------
        data
            Of the chief, such as ``ctx.dataset("train", 256)``; walked through once an epoch.
        epochs
            How many.
        callbacks
            Keras's; their logs have ``loss``, the mean over the epoch's rows.

        Returns
        -------
        dict
            Keras's history.
        """
        import keras

        listed = keras.callbacks.CallbackList(
            list(callbacks), add_history=True, model=self.model, epochs=epochs
        )
        self.model.stop_training = False
        listed.on_train_begin()
        logs: dict[str, float] = {}
        for epoch in range(epochs):
            listed.on_epoch_begin(epoch)
            total = rows = 0.0
            for step, batch in enumerate(data):
                listed.on_train_batch_begin(step)
                x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
                count = int(tf.shape(tf.nest.flatten(x)[0])[0])
                loss = float(self.train_step(x, y, weight))
                total, rows = total + loss * count, rows + count
                listed.on_train_batch_end(step, {"loss": loss})
            logs = {"loss": total / max(rows, 1.0)}
            listed.on_epoch_end(epoch, logs)
            if self.model.stop_training:
                break
        listed.on_train_end(logs)
        return dict(self.model.history.history)

    # ---- One step, as a graph over all nodes ------------------------------------------------------

    def _step(self, x: Any, y: Any, weight: Any) -> Any:
        rows = tf.shape(tf.nest.flatten(x)[0])[0]
        sizes = [
            rows // self._parts + tf.cast(i < rows % self._parts, tf.int32)
            for i in range(self._parts)
        ]
        cut = [self._split(one, sizes) for one in (x, y, weight)]
        losses, gradients = [], []
        for part_x, part_y, part_weight, size in zip(*cut, sizes, strict=True):
            share = tf.cast(size, tf.float32) / tf.cast(rows, tf.float32)
            loss, found = self._there_and_back(part_x, part_y, part_weight, share)
            losses.append(loss)
            gradients.append(found)
        for number, stage in enumerate(self._stages):
            with tf.device(stage.device):
                sums = [_sum(parts) for parts in zip(*(g[number] for g in gradients), strict=True)]
                stage.optimizer.apply(sums, stage.model.trainable_variables)
        return tf.add_n(losses)

    def _split(self, value: Any, sizes: list[Any]) -> list[Any]:
        """Cut each tensor of a structure into the micro-batches."""
        if value is None:
            return [None] * self._parts
        leaves = [tf.split(one, sizes, num=self._parts) for one in tf.nest.flatten(value)]
        return [tf.nest.pack_sequence_as(value, part) for part in zip(*leaves, strict=True)]

    def _there_and_back(
        self, x: Any, y: Any, weight: Any, share: Any
    ) -> tuple[Any, list[list[Any]]]:
        """Loss of a micro-batch as its share of the batch's, and its gradients by stage.

        Each stage has a tape of its own, asked on the stage's device: one tape over all would compute
        every gradient on the chief.
        """
        trail, losses = [], []
        for stage in self._stages:
            with tf.device(stage.device), tf.GradientTape() as tape:
                x = tf.nest.map_structure(tf.identity, x)
                tape.watch([one for one in tf.nest.flatten(x) if one.dtype.is_floating])
                out = stage.model(x, training=True)
                own = [one * share for one in stage.model.losses]  # of regularizers
                if stage is self._stages[-1]:
                    weights = {} if weight is None else {"sample_weight": weight}
                    # A share of no rows is nothing, whatever the mean of nothing is.
                    own.append(tf.math.multiply_no_nan(self._loss(y, out, **weights), share))
                losses += own
            trail.append((stage, tape, x, out, own))
            x = out
        gradients: list[list[Any]] = []
        upstream = None
        for stage, tape, entered, left, own in reversed(trail):
            with tf.device(stage.device):
                sources = [[v.value for v in stage.model.trainable_variables], entered]
                ones = [tf.ones_like(one) for one in own]
                targets, given = (
                    (own, ones) if upstream is None else ([left, *own], [upstream, *ones])
                )
                found, upstream = tape.gradient(
                    targets,
                    sources,
                    output_gradients=given,
                    unconnected_gradients=tf.UnconnectedGradients.ZERO,
                )
            gradients.insert(0, found)
        return tf.add_n(losses), gradients


def _made(
    number: int, device: str, make: Callable[[], Any], optimizer: Callable[[], Any]
) -> _Stage:
    with tf.device(device):
        model = make()
        if not getattr(model, "built", False):
            raise errors.InvalidArgumentError(
                f"stage {number} does not know the shape of its input: begin it with keras.Input(…)"
            )
        mine = optimizer()
        mine.build(model.trainable_variables)
    return _Stage(device, model, mine)


def _sum(parts: Sequence[Any]) -> Any:
    return tf.add_n([tf.convert_to_tensor(one) for one in parts])
