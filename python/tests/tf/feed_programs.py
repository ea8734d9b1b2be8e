# SPDX-License-Identifier: Apache-2.0
"""What the nodes of test_feed_dataset.py run."""

from __future__ import annotations

import gc
import os
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from arcflow import errors
from arcflow.tf import FeedDataset, is_per_node, make_dataset, per_node

_TEST_OPS = os.environ.get("ARCFLOW_TEST_OPS", "")


def address(tensor: tf.Tensor) -> int:
    return int(_test_ops().arcflow_address(tensor))


def _test_ops() -> Any:
    return tf.load_op_library(_TEST_OPS)


def mapped_from_memory(at: int) -> bool:
    """Whether an address lies in a shared mapping of a memfd that this process cannot write."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        span, access, *_, _name = [*line.split(maxsplit=5), ""]
        start, end = (int(x, 16) for x in span.split("-"))
        if start <= at < end:
            return "memfd:" in line and access == "r--s"
    raise AssertionError(f"{at:#x} is not mapped")


def numpy_of(element: Any) -> Any:
    return tf.nest.map_structure(lambda t: t.numpy(), element)


def read_all(
    columns: list[dict], batch_size: int, take: list[str] | None = None, **options: Any
) -> dict:
    """All batches of a feed, column by column."""
    names = tuple(take or [c["name"] for c in columns])
    ds = FeedDataset("train", names, {c["name"]: c for c in columns}, batch_size, **options)
    batches = [numpy_of(b) for b in ds]
    return {
        "batches": batches,
        "spec": [(s.dtype.name, s.shape.as_list()) for s in tf.nest.flatten(ds.element_spec)],
    }


def addresses(column: dict, batch_size: int) -> list[tuple[bool, int]]:
    ds = FeedDataset("train", "x", {"x": column}, batch_size, remainder="partial")
    found = []
    for x in ds:
        at = address(x)
        found.append((mapped_from_memory(at), at % 64))
    return found


def shuffled(columns: list[dict], directory: str) -> dict:
    """Passes in seeded orders; one that is saved, and gone on with from another iterator."""

    def make(seed: Any) -> Any:
        return make_dataset(
            "train", 64, schema=columns, label=False, remainder="partial", shuffle=seed
        )

    def passes(ds: Any, count: int) -> list[list[int]]:
        return [[int(v) for batch in ds for v in batch] for _ in range(count)]

    found = {"seven": passes(make(7), 3), "again": passes(make(7).prefetch(2), 3)}
    found |= {"eight": passes(make(8), 1), "chance": passes(make(True), 2)}
    ds = make(7)
    passes(ds, 1)
    iterator = iter(ds)
    found["before"] = [int(v) for _ in range(3) for v in next(iterator)]
    path = tf.train.Checkpoint(iterator=iterator).save(f"{directory}/position")
    other = make(7)
    resumed = iter(other)
    tf.train.Checkpoint(iterator=resumed).restore(path)
    found["after"] = [int(v) for batch in resumed for v in batch]
    found["next"] = passes(other, 1)
    try:
        tf.train.Checkpoint(iterator=iter(make(8))).restore(path)
    except tf.errors.InvalidArgumentError as e:
        found["refused"] = str(e)
    chosen = make(7)
    chosen.set_epoch(2)
    found["chosen"] = passes(chosen.skip(1), 1)
    return found


def shuffled_passes(columns: list[dict], names: list[str]) -> dict[str, list[np.ndarray]]:
    """First elements of the rows of two passes over each feed."""

    def passes(feed: str) -> list[np.ndarray]:
        ds = make_dataset(feed, 128, schema=columns, label=False, remainder="partial", shuffle=7)
        return [np.concatenate([batch.numpy()[:, 0] for batch in ds]) for _ in range(2)]

    return {name: passes(name) for name in names}


def shuffle_needs_all_rows(columns: list[dict]) -> str:
    ds = make_dataset("train", 64, schema=columns, label=False, shuffle=1)
    try:
        next(iter(ds))
    except tf.errors.FailedPreconditionError as e:
        return str(e)
    raise AssertionError("nothing was refused")


def kernels_leave_it_alone(column: dict) -> bool:
    """An op that would like to work in place; the segment is read-only, so writing would kill the process."""
    ds = FeedDataset("train", "x", {"x": column}, 64, remainder="partial")
    plain = [x.numpy() for x in ds]

    @tf.function
    def changed(x: tf.Tensor) -> tf.Tensor:
        return (
            tf.nn.relu(
                tf.tensor_scatter_nd_update(x * 2.0 + 1.0, [[0]], tf.zeros([1, *x.shape[1:]]))
            )
            - 3.0
        )

    for x in ds:
        changed(x)
        tf.raw_ops.TensorScatterUpdate(tensor=x, indices=[[0]], updates=tf.zeros([1, *x.shape[1:]]))
    return all((a == b.numpy()).all() for a, b in zip(plain, ds, strict=True))


def hoards(column: dict, batch_size: int) -> tuple[int, int, bool]:
    """Keeps every tensor while a writer with little memory goes on."""
    ds = FeedDataset("train", "x", {"x": column}, batch_size, remainder="partial")
    kept = list(ds)
    zero_copy = sum(mapped_from_memory(address(x)) for x in kept)
    rows = np.concatenate([x.numpy() for x in kept])[:, 0]
    return len(rows), zero_copy, bool((rows == np.arange(len(rows)) * column["shape"][0]).all())


def shuffles(column: dict, batch_size: int, buffer: int) -> bool:
    ds = FeedDataset("train", "x", {"x": column}, batch_size, remainder="partial")
    ds = ds.shuffle(buffer, seed=1).prefetch(buffer)
    rows = np.concatenate([x.numpy() for x in ds])[:, 0]
    return bool((np.sort(rows) == np.arange(len(rows)) * column["shape"][0]).all())


def cancelled(column: dict) -> tuple[str, float, int]:
    """A consumer goes away while its reader waits for rows that do not come."""
    ds = FeedDataset("train", "x", {"x": column}, 10, remainder="partial").prefetch(1)
    iterator = iter(ds)
    next(iterator)
    time.sleep(0.3)  # the prefetch thread waits now
    start = time.monotonic()
    del iterator
    gc.collect()
    waited = time.monotonic() - start
    # And within a function, by its own cancellation.
    from tensorflow.python.eager import cancellation

    manager = cancellation.CancellationManager()

    @tf.function
    def read_all_rows() -> tf.Tensor:
        return ds.reduce(tf.constant(0, tf.int64), lambda n, x: n + tf.shape(x, tf.int64)[0])

    concrete = manager.get_cancelable_function(read_all_rows.get_concrete_function())
    threading.Timer(0.5, manager.start_cancel).start()
    try:
        concrete()
    except tf.errors.CancelledError as e:
        return type(e).__name__, waited, threading.active_count()
    return "", waited, threading.active_count()


def save_and_restore(column: dict, folder: str) -> tuple[list, list, list]:
    def dataset() -> tf.data.Dataset:
        return (
            FeedDataset("train", "x", {"x": column}, 10, remainder="partial")
            .map(lambda x: x[:, 0])
            .prefetch(2)
        )

    iterator = iter(dataset())
    first = [next(iterator).numpy().tolist() for _ in range(7)]
    path = tf.train.Checkpoint(iterator=iterator).write(f"{folder}/it")
    rest = [x.numpy().tolist() for x in iterator]
    other = iter(dataset())
    next(other)
    tf.train.Checkpoint(iterator=other).read(path).assert_consumed()
    again = [x.numpy().tolist() for x in other]
    return first, rest, again


def keras_fit(columns: list[dict], batch_size: int, size: int) -> dict:
    """Keras opens the dataset twice before it trains; every pass has all rows."""
    import keras

    ds = make_dataset("train", batch_size, schema=columns, features="x", size=size)
    seen: list[int] = []

    class Count(keras.Model):
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(1)

        def call(self, x: Any) -> Any:
            return self.dense(tf.cast(x, tf.float32) / 1e4)

        def train_step(self, data: Any) -> dict:
            tf.py_function(lambda w: seen.append(int(tf.reduce_sum(w))), [data[2]], [])
            return super().train_step(data)

    model = Count()
    model.compile("sgd", "mse")
    history = model.fit(ds, epochs=3, verbose=0, validation_data=ds)
    evaluated = model.evaluate(ds, verbose=0)
    predicted = model.predict(ds.map(lambda x, y, w: x), verbose=0)
    return {
        "rows": sum(seen), "steps": len(seen), "epochs": len(history.epoch),
        "loss": evaluated, "predicted": predicted.shape,
    }  # fmt: skip


def rebatched(columns: list[dict]) -> dict:
    ds = make_dataset("train", 50, schema=columns, features="x", size=2)
    sizes = [int(x.shape[0]) for x, _, _ in ds.rebatch(20)]
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    distributed = [int(x.shape[0]) for x, _, _ in strategy.experimental_distribute_dataset(ds)]
    derived = ds.map(lambda *e: e).prefetch(1)
    return {
        "rebatch": sizes, "distributed": distributed, "per_node": is_per_node(derived),
        "zip": is_per_node(tf.data.Dataset.zip((derived, tf.data.Dataset.range(3)))),
        "other": is_per_node(tf.data.Dataset.range(3).batch(2)),
        "marked": is_per_node(per_node(tf.data.Dataset.range(3)).batch(2)),
    }  # fmt: skip


def elements(columns: list[dict], cases: list[dict]) -> list:
    """The first element and the structure of datasets made in several ways."""
    made = []
    for case in cases:
        try:
            ds = make_dataset("train", 4, schema={"columns": columns}, **case)
        except errors.ArcflowError as e:
            made.append((type(e).__name__, str(e)))
            continue
        last = None
        for element in ds:
            last = element
        structure = tf.nest.map_structure(
            lambda s: (s.dtype.name, s.shape.as_list()), ds.element_spec
        )
        made.append((structure, numpy_of(last), ds.features))
    return made


def op_errors(columns: list[dict]) -> dict[str, tuple[str, str]]:
    by_name = {c["name"]: c for c in columns}
    wrong = {
        "feed": lambda: FeedDataset("nobody", "x", by_name, 4),
        "column": lambda: FeedDataset("train", "gone", {"gone": columns[0]}, 4),
        "dtype": lambda: FeedDataset("train", "x", {"x": {**columns[0], "dtype": "int32"}}, 4),
        "shape": lambda: FeedDataset("train", "x", {"x": {**columns[0], "shape": [3]}}, 4),
    }
    found = {}
    for name, make in wrong.items():
        try:
            next(iter(make()))
        except tf.errors.OpError as e:
            found[name] = (type(e).__name__, e.message)
    return found


def outside_a_node(columns: list[dict]) -> tuple[str, str]:
    del os.environ["ARCFLOW_NODE_FD"]
    try:
        next(iter(FeedDataset("train", "x", {"x": columns[0]}, 4)))
    except tf.errors.OpError as e:
        return type(e).__name__, e.message
    return "", ""


def fails_with(columns: list[dict], remainder: str) -> tuple[str, str]:
    try:
        for _ in FeedDataset("train", "x", {c["name"]: c for c in columns}, 4, remainder=remainder):
            pass
    except tf.errors.OpError as e:
        return type(e).__name__, e.message
    return "", ""


def counts(column: dict) -> dict:
    """Counters that the agent reads without asking the node."""
    import mmap

    fd = os.memfd_create("page")
    os.ftruncate(fd, 4096)
    page = mmap.mmap(fd, 4096)
    page[:8] = (0x50435241).to_bytes(4, "little") + (2).to_bytes(4, "little")
    os.environ["ARCFLOW_COUNTER_FD"] = str(fd)
    ds = FeedDataset("train", "x", {"x": column}, 10, remainder="partial")
    for _ in ds:
        pass
    values = np.frombuffer(page[8:64], "<u8").tolist()
    return dict(zip(("steps", "rows_used", "rows_padded"), values, strict=False))
