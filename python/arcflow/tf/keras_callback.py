# SPDX-License-Identifier: Apache-2.0
"""A Keras callback that tells the agent how far training is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import keras


class ProgressCallback(keras.callbacks.Callback):
    """Reports step, epoch and loss while `fit` runs.

    The step is reported after every batch, the loss only once in a while and at the end of an
    epoch, so that progress costs nothing that a user would notice.

    Parameters
    ----------
    set_progress
        Called with ``(step, epoch, loss)``: steps since the start of `fit`, epoch from 0, and the
        loss last read (NaN until known).
    interval_s
        Least time between two looks at the loss.
    alive
        Called after every batch of validation and prediction, where no step is counted.
    """

    arcflow_local_logs = True  # this node's own loss will do; see ClusterStrategy

    def __init__(
        self,
        set_progress: Callable[[int, int, float], object],
        *,
        interval_s: float = 0.5,
        alive: Callable[[], object] | None = None,
    ) -> None:
        super().__init__()
        self._alive = alive or (lambda: None)
        self._set_progress = set_progress
        self._interval_s = interval_s
        self._step = 0
        self._epoch = 0
        self._loss = float("nan")
        self._next_look = 0.0

    def on_train_begin(self, logs: Mapping[str, Any] | None = None) -> None:
        """Start counting."""
        self._step, self._next_look = 0, 0.0

    def on_epoch_begin(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Note the epoch."""
        self._epoch = epoch
        self._first_step = self._step

    def on_train_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Report the step; the loss when it is time."""
        self._step = self._first_step + batch + 1
        now = time.monotonic()
        if now >= self._next_look:
            self._next_look = now + self._interval_s
            self._read(logs)
        self._set_progress(self._step, self._epoch, self._loss)

    def on_epoch_end(self, epoch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Report the loss of the epoch."""
        self._read(logs)
        self._set_progress(self._step, epoch, self._loss)

    def on_test_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Report that validation goes on."""
        self._alive()

    def on_predict_batch_end(self, batch: int, logs: Mapping[str, Any] | None = None) -> None:
        """Report that prediction goes on."""
        self._alive()

    def _read(self, logs: Mapping[str, Any] | None) -> None:
        if logs and "loss" in logs:
            self._loss = float(logs["loss"])
