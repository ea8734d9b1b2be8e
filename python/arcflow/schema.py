# SPDX-License-Identifier: Apache-2.0
"""Turns the schema of a Spark DataFrame into the schema of a feed, or says why a column cannot go.

A feed has flat columns (docs/formats/schema.md), which lie in shared memory, and *values*: how
tensors are put together of columns. Most values are one column; a ragged array of arrays is two, a
struct is a dict of values.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .errors import InvalidArgumentError

RawSpec = tuple[str, tuple[int, ...]]
Value = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Column:
    """One flat column of a feed; fields as in docs/formats/schema.md, left out where None."""

    name: str
    dtype: str
    source: str
    shape: tuple[int, ...]
    levels: tuple[int, ...] | None = None
    path: tuple[str, ...] | None = None
    cast_from: str | None = None
    decimal: int | None = None
    fill: Any = None
    expect: Mapping[str, int] | None = None
    limit: int | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form of docs/formats/schema.md."""
        out = {"name": self.name, "dtype": self.dtype, "source": self.source}
        out["shape"] = list(self.shape)  # type: ignore[assignment]
        more = {
            "levels": self.levels and list(self.levels),
            "path": self.path and list(self.path),
            "from": self.cast_from,
            "decimal": self.decimal,
            "fill": self.fill,
            "expect": self.expect and dict(self.expect),
            "limit": self.limit,
        }
        return out | {key: value for key, value in more.items() if value is not None}


@dataclasses.dataclass(frozen=True)
class Options:
    """What a `Feed` says of its columns, by column or, in structs, by ``column.field``."""

    shapes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    raw: Mapping[str, RawSpec] = dataclasses.field(default_factory=dict)
    cast: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fill: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    mask: Sequence[str] = ()
    vectors: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def named(self) -> Iterator[tuple[str, str]]:
        """Each option and column that it names."""
        for field in dataclasses.fields(self):
            for name in getattr(self, field.name):
                yield field.name, name


@dataclasses.dataclass
class Planned:
    """Columns and values of a feed, and what only a row can tell.

    Attributes
    ----------
    columns
        Flat columns, in order.
    values
        Values by name; ``{"name": …, "kind": …, …}``, see docs/formats/schema.md.
    asked
        SQL expressions about the first row that can be measured.
    unknown
        Columns whose form only the first row can tell.
    """

    columns: list[Column]
    values: list[Value]
    asked: list[str]
    unknown: list[str]

    def to_json(self) -> dict[str, Any]:
        """Return the schema; without `values` when each is the column of its name."""
        schema: dict[str, Any] = {"version": 2, "columns": [c.to_json() for c in self.columns]}
        flat = [{"name": c.name, "kind": "dense", "part": c.name} for c in self.columns]
        if self.values != flat:
            schema["values"] = self.values
        return schema


def plan_columns(
    schema: Any,
    names: Sequence[str],
    options: Options | None = None,
    *,
    measured: Mapping[str, Any] | None = None,
    where: str = "",
) -> Planned:
    """Map Spark columns to the columns and values of a feed.

    Parameters
    ----------
    schema : pyspark.sql.types.StructType
        Schema of the DataFrame.
    names
        Columns to take, in this order.
    options
        What the user says of columns.
    measured
        What the first row tells of each expression that an earlier call asked for. Without it,
        lengths that nobody said are taken as 1, and `Planned.asked` says what to measure.
    where
        Put before messages, such as ``"feed 'train': "``.

    Raises
    ------
    InvalidArgumentError
        A column does not exist or has a type that cannot be fed, or an option does not fit; says
        what to do instead.
    """
    options = options or Options()
    fields = {field.name: field for field in schema.fields}
    for name in names:
        if name not in fields:
            raise InvalidArgumentError(
                f"{where}columns names {name!r}, but the DataFrame has {listed(fields)}"
            )
        if list(names).count(name) > 1 or [f.name for f in schema.fields].count(name) > 1:
            raise InvalidArgumentError(
                f"{where}column {name!r} is there twice: rename one, or choose with columns="
            )
    if not names:
        raise InvalidArgumentError(f"{where}there is no column to feed")
    from ._planning import Planner  # which needs Column

    planner = Planner(options, measured, where, set(names))
    for name in names:
        planner.add(name, fields[name].dataType)
    for option, name in options.named():
        if name not in planner.seen:
            if name in fields and name not in names:
                raise InvalidArgumentError(
                    f"{where}{option} names {name!r}, which is not in columns"
                )
            raise InvalidArgumentError(
                f"{where}{option} names {name!r}, but the DataFrame has "
                f"{listed([*fields, *(s for s in planner.seen if s not in fields)])}"
            )
    return Planned(planner.columns, planner.values, planner.asked, planner.unknown)


def inputs(schema: Mapping[str, Any]) -> list[str]:
    """Names of the DataFrame columns that a feed's schema is made of, in order."""
    return list(dict.fromkeys((c.get("path") or [c["name"]])[0] for c in schema["columns"]))


def values_of(schema: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Values of a schema, with ``columns``: the flat columns that they are made of, by name."""
    if not isinstance(schema, Mapping):
        schema = {"columns": schema}
    columns = {column["name"]: column for column in schema["columns"]}
    values = schema.get("values")
    if values is None:
        values = [{"name": name, "kind": "dense", "part": name} for name in columns]
    return [{**value, "columns": columns} for value in values]


def to_arrow(schema: Any) -> Any:
    """Return the Arrow schema that Spark has for a StructType; timestamps are in UTC."""
    import inspect

    from pyspark.sql.pandas.types import to_arrow_schema

    known = inspect.signature(to_arrow_schema).parameters
    return to_arrow_schema(schema, **{"timezone": "UTC"} if "timezone" in known else {})


def quote(name: str) -> str:
    """Return a column's name as SQL writes it."""
    return "`" + name.replace("`", "``") + "`"


def listed(names: Any) -> str:
    """Return names as a message lists them."""
    return ", ".join(map(str, names))
