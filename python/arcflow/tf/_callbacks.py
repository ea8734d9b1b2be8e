# SPDX-License-Identifier: Apache-2.0
"""What Keras's callbacks need when several nodes run the same program."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable
from typing import Any

import tensorflow as tf


def reads_step_logs(callback: Any) -> bool:
    """Tell whether a callback may act on the logs of single steps, which must then be equal on all ranks.

    A callback says that it does not by an attribute ``arcflow_local_logs = True``.
    """
    import keras
    from keras.src.utils import is_default

    if getattr(callback, "arcflow_local_logs", False):
        return False
    if all(is_default(hook) for hook in (callback.on_train_batch_end, callback.on_batch_end)):
        return False
    if not type(callback).__module__.startswith("keras."):
        return True
    stock = keras.callbacks
    if isinstance(callback, stock.ModelCheckpoint):
        return callback.save_freq != "epoch" and callback.save_best_only
    return isinstance(callback, stock.TerminateOnNaN | stock.LambdaCallback)


def share_files(callbacks: Iterable[Any], rank: int) -> None:
    """Let all ranks name the same files.

    ModelCheckpoint writes beside its file and renames, so that ranks which share a folder never
    write into one another's file; what they write is the same. BackupAndRestore writes on the
    chief only, and every rank restores what the chief wrote.
    """
    import keras

    for callback in callbacks:
        if isinstance(callback, keras.callbacks.ModelCheckpoint):
            _write_beside(callback, rank)
        elif isinstance(callback, keras.callbacks.BackupAndRestore) and rank != 0:
            callback._save_model = _nothing
            callback.delete_checkpoint = False


def backup_epoch(callbacks: Iterable[Any]) -> int:
    """Epoch that this rank would go on from because of BackupAndRestore; 0 without a backup."""
    import keras

    for callback in callbacks:
        if isinstance(callback, keras.callbacks.BackupAndRestore):
            path = callback._training_metadata_path
            if tf.io.gfile.exists(path):
                with tf.io.gfile.GFile(path) as file:
                    return int(json.loads(file.read())["epoch"])
    return 0


def _nothing() -> None:
    """Save as a rank that is not the chief: not at all."""


def _write_beside(callback: Any, rank: int) -> None:
    if "_save_model" in vars(callback):  # an object of an earlier fit
        return
    path_of, save = callback._get_file_path, callback._save_model

    def save_model(epoch: int, batch: int | None, logs: Any) -> None:
        final = path_of(epoch, batch, logs)
        folder, name = posixpath.split(final)
        part = posixpath.join(folder, f".rank{rank}.{name}")  # Keras goes by the end of the name
        callback._get_file_path = lambda *_: part
        try:
            save(epoch, batch, logs)
        finally:
            callback._get_file_path = path_of
        if tf.io.gfile.exists(part):
            tf.io.gfile.rename(part, final, overwrite=True)

    callback._save_model = save_model
