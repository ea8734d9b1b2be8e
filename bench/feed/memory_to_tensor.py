# SPDX-License-Identifier: Apache-2.0
"""Producer's memory to tensors that TensorFlow has read every byte of: Arcflow, and three other ways."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import numpy as np
from children import Child
from local_run import LocalRun, NodeServer
from node_functions import serve_reads
from shapes import SHAPES, Shape

from harness import Row, interleaved, make_row

# Batches a measurement (arcflow: a multiple of touch.GROUP): about a second each on two cores.
BATCHES = {"arcflow": 1600, "ipc": 240, "numpy rows": 32, "lists": 16, "one by one": 1}
COPY_BYTES = 128 << 20


def memcpy_rate() -> float:
    """Bytes copied a second by one core between two touched buffers that no cache holds."""
    source = np.ones(COPY_BYTES, np.uint8)
    target = np.zeros(COPY_BYTES, np.uint8)
    np.copyto(target, source)
    start = time.perf_counter()
    for _ in range(6):
        np.copyto(target, source)
    return 6 * COPY_BYTES / (time.perf_counter() - start)


class Others:
    """The processes of the ways that are not ours."""

    def __init__(self, folder: Path) -> None:
        paths = [str(folder / "ipc.sock"), str(folder / "queue.sock")]
        self._server = Child("queue_server.py", paths[1])
        self._producer = Child("baseline_producer.py", *paths)
        self._consumer = Child("consumer.py", *paths)

    def rate(self, how: str, shape: Shape) -> float:
        command = {"how": how, "shape": shape.name, "batches": BATCHES[how]}
        self._producer.call(**command)
        return_value = self._consumer.call(**command)
        return return_value["bytes"] / return_value["seconds"]

    def close(self) -> None:
        for child in (self._consumer, self._producer, self._server):
            child.__exit__(None, None, None)


def measure(repeats: int) -> list[Row]:
    rows = []
    feeds = {f"feed{i}": name for i, name in enumerate(SHAPES)}
    with tempfile.TemporaryDirectory(prefix="arcflow-bench-") as name:
        folder = Path(name)
        server = NodeServer(folder)
        others = Others(folder)
        try:
            with LocalRun(serve_reads, feeds, args={"socket": server.path}) as run:
                server.accept()
                for feed, shape_name in feeds.items():
                    rows += _one_shape(run, server, others, feed, SHAPES[shape_name], repeats)
                server.close()
                run.finish()
        finally:
            others.close()
    return rows


def _one_shape(
    run: LocalRun, server: NodeServer, others: Others, feed: str, shape: Shape, repeats: int
) -> list[Row]:
    def arcflow() -> float:
        run.write(feed, shape.name, BATCHES["arcflow"])
        answer = server.call(feed=feed, shape=shape.name, batches=BATCHES["arcflow"])
        run.producer.receive()
        if answer["rows"] != BATCHES["arcflow"] * shape.batch:
            raise RuntimeError(f"{answer['rows']} rows arrived")
        return answer["rows"] * shape.row_bytes / answer["seconds"]

    cases = {
        "arcflow": arcflow,
        "memcpy": memcpy_rate,
        "ipc": lambda: others.rate("ipc", shape),
        "numpy rows": lambda: others.rate("numpy rows", shape),
        "lists": lambda: others.rate("lists", shape),
        "one by one": lambda: others.rate("one by one", shape),
    }
    got = interleaved(cases, repeats)
    gigabytes = {key: [v / 1e9 for v in values] for key, values in got.items()}
    case = f"memory to tensor, {shape.name}"
    compared = (
        ("one-core memcpy", "memcpy", ">= 0.75 x"),
        ("manager queue, row by row (TensorFlowOnSpark)", "one by one", ">= 100 x"),
        ("manager queue, lists of rows", "lists", None),
        ("manager queue, NumPy rows", "numpy rows", None),
        ("from_generator, Arrow IPC socket", "ipc", ">= 7 x"),
    )
    # The other ways hand over dense tensors, so a column of strings has no goal against them.
    dense = shape.column["dtype"] != "string"
    return [
        make_row(
            case,
            "bytes read",
            gigabytes["arcflow"],
            "GB/s",
            baseline=title,
            baseline_values=gigabytes[key],
            goal=goal if dense else None,
        )
        for title, key, goal in compared
    ]
