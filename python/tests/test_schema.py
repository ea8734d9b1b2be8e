# SPDX-License-Identifier: Apache-2.0
"""Schema: which Spark columns can be fed, as what, and the advice for those that cannot."""

from __future__ import annotations

import pytest

pytest.importorskip("pyspark")
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import types as t

from arcflow import errors, schema


def plans(spark_type, measured=None, **options):
    """The plan of one column x; `measured` in the order in which things are asked."""
    fields = t.StructType([t.StructField("x", spark_type)])
    options = schema.Options(**options)
    planned = schema.plan_columns(fields, ["x"], options, where="feed 'train': ")
    if measured is None:
        return planned
    answers = dict(zip(planned.asked, measured, strict=True))
    return schema.plan_columns(fields, ["x"], options, measured=answers, where="feed 'train': ")


def plan(spark_type, measured=None, **options):
    return plans(spark_type, measured, **options).columns[0]


@pytest.mark.parametrize(
    ("spark_type", "dtype"),
    [
        (t.BooleanType(), "bool"),
        (t.ByteType(), "int8"),
        (t.ShortType(), "int16"),
        (t.IntegerType(), "int32"),
        (t.LongType(), "int64"),
        (t.FloatType(), "float32"),
        (t.DoubleType(), "float64"),
        (t.DateType(), "int32"),
        (t.TimestampType(), "int64"),
        (t.TimestampNTZType(), "int64"),
        (t.StringType(), "string"),
        (t.CharType(3), "string"),
        (t.VarcharType(3), "string"),
        (t.BinaryType(), "string"),
    ],
)
def test_scalars_become_scalars_of_their_own_width(spark_type, dtype):
    assert plan(spark_type).to_json() == {
        "name": "x",
        "dtype": dtype,
        "source": "scalar",
        "shape": [],
    }


@pytest.mark.parametrize(
    ("element", "dtype"),
    [(t.FloatType(), "float32"), (t.LongType(), "int64"), (t.BooleanType(), "bool")],
)
def test_arrays_become_dense_rows_of_the_length_of_the_first(element, dtype):
    planned = plans(t.ArrayType(element))
    assert planned.asked == ["cast(size(`x`) as bigint)"]
    assert planned.unknown == ["x"]
    settled = plan(t.ArrayType(element), [784])
    assert settled.to_json() == {"name": "x", "dtype": dtype, "source": "list", "shape": [784]}


def test_shapes_fold_an_array_and_are_checked_against_the_first_row():
    folded = {"shapes": {"x": (28, 28)}}
    assert plan(t.ArrayType(t.FloatType()), [784], **folded).shape == (28, 28)
    with pytest.raises(errors.InvalidArgumentError, match=r"has 783 elements .* shapes= says"):
        plan(t.ArrayType(t.FloatType()), [783], **folded)


def test_raw_binary_becomes_dense_and_is_checked_against_the_first_row():
    raw = {"raw": {"x": ("float32", (28, 28))}}
    assert plans(t.BinaryType(), **raw).asked == ["cast(octet_length(`x`) as bigint)"]
    assert plan(t.BinaryType(), [3136], **raw).to_json() == {
        "name": "x",
        "dtype": "float32",
        "source": "raw",
        "shape": [28, 28],
    }
    with pytest.raises(errors.InvalidArgumentError, match=r"holds 784 bytes .* is 3136 bytes"):
        plan(t.BinaryType(), [784], **raw)


def test_arrays_of_arrays_are_dense_when_each_level_has_its_length():
    nested = t.ArrayType(t.ArrayType(t.FloatType()))
    assert plans(nested).asked == [
        "cast(size(`x`) as bigint)",
        "cast(size(get(`x`, 0)) as bigint)",
    ]
    column = plan(nested, [3, 4])
    assert (column.shape, column.levels) == ((3, 4), (3, 4))
    column = plan(nested, [3, 4], shapes={"x": (3, 2, 2)})
    assert (column.shape, column.levels) == ((3, 2, 2), (3, 4))


def test_arrays_whose_length_varies_are_ragged():
    planned = plans(t.ArrayType(t.ArrayType(t.FloatType())), shapes={"x": (None, None)})
    assert planned.values == [
        {"name": "x", "kind": "ragged", "lengths": ["x/lengths1"], "part": "x"}
    ]
    values, lengths = planned.columns
    assert (values.levels, values.shape) == ((-1, -1), ())
    assert (lengths.source, lengths.levels, lengths.path) == ("lengths", (-1,), ("x",))
    column = plan(t.ArrayType(t.ArrayType(t.FloatType())), shapes={"x": (None, 8)})
    assert (column.levels, column.shape) == ((-1, 8), (8,))


def test_structs_are_dicts_and_options_reach_into_them():
    point = t.StructType(
        [t.StructField("a", t.LongType()), t.StructField("b", t.ArrayType(t.DoubleType()))]
    )
    planned = plans(point, [2], cast={"x.a": "int32"}, fill={"x.b": 0.5}, mask=["x.b"])
    assert planned.values == [
        {
            "name": "x",
            "kind": "dict",
            "fields": [
                {"name": "a", "kind": "dense", "part": "x.a"},
                {"name": "b", "kind": "dense", "part": "x.b"},
                {"name": "b_mask", "kind": "dense", "part": "x.b_mask"},
            ],
        }
    ]
    a, b, mask = (column.to_json() for column in planned.columns)
    assert (a["dtype"], a["from"], a["path"]) == ("int32", "int64", ["x", "a"])
    assert (b["fill"], b["shape"], mask["source"], mask["levels"]) == (0.5, [2], "mask", [2])


def test_a_field_does_not_take_the_name_of_a_column():
    fields = t.StructType(
        [
            t.StructField("x", t.StructType([t.StructField("y", t.LongType())])),
            t.StructField("x.y", t.FloatType()),
        ]
    )
    planned = schema.plan_columns(fields, ["x", "x.y"], schema.Options(cast={"x/y": "int8"}))
    assert [(c.name, c.dtype) for c in planned.columns] == [("x.y'", "int8"), ("x.y", "float32")]
    assert schema.inputs(planned.to_json()) == ["x", "x.y"]


def test_vectors_are_as_the_first_row_or_as_said():
    from pyspark.ml.linalg import Vectors

    assert plans(VectorUDT()).unknown == ["x"]
    dense = plan(VectorUDT(), [Vectors.dense([1, 2, 3])], cast={"x": "float32"})
    assert (dense.source, dense.shape, dense.dtype, dense.cast_from) == (
        "vector",
        (3,),
        "float32",
        "float64",
    )
    sparse = plans(VectorUDT(), [Vectors.sparse(9, [1], [1.0])])
    assert sparse.values[0]["kind"] == "sparse"
    assert sparse.values[0]["size"] == 9
    said = plans(VectorUDT(), shapes={"x": (5,)}, vectors={"x": "dense"})
    assert said.unknown == []
    assert said.columns[0].shape == (5,)
    with pytest.raises(errors.InvalidArgumentError, match=r"null in the first row.*vectors="):
        plan(VectorUDT(), [None])


def test_decimals_need_no_cast_only_where_doubles_are_exact():
    exact = plan(t.DecimalType(15, 2))
    assert (exact.dtype, exact.decimal) == ("float64", 2)
    with pytest.raises(errors.InvalidArgumentError, match=r"cast=.*'float64'.*'scaled'.*'string'"):
        plan(t.DecimalType(16, 2))
    assert plan(t.DecimalType(38, 2), cast={"x": "scaled"}).dtype == "int64"
    assert plan(t.DecimalType(38, 2), cast={"x": "string"}).dtype == "string"


@pytest.mark.parametrize(
    ("spark_type", "options", "message"),
    [
        (t.MapType(t.StringType(), t.IntegerType()), {}, r"x\['key'\]"),
        (
            t.ArrayType(t.StructType([t.StructField("a", t.LongType())])),
            {},
            r"`x\.<field>` is an array of each",
        ),
        (t.NullType(), {}, "only nulls"),
        (t.DayTimeIntervalType(), {}, "leave it out"),
        (t.DoubleType(), {"cast": {"x": "int32"}}, "cannot be cast to int32; round it"),
        (t.LongType(), {"cast": {"x": "bool"}}, "cannot be cast to bool"),
        (t.StringType(), {"cast": {"x": "int32"}}, "strings cannot be cast"),
        (t.DecimalType(5, 1), {"cast": {"x": "int8"}}, "cast= of a decimal is one of"),
        (t.LongType(), {"fill": {"x": 1.5}}, "fill= 1.5, which is no int64"),
        (t.ArrayType(t.StringType()), {"fill": {"x": "?"}}, "can only become ''"),
        (t.ArrayType(t.LongType()), {"shapes": {"x": (None, 3)}}, "none left for the rest"),
        (
            t.ArrayType(t.ArrayType(t.LongType())),
            {"shapes": {"x": (3, None)}},
            "None can only stand first",
        ),
        (t.ArrayType(t.ArrayType(t.LongType())), {"shapes": {"x": (3,)}}, "fewer than 2"),
        (t.LongType(), {"vectors": {"x": "dense"}}, "vectors= is for vectors"),
        (VectorUDT(), {"vectors": {"x": "thin"}}, "'dense' or 'sparse'"),
        (
            t.StructType([t.StructField("a", t.LongType())]),
            {"mask": ["x"]},
            r"name its fields, such as mask= of 'x.<field>'",
        ),
        (t.LongType(), {"mask": ["x.a"]}, r"mask names 'x\.a', but"),
    ],
)
def test_what_cannot_be_is_refused_with_feed_column_and_advice(spark_type, options, message):
    with pytest.raises(errors.InvalidArgumentError, match=message) as caught:
        plan(spark_type, **options)
    assert str(caught.value).startswith("feed 'train': ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shapes": {"y": (1,)}}, "shapes names 'y', but the DataFrame has x"),
        ({"shapes": {"x": (0,)}}, "dimension below 1"),
        ({"shapes": {"x": "wide"}}, "is not a shape"),
        ({"raw": {"x": ("float32", (2,))}}, "raw= is for binary columns only"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        plan(t.ArrayType(t.FloatType()), **options)


def test_a_scalar_has_no_shape():
    with pytest.raises(errors.InvalidArgumentError, match="only array columns can have a shape"):
        plan(t.IntegerType(), shapes={"x": (2,)})


@pytest.mark.parametrize("spec", ["float32", ("float99", (2,)), (None,), 7])
def test_raw_wants_dtype_and_shape(spec):
    with pytest.raises(errors.InvalidArgumentError, match="it wants"):
        plan(t.BinaryType(), raw={"x": spec})


def test_raw_refuses_types_that_tensors_of_a_feed_do_not_have():
    with pytest.raises(errors.InvalidArgumentError, match="raw= of complex64"):
        plan(t.BinaryType(), raw={"x": ("complex64", (2,))})


def test_null_in_the_first_row_is_refused_with_advice():
    with pytest.raises(errors.InvalidArgumentError, match=r"null in the first row.*drop"):
        plan(t.ArrayType(t.FloatType()), [None])
    with pytest.raises(errors.InvalidArgumentError, match="null in the first row"):
        plan(t.ArrayType(t.FloatType()), [-1])  # size(null) without ANSI mode
    with pytest.raises(errors.InvalidArgumentError, match="say its length"):
        plan(t.ArrayType(t.FloatType()), [None], mask=["x"])


def test_empty_array_in_the_first_row_asks_for_a_shape():
    with pytest.raises(errors.InvalidArgumentError, match="empty array in the first row"):
        plan(t.ArrayType(t.FloatType()), [0])


def test_a_column_twice_is_refused():
    fields = t.StructType(
        [t.StructField("x", t.IntegerType()), t.StructField("x", t.IntegerType())]
    )
    with pytest.raises(errors.InvalidArgumentError, match="there twice"):
        schema.plan_columns(fields, ["x"])


def test_names_are_quoted_for_sql():
    assert schema.quote("a`b c") == "`a``b c`"
