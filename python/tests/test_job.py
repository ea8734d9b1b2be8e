# SPDX-License-Identifier: Apache-2.0
"""The barrier job: when a DataFrame goes straight in, how feeds are mixed and split, and cancelling."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import spark_testing
from spark_testing import on

from arcflow import _executor, _job, _partitions, _task, errors
from arcflow.feed import plan_feeds


def make_plan(**changes: Any) -> _task.Plan:
    values: dict[str, Any] = {
        "run_id": "r",
        "secret": "",
        "size": 2,
        "version": _executor.versions()["arcflow"],
        "coordinator": ("127.0.0.1", 1),
        "tuning": {},
        "ask_reach": False,
        "feeds": {},
        "tagged": False,
        "python": None,
        "env": {},
        "agent": {},
        "job": {},
        "payload": b"",
    }
    return _task.Plan(**{**values, **changes})


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("", "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.check=3", "glibc.malloc.check=3:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_nodes_ask_for_large_pages_unless_the_user_has_said(given, expected):
    assert _executor.with_large_pages(given) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ([], []),
        ([3], [(3, 0, 1)]),
        ([0, 0, 1, 0], [(0, 0, 2), (1, 2, 1), (0, 3, 1)]),
        ([1] * 5, [(1, 0, 5)]),
    ],
)
def test_runs_of_equal_tags(tags, expected):
    assert list(_task.runs(np.array(tags, np.int8))) == expected


def test_split_copies_no_value_and_keeps_every_row():
    schema = {"schema": {"columns": [{"name": "a b"}]}}
    plan = make_plan(feeds={"one": schema, "two": schema}, tagged=True)
    values = pa.array(range(6), pa.int64())
    tags = pa.array([0, 0, 1, 1, 1, 0], pa.int8())
    structs = [pa.StructArray.from_arrays([values], names=["c0"]) for _ in range(2)]
    batch = pa.RecordBatch.from_arrays([tags, *structs], names=["tag", "f0", "f1"])
    parts = [(name, part.column(0)) for name, part in _task.split(batch.slice(1), plan)]
    assert [(name, column.to_pylist()) for name, column in parts] == [
        ("one", [1]),
        ("two", [2, 3, 4]),
        ("one", [5]),
    ]
    assert {column.buffers()[1].address for _, column in parts} == {values.buffers()[1].address}


def test_a_refusal_in_a_task_is_recognised_in_what_spark_says():
    error = _task.refuse("FAILED_PRECONDITION", "two\nlines: ümlaut")
    spark_says = f"org.apache.spark.SparkException: Job aborted…\nerrors.X: {error}\n\tat org.…"
    found = _task.recognise(spark_says)
    assert isinstance(found, errors.FailedPreconditionError)
    assert found.message == "two\nlines: ümlaut"
    assert _task.recognise("some other failure") is None


@on("local")
class TestOnLocalSpark:
    @pytest.fixture
    def frames(self, spark, tmp_path_factory):
        four = spark.range(0, 1000, 1, 4).selectExpr("id", "array(cast(id as float)) as x")
        two = spark.range(0, 1000, 1, 2).selectExpr("id", "array(cast(id as float)) as x")
        warm = four.repartition(2).cache()
        warm.count()
        coalesced = four.coalesce(2).cache()
        coalesced.count()
        path = str(tmp_path_factory.mktemp("data") / "two")
        two.write.parquet(path)
        yield {
            "range of 2": (two, True),
            "range of 4": (four, False),
            "repartition(2)": (four.repartition(2), True),
            "repartition(2).select": (four.repartition(2).select("x"), True),
            "repartition(2, column)": (four.repartition(2, "id"), True),
            "repartition(column)": (four.repartition("id"), False),
            "repartition(3)": (four.repartition(3), False),
            "coalesce(2)": (four.coalesce(2), False),
            "union": (two.union(two), False),
            "union of 1 and 1": (
                spark.range(0, 9, 1, 1).union(spark.range(0, 9, 1, 1)),
                False,
            ),
            "cache not computed": (four.repartition(2).where("id > 1").cache(), False),
            "cache computed": (warm, True),
            "cache computed, filtered": (warm.select("x", "id").where("id > 3"), True),
            "cache of coalesce": (coalesced, False),
            "aggregation": (four.groupBy("id").count(), False),
            "sort": (four.orderBy("id"), False),
            "parquet of 2 files": (spark.read.parquet(path), True),
        }
        spark.catalog.clearCache()

    def test_only_fitting_partitions_go_straight_in_and_no_job_runs_to_know(self, spark, frames):
        tracker = spark.sparkContext._jsc.sc().statusTracker()
        before = len(tracker.getJobIdsForGroup(None))
        found = {name: _partitions.goes_straight_in(df, 2) for name, (df, _) in frames.items()}
        assert found == {name: expected for name, (_, expected) in frames.items()}
        assert len(tracker.getJobIdsForGroup(None)) == before

    def test_what_goes_straight_in_is_accepted_by_spark(self, frames):
        def count(batches):
            rows = sum(batch.num_rows for batch in batches)
            yield pa.RecordBatch.from_pydict({"rows": [rows]})

        for name, (df, expected) in frames.items():
            if expected:
                rows = df.mapInArrow(count, "rows bigint", barrier=True).collect()
                assert len(rows) == 2, name

    def test_feeds_are_mixed_and_come_apart_whole(self, spark, frames):
        feeds = plan_feeds(
            {
                "train": frames["range of 4"][0],
                "validation": frames["range of 2"][0].selectExpr("cast(id as int) as `a``b`", "x"),
            }
        )
        frame, tagged = _job.make_input(spark, feeds, 2)
        plan = make_plan(feeds={f.name: f.to_json() for f in feeds}, tagged=True)

        def count(batches):
            found: dict[str, list[int]] = {"train": [], "validation": []}
            for batch in batches:
                for name, part in _task.split(batch, plan):
                    ids, x = part.column(0).to_pylist(), part.column(1).to_pylist()
                    assert [[float(i)] for i in ids] == x
                    found[name] += ids
            yield pa.RecordBatch.from_pydict(
                {k: pa.array([v], pa.list_(pa.int64())) for k, v in found.items()}
            )

        schema = "train array<bigint>, validation array<bigint>"
        rows = frame.mapInArrow(count, schema, barrier=True).collect()
        assert tagged
        assert len(rows) == 2
        for name in ("train", "validation"):
            assert sorted(i for row in rows for i in row[name]) == list(range(1000))

    def test_no_data_gives_one_task_a_node(self, spark):
        frame, tagged = _job.make_input(spark, [], 3)
        assert (frame.rdd.getNumPartitions(), frame.count(), tagged) == (3, 3, False)


@on("local", "connect")
def test_a_job_is_seen_running_and_ends_soon_after_cancel(spark):

    def sleeping(batches):
        import time

        for _ in batches:
            pass
        time.sleep(120)
        yield from ()

    job = _job.BarrierJob(spark, spark.range(0, 2, 1, 2), sleeping, "arcflow-cancel-me")
    job.start()
    spark_testing.wait_for(lambda: job.running_tasks() >= 2, 60, "two running tasks")
    assert not job.done
    assert job.cancel(30)
    assert job.error is not None
    assert job.wait(0)
    assert _spark_code(job.error) == "CANCELLED"


@on("local", "connect")
@pytest.mark.parametrize(("users", "expected"), [(None, 512), ("64m", 4000)])
def test_rows_reach_python_in_batches_that_fit_a_cache(spark, users, expected):
    """Rows of 2 KiB: 1 MiB holds 512 of them; a user's own setting holds all."""
    setting = "spark.sql.execution.arrow.maxBytesPerBatch"

    def largest(batches):
        import pyarrow as pa

        most = max(batch.num_rows for batch in batches)
        yield pa.RecordBatch.from_pydict({"rank": [most], "outcome": ["{}"], "result": [b""]})

    if users:
        spark.conf.set(setting, users)
    before = spark.conf.get(setting)
    rows = spark.range(0, 4000, 1, 1).selectExpr("unhex(rpad(hex(id), 4096, '0')) as x")
    try:
        job = _job.BarrierJob(spark, rows, largest, "arcflow-batches")
        job.start()
        assert job.wait(60)
        (row,) = job.rows()
        assert 0.5 * expected <= row.rank <= expected
        assert spark.conf.get(setting) == before
    finally:
        spark.conf.unset(setting)


def _spark_code(error: BaseException) -> str:
    from arcflow import _spark_errors

    return _spark_errors.wrap(error).code


@on("local", "connect")
def test_an_executor_without_arcflow_is_a_clear_error(spark):

    def broken(batches):
        import sys

        sys.modules["arcflow"] = None  # as if it were not installed
        try:
            yield from task(batches)
        finally:
            del sys.modules["arcflow"]

    task = _job.make_task(make_plan())
    job = _job.BarrierJob(spark, spark.range(0, 2, 1, 2), broken, "arcflow-missing")
    job.start()
    assert job.wait(60)
    found = _task.recognise(str(job.error))
    assert isinstance(found, errors.FailedPreconditionError)
    assert "arcflow cannot be imported on an executor" in str(found)


@on("local", "connect")
def test_another_version_on_an_executor_is_a_clear_error(spark):
    task = _job.make_task(make_plan(version="0.0.0-other"))
    job = _job.BarrierJob(spark, spark.range(0, 2, 1, 2), task, "arcflow-version")
    job.start()
    assert job.wait(60)
    found = _task.recognise(str(job.error))
    assert isinstance(found, errors.FailedPreconditionError)
    assert "0.0.0-other in the driver" in str(found)
