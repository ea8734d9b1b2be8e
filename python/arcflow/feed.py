# SPDX-License-Identifier: Apache-2.0
"""A DataFrame as the data of a run: which columns, in which shape, kept how."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from . import schema as _schema
from .errors import InvalidArgumentError

_CACHES = ("auto", "memory", "disk", "none")


@dataclasses.dataclass(frozen=True)
class PlannedFeed:
    """A feed that passed all checks that can be made before a node starts."""

    name: str
    frame: Any  # only the columns of the feed
    schema: dict[str, Any]  # docs/formats/schema.md
    cache: str
    order_by: tuple[str, ...] = ()
    stable: bool = False
    balance: bool = True
    exchange: bool = False
    reader: Any = None  # arcflow.parquet.Reader, where `frame` says what to read

    @property
    def inputs(self) -> list[str]:
        """Columns of `frame`, in the order in which the feed takes them."""
        return _schema.inputs(self.schema) if self.reader is None else list(self.reader.inputs)

    def to_json(self, *, in_step: bool = True) -> dict[str, Any]:
        """Return what the agent must know of the feed.

        Parameters
        ----------
        in_step
            Whether all nodes that are fed step together, so that rows may be evened out.

        Raises
        ------
        InvalidArgumentError
            Rows are to be exchanged between nodes that do not step together.
        """
        if self.exchange and not in_step:
            raise InvalidArgumentError(
                f"feed {self.name!r}: exchange=True is for nodes that step together, which workers of "
                "parameter servers do not: leave it out, or run without ps="
            )
        balance = self.balance and in_step and self.cache != "none"
        told = {"schema": self.schema, "cache": self.cache, "balance": balance}
        return {**told, "exchange": True} if self.exchange else told


class Feed:
    """A DataFrame, and how its columns become tensors.

    Columns are named as in the DataFrame, fields of structs as ``"column.field"``. Which Spark type
    becomes which tensor is a table in the guide, docs/guide/feeding.md.

    Parameters
    ----------
    df : pyspark.sql.DataFrame
        The rows; not streaming.
    columns
        Columns to feed; all by default.
    shapes
        Shape of one row's value for arrays, vectors and images, such as ``{"image": (28, 28)}``.
        Without it the first row tells the lengths, and every row must have the same. None is a
        length that varies, one for each such array: ``{"words": (None,), "vectors": (None, 128)}``
        are ragged tensors.
    raw
        Binary columns that hold little-endian elements of a dense tensor, such as
        ``{"image": ("float32", (784,))}``: the fastest way from Spark to TensorFlow.
    cast
        Types to convert to on the way, such as ``{"x": "float32"}`` for doubles. Integers that do
        not fit are an error. Decimals: ``"float64"``, ``"float32"``, ``"string"``, or ``"scaled"``
        for int64 without the point; without a cast they are float64, unless they have more than 15
        digits.
    fill
        What stands for nulls, by column. Without it (and without a mask) nulls are an error.
    mask
        Columns whose nulls are said by a further boolean column, named with ``_mask`` at the end:
        True where there was a value. Under the mask lies `fill`, or zero.
    vectors
        ``"dense"`` or ``"sparse"`` for vectors of Spark's ML library; otherwise as the first row is.
    cache
        How nodes keep rows for later epochs. ``"auto"``: in memory, what does not fit on local disk;
        ``"memory"``: more than the memory is an error; ``"disk"``; ``"none"`` or None: rows can be
        read once.
    order_by
        Columns, among those fed, that give each row its node and its place when runs may be
        restarted (``max_restarts``); rows that are equal in them are told apart by the rest. By
        default all columns do.
    stable
        Says that the DataFrame has the same partitions, with the same rows in the same order, every
        time it is computed, so that a restarted run need not sort it.
    balance
        Whether nodes whose partitions hold more rows hand some to nodes with fewer, once all rows
        are there, so that all have equally many. Not with ``cache="none"``, whose rows do not stay,
        nor for workers of parameter servers, which do not step together.
    exchange
        Whether nodes mix their rows: every shuffled pass (``ctx.dataset(shuffle=…)``) but the first
        then finds on each node rows of all nodes, others in every pass, as many as before. Rows go
        from agent to agent at the beginning of a pass, and lie twice as long as it lasts (what
        does not fit into memory is on local disk). Needs `balance` and a cache.
    probe
        Whether to look at the first row before anything starts; finds empty data and wrong shapes
        early, for one small Spark job. Without it, arrays, vectors and images need `shapes`.

    Examples
    --------
    >>> Feed(df, columns=["image", "label"], raw={"image": ("float32", (784,))})  # doctest: +SKIP
    """

    def __init__(
        self,
        df: Any,
        *,
        columns: Sequence[str] | None = None,
        shapes: Mapping[str, Sequence[int]] | None = None,
        raw: Mapping[str, _schema.RawSpec] | None = None,
        cast: Mapping[str, str] | None = None,
        fill: Mapping[str, Any] | None = None,
        mask: Sequence[str] = (),
        vectors: Mapping[str, str] | None = None,
        cache: str | None = "auto",
        order_by: str | Sequence[str] = (),
        stable: bool = False,
        balance: bool = True,
        exchange: bool = False,
        probe: bool = True,
    ) -> None:
        if not (hasattr(df, "mapInArrow") and hasattr(df, "schema")):
            advice = "; use spark.createDataFrame" if hasattr(df, "iloc") else ""
            raise InvalidArgumentError(
                f"a feed needs a Spark DataFrame, not {type(df).__module__}.{type(df).__name__}{advice}"
            )
        if df.isStreaming:
            raise InvalidArgumentError("a streaming DataFrame cannot be fed to a run")
        if isinstance(columns, str):
            raise InvalidArgumentError(f"columns= is a list of names: columns=[{columns!r}]")
        if isinstance(mask, str):
            raise InvalidArgumentError(f"mask= is a list of names: mask=[{mask!r}]")
        cache = "none" if cache is None else cache
        if cache not in _CACHES:
            raise InvalidArgumentError(f"cache={cache!r} is not one of {', '.join(_CACHES)}")
        self.df = df
        self.columns = None if columns is None else list(columns)
        self.options = _schema.Options(
            shapes=dict(shapes or {}),
            raw=dict(raw or {}),
            cast=dict(cast or {}),
            fill=dict(fill or {}),
            mask=list(mask),
            vectors=dict(vectors or {}),
        )
        self.cache = cache
        self.order_by = (order_by,) if isinstance(order_by, str) else tuple(order_by)
        self.stable = stable
        if exchange and (cache == "none" or not balance):
            why = "cache='none' keeps no rows" if cache == "none" else "balance=False"
            raise InvalidArgumentError(
                f"exchange=True needs rows that stay, and nodes with equally many: not {why}"
            )
        self.balance = balance
        self.exchange = exchange
        self.probe = probe

    def plan(self, name: str) -> PlannedFeed:
        """Check the feed and settle the shape of each column.

        Parameters
        ----------
        name
            Of the feed in the run.

        Raises
        ------
        InvalidArgumentError
            A column cannot be fed, or there are no rows; says what to change.
        """
        where = f"feed {name!r}: "
        names = self.df.columns if self.columns is None else self.columns
        for key in self.order_by:
            if key not in names:
                raise InvalidArgumentError(
                    f"{where}order_by names {key!r}, which is not fed; fed are {', '.join(names)}"
                )
        planned = _schema.plan_columns(self.df.schema, names, self.options, where=where)
        if self.probe:
            planned = _schema.plan_columns(
                self.df.schema,
                names,
                self.options,
                measured=self._measure(planned.asked, where),
                where=where,
            )
        elif planned.unknown:
            unknown = planned.unknown[0]
            raise InvalidArgumentError(
                f"{where}column {unknown!r} is an array, vector or image, and probe=False: say its "
                f"length by shapes={{{unknown!r}: (…,)}} (and, for a vector, vectors=)"
            )
        return PlannedFeed(
            name,
            self.frame(names),
            planned.to_json(),
            self.cache,
            self.order_by,
            self.stable,
            self.balance,
            self.exchange,
            self.reader(names),
        )

    def frame(self, names: Sequence[str]) -> Any:
        """Return what the tasks get for these columns: the rows."""
        if list(names) == list(self.df.columns):
            return self.df
        return self.df.select(*[_schema.quote(column) for column in names])

    def reader(self, names: Sequence[str]) -> Any:
        """Return what makes rows of what the tasks get; None when they are the rows."""
        return None

    def _measure(self, asked: Sequence[str], where: str) -> dict[str, Any]:
        """Evaluate expressions on the first row."""
        rows = self.df.limit(1).selectExpr("1 as there", *asked).collect()
        if not rows:
            raise InvalidArgumentError(
                f"{where}the DataFrame has no rows: check its filters and joins, "
                "or leave the feed out of data="
            )
        return dict(zip(asked, list(rows[0])[1:], strict=True))


def plan_feeds(data: Any) -> list[PlannedFeed]:
    """Plan all feeds of a run.

    Parameters
    ----------
    data
        None, a DataFrame or `Feed` (the feed ``"train"``), or a dict of them by name.
    """
    if data is None:
        return []
    if not isinstance(data, Mapping):
        data = {"train": data}
    planned = []
    for name, value in data.items():
        if not isinstance(name, str) or not name or len(name) > 128 or not name.isprintable():
            raise InvalidArgumentError(f"{name!r} is not a name for a feed")
        feed = value if isinstance(value, Feed) else Feed(value)
        planned.append(feed.plan(name))
    if len(planned) > 100:
        raise InvalidArgumentError(f"a run can have 100 feeds, not {len(planned)}")
    return planned
