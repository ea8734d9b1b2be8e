# SPDX-License-Identifier: Apache-2.0
"""The two kinds of rows that are measured, from a seeded generator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa

# Distinct batches that a producer cycles through: 64 MiB and more, so that no cache holds them.
POOL_BYTES = 96 << 20


@dataclass(frozen=True)
class Shape:
    """Rows of one column.

    Attributes
    ----------
    elements, dtype
        Of one row.
    batch
        Rows of a batch, for producer and consumer alike.
    column
        Entry of the feed's schema.
    """

    name: str
    elements: int
    dtype: str
    batch: int
    column: dict[str, Any]

    @property
    def row_bytes(self) -> int:
        return self.elements * np.dtype(self.dtype).itemsize

    @property
    def batch_bytes(self) -> int:
        return self.batch * self.row_bytes

    def arrays(self) -> list[np.ndarray]:
        """Return the pool: arrays of ``[batch, elements]``."""
        rng = np.random.default_rng(7)
        count = -(-POOL_BYTES // self.batch_bytes)
        if self.dtype == "float32":
            return [rng.random((self.batch, self.elements), dtype=np.float32) for _ in range(count)]
        return [
            rng.integers(0, 256, (self.batch, self.elements), dtype=np.uint8) for _ in range(count)
        ]

    def record_batches(self) -> list[pa.RecordBatch]:
        """Return the pool as Arrow: a list column for floats, binary for bytes."""
        return [record_batch(array) for array in self.arrays()]


def record_batch(array: np.ndarray) -> pa.RecordBatch:
    """One column ``x`` from ``[rows, elements]`` without a copy of the values."""
    import pyarrow as pa

    rows, elements = array.shape
    offsets = np.arange(rows + 1, dtype=np.int32) * elements
    if array.dtype == np.uint8:
        column = pa.Array.from_buffers(
            pa.binary(), rows, [None, pa.py_buffer(offsets), pa.py_buffer(array)]
        )
    else:
        column = pa.ListArray.from_arrays(pa.array(offsets), pa.array(array.reshape(-1)))
    return pa.record_batch([column], names=["x"])


SHAPES = {
    shape.name: shape
    for shape in (
        Shape(
            "784 float32",
            784,
            "float32",
            1024,
            {"name": "x", "dtype": "float32", "source": "list", "shape": [784]},
        ),
        Shape(
            "1 KB binary",
            1024,
            "uint8",
            4096,
            {"name": "x", "dtype": "uint8", "source": "raw", "shape": [1024]},
        ),
        Shape(
            "1 KB binary as string",
            1024,
            "uint8",
            4096,
            {"name": "x", "dtype": "string", "source": "scalar", "shape": []},
        ),
    )
}
