# SPDX-License-Identifier: Apache-2.0
"""Batches without TensorFlow: NumPy arrays, and what is not rectangular as the parts that it consists of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows of different lengths.

    Attributes
    ----------
    values
        All items of all rows, one after the other: an array, a list of bytes, or again `Ragged`.
    splits
        int64 ``[rows + 1]``: row ``i`` is ``values[splits[i]:splits[i + 1]]``.
    """

    values: Any
    splits: np.ndarray

    def __len__(self) -> int:
        return len(self.splits) - 1

    def __getitem__(self, row: int) -> Any:
        if not -len(self) <= row < len(self):
            raise IndexError(row)
        row %= len(self)
        return _cut(self.values, int(self.splits[row]), int(self.splits[row + 1]))

    def to_list(self) -> list[Any]:
        """Return nested lists."""
        rows = (self[i] for i in range(len(self)))
        return [
            row.to_list()
            if isinstance(row, Ragged)
            else np.ndarray.tolist(row)
            if isinstance(row, np.ndarray)
            else list(row)
            for row in rows
        ]


@dataclasses.dataclass(frozen=True)
class Sparse:
    """Rows of which few elements are not zero.

    Attributes
    ----------
    indices
        int64 ``[n, 2]``: row and position of each entry, in order.
    values
        ``[n]``.
    shape
        Rows, and elements of a row.
    """

    indices: np.ndarray
    values: np.ndarray
    shape: tuple[int, int]

    def to_dense(self) -> np.ndarray:
        """Return the array with its zeros."""
        out = np.zeros(self.shape, self.values.dtype)
        out[self.indices[:, 0], self.indices[:, 1]] = self.values
        return out


def _cut(values: Any, start: int, stop: int) -> Any:
    if isinstance(values, Ragged):
        return Ragged(values.values, values.splits[start : stop + 1])
    return values[start:stop]


def compose(value: Mapping[str, Any], parts: Mapping[str, Any]) -> Any:
    """Put a value together.

    Parameters
    ----------
    value
        As `arcflow.schema.values_of` gives it.
    parts
        The flat columns of a batch: an array or list of bytes, or (items, splits) of a ragged one.
    """
    kind = value["kind"]
    if kind == "dict":
        return {field["name"]: compose(field, parts) for field in value["fields"]}
    if kind == "strings":
        return _strings(np.asarray(parts[value["part"]]), parts[value["bytes"]][0])
    if kind == "sparse":
        items, splits = parts[value["part"]]
        rows = np.repeat(np.arange(len(splits) - 1), np.diff(splits))
        indices = np.stack([rows, parts[value["indices"]][0]], axis=1)
        return Sparse(indices, items, (len(splits) - 1, value["size"]))
    if kind == "ragged":
        return _ragged(value, parts)
    return parts[value["part"]]


def composer(
    values: Sequence[Mapping[str, Any]],
) -> Callable[[Mapping[str, Any]], dict[str, Any]]:
    """Return a function that puts all values of a batch together, see `compose`."""
    return lambda parts: {value["name"]: compose(value, parts) for value in values}


def _ragged(value: Mapping[str, Any], parts: Mapping[str, Any]) -> Ragged:
    items, splits = parts[value["part"]]
    if "bytes" in value:
        items = _strings(items, parts[value["bytes"]][0])
    lengths = [parts[name] for name in value["lengths"]]
    for inner, _ in reversed(lengths):
        items = Ragged(items, np.concatenate([[0], np.cumsum(inner, dtype=np.int64)]))
    return Ragged(items, lengths[0][1] if lengths else splits)


def _strings(lengths: np.ndarray, data: np.ndarray) -> Any:
    """Cut bytes into strings, in nested lists as `lengths` has them."""
    ends = np.cumsum(lengths.reshape(-1))
    raw = data.tobytes()
    flat = [
        raw[end - n : end]
        for end, n in zip(ends.tolist(), lengths.reshape(-1).tolist(), strict=True)
    ]
    for n in reversed(lengths.shape[1:]):
        flat = [flat[i : i + n] for i in range(0, len(flat), n)]  # type: ignore[misc]
    return flat
