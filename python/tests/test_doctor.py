# SPDX-License-Identifier: Apache-2.0
"""`arcflow doctor` on a real cluster: one row a subject, and each row fails when its subject is wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import spark_testing
from spark_testing import on

import arcflow
from arcflow import _doctor_cluster, _doctor_look
from arcflow._doctor_look import Wants

ROWS = (
    "slots", "executors", "python there", "arcflow there", "tensorflow there", "keras there",
    "memory", "shared memory", "spill disk", "gpus", "address", "reachability", "clocks",
)  # fmt: skip


def by_name(checks):
    return {check.name: check for check in checks}


@on("local", "connect")
def test_every_row_is_there_and_well(spark):
    report = arcflow.doctor(spark, size=2, feed_memory="64m")
    found = by_name(report.checks)
    assert set(ROWS) <= set(found)
    assert report.ok, str(report)
    assert "all 2 pairs" in found["reachability"].detail
    assert "memfd works" in found["shared memory"].detail


@on("local")
class TestFailures:
    @pytest.mark.parametrize(
        ("wish", "row", "mend"),
        [
            ({"feed_memory": "100t"}, "memory", "lower feed_memory= to"),
            ({"gpus": 3}, "gpus", "lower gpus="),
            ({"network": "192.0.2.128/28"}, "address", "it has"),
            ({"ports": "taken"}, "address", "ports"),
            ({"ports": "9-1"}, "wishes", "ports="),
            ({"feed_memory": "much"}, "wishes", "is not a size"),
        ],
    )
    def test_a_wish_that_cannot_be_met_has_its_mend_beside_it(self, spark, wish, row, mend):
        with arcflow._network.bind_in("127.0.0.1", 0, 0) as taken:
            if wish.get("ports") == "taken":
                port = taken.getsockname()[1]
                wish = {"ports": f"{port}-{port}", "network": "127.0.0.0/8"}
            report = arcflow.doctor(spark, size=2, **wish)
        check = by_name(report.checks)[row]
        assert not report.ok
        assert check.status == "failed"
        assert mend in f"{check.detail} {check.mend}"
        assert f"failed  {row}" in str(report)

    def test_a_name_node_that_does_not_answer(self, spark):
        hadoop = spark.sparkContext._jsc.hadoopConfiguration()
        before = hadoop.get("fs.defaultFS")
        port = spark_testing.free_port()
        hadoop.set("fs.defaultFS", f"hdfs://127.0.0.1:{port}")
        try:
            check = by_name(arcflow.doctor(spark, size=1).checks)["hdfs"]
        finally:
            hadoop.set("fs.defaultFS", before)
        assert check.status == "failed"
        assert f"127.0.0.1:{port} ([Errno 111] Connection refused)" in check.detail
        assert "fs.defaultFS" in check.mend

    def test_name_nodes_of_a_pair_are_found_by_their_service(self, spark):
        hadoop = spark.sparkContext._jsc.hadoopConfiguration()
        before = hadoop.get("fs.defaultFS")
        settings = {
            "fs.defaultFS": "hdfs://pair",
            "dfs.ha.namenodes.pair": "one, two",
            "dfs.namenode.rpc-address.pair.one": "a:8020",
            "dfs.namenode.rpc-address.pair.two": "b:8021",
        }
        for key, value in settings.items():
            hadoop.set(key, value)
        try:
            assert _doctor_cluster.name_nodes(spark) == ("a:8020", "b:8021")
        finally:
            hadoop.set("fs.defaultFS", before)


def healthy(**changes):
    one = {
        "host": "10.0.0.7", "executor": "10.0.0.7:1", "versions": {}, "agent": True,
        "memory_bytes": 8 << 30, "memory_of": "container", "descriptors": 1 << 20,
        "disk_bytes": 1 << 40, "disk": "/data", "memfd": {"value": "ok"}, "gpus": {"value": []},
        "hdfs": {}, "address": "10.0.0.7:40000", "network": "", "unreached": {}, "skew_s": None,
    }  # fmt: skip
    return one | changes


def judged(first, second, **wishes):
    return by_name(_doctor_cluster.judge({0: first, 1: second}, Wants(**wishes)))


def test_hosts_that_cannot_be_set_up_wrong_in_a_test_are_judged_rightly():
    well = judged(healthy(), healthy(host="10.0.0.8", executor="10.0.0.8:1"))
    assert {check.status for check in well.values()} == {"ok"}

    lost = judged(healthy(unreached={"1": "10.0.0.8:40001 (No route to host)"}), healthy())
    assert lost["reachability"].status == "failed"
    assert "rank 0 (10.0.0.7) cannot reach rank 1 at 10.0.0.8:40001" in lost["reachability"].detail
    assert "network=" in lost["reachability"].mend

    assert judged(healthy(), healthy(skew_s=-2.5))["clocks"].status == "note"
    assert judged(healthy(), healthy(skew_s=61.0))["clocks"].status == "failed"
    assert judged(healthy(), healthy(descriptors=1024))["shared memory"].status == "note"
    blocked = judged(healthy(), healthy(memfd={"error": "PermissionError"}))["shared memory"]
    assert (blocked.status, "seccomp" in blocked.mend) == ("failed", True)
    assert judged(healthy(), healthy(disk_bytes=1 << 20))["spill disk"].status == "note"


def test_rows_of_all_nodes_of_one_executor_count_together():
    four = 4 << 30
    apart = judged(
        healthy(), healthy(executor="10.0.0.8:1", host="10.0.0.8"), feed_memory_bytes=four
    )
    assert apart["memory"].status == "ok"
    together = judged(healthy(), healthy(), feed_memory_bytes=four)["memory"]
    assert together.status == "failed"
    assert "container limit 8.0 GiB at 10.0.0.7, feed_memory 4.0 GiB x 2 nodes" in together.detail
    assert "lower feed_memory= to 2.4 GiB" in together.mend


@pytest.mark.parametrize("version", [1, 2])
def test_the_limit_of_the_container_counts_whatever_level_sets_it(tmp_path, version):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 16777216 kB\n")
    line, base, name = {
        1: ("5:memory:/pod/box", "sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        2: ("0::/pod/box", "sys/fs/cgroup", "memory.max"),
    }[version]
    (tmp_path / "proc/self/cgroup").write_text(f"1:cpu:/other\n{line}\n")
    assert _doctor_look.memory_limit(str(tmp_path)) == (16 << 30, "host")
    inner = tmp_path / base / "pod/box"
    inner.mkdir(parents=True)
    (inner / name).write_text("max\n" if version == 2 else f"{1 << 62}\n")
    (inner.parent / name).write_text(f"{3 << 30}\n")
    assert _doctor_look.memory_limit(str(tmp_path)) == (3 << 30, "container")


@pytest.mark.spark
def test_the_command_takes_wishes_and_fails_by_its_exit_code():
    connect = ("SPARK_REMOTE", "SPARK_CONNECT_MODE_ENABLED")  # of a session in this process
    done = subprocess.run(
        [sys.executable, "-m", "arcflow", "doctor", "--master", "local[2]", "--size", "2", "--gpus",
         "1", "--feed-memory", "64m", "--conf", "spark.driver.host=127.0.0.1"],
        capture_output=True, text=True, timeout=240, check=False,
        env={key: value for key, value in os.environ.items() if key not in connect},
    )  # fmt: skip
    assert done.returncode == 1
    assert "failed  gpus" in done.stdout
    assert "reachability" in done.stdout
