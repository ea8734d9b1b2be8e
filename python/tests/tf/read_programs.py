# SPDX-License-Identifier: Apache-2.0
"""What the tests of read_files run in a process with TensorFlow."""

from __future__ import annotations

import os
from typing import Any

import tensorflow as tf

from arcflow.tf import is_per_node, read_files
from arcflow.tf._per_node import remainder_of


def write(folder: str, counts: list[int]) -> None:
    for part, count in enumerate(counts):
        with tf.io.TFRecordWriter(os.path.join(folder, f"p-{part:02}.tfrecord")) as writer:
            for i in range(count):
                writer.write(f"{part}:{i}".encode())


def said(act: Any) -> str:
    try:
        act()
        return "fine"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def shares(folder: str) -> dict[str, Any]:
    """Every rank's records, several ways."""
    pattern = f"{folder}/*.tfrecord"
    write(folder, [5, 17, 1, 30])
    for odd in ("_SUCCESS", ".p-99.tfrecord.arcflow-x.tmp"):
        open(os.path.join(folder, odd), "w").close()

    def ranks(size: int, **options: Any) -> list[list[Any]]:
        return [
            list(read_files(pattern, rank=rank, size=size, **options).as_numpy_iterator())
            for rank in range(size)
        ]

    first = read_files(pattern, rank=0, size=3)
    by_file = read_files(pattern, rank=0, size=2, shard="files")
    batches = read_files(pattern, rank=1, size=3, batch_size=4, parse=tf.strings.length)
    return {
        "records": ranks(3),
        "files": ranks(2),
        "single": ranks(1),
        "shuffled": ranks(3, shuffle=100, seed=1),
        "again": ranks(3, shuffle=100, seed=1),
        "batches": [len(b) for b in batches.as_numpy_iterator()],
        "folder": len(list(read_files(folder, rank=0, size=1))),
        "marked": (is_per_node(first), remainder_of(first), remainder_of(by_file)),
        "none": said(lambda: read_files(f"{folder}/*.csv", rank=0, size=1)),
        "few": said(lambda: read_files(pattern, rank=0, size=5, shard="files")),
        "rank": said(lambda: read_files(pattern, rank=2, size=2)),
        "shard": said(lambda: read_files(pattern, rank=0, size=2, shard="rows")),
        "format": said(lambda: read_files(pattern, rank=0, size=2, format="csv")),
    }


def lines(folder: str) -> list[list[bytes]]:
    with open(os.path.join(folder, "a.txt"), "w") as file:
        file.write("1\n2\n3\n4\n5\n")
    return [
        list(read_files(folder, rank=rank, size=2, format=form).as_numpy_iterator())
        for rank in range(2)
        for form in ("text", tf.data.TextLineDataset)
    ]
