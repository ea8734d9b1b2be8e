# SPDX-License-Identifier: Apache-2.0
"""Feeds: the probe of the first row, and what a Feed refuses, on a real session."""

from __future__ import annotations

import pytest
from spark_testing import marks

from arcflow import Feed, errors, feed

pytestmark = marks("local")


@pytest.fixture(scope="module")
def df(spark):
    return spark.range(0, 100, 1, 4).selectExpr(
        "id", "array(cast(id as float), cast(2 as float)) as `x.y`", "cast('abcd' as binary) as b"
    )


def test_probe_settles_the_length_of_arrays_even_with_odd_names(df):
    planned = Feed(df).plan("train")
    columns = planned.schema["columns"]
    assert [(c["name"], c["dtype"], c["source"], c["shape"]) for c in columns] == [
        ("id", "int64", "scalar", []),
        ("x.y", "float32", "list", [2]),
        ("b", "string", "scalar", []),
    ]
    assert planned.frame is df


def test_columns_choose_and_order(df):
    planned = Feed(df, columns=["x.y", "id"], cache="none").plan("train")
    assert planned.frame.columns == ["x.y", "id"]
    assert planned.to_json()["cache"] == "none"
    assert Feed(df, cache=None).cache == "none"
    assert [c["name"] for c in planned.to_json()["schema"]["columns"]] == ["x.y", "id"]


def test_raw_binary_is_checked_on_the_first_row(df):
    planned = Feed(df, columns=["b"], raw={"b": ("uint8", (2, 2))}).plan("train")
    assert planned.schema["columns"][0]["shape"] == [2, 2]
    with pytest.raises(errors.InvalidArgumentError, match="feed 'train': column 'b' holds 4 bytes"):
        Feed(df, columns=["b"], raw={"b": ("float32", (2,))}).plan("train")


def test_empty_data_is_refused_and_names_the_feed(df):
    with pytest.raises(errors.InvalidArgumentError, match=r"feed 'validation': .* has no rows"):
        feed.plan_feeds({"validation": df.where("id < 0")})


def test_without_probe_nothing_runs_and_arrays_need_shapes(df):
    with pytest.raises(errors.InvalidArgumentError, match="probe=False"):
        Feed(df, probe=False).plan("train")
    planned = Feed(df.where("raise_error('ran') is null"), shapes={"x.y": (2,)}, probe=False)
    assert planned.plan("train").schema["columns"][1]["shape"] == [2]


def test_null_in_the_first_row_is_refused(spark):
    nulls = spark.sql("select cast(null as array<float>) as x")
    with pytest.raises(errors.InvalidArgumentError, match="column 'x' is null in the first row"):
        Feed(nulls).plan("train")


def test_one_dataframe_is_the_feed_train(df):
    assert [f.name for f in feed.plan_feeds(df)] == ["train"]
    assert [f.name for f in feed.plan_feeds(Feed(df))] == ["train"]
    assert feed.plan_feeds(None) == []


@pytest.mark.parametrize("name", ["", 7, "a\nb", "x" * 200])
def test_strange_names_of_feeds_are_refused(df, name):
    with pytest.raises(errors.InvalidArgumentError, match="not a name for a feed"):
        feed.plan_feeds({name: df})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"columns": ["nope"]}, "columns names 'nope', but the DataFrame has id, x.y, b"),
        ({"columns": []}, "no column to feed"),
        ({"cache": "ram"}, "cache='ram' is not one of"),
        ({"mask": "id"}, r"mask=\['id'\]"),
        ({"columns": "id"}, r"columns=\['id'\]"),
        ({"columns": ["id"], "shapes": {"x.y": (2,)}}, "which is not in columns"),
    ],
)
def test_wrong_options_are_refused(df, options, message):
    with pytest.raises(errors.InvalidArgumentError, match=message):
        Feed(df, **options).plan("train")


def test_what_is_no_dataframe_is_refused_with_advice(df, spark):
    pandas = pytest.importorskip("pandas")
    with pytest.raises(errors.InvalidArgumentError, match=r"spark\.createDataFrame"):
        Feed(pandas.DataFrame({"a": [1]}))
    with pytest.raises(
        errors.InvalidArgumentError, match=r"needs a Spark DataFrame, not builtins.list"
    ):
        Feed([1, 2])
    stream = spark.readStream.format("rate").load()
    with pytest.raises(errors.InvalidArgumentError, match="streaming"):
        Feed(stream)
