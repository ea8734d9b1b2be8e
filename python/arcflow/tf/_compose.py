# SPDX-License-Identifier: Apache-2.0
"""Puts ragged and sparse tensors and dicts together, of the flat columns that a feed has."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import tensorflow as tf


@dataclasses.dataclass(frozen=True)
class Component:
    """One tensor of the source: a flat column, or a part of one that is ragged.

    Attributes
    ----------
    part
        Name of the flat column.
    kind
        ``"column"``; ``"splits"`` or ``"values"`` of a ragged one; ``"strings"``, whose lengths are
        `part` and whose bytes are `data`.
    """

    part: str
    kind: str = "column"
    data: str = ""

    def spec(self, columns: Mapping[str, Mapping[str, Any]], rows: int | None) -> tf.TensorSpec:
        """Type and shape in a batch of `rows` rows, if that is known."""
        column = columns[self.part]
        if self.kind == "splits":
            return tf.TensorSpec([None if rows is None else rows + 1], tf.int64)
        shape: list[int | None] = [rows, *column["shape"]]
        if self.kind == "values" or (self.kind == "strings" and is_ragged(column)):
            shape[0] = None
        dtype = "string" if self.kind == "strings" else column["dtype"]
        return tf.TensorSpec(shape, tf.dtypes.as_dtype(dtype))


def is_ragged(column: Mapping[str, Any]) -> bool:
    """Whether rows of a flat column that is no string differ in length."""
    return -1 in (column.get("levels") or ()) or column.get("source") in ("bytes", "vector_indices")


def is_plain(value: Mapping[str, Any]) -> bool:
    """Whether a value is one component as it is."""
    if value["kind"] == "dict":
        return all(is_plain(field) for field in value["fields"])
    return value["kind"] in ("dense", "strings")


def components(value: Mapping[str, Any]) -> Any:
    """Return what a value is made of: a component, or a dict of them."""
    kind, part = value["kind"], value.get("part", "")
    if kind == "dict":
        return {field["name"]: components(field) for field in value["fields"]}
    if kind == "strings":
        return Component(part, "strings", value["bytes"])
    if kind == "sparse":
        return {
            "splits": Component(part, "splits"),
            "values": Component(part, "values"),
            "indices": Component(value["indices"], "values"),
        }
    if kind == "ragged":
        lengths = value["lengths"]
        found = {f"lengths{i}": Component(name, "values") for i, name in enumerate(lengths)}
        found["splits"] = Component(lengths[0] if lengths else part, "splits")
        strings = "bytes" in value
        found["values"] = Component(
            part, "strings" if strings else "values", value["bytes"] if strings else ""
        )
        return found
    return Component(part)


def compose(value: Mapping[str, Any], parts: Any) -> Any:
    """Put a value together of the tensors of its components."""
    if is_plain(value):
        return parts
    if value["kind"] == "dict":
        return {f["name"]: compose(f, parts[f["name"]]) for f in value["fields"]}
    if value["kind"] == "sparse":
        return _sparse(parts, value["size"])
    items = parts["values"]
    for i in reversed(range(len(value["lengths"]))):
        # Checked, because these come from another process; the outermost splits have been.
        items = tf.RaggedTensor.from_row_lengths(items, parts[f"lengths{i}"])
    return tf.RaggedTensor.from_row_splits(items, parts["splits"], validate=False)


def _sparse(parts: Mapping[str, tf.Tensor], size: int) -> tf.SparseTensor:
    rows = tf.ragged.row_splits_to_segment_ids(parts["splits"])
    same = tf.debugging.assert_equal(tf.size(rows), tf.size(parts["indices"]))
    with tf.control_dependencies([same]):
        indices = tf.stack([rows, parts["indices"]], axis=1)
    count = tf.size(parts["splits"], tf.int64) - 1
    shape = tf.stack([count, tf.constant(size, tf.int64)])
    known = parts["splits"].shape[0]
    if known is not None:
        shape = tf.constant([known - 1, size], tf.int64)
    return tf.SparseTensor(indices, parts["values"], shape)
