# SPDX-License-Identifier: Apache-2.0
"""Plans the flat columns and the values of one DataFrame column after the other; see `arcflow.schema`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _fill
from .errors import InvalidArgumentError
from .schema import Column, Options, RawSpec, Value, listed, quote

# Spark's name of a type -> NumPy's name of the elements that tensors have without a cast.
_NUMBERS = {
    "boolean": "bool",
    "tinyint": "int8",
    "smallint": "int16",
    "int": "int32",
    "bigint": "int64",
    "float": "float32",
    "double": "float64",
    "date": "int32",
    "timestamp": "int64",
    "timestamp_ntz": "int64",
}
_STRINGS = ("string", "binary", "char", "varchar")
_DTYPES = ("bool", "float32", "float64", "int8", "int16", "int32", "int64", "uint8")
_DECIMALS = {"float64": "float64", "float32": "float32", "scaled": "int64", "string": "string"}
_EXACT_DIGITS = 15  # a decimal of so many digits comes back from float64 as it was
_IMAGE = ("origin", "height", "width", "nChannels", "mode", "data")
_IMAGE_MODES = {1: 0, 3: 16, 4: 24}  # channels -> OpenCV's CV_8UC1, CV_8UC3, CV_8UC4
VARIABLE = -1


class Planner:
    """Collects columns and values; one call of `add` for each column of the DataFrame."""

    def __init__(
        self,
        options: Options,
        measured: Mapping[str, Any] | None,
        where: str,
        names: set[str],
    ) -> None:
        self._options, self._measured, self._where = options, measured, where
        self._top = names
        self._taken: set[str] = set()
        self.columns: list[Column] = []
        self.values: list[Value] = []
        self.asked: list[str] = []
        self.unknown: list[str] = []
        self.seen: set[str] = set()  # what options may name

    def add(self, name: str, spark_type: Any) -> None:
        """Plan one column of the DataFrame."""
        for value in self._values((name,), spark_type):
            if value["name"] != name and value["name"] in self._top:
                raise InvalidArgumentError(
                    f"{self._where}the mask of column {name!r} would be {value['name']!r}, which is "
                    "a column: rename it"
                )
            self.values.append(value)

    # ---- one value -----------------------------------------------------------------------------

    def _values(self, path: tuple[str, ...], spark_type: Any) -> list[Value]:
        """Plan one column or field and, if it has one, its mask."""
        label = ".".join(path)
        if len(path) > 1 and label in self._top:
            label = "/".join(path)  # a column has that very name
        self.seen.add(label)
        leaf = _Leaf(self, path, label, f"{self._where}column {label!r}", spark_type)
        value = {"name": path[-1], **leaf.value()}
        if label not in self._options.mask:
            return [value]
        return [value, {"name": f"{path[-1]}_mask", **leaf.mask()}]

    def struct(self, path: tuple[str, ...], spark_type: Any) -> Value:
        """Plan a struct as a dict of its fields."""
        fields: list[Value] = []
        for field in spark_type.fields:
            fields += self._values((*path, field.name), field.dataType)
        names = [field["name"] for field in fields]
        if len(set(names)) != len(names):
            raise InvalidArgumentError(
                f"{self._where}column {'.'.join(path)!r} has two fields of one name: rename one"
            )
        return {"kind": "dict", "fields": fields}

    # ---- flat columns --------------------------------------------------------------------------

    def column(self, path: tuple[str, ...], suffix: str, **fields: Any) -> str:
        """Add a column, under a name of its own, which is returned."""
        name = ".".join(path) + suffix
        own = len(path) == 1 and not suffix
        while name in self._taken or (not own and name in self._top):
            name += "'"
        self._taken.add(name)
        path = (*path, *fields.pop("below", ()))
        if path != (name,):
            fields["path"] = path
        self.columns.append(Column(name, **fields))
        return name

    def measure(self, sql: str) -> Any:
        """Return what the first row says; None when it is not known yet, or null."""
        if sql not in self.asked:
            self.asked.append(sql)
        return None if self._measured is None else self._measured.get(sql)

    @property
    def has_measured(self) -> bool:
        """Whether the first row was looked at."""
        return self._measured is not None

    @property
    def options(self) -> Options:
        """What the user says."""
        return self._options


class _Leaf:
    """One column or field of the DataFrame, on its way to a value."""

    def __init__(
        self, planner: Planner, path: tuple[str, ...], label: str, context: str, spark_type: Any
    ) -> None:
        self._planner, self._path, self._label = planner, path, label
        self._context, self._type = context, spark_type
        options = planner.options
        self._shape = options.shapes.get(label)
        self._cast = options.cast.get(label)
        self._masked = label in options.mask
        self._may_be_null = self._masked or label in options.fill
        # Set by value(), for the mask, which has the same form:
        self._levels: tuple[int, ...] = ()
        self._row_shape: tuple[int, ...] = ()
        self._inner_lengths: list[str] = []

    def value(self) -> Value:
        """Plan the column; errors name it."""
        kind = type(self._type).__name__
        options = self._planner.options
        if self._label in options.raw:
            return self._raw(options.raw[self._label])
        if kind == "VectorUDT":
            return self._vector()
        if self._label in options.vectors:
            raise self._error(f"is {self._name()}: vectors= is for vectors of Spark's ML library")
        if kind == "StructType":
            if tuple(field.name for field in self._type.fields) == _IMAGE:
                return self._image()
            self._refuse_options("is a struct: name its fields, such as")
            return self._planner.struct(self._path, self._type)
        element, depth = self._type, 0
        while element.typeName() == "array":
            element, depth = element.elementType, depth + 1
        if depth == 0 and self._shape is not None:
            raise self._error(f"is {self._name()}: only array columns can have a shape")
        self._settle_levels(depth)
        if element.typeName() in _STRINGS:
            return self._strings(depth)
        if element.typeName() == "decimal":
            return self._numbers(*self._decimal(element, depth))
        if element.simpleString() not in _NUMBERS:
            raise self._error(f"is {self._name()}, which cannot be fed: {self._advice(element)}")
        dtype = _NUMBERS[element.simpleString()]
        cast = self._cast_from(dtype)
        return self._numbers(cast or dtype, {"cast_from": dtype if cast else None})

    def mask(self) -> Value:
        """Plan the value that says which elements are there; after `value`."""
        part = self._planner.column(
            self._path,
            "_mask",
            dtype="bool",
            source="mask",
            shape=self._row_shape,
            levels=self._levels or None,
        )
        return self._wrapped(part)

    # ---- kinds of values -----------------------------------------------------------------------

    def _numbers(self, dtype: str, more: Mapping[str, Any]) -> Value:
        levels = self._levels
        # Without `levels`, a list is one of as many elements as the shape has: the usual case.
        flat = len(levels) == 1 and VARIABLE not in levels
        part = self._planner.column(
            self._path,
            "",
            dtype=dtype,
            source="list" if levels else "scalar",
            shape=self._row_shape,
            levels=None if flat or not levels else levels,
            fill=self._fill(dtype),
            **more,
        )
        return self._wrapped(part)

    def _wrapped(self, part: str) -> Value:
        """Make a value of a column and the lengths of the lists around it, where those vary."""
        if VARIABLE not in self._levels:
            return {"kind": "dense", "part": part}
        return {"kind": "ragged", "lengths": self._lengths(), "part": part}

    def _lengths(self) -> list[str]:
        """Add columns with the lengths of ragged lists inside ragged lists; others are told by any."""
        ragged = self._levels.count(VARIABLE)
        if not self._inner_lengths:
            self._inner_lengths = [
                self._planner.column(
                    self._path,
                    f"/lengths{depth}",
                    dtype="int64",
                    source="lengths",
                    shape=(),
                    levels=self._levels[:depth],
                    fill=self._empty(),
                )
                for depth in range(1, ragged)
            ]
        return self._inner_lengths

    def _empty(self) -> int | None:
        return 0 if self._may_be_null else None

    def _strings(self, depth: int) -> Value:
        if self._cast:
            raise self._error(f"is {self._name()}: strings cannot be cast; do it in Spark SQL")
        fill = self._fill("string")
        if depth == 0:
            part = self._planner.column(
                self._path, "", dtype="string", source="scalar", shape=(), fill=fill
            )
            return {"kind": "dense", "part": part}
        if fill:
            raise self._error("holds arrays of strings: a null in them can only become ''")
        if VARIABLE in self._levels and self._levels[-1] != VARIABLE:
            raise self._error("holds strings in arrays: shapes= must be fixed, or None throughout")
        shared: dict[str, Any] = {"levels": self._levels, "fill": self._empty()}
        lengths = self._planner.column(
            self._path,
            "/lengths",
            dtype="int64",
            source="lengths",
            shape=self._row_shape,
            **shared,
        )
        part = self._planner.column(
            self._path, "/bytes", dtype="uint8", source="bytes", shape=(), **shared
        )
        if VARIABLE not in self._levels:
            return {"kind": "strings", "part": lengths, "bytes": part}
        return {"kind": "ragged", "lengths": self._lengths(), "part": lengths, "bytes": part}

    def _raw(self, spec: RawSpec) -> Value:
        if self._type.typeName() != "binary":
            raise self._error(f"is {self._name()}: raw= is for binary columns only")
        if self._shape is not None:
            raise self._error("is in shapes= and in raw=: raw= has the shape")
        self._refuse_cast("raw=")
        try:
            dtype, shape = spec
            dtype = np.dtype(dtype).name
        except (TypeError, ValueError):
            raise self._error(
                f"has raw= {spec!r}: it wants (dtype, shape) such as ('float32', (784,))"
            ) from None
        if dtype not in _DTYPES:
            raise self._error(f"has raw= of {dtype}; one of {listed(_DTYPES)}")
        shape = self._checked_shape(shape)
        expected = math.prod(shape) * np.dtype(dtype).itemsize
        measured = self._planner.measure(f"cast(octet_length({self._sql()}) as bigint)")
        if self._planner.has_measured and not self._is_null(measured) and measured != expected:
            raise self._error(
                f"holds {measured} bytes in the first row, but raw= says {dtype} of shape "
                f"{shape}, which is {expected} bytes"
            )
        part = self._planner.column(
            self._path, "", dtype=dtype, source="raw", shape=shape, fill=self._fill(dtype)
        )
        return {"kind": "dense", "part": part}

    def _image(self) -> Value:
        """Spark's image struct: bytes of [height, width, channels], blue first."""
        self._refuse_cast("an image")
        shape = self._shape
        if shape is None:
            measured = [
                self._planner.measure(f"cast({self._sql()}.{field} as bigint)")
                for field in ("height", "width", "nChannels")
            ]
            if self._planner.has_measured and (measured[0] or 0) < 1:
                raise self._error("is no image in the first row: say shapes= or drop such rows")
            if not self._planner.has_measured:
                self._planner.unknown.append(self._label)
            shape = tuple(n or 1 for n in measured)
        height, width, channels = shape = self._checked_shape(shape, rank=3)
        if channels not in _IMAGE_MODES:
            raise self._error(f"has images of {channels} channels; 1, 3 or 4 of uint8 can be fed")
        expect = {"height": height, "width": width, "nChannels": channels}
        part = self._planner.column(
            self._path,
            "",
            below=("data",),
            dtype="uint8",
            source="raw",
            shape=shape,
            fill=self._fill("uint8"),
            expect=expect | {"mode": _IMAGE_MODES[channels]},
        )
        return {"kind": "dense", "part": part}

    def _vector(self) -> Value:
        kind = self._planner.options.vectors.get(self._label)
        if kind not in (None, "dense", "sparse"):
            raise self._error(f"has vectors= {kind!r}: it is 'dense' or 'sparse'")
        size = None if self._shape is None else self._checked_shape(self._shape, rank=1)[0]
        if kind is None or size is None:
            first = self._planner.measure(self._sql())
            if first is None and self._planner.has_measured:
                raise self._error(
                    "is null in the first row: say its size by shapes= and its kind by vectors=, "
                    "or drop such rows (df.na.drop)"
                )
            if not self._planner.has_measured:
                self._planner.unknown.append(self._label)
            found = "sparse" if type(first).__name__ == "SparseVector" else "dense"
            kind = kind or found
            size = size or (1 if first is None else int(first.size))
        cast = self._cast_from("float64")
        dtype = cast or "float64"
        more = {"cast_from": "float64" if cast else None, "fill": self._fill(dtype)}
        if kind == "dense":
            part = self._planner.column(
                self._path, "", dtype=dtype, source="vector", shape=(size,), limit=size, **more
            )
            return {"kind": "dense", "part": part}
        if more["fill"]:
            raise self._error("is sparse: a null can only become an empty row")
        values = self._planner.column(
            self._path,
            "/values",
            below=("values",),
            dtype=dtype,
            source="list",
            shape=(),
            levels=(VARIABLE,),
            **more,
        )
        indices = self._planner.column(
            self._path,
            "/indices",
            dtype="int64",
            source="vector_indices",
            shape=(),
            limit=size,
            fill=self._empty(),
        )
        return {"kind": "sparse", "part": values, "indices": indices, "size": size}

    # ---- types and options ---------------------------------------------------------------------

    def _decimal(self, element: Any, depth: int) -> tuple[str, dict[str, Any]]:
        name = self._cast
        if name is None:
            if element.precision > _EXACT_DIGITS:
                raise self._error(
                    f"is {self._name()}, of more digits than float64 holds exactly: say "
                    f"cast={{{self._label!r}: 'float64'}} to round it, 'scaled' for int64 without "
                    "the point, or 'string'"
                )
            name = "float64"
        if name not in _DECIMALS or (name == "string" and depth > 0):
            raise self._error(
                f"is {self._name()}: cast= of a decimal is one of {listed(_DECIMALS)} "
                "('string' not in arrays)"
            )
        return _DECIMALS[name], {"decimal": element.scale}

    def _cast_from(self, dtype: str) -> str | None:
        """Return the type to cast to; None for none."""
        if self._cast is None:
            return None
        try:
            target = np.dtype(self._cast).name
        except TypeError:
            target = str(self._cast)
        if target == dtype:
            return None
        floats = ("float32", "float64")
        if target not in _DTYPES or target == "bool" or (dtype in floats and target not in floats):
            advice = "round it in Spark SQL before" if dtype in floats else "cast it in Spark SQL"
            raise self._error(f"is {dtype}: it cannot be cast to {target}; {advice}")
        return target

    def _fill(self, dtype: str) -> Any:
        """Return what stands for nulls, as JSON; None when they are refused."""
        options = self._planner.options
        if self._label not in options.fill:
            return _fill.default(dtype) if self._masked else None
        try:
            return _fill.to_json(options.fill[self._label], dtype)
        except ValueError as error:
            raise self._error(f"has fill= {error}") from None

    def _settle_levels(self, depth: int) -> None:
        """Lengths of the lists, as the user or the first row says, and the shape that they make."""
        if depth == 0:
            return
        wanted: tuple[int, ...] = ()
        if self._shape is not None:
            wanted = self._checked_shape(self._shape, ragged=True)
            if len(wanted) < depth:
                raise self._error(
                    f"is {self._name()}: its shape {self._shape!r} has fewer than {depth} dimensions"
                )
            ragged = wanted.count(VARIABLE)
            if VARIABLE in wanted[ragged:] or ragged > depth:
                raise self._error(
                    f"has shape {self._shape!r}: None can only stand first, once for each array "
                    "whose length varies"
                )
            if ragged == depth and len(wanted) > depth:
                raise self._error(
                    f"has shape {self._shape!r}: after the array whose length varies there is none "
                    "left for the rest; cut it into arrays in Spark SQL"
                )
            last = math.prod(wanted[depth - 1 :]) if ragged < depth else VARIABLE
            self._levels = (*wanted[: depth - 1], last)
            self._row_shape = wanted[ragged:]
        sql, found = self._sql(), []
        for level in range(depth):
            if wanted and self._levels[level] == VARIABLE:
                break
            found.append(self._length(sql, level, self._levels[level] if wanted else None))
            sql = f"get({sql}, 0)"
        if not wanted:
            self._levels = self._row_shape = tuple(found)

    def _length(self, sql: str, level: int, wanted: int | None) -> int:
        """Length of the lists of a level, as the first row says."""
        measured = self._planner.measure(f"cast(size({sql}) as bigint)")
        if not self._planner.has_measured:
            if wanted is None:
                self._planner.unknown.append(self._label)
            return wanted or 1
        if level == 0 and self._is_null(measured) and wanted is None:
            raise self._error(f"is null in the first row: say its length by {self._shape_advice()}")
        if wanted is None:
            if not measured or measured < 0:
                raise self._error(
                    f"is an empty array in the first row: say its length by {self._shape_advice()}"
                )
            return int(measured)
        if measured is not None and measured >= 0 and measured != wanted:
            raise self._error(
                f"has {measured} elements in the first row, but shapes= says {self._shape!r}, "
                f"which is {wanted}: every row must have the same length (or None for a ragged one)"
            )
        return wanted

    def _is_null(self, measured: int | None) -> bool:
        if measured is not None and measured >= 0:
            return False
        if not self._may_be_null:
            raise self._error(
                "is null in the first row: nulls cannot be fed; drop such rows (df.na.drop), fill "
                f"them (fill={{{self._label!r}: …}}) or let a mask say so (mask=[{self._label!r}])"
            )
        return True

    def _shape_advice(self) -> str:
        return f"shapes={{{self._label!r}: (…,)}}, or (None,) if it varies"

    def _checked_shape(
        self, shape: Any, *, rank: int | None = None, ragged: bool = False
    ) -> tuple[int, ...]:
        if isinstance(shape, int):
            shape = (shape,)
        try:
            checked = tuple(VARIABLE if n is None and ragged else int(n) for n in shape)
        except (TypeError, ValueError):
            raise self._error(f"has {shape!r}, which is not a shape") from None
        if any(n < 1 and not (n == VARIABLE and ragged) for n in checked):
            raise self._error(f"has shape {tuple(shape)} with a dimension below 1")
        if rank is not None and len(checked) != rank:
            raise self._error(f"has shape {tuple(shape)}: it wants {rank} dimensions")
        return checked

    def _refuse_cast(self, what: str) -> None:
        if self._cast:
            raise self._error(f"cannot be cast: {what} stays as it is; cast the tensor")

    def _refuse_options(self, advice: str) -> None:
        for option, name in self._planner.options.named():
            if name == self._label:
                raise self._error(f"{advice} {option}= of '{name}.<field>'")

    def _sql(self) -> str:
        return ".".join(quote(name) for name in self._path)

    def _name(self) -> str:
        return str(self._type.simpleString())

    def _error(self, message: str) -> InvalidArgumentError:
        return InvalidArgumentError(f"{self._context} {message}")

    def _advice(self, element: Any) -> str:
        kind = element.typeName()
        if element is not self._type and kind == "struct":
            return f"select its fields: `{self._label}.<field>` is an array of each"
        return {
            "map": f"select the values that you need: {self._label}['key'] as a column, or "
            f"map_values({self._label})",
            "void": "it holds only nulls: leave it out by columns=",
        }.get(kind, "cast it to a number or string, or leave it out by columns=")
