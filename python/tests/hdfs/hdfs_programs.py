# SPDX-License-Identifier: Apache-2.0
"""What the tests run in a process with TensorFlow."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np

_open: dict[str, Any] = {}  # files that stay open between two calls


def tensorflow() -> Any:
    import arcflow.tf

    arcflow.tf.register()
    arcflow.tf.register()  # again: nothing happens
    import tensorflow as tf

    return tf


def small_model() -> Any:
    import keras

    model = keras.Sequential(
        [keras.layers.Input((8,)), keras.layers.Dense(4), keras.layers.Dense(1)]
    )
    model.compile("adam", "mse")
    return model


def gfile(base: str) -> dict[str, Any]:
    g = tensorflow().io.gfile
    g.makedirs(f"{base}/a/b")
    with g.GFile(f"{base}/a/x.txt", "w") as file:
        file.write("hello\n")
    with g.GFile(f"{base}/a/x.txt", "a") as file:
        file.write("world\n")
    g.copy(f"{base}/a/x.txt", f"{base}/a/y.txt")
    with g.GFile(f"{base}/a/z.txt", "w") as file:
        file.write("z")
    try:
        g.rename(f"{base}/a/z.txt", f"{base}/a/y.txt")
        renamed = "renamed"
    except Exception as error:
        renamed = type(error).__name__
    g.rename(f"{base}/a/z.txt", f"{base}/a/y.txt", overwrite=True)
    with g.GFile(f"{base}/a/x.txt", "rb") as file:
        file.seek(6)
        tail = (file.read(), file.tell(), file.size())
    try:
        g.GFile(f"{base}/none").read()
        missing = "read"
    except Exception as error:
        missing = f"{type(error).__name__}: {error}"
    out = {
        "lines": g.GFile(f"{base}/a/x.txt").readlines(),
        "tail": tail,
        "renamed": renamed,
        "y": g.GFile(f"{base}/a/y.txt").read(),
        "glob": g.glob(f"{base}/a/*.txt"),
        "listdir": sorted(g.listdir(f"{base}/a")),
        "walk": [(top, sorted(dirs), sorted(files)) for top, dirs, files in g.walk(f"{base}/a")],
        "is_dir": (g.isdir(f"{base}/a"), g.isdir(f"{base}/a/x.txt"), g.exists(f"{base}/none")),
        "length": g.stat(f"{base}/a/x.txt").length,
        "missing": missing,
    }
    g.rmtree(f"{base}/a")
    out["after"] = g.exists(f"{base}/a")
    return out


def records(base: str) -> tuple[int, int]:
    tf = tensorflow()
    tf.io.gfile.makedirs(base)
    for part in range(3):
        with tf.io.TFRecordWriter(f"{base}/p-{part}.tfrecord") as writer:
            for i in range(2000):
                writer.write(bytes([part]) * (i % 1500))
    files = tf.data.Dataset.list_files(f"{base}/*.tfrecord")
    data = files.interleave(tf.data.TFRecordDataset, cycle_length=3, num_parallel_calls=3)
    sizes = [len(r) for r in data.as_numpy_iterator()]
    return len(sizes), sum(sizes)


def checkpoint(base: str) -> tuple[list[str], list[str]]:
    tf = tensorflow()
    v = tf.Variable(tf.random.normal([1000, 1000]))
    manager = tf.train.CheckpointManager(tf.train.Checkpoint(v=v), f"{base}/ck", max_to_keep=2)
    for _ in range(3):
        manager.save()
    copy = tf.Variable(tf.zeros([1000, 1000]))
    latest = tf.train.latest_checkpoint(f"{base}/ck")
    tf.train.Checkpoint(v=copy).restore(latest).assert_consumed()
    np.testing.assert_array_equal(v.numpy(), copy.numpy())
    return [latest], sorted(tf.io.gfile.listdir(f"{base}/ck"))


def models(base: str) -> list[str]:
    import keras

    tf = tensorflow()
    model = small_model()
    x = np.ones((4, 8), np.float32)
    want = model.predict(x, verbose=0)
    model.save(f"{base}/m.keras")
    model.save_weights(f"{base}/m.weights.h5")
    model.export(f"{base}/exported", verbose=False)
    loaded = keras.models.load_model(f"{base}/m.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), want, rtol=1e-6)
    loaded.load_weights(f"{base}/m.weights.h5")
    served = tf.saved_model.load(f"{base}/exported")
    np.testing.assert_allclose(served.serve(tf.constant(x)), want, rtol=1e-5)
    return sorted(tf.io.gfile.listdir(base))


def callbacks(base: str) -> dict[str, Any]:
    import keras

    tf = tensorflow()
    x, y = np.zeros((16, 8), np.float32), np.zeros((16, 1), np.float32)

    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                raise KeyboardInterrupt

    def fit(*more: Any) -> list[int]:
        backup = keras.callbacks.BackupAndRestore(f"{base}/backup")
        kept = keras.callbacks.ModelCheckpoint(f"{base}/epochs/{{epoch}}.keras")
        model = small_model()
        history = model.fit(x, y, epochs=4, verbose=0, callbacks=[backup, kept, *more])
        return list(history.epoch)

    try:
        fit(Stop())
        first = "whole"
    except KeyboardInterrupt:
        first = "interrupted"
    return {
        "first": first,
        "resumed": fit(),
        "files": sorted(tf.io.gfile.listdir(f"{base}/epochs")),
    }


def summaries(base: str) -> tuple[int, int]:
    """Events seen after a flush while the writer is open, and after its end."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tf = tensorflow()
    writer = tf.summary.create_file_writer(f"{base}/logs")
    reader = EventAccumulator(f"{base}/logs", size_guidance={"tensors": 0})  # all of them

    def write(steps: range) -> int:
        with writer.as_default():
            for step in steps:
                tf.summary.scalar("loss", 1.0 / (step + 1), step=step)
        writer.flush()
        reader.Reload()
        return len(reader.Tensors("loss"))

    first = write(range(20))
    second = write(range(20, 50))  # the same reader goes on where it was
    writer.close()
    return first, second


def h5(base: str, folder: str) -> list[str]:
    tensorflow()
    os.chdir(folder)
    try:
        small_model().save(f"{base}/m.h5")
        said = "saved"
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    small_model().save(os.path.join(folder, "local.h5"))
    return [said, *sorted(os.listdir(folder))]


def start_reading(path: str) -> bytes:
    file = _open["read"] = tensorflow().io.gfile.GFile(path, "rb")
    return file.read(1 << 20)


def finish_reading() -> bytes | str:
    file = _open.pop("read")
    try:
        return file.read()
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def start_writing(path: str, size: int) -> None:
    file = _open["write"] = tensorflow().io.gfile.GFile(path, "wb")
    file.write(b"x" * size)


def finish_writing(size: int) -> str:
    file = _open.pop("write")
    try:
        for _ in range(size >> 20):
            file.write(b"y" * (1 << 20))
        file.close()
        return "written"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def imported_modules() -> list[str]:
    return sorted(sys.modules)
