# SPDX-License-Identifier: Apache-2.0
"""Every Spark type through real Spark into real TensorFlow and NumPy; and input that is wrong."""

from __future__ import annotations

import datetime
import sys

import cloudpickle
import pytest
from spark_testing import on

from arcflow import Cluster, Feed, errors

pytestmark = pytest.mark.usefixtures("leftovers")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests

ROWS = 7
# Value of each column in row `id`, as a list; `n` is id as Python's int.
EXPECTED = {
    "flag": lambda n: n % 2 == 0,
    "tiny": lambda n: n - 3,
    "small": lambda n: n * 300,
    "whole": lambda n: n * 70000,
    "big": lambda n: n * 5000000000,
    "real": lambda n: n + 0.5,
    "double": lambda n: n + 0.25,
    "day": lambda n: 18262 + n,
    "at": lambda n: n * 1000000,
    "at_ntz": lambda n: n * 1000000,
    "price": lambda n: n + 0.75,
    "price_scaled": lambda n: n * 100 + 75,
    "price_text": lambda n: f"{n}.75".encode(),
    "text": lambda n: f"grün {n}".encode(),
    "blob": lambda n: bytes([0, 255]),
    "packed": lambda n: [1, 2, 3, 4],
    "ints": lambda n: [n, n + 1, n + 2],
    "grid": lambda n: [[n, 1.5], [2.5, 3.5]],
    "cells": lambda n: [[n, 1], [2, 3]],
    "days": lambda n: [18262, 18262 + n],
    "prices": lambda n: [n + 0.5, 2.5],
    "flags": lambda n: [n % 2 == 0, True],
    "words": lambda n: [b"a", f"w{n}".encode()],
    "narrow": lambda n: n + 0.25,
    "less": lambda n: n,
    "pixel": lambda n: [n, 255 - n],
    "yes": lambda n: float(n % 2 == 0),
    "ragged": lambda n: list(range(n % 4)),
    "ragged_flags": lambda n: [i % 2 == 0 for i in range(n % 4)],
    "ragged_cast": lambda n: [float(i) for i in range(n % 4)],
    "tokens": lambda n: [f"t{i}".encode() for i in range(n % 4)],
    "nested": lambda n: [list(range(i)) for i in range(n % 3)],
    "nested_text": lambda n: [[b"x" * j for j in range(i)] for i in range(n % 3)],
    "vectors": lambda n: [[float(i), -1.0] for i in range(n % 3)],
    "filled": lambda n: -1 if n % 3 == 0 else n,
    "filled_text": lambda n: b"none" if n % 3 == 0 else f"{n}".encode(),
    "filled_ints": lambda n: [9, 9] if n % 3 == 0 else [n, 9 if n % 2 else 1],
    "masked": lambda n: 0.0 if n % 3 == 0 else n + 0.5,
    "masked_mask": lambda n: n % 3 != 0,
    "masked_array": lambda n: [0, 0] if n % 3 == 0 else [n, 0 if n % 2 else 1],
    "masked_array_mask": lambda n: [n % 3 != 0, n % 3 != 0 and n % 2 == 0],
    "filled_ragged": lambda n: [] if n % 3 == 0 else [n, -1],
    "masked_ragged": lambda n: [] if n % 3 == 0 else [n, 0],
    "masked_ragged_mask": lambda n: [] if n % 3 == 0 else [True, False],
    "point": lambda n: {
        "x": n + 0.5,
        "y": [n, 2],
        "inner": {"tag": f"p{n}".encode(), "bag": list(range(n % 3))},
    },
    "dense_vector": lambda n: [n, 1.0, 2.0],
    "mixed_vector": lambda n: [n, 1.0, 2.0] if n % 2 else [0.0, 0.0, n],
    "sparse_vector": lambda n: [n, 1.0, 2.0] if n % 2 else [0.0, 0.0, n],
    "image": lambda n: [[[n, 1, 2], [3, 4, 5]]],
}


def every_type(spark):
    from pyspark.ml.linalg import Vectors, VectorUDT
    from pyspark.sql import functions as f

    @f.udf(VectorUDT())
    def dense(n):
        return Vectors.dense([n, 1.0, 2.0])

    @f.udf(VectorUDT())
    def mixed(n):
        return Vectors.dense([n, 1.0, 2.0]) if n % 2 else Vectors.sparse(3, [2], [float(n)])

    frame = spark.range(0, ROWS, 1, 1).selectExpr(
        "id",
        "id % 2 = 0 as flag",
        "tinyint(id - 3) as tiny",
        "smallint(id * 300) as small",
        "int(id * 70000) as whole",
        "id * 5000000000 as big",
        "float(id + 0.5) as real",
        "double(id + 0.25) as double",
        "date_add(date'2020-01-01', int(id)) as day",
        "timestamp_micros(id * 1000000) as at",
        "cast(timestamp_micros(id * 1000000) as timestamp_ntz) as at_ntz",
        "cast(id + 0.75 as decimal(10, 2)) as price",
        "cast(id + 0.75 as decimal(30, 2)) as price_scaled",
        "cast(id + 0.75 as decimal(38, 2)) as price_text",
        "concat('grün ', id) as text",
        "X'00FF' as blob",
        "X'0100020003000400' as packed",
        "array(int(id), int(id + 1), int(id + 2)) as ints",
        "array(array(float(id), 1.5f), array(2.5f, 3.5f)) as grid",
        "array(int(id), 1, 2, 3) as cells",
        "array(date'2020-01-01', date_add(date'2020-01-01', int(id))) as days",
        "array(cast(id + 0.5 as decimal(10, 1)), cast(2.5 as decimal(10, 1))) as prices",
        "array(id % 2 = 0, true) as flags",
        "array('a', concat('w', id)) as words",
        "double(id + 0.25) as narrow",
        "id as less",
        "array(int(id), int(255 - id)) as pixel",
        "id % 2 = 0 as yes",
        "if(id % 4 = 0, array(), sequence(0, int(id % 4) - 1)) as ragged",
        "transform(if(id % 4 = 0, array(), sequence(0, int(id % 4) - 1)), i -> i % 2 = 0) as ragged_flags",
        "transform(if(id % 4 = 0, array(), sequence(0, int(id % 4) - 1)), i -> double(i)) as ragged_cast",
        "transform(if(id % 4 = 0, array(), sequence(0, int(id % 4) - 1)), i -> concat('t', i)) as tokens",
        """transform(if(id % 3 = 0, array(), sequence(0, int(id % 3) - 1)),
                     i -> if(i = 0, array(), sequence(0, i - 1))) as nested""",
        """transform(if(id % 3 = 0, array(), sequence(0, int(id % 3) - 1)),
                     i -> transform(if(i = 0, array(), sequence(0, i - 1)), j -> repeat('x', j))) as nested_text""",
        """transform(if(id % 3 = 0, array(), sequence(0, int(id % 3) - 1)),
                     i -> array(float(i), -1f)) as vectors""",
        "if(id % 3 = 0, null, id) as filled",
        "if(id % 3 = 0, null, string(id)) as filled_text",
        "if(id % 3 = 0, null, array(id, if(id % 2 = 0, 1L, null))) as filled_ints",
        "if(id % 3 = 0, null, float(id + 0.5)) as masked",
        "if(id % 3 = 0, null, array(id, if(id % 2 = 0, 1L, null))) as masked_array",
        "if(id % 3 = 0, null, array(id, null)) as filled_ragged",
        "if(id % 3 = 0, null, array(id, null)) as masked_ragged",
        """named_struct('x', double(id + 0.5), 'y', array(id, 2L), 'inner',
             named_struct('tag', concat('p', id), 'bag',
                          if(id % 3 = 0, array(), sequence(0, int(id % 3) - 1)))) as point""",
        """named_struct('origin', '', 'height', 1, 'width', 2, 'nChannels', 3, 'mode', 16, 'data',
                        unhex(concat(lpad(hex(id), 2, '0'), '0102030405'))) as image""",
    )
    return frame.select(
        "*",
        dense("id").alias("dense_vector"),
        mixed("id").alias("mixed_vector"),
        mixed("id").alias("sparse_vector"),
    )


def every_type_feed(spark):
    return Feed(
        every_type(spark),
        shapes={
            "cells": (2, 2),
            "ragged": (None,),
            "ragged_flags": (None,),
            "ragged_cast": (None,),
            "tokens": (None,),
            "nested": (None, None),
            "nested_text": (None, None),
            "vectors": (None, 2),
            "filled_ints": (2,),
            "masked_array": (2,),
            "filled_ragged": (None,),
            "masked_ragged": (None,),
            "point.inner.bag": (None,),
        },
        raw={"packed": ("int16", (4,))},
        cast={
            "price_scaled": "scaled",
            "price_text": "string",
            "narrow": "float32",
            "less": "int32",
            "pixel": "uint8",
            "yes": "float32",
            "ragged_cast": "float32",
            "point.y": "int32",
        },
        fill={"filled": -1, "filled_text": "none", "filled_ints": 9, "filled_ragged": -1},
        mask=["masked", "masked_array", "masked_ragged"],
        vectors={"mixed_vector": "dense"},
    )


def plain(value):
    """Nested lists of one batch's value, of NumPy or TensorFlow."""
    if isinstance(value, dict):
        return {k: plain(v) for k, v in value.items()}
    for method in ("to_list", "to_dense"):
        if hasattr(value, method) and not hasattr(value, "flat_values"):
            value = getattr(value, method)()
    if hasattr(value, "dense_shape"):
        import tensorflow as tf

        value = tf.sparse.to_dense(value)
    if hasattr(value, "numpy") and not hasattr(value, "flat_values"):
        value = value.numpy()
    return (
        value
        if isinstance(value, list)
        else value.to_list()
        if hasattr(value, "to_list")
        else value.tolist()
    )


def row_of(batch, i):
    return {k: row_of(v, i) if isinstance(v, dict) else v[i] for k, v in batch.items()}


def read_every_type(ctx):
    """Rows as NumPy and as TensorFlow read them, and the specs of the dataset."""
    rows, padded = [], []
    for columns, padding in ctx.reader("train", 4, remainder="pad"):
        batch = plain(columns)
        rows += [row_of(batch, i) for i in range(4 - padding)]
        padded += [row_of(batch, i) for i in range(4 - padding, 4)]
    dataset = ctx.dataset("train", 4, label=False, remainder="pad")
    tensors, dtypes = [], {}
    for element in dataset:
        weights = element.pop("sample_weight").numpy().tolist()
        batch = plain(element)
        dtypes = {k: v.dtype.name for k, v in element.items() if hasattr(v, "dtype")}
        tensors += [row_of(batch, i) for i in range(len(weights)) if weights[i]]
    shuffled = [[], []]
    for columns, padding in ctx.reader("train", 4, shuffle=3):
        shuffled[0] += [row_of(plain(columns), i) for i in range(4 - padding)]
    for element in ctx.dataset("train", 4, label=False, shuffle=3):
        weights = element.pop("sample_weight").numpy().tolist()
        shuffled[1] += [row_of(plain(element), i) for i in range(len(weights)) if weights[i]]
    import tensorflow as tf

    from arcflow.tf import make_dataset

    two = make_dataset("train", 4, schema=ctx._schemas["train"], label=False, size=2)
    *_, last = list(two)
    assert last.pop("sample_weight").numpy().tolist() == [1, 1, 1, 0]
    dropped = ctx.dataset("train", 4, label=False, remainder="drop")
    (dropped,) = list(dropped)
    specs = {k: type(v).__name__ for k, v in dataset.element_spec.items()}
    as_graph = tf.function(lambda x: x["ragged"].row_lengths())(dropped).numpy().tolist()
    return {
        "rows": rows,
        "padded": padded,
        "padded_tensors": [row_of(plain(last), 3)],
        "tensors": tensors,
        "shuffled": shuffled,
        "dtypes": dtypes,
        "specs": specs,
        "dropped": row_of(plain(dropped), 3),
        "as_graph": as_graph,
        "feeds": {f["name"]: f for f in ctx.feeds["train"]},
    }


@on("local")
class TestEveryType:
    @pytest.fixture(scope="class")
    def found(self, spark):
        with Cluster(spark, size=1, progress=False) as cluster:
            return cluster.run(read_every_type, data=every_type_feed(spark)).values[0]

    @pytest.mark.parametrize("column", EXPECTED)
    def test_each_type_arrives_in_numpy_and_in_tensorflow(self, found, column):
        expected = [EXPECTED[column](n) for n in range(ROWS)]
        assert [row[column] for row in found["rows"]] == expected
        assert [row[column] for row in found["tensors"]] == expected
        assert found["dropped"][column] == expected[3]

    def test_shuffled_rows_of_every_type_stay_whole(self, found):
        numpy, tensors = found["shuffled"]
        assert numpy == tensors != found["rows"]
        assert sorted(numpy, key=lambda row: row["id"]) == found["rows"]

    def test_padding_repeats_the_last_row_of_every_type(self, found):
        assert found["padded"] == [found["rows"][-1]]
        assert found["padded_tensors"] == [found["rows"][-1]]

    def test_casts_and_widths_are_those_of_the_guide(self, found):
        wanted = {
            "flag": "bool", "tiny": "int8", "small": "int16", "whole": "int32", "big": "int64",
            "real": "float32", "double": "float64", "day": "int32", "at": "int64",
            "price": "float64", "price_scaled": "int64", "price_text": "string", "text": "string",
            "narrow": "float32", "less": "int32", "pixel": "uint8", "yes": "float32",
            "ragged": "int32", "ragged_cast": "float32", "masked_mask": "bool", "image": "uint8",
            "dense_vector": "float64", "sparse_vector": "float64", "tokens": "string",
        }  # fmt: skip
        assert {name: found["dtypes"][name] for name in wanted} == wanted

    def test_what_is_not_rectangular_is_ragged_or_sparse(self, found):
        specs = found["specs"]
        for name in ("ragged", "tokens", "nested", "nested_text", "vectors", "masked_ragged_mask"):
            assert specs[name] == "RaggedTensorSpec"
        assert specs["sparse_vector"] == "SparseTensorSpec"
        assert specs["grid"] == specs["mixed_vector"] == "TensorSpec"
        assert found["as_graph"] == [0, 1, 2, 3]
        assert found["feeds"]["point"]["kind"] == "dict"
        assert found["feeds"]["grid"]["shape"] == [2, 2]


def read_ids(ctx):
    return [i for c, _ in ctx.reader("train", 4, remainder="partial") for i in c["id"].tolist()]


@on("local")
class TestBadInput:
    @pytest.fixture
    def run(self, spark):
        def run(feed):
            with Cluster(spark, size=1, progress=False) as cluster:
                return cluster.run(read_ids, data=feed).values[0]

        return run

    @pytest.mark.parametrize(
        ("expression", "options", "message"),
        [
            ("if(id = 5, null, id)", {}, "column 'x': 1 null"),
            ("if(id = 5, array(1), array(1, 2))", {}, "column 'x': row 5: 1 values"),
            ("if(id = 5, 3000000000, id)", {"cast": {"x": "int32"}}, "row 5: 3000000000 is out"),
            ("if(id = 5, array(1, null), array(1, 2))", {}, "list values: 1 null"),
            (
                "if(id = 5, array(array(1), array(1, 2)), array(array(1), array(1)))",
                {},
                "list values: row 11: 2 values",
            ),
            (
                "named_struct('origin', '', 'height', if(id = 5, 2, 1), 'width', if(id = 5, 1, 2), "
                "'nChannels', 1, 'mode', 0, 'data', X'0102')",
                {},
                "'height': row 5: is 2, must be 1",
            ),
        ],
    )
    def test_rows_that_do_not_fit_fail_the_run_with_column_and_row(
        self, spark, run, expression, options, message
    ):
        df = spark.range(0, 8, 1, 1).selectExpr("id", f"{expression} as x")
        with pytest.raises(errors.ArcflowError, match=message):
            run(Feed(df, **options))

    def test_a_value_of_another_type_than_the_plan_said_is_named(self, spark, run):
        feed = Feed(spark.range(0, 8, 1, 1).selectExpr("id", "id as x"))
        other = spark.range(0, 8, 1, 1).selectExpr("id", "string(id) as x")
        planned = feed.plan

        def replaced(name):
            import dataclasses

            return dataclasses.replace(planned(name), frame=other)

        feed.plan = replaced
        with pytest.raises(errors.ArcflowError, match="column 'x': expected int64, found string"):
            run(feed)
        other = spark.range(0, 8, 1, 1).selectExpr("id", "id as y")
        with pytest.raises(errors.ArcflowError, match="column 'x': missing; the batch has"):
            run(feed)

    def test_a_feed_whose_rows_are_all_gone_when_it_runs_is_empty(self, spark, run):
        df = spark.range(0, 8, 1, 1).where("id > 100")
        assert run(Feed(df, probe=False)) == []


def test_fill_of_dates_and_times():
    from arcflow import _fill

    assert _fill.to_json(datetime.date(1970, 1, 3), "int32") == 2
    assert _fill.to_json(datetime.datetime(1970, 1, 1, 0, 0, 1), "int64") == 1000000
    assert _fill.to_json(float("nan"), "float32") == "nan"
    for value, dtype in (
        (1.5, "int32"),
        (300, "uint8"),
        ("x", "bool"),
        (True, "int64"),
        (1, "string"),
    ):
        with pytest.raises(ValueError, match="which is no"):
            _fill.to_json(value, dtype)
