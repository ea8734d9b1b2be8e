# SPDX-License-Identifier: Apache-2.0
"""Nodes that live on: one core an executor, Spark Connect, and what is left when somebody is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap

import cloudpickle
import pytest
import spark_testing
from spark_testing import on
from test_live import double, feed_for_ever, ids_of, numbered, read_all

from arcflow import Cluster, Feed, errors

pytestmark = [pytest.mark.usefixtures("leftovers"), pytest.mark.spark, pytest.mark.timeout(400)]
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
cloudpickle.register_pickle_by_value(sys.modules["test_live"])


def gone():
    return not spark_testing.agents_and_nodes()


@on("connect")
def test_spark_connect_feeds_and_asks(spark):
    def both(ctx):
        import threading

        ids = []
        reader = threading.Thread(target=lambda: ids.extend(read_all(ctx)))
        reader.start()
        ctx.serve(lambda columns: {"twice": columns["id"] * 2})
        reader.join()
        return ids

    with Cluster(spark, size=2, progress=False) as cluster:
        cluster.start(both)
        assert cluster.feed(numbered(spark, 0, 300)).rows == 300
        answers = cluster.infer(spark.range(0, 50, 1, 3), "twice bigint")
        with pytest.raises(errors.UnimplementedError, match="Spark Classic only"):
            cluster.feed_stream(spark.readStream.format("rate").load())
        with pytest.raises(
            errors.InvalidArgumentError, match="through Spark Connect, which has no RDDs"
        ):
            cluster.feed([1, 2])
        assert ids_of(cluster.stop()) == list(range(300))
        assert [row.twice for row in answers.collect()] == [2 * i for i in range(50)]


class TestOneCore:
    """Two executors of one core each: a node that held its slot would leave none."""

    @pytest.fixture(scope="class")
    def session(self, tmp_path_factory):
        yield spark_testing.classic_session(
            "local-cluster[2,1,1024]",
            tmp_path_factory.mktemp("one-core"),
            spark__executor__cores="1",
            spark__speculation="false",
        )
        spark_testing.stop_sessions()

    def test_it_is_fed_and_asked(self, session):
        with Cluster(session, size=2, progress=False) as cluster:
            cluster.start(read_all)
            assert cluster.feed(numbered(session, 0, 400, 8)).rows == 400
            result = cluster.stop()
            assert ids_of(result) == list(range(400))
            assert all(result.values), "both nodes were fed"
            cluster.start(double)
            assert cluster.infer(numbered(session, 0, 40, 4), "id bigint").count() == 40
            cluster.stop()

    def test_an_executor_without_a_node_feeds_and_asks_by_tcp(self, session):
        def both(ctx):
            import threading

            ids = []
            reader = threading.Thread(target=lambda: ids.extend(read_all(ctx)))
            reader.start()
            ctx.serve(lambda columns: {"twice": columns["id"] * 2, "text": ["x" * 100] * 50})
            reader.join()
            return ids

        with Cluster(session, size=1, progress=False, encrypt=True) as cluster:
            cluster.start(both)
            assert cluster.feed(numbered(session, 0, 4000, 8)).rows == 4000
            answers = cluster.infer(session.range(0, 400, 1, 8), "twice bigint, text string")
            assert ids_of(cluster.stop()) == list(range(4000))
            assert [row.twice for row in answers.collect()] == [2 * i for i in range(400)]

    @pytest.mark.parametrize("victim", ["node", "agent", "executor"])
    def test_a_killed_process_is_the_callers_error(self, session, victim):
        with Cluster(session, size=2, progress=False, grace=1.0) as cluster:
            running = cluster.start(read_all)
            cluster.feed(numbered(session, 0, 10))
            pid = {
                "node": lambda: spark_testing.nodes()[0],
                "agent": lambda: spark_testing.agents()[0],
                "executor": lambda: running._agents[0]["jvm_pid"],
            }[victim]()
            os.kill(pid, signal.SIGKILL)
            with pytest.raises(errors.NodeFailedError) as caught:
                feed_for_ever(cluster, numbered(session, 0, 10))
            assert caught.value.failure["cause"] in ("signal", "agent lost", "executor lost")
            spark_testing.wait_for(gone, 30, "end of all agents and nodes")


DRIVER = """
    import sys
    sys.path[:0] = {paths!r}
    import spark_testing
    from pathlib import Path
    from arcflow import Cluster

    def read(ctx):
        import subprocess, sys
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000) # arcflow._node child"])
        for batch in ctx.reader("train", 10, remainder="partial"):
            pass

    spark = spark_testing.classic_session({master!r}, Path({folder!r}))
    cluster = Cluster(spark, size=2, progress=False, grace=1.0)
    cluster.start(read)
    cluster.feed(spark.range(1000))
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_of_a_task_that_spark_runs_twice_at_once_one_attempt_feeds(tmp_path):
    """Speculation: Spark starts a slow task again, on another host, while it still runs."""
    runs = tmp_path / "runs"
    runs.mkdir()

    def first_is_slow(batches):
        import os
        import time

        from pyspark import TaskContext

        task = TaskContext.get()
        (runs / f"{task.partitionId()}-{task.attemptNumber()}").touch()
        for batch in batches:
            yield batch
            if task.partitionId() == 3 and task.attemptNumber() == 0:
                while not os.path.exists(runs / "3-1"):  # until Spark has had enough of it
                    time.sleep(0.1)
                time.sleep(1)

    with spark_testing.Servers(tmp_path / "servers") as servers:
        session = spark_testing.classic_session(
            servers.standalone(2, 2, ("127.0.0.1", "127.0.0.2")),
            tmp_path / "spark",
            spark__speculation="true",
            spark__speculation__interval="100ms",
            spark__speculation__minTaskRuntime="200ms",
            spark__speculation__multiplier="1.1",
            spark__speculation__quantile="0.5",
        )
        try:
            with Cluster(session, size=2, progress=False) as cluster:
                cluster.start(read_all)
                rows = numbered(session, 0, 400).mapInArrow(
                    first_is_slow, "id long, x array<float>"
                )
                rows = Feed(rows, shapes={"x": (2,)}, probe=False, cache="none")
                assert cluster.feed(rows).rows == 400
                assert ids_of(cluster.stop()) == list(range(400))
        finally:
            spark_testing.stop_sessions()
    assert (runs / "3-1").exists()
    assert not (runs / "2-1").exists()


@pytest.mark.parametrize(
    "master", [pytest.param("local[2]", marks=pytest.mark.long), "local-cluster[2,1,1024]"]
)
def test_a_killed_driver_leaves_nothing_behind(master, tmp_path):
    paths = [os.path.dirname(__file__), spark_testing.SOURCE]
    text = textwrap.dedent(DRIVER).format(paths=paths, master=master, folder=str(tmp_path))
    program = tmp_path / "driver.py"
    program.write_text(text)
    before = set(spark_testing.marked_processes())
    driver = subprocess.Popen(
        [sys.executable, str(program)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    try:
        assert driver.stdout is not None
        assert any("ready" in line for line in driver.stdout)
        assert len(spark_testing.nodes()) >= 2
        driver.kill()
        spark_testing.wait_for(gone, 60, "end of all agents and nodes")
    finally:
        driver.kill()
        driver.wait()
        spark_testing.wait_for(
            lambda: not set(spark_testing.marked_processes()) - before, 60, "end of Spark"
        )
