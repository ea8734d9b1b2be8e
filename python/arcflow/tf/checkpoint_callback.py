# SPDX-License-Identifier: Apache-2.0
"""Keras's `fit` with checkpoints: the callback that counts and saves, and the epoch that goes on half done."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras

from .. import errors


class StepCallback(keras.callbacks.Callback):
    """Tells a `Checkpoint` what `fit` did."""

    arcflow_local_logs = True  # reads none; see ClusterStrategy

    def __init__(self, state: Any, dataset: Any) -> None:
        super().__init__()
        self._state = state
        self._dataset = dataset

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note which feed is read."""
        self._state.begin_epoch(self._dataset)

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count, and save when it is time."""
        self._state.advance()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count the epoch, and save when it is time."""
        self._state.end_epoch()


class EpochCallback(keras.callbacks.Callback):
    """Saves at the ends of epochs, and lets `fit` go on from the epoch after the last that was saved.

    For programs that call ``model.fit`` themselves; made by `Context.checkpoint_callback`.

    Parameters
    ----------
    make
        Makes the `Checkpoint` of a model.
    """

    arcflow_local_logs = True

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        self._make = make
        self.state: Any = None

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Restore."""
        if self.state is None:
            self.state = self._make(self.model)
        if self.state.epoch:
            self.model._initial_epoch = self.state.epoch

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note where training is."""
        if epoch != self.state.epoch:
            raise errors.FailedPreconditionError(
                f"fit begins epoch {epoch}, but the checkpoint is at epoch {self.state.epoch}: leave "
                "initial_epoch out, and use one callback for one training"
            )
        self.state.begin_epoch()

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Count."""
        self.state.advance()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Save."""
        self.state.end_epoch()


def fit(
    state: Any,
    model: Any,
    dataset: Any,
    epochs: int,
    callbacks: list[Any],
    options: dict[str, Any],
) -> dict[str, list[float]]:
    """Do what `Checkpoint.fit` says.

    Keras learns from its first epoch how many steps an epoch has, so an epoch that is half done is
    a `fit` of its own.
    """
    for name in ("initial_epoch", "steps_per_epoch"):
        if name in options:
            raise errors.InvalidArgumentError(
                f"{name}= cannot be given together with a checkpoint: an epoch is one pass over the "
                "dataset, and the checkpoint knows where to begin"
            )
    history: dict[str, list[float]] = {}
    if state.step_in_epoch and state.epoch < epochs:
        rest = dataset.skip(state.step_in_epoch)
        if next(iter(rest.take(1)), None) is None:
            state.end_epoch()  # it was saved after its last step
        else:
            _once(state, model, rest, dataset, state.epoch + 1, callbacks, options, history)
    if state.epoch < epochs and not getattr(model, "stop_training", False):
        _once(state, model, dataset, dataset, epochs, callbacks, options, history)
    return history


def _once(
    state: Any,
    model: Any,
    rows: Any,
    dataset: Any,
    epochs: int,
    callbacks: list[Any],
    options: dict[str, Any],
    history: dict[str, list[float]],
) -> None:
    found = model.fit(
        rows,
        initial_epoch=state.epoch,
        epochs=epochs,
        callbacks=[*callbacks, StepCallback(state, dataset)],
        **options,
    )
    for name, values in found.history.items():
        history.setdefault(name, []).extend(values)
