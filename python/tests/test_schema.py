# SPDX-License-Identifier: Apache-2.0
"""Schema: which Spark columns can be fed, as what, and the advice for those that cannot."""

from __future__ import annotations

import pytest

pytest.importorskip("pyspark")
from pyspark.ml.linalg import VectorUDT
from pyspark.sql import types as t

from arcflow import errors, schema


def plan(spark_type, **options):
    fields = t.StructType([t.StructField("x", spark_type)])
    return schema.plan_columns(fields, ["x"], where="feed 'train': ", **options)[0]


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
    column = plan(t.ArrayType(element))
    assert schema.probe_expression(column) == "cast(size(`x`) as bigint)"
    settled = schema.settle(column, 784)
    assert settled.to_json() == {"name": "x", "dtype": dtype, "source": "list", "shape": [784]}


def test_shapes_fold_an_array_and_are_checked_against_the_first_row():
    column = plan(t.ArrayType(t.FloatType()), shapes={"x": (28, 28)})
    assert schema.settle(column, 784).shape == (28, 28)
    with pytest.raises(errors.InvalidArgumentError, match=r"has 783 elements .* shapes= says"):
        schema.settle(column, 783)


def test_raw_binary_becomes_dense_and_is_checked_against_the_first_row():
    column = plan(t.BinaryType(), raw={"x": ("float32", (28, 28))})
    assert schema.probe_expression(column) == "cast(octet_length(`x`) as bigint)"
    assert schema.settle(column, 3136).to_json() == {
        "name": "x",
        "dtype": "float32",
        "source": "raw",
        "shape": [28, 28],
    }
    with pytest.raises(errors.InvalidArgumentError, match=r"holds 784 bytes .* is 3136 bytes"):
        schema.settle(column, 784)


@pytest.mark.parametrize(
    ("spark_type", "advice"),
    [
        (t.DecimalType(10, 2), "cast"),
        (t.StructType([t.StructField("a", t.IntegerType())]), r"select\('x\.\*'\)"),
        (t.MapType(t.StringType(), t.IntegerType()), r"x\['key'\]"),
        (VectorUDT(), "vector_to_array"),
        (t.ArrayType(t.ArrayType(t.FloatType())), "flatten"),
        (t.ArrayType(t.StringType()), "one column of each element"),
        (t.ArrayType(t.DecimalType(4, 1)), "transform"),
        (t.DayTimeIntervalType(), "leave it out"),
    ],
)
def test_other_types_are_refused_with_feed_column_type_and_advice(spark_type, advice):
    with pytest.raises(errors.InvalidArgumentError, match=advice) as caught:
        plan(spark_type)
    assert str(caught.value).startswith("feed 'train': column 'x' is ")


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
    with pytest.raises(errors.InvalidArgumentError, match="raw= wants"):
        plan(t.BinaryType(), raw={"x": spec})


def test_raw_refuses_types_that_tensors_of_a_feed_do_not_have():
    with pytest.raises(errors.InvalidArgumentError, match="raw= cannot hold complex64"):
        plan(t.BinaryType(), raw={"x": ("complex64", (2,))})


def test_null_in_the_first_row_is_refused_with_advice():
    column = plan(t.ArrayType(t.FloatType()))
    with pytest.raises(errors.InvalidArgumentError, match=r"null in the first row.*drop"):
        schema.settle(column, None)
    with pytest.raises(errors.InvalidArgumentError, match="null in the first row"):
        schema.settle(column, -1)  # size(null) without ANSI mode


def test_empty_array_in_the_first_row_asks_for_a_shape():
    with pytest.raises(errors.InvalidArgumentError, match="empty array in the first row"):
        schema.settle(plan(t.ArrayType(t.FloatType())), 0)


def test_a_column_twice_is_refused():
    fields = t.StructType(
        [t.StructField("x", t.IntegerType()), t.StructField("x", t.IntegerType())]
    )
    with pytest.raises(errors.InvalidArgumentError, match="there twice"):
        schema.plan_columns(fields, ["x"])


def test_names_are_quoted_for_sql():
    assert schema.quote("a`b c") == "`a``b c`"
