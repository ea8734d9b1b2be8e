# SPDX-License-Identifier: Apache-2.0
"""Keeps padding rows (weight zero) out of the metrics and losses that Keras reports.

Keras multiplies each row's loss by its weight, so padding adds nothing to gradients. But it counts
every row of a batch in the mean loss that it shows, and gives weights only to ``weighted_metrics``.
While a step is traced, the metric objects of the model get the mask as weights.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf


def without_padding(step: Callable[..., Any], model: Any) -> Callable[..., Any]:
    """Wrap a Keras train or test step; batches without weights go through unchanged."""
    import keras

    @functools.wraps(step)
    def wrapped(data: Any) -> Any:
        _, _, weight = keras.utils.unpack_x_y_sample_weight(data)
        if not tf.is_tensor(weight) or weight.shape.rank != 1:
            return step(data)
        with contextlib.ExitStack() as stack:
            real = tf.cast(tf.not_equal(weight, 0), tf.float32)
            for metric in _unweighted_metrics(model):
                stack.enter_context(_replaced(metric, _masked_update(metric, real)))
            for tracker, regularized in _loss_trackers(model):
                losses = (lambda: model.losses) if regularized else list
                update = _mean_over_real_rows(tracker, real, weight, model, losses)
                stack.enter_context(_replaced(tracker, update))
            return step(data)

    return wrapped


@contextlib.contextmanager
def _replaced(metric: Any, update_state: Callable[..., Any]) -> Iterator[None]:
    object.__setattr__(metric, "update_state", update_state)  # past Keras's attribute tracking
    try:
        yield
    finally:
        object.__delattr__(metric, "update_state")


def _unweighted_metrics(model: Any) -> list[Any]:
    """Metrics of ``compile(metrics=…)`` that can take weights."""
    found = []
    compiled = getattr(model, "_compile_metrics", None)
    for one in getattr(compiled, "_flat_metrics", None) or ():
        for metric in one.metrics if one else ():
            if "sample_weight" in inspect.signature(metric.update_state).parameters:
                found.append(metric)
    return found


def _masked_update(metric: Any, real: tf.Tensor) -> Callable[..., Any]:
    stock = metric.update_state

    def update_state(y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
        return stock(y_true, y_pred, sample_weight=real if sample_weight is None else sample_weight)

    return update_state


def _loss_trackers(model: Any) -> list[tuple[Any, bool]]:
    """Means of the loss, and whether regularization is in them."""
    found = [(model._loss_tracker, True)] if getattr(model, "_loss_tracker", None) else []
    found += [(m, False) for m in getattr(getattr(model, "_compile_loss", None), "metrics", ())]
    return found


def _mean_over_real_rows(
    tracker: Any, real: tf.Tensor, weight: tf.Tensor, model: Any, losses: Callable[[], list[Any]]
) -> Callable[..., Any]:
    """Make an update that counts the real rows of a batch instead of all of them.

    Keras hands over the mean m over all rows, plus regularization r. Over n real rows of N the mean
    is (m - r) * N / n + r; a loss that divides by the sum of weights is right already.
    """
    stock = tracker.update_state
    reductions = _reductions(model)

    def update_state(value: Any, sample_weight: Any = None) -> Any:
        if reductions not in ({"mean"}, {"mean_with_sample_weight"}):
            return stock(value, sample_weight=sample_weight)
        value = tf.convert_to_tensor(value)
        rows = tf.cast(tf.size(weight), value.dtype)
        count = tf.cast(tf.reduce_sum(real), value.dtype)
        parts = [tf.cast(part, value.dtype) for part in losses()]
        extra = tf.add_n(parts) if parts else 0.0
        factor = rows / tf.maximum(count, 1) if reductions == {"mean"} else 1.0
        return stock((value - extra) * factor + extra, sample_weight=count)

    return update_state


def _reductions(model: Any) -> set[str]:
    flat = getattr(getattr(model, "_compile_loss", None), "_flat_losses", None) or ()
    names = {str(getattr(one[1], "reduction", None)) for one in flat}  # (path, loss, weight, …)
    return {"mean" if name == "sum_over_batch_size" else name for name in names}
