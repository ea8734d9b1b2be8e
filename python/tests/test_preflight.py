# SPDX-License-Identifier: Apache-2.0
"""Preflight: every refusal before a node starts, and that it says what to change."""

from __future__ import annotations

import threading

import pytest
import spark_testing
from spark_testing import on

import arcflow
from arcflow import Cluster, _executor, errors, preflight


def no_node_started():
    return not spark_testing.agents_and_nodes()


@on("local")
class TestRefusals:
    @pytest.mark.parametrize(("size", "message"), [(0, "size >= 1"), (-2, "size >= 1")])
    def test_size_below_one(self, spark, size, message):
        with pytest.raises(errors.InvalidArgumentError, match=message):
            Cluster(spark, size=size)

    @pytest.mark.parametrize("size", ["2", 1.5, True, [2]])
    def test_size_that_is_no_number(self, spark, size):
        with pytest.raises(errors.InvalidArgumentError, match="not a whole number"):
            Cluster(spark, size=size)

    def test_size_larger_than_the_slots_names_both_and_the_way_out(self, spark):
        cluster = Cluster(spark, size=9)
        with pytest.raises(errors.InvalidArgumentError) as caught:
            cluster.run(lambda ctx: None)
        assert "size=9" in str(caught.value)
        assert "runs 4 tasks at once" in str(caught.value)
        assert "lower size= to 4" in str(caught.value)
        assert no_node_started()

    def test_size_is_the_number_of_executors_by_default(self, spark):
        assert Cluster(spark).size == 1
        assert Cluster().size == 1  # the active session

    def test_function_that_is_none(self, spark):
        with pytest.raises(errors.InvalidArgumentError, match="needs a function"):
            Cluster(spark, size=2).run("train")

    def test_function_that_holds_what_cannot_travel(self, spark):
        lock = threading.Lock()
        with pytest.raises(errors.InvalidArgumentError, match=r"function cannot be sent.*lock"):
            Cluster(spark, size=2).run(lambda ctx: lock)

    def test_function_that_holds_the_session(self, spark):
        with pytest.raises(
            errors.InvalidArgumentError, match=r"function cannot be sent.*SparkSession"
        ):
            Cluster(spark, size=2).run(lambda ctx: spark.range(3))

    def test_arguments_that_cannot_travel(self, spark):
        with pytest.raises(errors.InvalidArgumentError, match="args= cannot be sent"):
            Cluster(spark, size=2).run(lambda ctx: None, args={"lock": threading.Lock()})

    def test_empty_data(self, spark):
        with pytest.raises(errors.InvalidArgumentError, match=r"feed 'train': .*no rows"):
            Cluster(spark, size=2).run(lambda ctx: None, data=spark.range(5).where("id < 0"))
        assert no_node_started()

    def test_column_without_a_tensor(self, spark):
        data = {"validation": spark.sql("select map('a', 1) as price")}
        with pytest.raises(errors.InvalidArgumentError, match=r"'validation'.*'price'.*map"):
            Cluster(spark, size=2).run(lambda ctx: None, data=data)
        assert no_node_started()

    def test_shape_that_does_not_fit(self, spark):
        df = spark.sql("select array(1.5f, 2.5f) as x")
        with pytest.raises(errors.InvalidArgumentError, match=r"'x' has 2 elements"):
            Cluster(spark, size=2).run(lambda ctx: None, data=arcflow.Feed(df, shapes={"x": (3,)}))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"feed_memory": "lots"}, "is not a size such as"),
            ({"feed_memory": 100}, "is below"),
            ({"remainder": "round"}, "remainder='round' is not one of"),
            ({"start_timeout": 0}, "start_timeout=0"),
            ({"heartbeat_timeout": -1}, "heartbeat_timeout=-1"),
        ],
    )
    def test_options(self, spark, options, message):
        with pytest.raises(errors.InvalidArgumentError, match=message):
            Cluster(spark, size=1, **options)

    def test_closed_cluster(self, spark):
        with Cluster(spark, size=1) as cluster:
            pass
        with pytest.raises(errors.FailedPreconditionError, match="closed"):
            cluster.run(lambda ctx: None)

    def test_what_is_no_session(self, spark):
        with pytest.raises(errors.InvalidArgumentError, match="needs a SparkSession, not str"):
            Cluster("spark://host:7077", size=2)

    def test_slots_are_counted(self, spark):
        assert preflight.slots(spark) == 4


@on("local")
def test_dynamic_allocation_is_refused_with_the_setting_to_change(spark, monkeypatch):
    conf = spark.sparkContext.getConf().set("spark.dynamicAllocation.enabled", "true")
    monkeypatch.setattr(spark.sparkContext, "getConf", lambda: conf)
    with pytest.raises(errors.FailedPreconditionError, match=r"dynamicAllocation\.enabled=false"):
        preflight.check_slots(spark, 2)


@on("local")
@pytest.mark.parametrize(
    ("package", "version", "message"),
    [
        ("tensorflow", "2.20.0", r"tensorflow differs: driver 2\.20\.0, rank 0 "),
        ("python", "3.9.1", r"python differs: driver 3\.9\.1, rank 0 "),
        ("arcflow", "0.0.0", r"on an executor, 0\.0\.0 in the driver: install the same version"),
    ],
)
def test_another_version_than_the_drivers_is_refused_before_a_node_starts(
    spark, monkeypatch, tmp_path, package, version, message
):
    mine = {**_executor.versions(), package: version}
    monkeypatch.setattr(_executor, "versions", lambda: mine)  # in the driver only

    def leave_a_trace(ctx):
        from pathlib import Path

        Path(ctx.args).touch()

    trace = tmp_path / "trace"
    cluster = Cluster(spark, size=2, progress=False)
    with pytest.raises(errors.FailedPreconditionError, match=message):
        cluster.run(leave_a_trace, args=str(trace))
    assert not trace.exists()


@on("local")
def test_doctor_reports_slots_and_versions_of_the_executors(spark):
    report = arcflow.doctor(spark, size=2)
    found = {check.name: check for check in report.checks}
    assert found["slots"].status == "ok"
    assert found["python there"].status == "ok"
    assert found["arcflow there"].status == "ok"
    assert "ok" in str(report)


@on("local")
def test_doctor_reports_too_few_slots_with_a_mend(spark):
    report = arcflow.doctor(spark, size=7)
    assert not report.ok
    (slots,) = [check for check in report.checks if check.name == "slots"]
    assert slots.status == "failed"
    assert "lower size= to 4" in slots.mend
    assert "-> lower size= to 4" in str(report)


@on("connect")
def test_connect_needs_a_size(spark):
    with pytest.raises(errors.InvalidArgumentError, match="size= is needed on Spark Connect"):
        Cluster(spark)


@pytest.mark.long
@on("connect")
def test_doctor_works_on_connect(spark):
    report = arcflow.doctor(spark, size=2)
    found = {check.name: check.status for check in report.checks}
    assert (found["spark"], found["executors"], found["python there"]) == ("ok", "ok", "ok")


def test_without_a_session_the_way_to_one_is_told():
    pytest.importorskip("pyspark")
    spark_testing.stop_sessions()
    with pytest.raises(errors.FailedPreconditionError, match="no active SparkSession"):
        Cluster(size=2)


@pytest.mark.parametrize(
    ("text", "size"),
    [("512m", 512 << 20), ("2g", 2 << 30), ("1.5GiB", 3 << 29), (1 << 21, 1 << 21)],
)
def test_sizes_of_memory(text, size):
    from arcflow.cluster import parse_bytes

    assert parse_bytes(text) == size
