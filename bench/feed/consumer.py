# SPDX-License-Identifier: Apache-2.0
"""TensorFlow's side: datasets of the ways that are not ours, and the loop that reads every byte of any dataset."""

from __future__ import annotations

import socket
import sys
import time
from multiprocessing.managers import BaseManager
from typing import Any

from shapes import SHAPES, Shape
from touch import read_rows, touched

from commands import answer, commands


class Manager(BaseManager):
    """Client of `queue_server.py`."""


Manager.register("get_queue")


def from_ipc(path: str, shape: Shape) -> Any:
    import pyarrow as pa
    import tensorflow as tf

    def batches():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)
            for batch in pa.ipc.open_stream(connection.makefile("rb", buffering=1 << 20)):
                column = batch.column(0)
                if shape.dtype == "uint8":
                    values = pa.Array.from_buffers(
                        pa.uint8(), len(column) * shape.elements, [None, column.buffers()[2]]
                    )
                else:
                    values = column.flatten()
                yield values.to_numpy(zero_copy_only=True).reshape(len(column), shape.elements)

    spec = tf.TensorSpec([None, shape.elements], shape.dtype)
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def from_queue(path: str, shape: Shape, *, one_by_one: bool) -> Any:
    import numpy as np
    import tensorflow as tf

    manager = Manager(address=path, authkey=b"bench")
    manager.connect()
    queue = manager.get_queue()

    def lists():
        while (rows := get()) is not None:
            yield rows

    def gathered():  # as TFNode.DataFeed.next_batch does
        rows = []
        while (row := get()) is not None:
            rows.append(row)
            if len(rows) == shape.batch:
                yield rows
                rows = []

    def get():
        item = queue.get()
        queue.task_done()
        return item

    def batches():
        for rows in gathered() if one_by_one else lists():
            if isinstance(rows[0], bytes):
                yield np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), shape.elements)
            else:
                yield np.asarray(rows, dtype=shape.dtype)

    spec = tf.TensorSpec([None, shape.elements], shape.dtype)
    return tf.data.Dataset.from_generator(batches, output_signature=spec)


def main() -> None:
    ipc_path, queue_path = sys.argv[1:3]
    import tensorflow  # noqa: F401 - before the clock runs

    for command in commands():
        shape = SHAPES[command["shape"]]
        dataset = (
            from_ipc(ipc_path, shape)
            if command["how"] == "ipc"
            else from_queue(queue_path, shape, one_by_one=command["how"] == "one by one")
        )
        start = time.perf_counter()
        seen = read_rows(iter(touched(dataset))) * shape.row_bytes
        seconds = time.perf_counter() - start
        expected = command["batches"] * shape.batch_bytes
        if seen != expected:
            answer(error=f"{command}: read {seen} bytes, not {expected}")
        answer(seconds=seconds, bytes=seen)


if __name__ == "__main__":
    main()
