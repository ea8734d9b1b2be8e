# SPDX-License-Identifier: Apache-2.0
"""Turns the schema of a Spark DataFrame into the schema of a feed, or says why a column cannot go."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .errors import InvalidArgumentError

# Spark's name of a type -> NumPy's name of the elements that tensors will have.
_NUMBERS = {
    "boolean": "bool",
    "tinyint": "int8",
    "smallint": "int16",
    "int": "int32",
    "bigint": "int64",
    "float": "float32",
    "double": "float64",
}
_SCALARS = {**_NUMBERS, "date": "int32", "timestamp": "int64", "timestamp_ntz": "int64"}
_RAW_DTYPES = ("bool", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")

RawSpec = tuple[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of a feed.

    Attributes
    ----------
    name
        As in the DataFrame.
    dtype
        NumPy's name of the elements, or ``"string"``.
    source
        ``"scalar"``, ``"list"`` or ``"raw"``, as the core reads it (docs/formats/schema.md).
    shape
        Of one row's value; None as long as only a row can tell the length of an array.
    """

    name: str
    dtype: str
    source: str
    shape: tuple[int, ...] | None

    @property
    def elements(self) -> int | None:
        """Elements of one row's value; None when not known yet."""
        return None if self.shape is None else math.prod(self.shape)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form of docs/formats/schema.md."""
        if self.shape is None:
            raise InvalidArgumentError(f"column {self.name!r} has no shape yet")
        return {
            "name": self.name,
            "dtype": self.dtype,
            "source": self.source,
            "shape": list(self.shape),
        }


def plan_columns(
    schema: Any,
    names: Sequence[str],
    *,
    shapes: Mapping[str, Sequence[int]] | None = None,
    raw: Mapping[str, RawSpec] | None = None,
    where: str = "",
) -> list[Column]:
    """Map Spark columns to feed columns.

    Parameters
    ----------
    schema : pyspark.sql.types.StructType
        Schema of the DataFrame.
    names
        Columns to take, in this order.
    shapes
        Shape of one row's value for array columns; otherwise the first row tells the length.
    raw
        Binary columns that hold little-endian elements: ``{"image": ("float32", (28, 28))}``.
    where
        Put before messages, such as ``"feed 'train': "``.

    Raises
    ------
    InvalidArgumentError
        A column does not exist or has a type that cannot be fed; says what to do instead.
    """
    shapes, raw = dict(shapes or {}), dict(raw or {})
    fields = {field.name: field for field in schema.fields}
    for option, given in (("columns", names), ("shapes", shapes), ("raw", raw)):
        for name in given:
            if name not in fields:
                raise InvalidArgumentError(
                    f"{where}{option} names {name!r}, but the DataFrame has {_listed(fields)}"
                )
            if name not in names:
                raise InvalidArgumentError(
                    f"{where}{option} names {name!r}, which is not in columns"
                )
    for name in names:
        if list(names).count(name) > 1 or [f.name for f in schema.fields].count(name) > 1:
            raise InvalidArgumentError(
                f"{where}column {name!r} is there twice: rename one, or choose with columns="
            )
    if not names:
        raise InvalidArgumentError(f"{where}there is no column to feed")
    columns = []
    for name in names:
        context = f"{where}column {name!r}"
        if name in raw:
            if name in shapes:
                raise InvalidArgumentError(
                    f"{context} is in shapes= and in raw=: raw= has the shape"
                )
            columns.append(_raw_column(name, fields[name].dataType, raw[name], context))
        else:
            columns.append(_column(name, fields[name].dataType, shapes.get(name), context))
    return columns


def probe_expression(column: Column) -> str | None:
    """Return SQL for what the first row must tell: elements of an array, bytes of a raw value."""
    quoted = quote(column.name)
    if column.source == "list":
        return f"cast(size({quoted}) as bigint)"
    if column.source == "raw":
        return f"cast(octet_length({quoted}) as bigint)"
    return None


def settle(column: Column, measured: int | None, where: str = "") -> Column:
    """Complete a column by what the first row told, or refuse it.

    Parameters
    ----------
    column
        As planned.
    measured
        Value of `probe_expression` in the first row; None or negative when the value is null.
    where
        Put before messages.
    """
    context = f"{where}column {column.name!r}"
    if measured is None or measured < 0:
        raise InvalidArgumentError(
            f"{context} is null in the first row: nulls cannot be fed; "
            "drop such rows (df.na.drop) or fill them (coalesce)"
        )
    if column.source == "raw":
        expected = (column.elements or 0) * np.dtype(column.dtype).itemsize
        if measured != expected:
            raise InvalidArgumentError(
                f"{context} holds {measured} bytes in the first row, but raw= says "
                f"{column.dtype} of shape {column.shape}, which is {expected} bytes"
            )
        return column
    if column.shape is None:
        if measured == 0:
            raise InvalidArgumentError(
                f"{context} is an empty array in the first row: say its length by "
                f"shapes={{{column.name!r}: (…,)}}"
            )
        return dataclasses.replace(column, shape=(measured,))
    if measured != column.elements:
        raise InvalidArgumentError(
            f"{context} has {measured} elements in the first row, but shapes= says "
            f"{column.shape}, which is {column.elements}: every row must have the same length"
        )
    return column


def quote(name: str) -> str:
    """Return a column's name as SQL writes it."""
    return "`" + name.replace("`", "``") + "`"


def _column(name: str, spark_type: Any, shape: Sequence[int] | None, context: str) -> Column:
    kind = spark_type.simpleString()
    type_name = spark_type.typeName()
    if type_name == "array":
        element = spark_type.elementType.simpleString()
        if element not in _NUMBERS:
            raise InvalidArgumentError(f"{context} is {kind}: {_array_advice(name, spark_type)}")
        checked = None if shape is None else _checked_shape(shape, context)
        return Column(name, _NUMBERS[element], "list", checked)
    if shape is not None:
        raise InvalidArgumentError(f"{context} is {kind}: only array columns can have a shape")
    if kind in _SCALARS:
        return Column(name, _SCALARS[kind], "scalar", ())
    if type_name in ("string", "binary", "char", "varchar"):
        return Column(name, "string", "scalar", ())
    raise InvalidArgumentError(
        f"{context} is {kind}, which cannot be fed: {_advice(name, spark_type)}"
    )


def _raw_column(name: str, spark_type: Any, spec: RawSpec, context: str) -> Column:
    if spark_type.typeName() != "binary":
        raise InvalidArgumentError(
            f"{context} is {spark_type.simpleString()}: raw= is for binary columns only"
        )
    try:
        dtype, shape = spec
        dtype = np.dtype(dtype).name
    except (TypeError, ValueError):
        raise InvalidArgumentError(
            f"{context}: raw= wants (dtype, shape) such as ('float32', (784,)), not {spec!r}"
        ) from None
    if dtype not in _RAW_DTYPES:
        raise InvalidArgumentError(
            f"{context}: raw= cannot hold {dtype}; one of {_listed(_RAW_DTYPES)}"
        )
    return Column(name, dtype, "raw", _checked_shape(shape, context))


def _checked_shape(shape: Any, context: str) -> tuple[int, ...]:
    if isinstance(shape, int):
        shape = (shape,)
    try:
        checked = tuple(int(n) for n in shape)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"{context}: {shape!r} is not a shape") from None
    if any(n < 1 for n in checked):
        raise InvalidArgumentError(f"{context}: shape {checked} has a dimension below 1")
    return checked


def _array_advice(name: str, spark_type: Any) -> str:
    element = spark_type.elementType
    if element.typeName() == "array":
        return (
            f"nested arrays cannot be fed; use flatten({name}) and give the shape by "
            f"shapes={{{name!r}: (rows, columns)}}"
        )
    if element.typeName() == "decimal":
        return f"cast it: transform({name}, v -> float(v))"
    return "only arrays of numbers or booleans can be fed; make one column of each element"


def _advice(name: str, spark_type: Any) -> str:
    kind = type(spark_type).__name__
    if kind == "VectorUDT" or "vector" in spark_type.simpleString().lower():
        return f"use pyspark.ml.functions.vector_to_array({name!r}, 'float32')"
    return {
        "decimal": f"cast it: cast({name} as double)",
        "struct": f"select its fields: select('{name}.*')",
        "map": f"select the values that you need: {name}['key'] as a column",
    }.get(spark_type.typeName(), "cast it to a number or string, or leave it out by columns=")


def _listed(names: Any) -> str:
    return ", ".join(map(str, names))
