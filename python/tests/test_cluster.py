# SPDX-License-Identifier: Apache-2.0
"""Whole runs: DataFrame to node and back, on Classic and Connect, with real agents and nodes."""

from __future__ import annotations

import datetime
import json
import sys

import cloudpickle
import numpy as np
import pytest
from spark_testing import EVERYWHERE, on

from arcflow import Cluster, Feed, errors

pytestmark = pytest.mark.usefixtures("leftovers")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests


def numbered(spark, rows, partitions=4):
    return spark.range(0, rows, 1, partitions).selectExpr(
        "id", "array(cast(id as float), cast(-id as float)) as x"
    )


def read_ids(ctx):
    """The ids of each pass that the node reads."""
    passes = []
    for _ in range(ctx.args["passes"]):
        ids = []
        for columns, padding in ctx.reader("train", ctx.args["batch_size"], remainder="partial"):
            n = len(columns["id"]) - padding
            assert (columns["x"][:n, 0] == columns["id"][:n]).all()
            assert (columns["x"][:n, 1] == -columns["id"][:n]).all()
            ids += columns["id"][:n].tolist()
        passes.append(ids)
    return passes


@pytest.fixture
def cluster(spark):
    with Cluster(spark, size=2, progress=False) as two:
        yield two


@on(*EVERYWHERE)
class TestEverywhere:
    def test_values_come_back_by_rank_and_nodes_know_their_place(self, cluster):
        def place(ctx):
            import os

            config = json.loads(os.environ["TF_CONFIG"])
            return {
                "place": (ctx.rank, ctx.role, ctx.index, ctx.size, ctx.world_size, ctx.is_chief),
                "task": (config["task"]["type"], config["task"]["index"]),
                "nodes": sorted(config["cluster"]["chief"] + config["cluster"]["worker"]),
                "args": ctx.args,
                "same": config["cluster"] == ctx.cluster,
            }

        result = cluster.run(place, args={"a": [1, 2]})
        assert [v["place"] for v in result.values] == [
            (0, "chief", 0, 2, 2, True),
            (1, "worker", 0, 2, 2, False),
        ]
        assert [v["task"] for v in result.values] == [("chief", 0), ("worker", 0)]
        assert result.values[0]["nodes"] == result.values[1]["nodes"]
        assert len(set(result.values[0]["nodes"])) == 2
        assert all(v["args"] == {"a": [1, 2]} and v["same"] for v in result.values)

    def test_every_row_arrives_once_in_every_pass(self, spark, cluster):
        args = {"passes": 3, "batch_size": 64}
        result = cluster.run(read_ids, data=numbered(spark, 1001), args=args)
        for number in range(3):
            assert sorted(i for v in result.values for i in v[number]) == list(range(1001))
        for passes in result.values:
            assert passes[0] == passes[1] == passes[2]
        rows = result.rows["train"]
        assert rows["fed"] == 1001
        assert rows["used"] == 3 * 1001
        assert len(rows["nodes"]) == 2

    def test_feeds_are_kept_apart(self, spark, cluster):
        def read(ctx):
            return {
                name: [
                    i
                    for c, _ in ctx.reader(name, 32, remainder="partial")
                    for i in c["id"].tolist()
                ]
                for name in ctx.feeds
            }

        data = {
            "train": numbered(spark, 500),
            "validation": spark.range(1000, 1100, 1, 1).selectExpr("id", "string(id) as s"),
        }
        values = cluster.run(read, data=data).values
        assert sorted(values[0]["train"] + values[1]["train"]) == list(range(500))
        assert sorted(values[0]["validation"] + values[1]["validation"]) == list(range(1000, 1100))

    def test_several_runs_in_sequence(self, spark, cluster):
        for rows in (10, 20):
            args = {"passes": 1, "batch_size": 8}
            result = cluster.run(read_ids, data=numbered(spark, rows), args=args)
            assert sum(len(v[0]) for v in result.values) == rows


@on("local")
class TestFeeding:
    def test_column_types_arrive_as_the_tensors_that_the_guide_promises(self, spark):
        df = spark.sql(
            """select true as flag, tinyint(-3) as i8, smallint(300) as i16, int(70000) as i32,
               bigint(5000000000) as i64, float(1.5) as f32, double(2.25) as f64,
               date'2020-01-02' as day, timestamp'1970-01-01 00:00:01' as at,
               'grün' as text, X'00FF' as bytes, array(1, 2, 3) as ints,
               array(array(1.5f, 2.5f), array(3.5f, 4.5f)) as nested, X'0100020003000400' as packed"""
        ).selectExpr("* except (nested)", "flatten(nested) as grid")

        def read(ctx):
            ((columns, padding),) = ctx.reader("train", 4, remainder="partial")
            shapes = {
                n: (v.shape, v.dtype.name) if hasattr(v, "shape") else None
                for n, v in columns.items()
            }
            return {n: np.asarray(v).tolist() for n, v in columns.items()}, shapes, padding

        feed = Feed(df, shapes={"grid": (2, 2)}, raw={"packed": ("int16", (2, 2))})
        spark.conf.set("spark.sql.session.timeZone", "UTC")
        values, shapes, padding = (
            Cluster(spark, size=1, progress=False).run(read, data=feed).values[0]
        )
        day = (datetime.date(2020, 1, 2) - datetime.date(1970, 1, 1)).days
        assert padding == 0
        assert values == {
            "flag": [True],
            "i8": [-3],
            "i16": [300],
            "i32": [70000],
            "i64": [5000000000],
            "f32": [1.5],
            "f64": [2.25],
            "day": [day],
            "at": [1_000_000],
            "text": ["grün".encode()],
            "bytes": [b"\x00\xff"],
            "ints": [[1, 2, 3]],
            "grid": [[[1.5, 2.5], [3.5, 4.5]]],
            "packed": [[[1, 2], [3, 4]]],
        }
        assert shapes["grid"] == ((1, 2, 2), "float32")
        assert shapes["packed"] == ((1, 2, 2), "int16")
        assert shapes["i8"] == ((1,), "int8")

    def test_an_empty_partition_neither_hangs_nor_loses_rows(self, spark, cluster):
        df = numbered(spark, 100, partitions=2).where("id < 50")  # the second has none
        result = cluster.run(read_ids, data=df, args={"passes": 2, "batch_size": 16})
        assert [len(v[0]) for v in result.values] == [25, 25]
        assert result.rows["train"]["used"] == 100

    @pytest.mark.parametrize(
        ("remainder", "balance", "steps"),
        [("pad", True, 4), ("drop", True, 3), ("pad", False, 7), ("drop", False, 0)],
    )
    def test_uneven_ranks_make_equal_steps(self, spark, remainder, balance, steps):
        def count(ctx):
            padded = [p for _, p in ctx.reader("train", 8)]
            return len(padded), sum(padded)

        feed = Feed(numbered(spark, 100, partitions=2).where("id < 50"), balance=balance)
        with Cluster(spark, size=2, remainder=remainder, progress=False) as two:
            result = two.run(count, data=feed)
        assert [v[0] for v in result.values] == [steps, steps]
        rows = result.rows["train"]
        assert rows["padded"] == sum(v[1] for v in result.values)
        assert rows["padded"] == (2 * 8 * steps - 50 if remainder == "pad" else 0)
        assert rows["used"] + rows["dropped"] == rows["fed"] == 50

    def test_rows_beyond_the_memory_are_kept_on_disk(self, spark):
        df = spark.range(0, 3000, 1, 2).selectExpr("id", "array_repeat(float(id), 1000) as x")

        def total(ctx):
            found = []
            for _ in range(2):
                rows = s = 0
                for columns, padding in ctx.reader("train", 100, remainder="partial"):
                    rows += len(columns["id"]) - padding
                    s += float(columns["x"][:, 7].sum())
                found.append((rows, s))
            return found

        with Cluster(spark, size=1, feed_memory="2m", progress=False) as one:
            result = one.run(total, data=df)
        assert result.values[0] == [(3000, 3000 * 2999 / 2)] * 2

    def test_cache_memory_refuses_what_does_not_fit_and_names_the_setting(self, spark):
        df = spark.range(0, 3000, 1, 2).selectExpr("array_repeat(float(id), 1000) as x")

        def read(ctx):
            return sum(1 for _ in ctx.reader("train", 100))

        with (
            Cluster(spark, size=1, feed_memory="2m", progress=False) as one,
            pytest.raises(errors.NodeFailedError, match="feed_memory"),
        ):
            one.run(read, data=Feed(df, cache="memory"))

    def test_reading_again_what_was_not_kept_is_refused_with_the_setting_that_keeps_it(self, spark):
        df = spark.range(0, 8000, 1, 2).selectExpr(
            "id", "array_repeat(float(id), 1000) as wide", "array(float(id), float(-id)) as x"
        )
        feed = Feed(df, cache="none")
        with (
            Cluster(spark, size=1, feed_memory="4m", progress=False) as one,
            pytest.raises(errors.NodeFailedError, match=r"cache='none' keeps rows.*cache='auto'"),
        ):
            one.run(read_ids, data=feed, args={"passes": 2, "batch_size": 100})

    def test_feeds_that_are_not_kept_can_be_read_one_after_the_other(self, spark):
        df = spark.range(0, 4000, 1, 2).selectExpr("id", "array_repeat(float(id), 1000) as x")

        def read(ctx):
            return [
                sorted(i for columns, _ in ctx.reader(name, 50) for i in columns["id"].tolist())
                for name in ("train", "validation")
            ]

        feeds = {"train": Feed(df, cache="none"), "validation": Feed(df, cache="none")}
        with Cluster(spark, size=1, feed_memory="4m", progress=False) as one:
            assert one.run(read, data=feeds).values == [[list(range(4000))] * 2]

    def test_a_node_that_wants_no_more_rows_ends_the_run_well(self, spark, cluster):
        df = spark.range(0, 200_000, 1, 2).selectExpr("id", "array_repeat(float(id), 500) as x")

        def first(ctx):
            for columns, _ in ctx.reader("train", 10):
                return columns["x"].shape

        result = cluster.run(first, data=Feed(df, cache="none"))
        assert result.values == [(10, 500), (10, 500)]


@on("local")
class TestNodes:
    def test_one_node_has_no_tf_config(self, spark):
        def look(ctx):
            import os

            return "TF_CONFIG" in os.environ, ctx.size

        assert Cluster(spark, size=1, progress=False).run(look).values == [(False, 1)]

    def test_environment_and_large_values_travel(self, spark):
        def value(ctx):
            import os

            import numpy as np

            names = ("MY_SETTING", "GLIBC_TUNABLES")
            return [os.environ[name] for name in names], np.arange(1_000_000)

        with Cluster(spark, size=1, env={"MY_SETTING": "yes"}, progress=False) as one:
            ((settings, array),) = one.run(value).values
        assert settings == ["yes", "glibc.malloc.hugetlb=1"]
        assert (array == np.arange(1_000_000)).all()

    def test_barrier_brings_what_every_rank_gave(self, cluster):
        def meet(ctx):
            return ctx.barrier("meet", f"from {ctx.rank}".encode())

        assert cluster.run(meet).values == [[b"from 0", b"from 1"]] * 2

    def test_reading_an_unknown_feed_names_those_there_are(self, spark, cluster):
        def read(ctx):
            return list(ctx.reader("test", 8))

        with pytest.raises(
            errors.NodeFailedError, match=r"no feed 'test' in this run; there is 'train'"
        ):
            cluster.run(read, data=numbered(spark, 10))

    def test_log_lines_of_rank_0_and_progress_reach_the_driver(self, spark, capsys):
        def talk(ctx):
            print(f"printed by {ctx.rank}")
            ctx.log(f"logged by {ctx.rank}")
            ctx.log(step=7, loss=0.25, accuracy=0.5)
            ctx.barrier("talked")

        Cluster(spark, size=2).run(talk)
        shown = capsys.readouterr().err
        assert "printed by 0" in shown
        assert "logged by 0" in shown
        assert "printed by 1" not in shown
        assert "all nodes started" in shown

    def test_metrics_hold_what_agents_measured(self, spark, cluster):
        args = {"passes": 1, "batch_size": 16}
        metrics = cluster.run(read_ids, data=numbered(spark, 100), args=args).metrics
        assert [node["counters"]["rows_used"] for node in metrics["nodes"]] != [0, 0]


@on("standalone")
def test_size_may_be_smaller_than_the_executors_or_put_two_nodes_on_one(spark):
    def where(ctx):
        import os

        return os.getpid()

    for size in (1, 3, 4):
        values = Cluster(spark, size=size, progress=False).run(where).values
        assert len(set(values)) == size


@on("local-cluster")
def test_local_cluster(spark, cluster):
    result = cluster.run(read_ids, data=numbered(spark, 300), args={"passes": 2, "batch_size": 32})
    assert sorted(i for v in result.values for i in v[1]) == list(range(300))


@on("connect")
class TestClientThatExecutorsCannotReach:
    """Rank 0 hosts the coordinator then, and the rows of the job tell the rest."""

    @pytest.fixture
    def unreachable(self, spark):
        hidden = {"host": "203.0.113.7", "bind_host": "127.0.0.1"}  # documentation's network
        with Cluster(spark, size=2, progress=False, **hidden) as two:
            yield two

    def test_runs(self, spark, unreachable):
        args = {"passes": 2, "batch_size": 16}
        result = unreachable.run(read_ids, data=numbered(spark, 100), args=args)
        assert sorted(i for v in result.values for i in v[1]) == list(range(100))

    def test_names_the_node_that_failed_first(self, spark, unreachable):
        def raise_in_1(ctx):
            import time

            if ctx.rank == 1:
                raise ValueError("bad label")
            time.sleep(600)

        with pytest.raises(errors.NodeFailedError, match=r"worker:0 .*ValueError: bad label"):
            unreachable.run(raise_in_1)


def train(ctx):
    import keras

    keras.utils.set_random_seed(1)
    with ctx.strategy().scope():
        model = keras.Sequential(
            [keras.Input((2,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
        )
        model.compile("sgd", "mse")
    history = model.fit(
        ctx.dataset("train", batch_size=16),
        epochs=2,
        validation_data=ctx.dataset("validation", batch_size=16),
        verbose=0,
        callbacks=[ctx.callback()],
    )
    ctx.save(model, ctx.args["model_dir"])
    return history.history, [w.tolist() for w in model.get_weights()]


@pytest.mark.slow
@pytest.mark.tf
@on("standalone", "connect")
def test_keras_trains_saves_and_is_applied(spark, cluster, tmp_path):
    import arcflow

    df = spark.range(0, 201, 1, 4).selectExpr(
        "array(float(sin(id)), float(cos(id))) as x", "float(sin(id) + cos(id)) as label"
    )
    model_dir = str(tmp_path / "model")
    data = {"train": df, "validation": df.limit(50)}
    result = cluster.run(train, data=data, args={"model_dir": model_dir})
    (history, weights), (_, others) = result.values
    assert len(history["loss"]) == 2
    assert history["val_loss"][1] < history["val_loss"][0]
    for one, other in zip(weights, others, strict=True):
        np.testing.assert_array_equal(one, other)
    assert result.rows["train"]["used"] == 2 * 201
    scored = arcflow.apply(model_dir, df.withColumn("kept", df.label), inputs="x").collect()
    assert len(scored) == 201
    error = np.mean([(row.prediction - row.kept) ** 2 for row in scored])
    assert error < 1.0
