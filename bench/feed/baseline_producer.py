# SPDX-License-Identifier: Apache-2.0
"""Process that hands batches over in the ways that are not ours: an Arrow IPC socket, or a manager's queue."""

from __future__ import annotations

import socket
import sys
from multiprocessing.managers import BaseManager
from typing import Any

from shapes import SHAPES, Shape

from commands import answer, commands


class Manager(BaseManager):
    """Client of `queue_server.py`."""


Manager.register("get_queue")


def serve_ipc(listener: socket.socket, shape: Shape, batches: int, pool: list[Any]) -> None:
    import pyarrow as pa

    connection, _ = listener.accept()
    with (
        connection,
        connection.makefile("wb", buffering=0) as file,
        pa.ipc.new_stream(pa.PythonFile(file), pool[0].schema) as writer,
    ):
        for i in range(batches):
            writer.write_batch(pool[i % len(pool)])


def put_rows(queue: Any, rows: list[Any], batches: int) -> None:
    for _ in range(batches):
        queue.put(rows)
    queue.put(None)


def put_one_by_one(queue: Any, rows: list[Any], batches: int) -> None:
    """As `TFSparkNode.train` of TensorFlowOnSpark does: one call of the manager for each row."""
    for _ in range(batches):
        for row in rows:
            queue.put(row)
    queue.put(None)


def main() -> None:
    ipc_path, queue_path = sys.argv[1:3]
    pools: dict[tuple[str, str], Any] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(ipc_path)
        listener.listen(1)
        manager = Manager(address=queue_path, authkey=b"bench")
        manager.connect()
        queue = manager.get_queue()
        for command in commands():
            how, shape = command["how"], SHAPES[command["shape"]]
            key = (shape.name, how)
            if key not in pools:
                if how == "ipc":
                    pools[key] = shape.record_batches()
                else:  # as rows reach Python from an RDD: lists; or at best as NumPy rows
                    array = shape.arrays()[0]
                    is_bytes = shape.dtype == "uint8"
                    rows = [row.tobytes() for row in array] if is_bytes else array.tolist()
                    pools[key] = list(array) if how == "numpy rows" else rows
            answer(prepared=True)
            if how == "ipc":
                serve_ipc(listener, shape, command["batches"], pools[key])
            elif how == "one by one":
                put_one_by_one(queue, pools[key], command["batches"])
            else:
                put_rows(queue, pools[key], command["batches"])


if __name__ == "__main__":
    main()
