# SPDX-License-Identifier: Apache-2.0
"""Nodes that live and do not move, and processes that a signal stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
import spark_testing
from spark_testing import on
from test_failures import Victims, fail, kill_while_waiting

from arcflow import Cluster, _liveness, errors

cloudpickle.register_pickle_by_value(sys.modules[__name__])
cloudpickle.register_pickle_by_value(sys.modules["test_failures"])
pytestmark = pytest.mark.usefixtures("leftovers")


def stall_here(ctx, rank):
    import time

    for step in range(4):
        ctx.log(step=step + 1)
    if ctx.rank == rank:
        time.sleep(600)  # where it hangs
    ctx.barrier("all steps are done")


def test_a_stopped_process_is_killed_after_its_time():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        watch = _liveness.watch_agent(child.pid, 1.0)
        child.send_signal(signal.SIGSTOP)
        assert child.wait(60) == -signal.SIGKILL
        watch.end()
        assert "stopped by a signal" in watch.explanation
    finally:
        child.kill()
        child.wait()


def test_a_process_that_runs_is_left_alone():
    watch = _liveness.watch_agent(os.getpid(), 1.0)
    watch.end()
    assert watch.explanation == ""
    assert not _liveness.is_stopped(os.getpid())


@on("local", "connect")
def test_the_stalled_node_is_named_and_described_and_not_the_one_that_waits(spark):
    cluster = Cluster(spark, size=2, progress=False, grace=2, stall_timeout=2)
    error = fail(cluster, lambda ctx: stall_here(ctx, 1))
    assert (error.rank, error.cause) == (1, "stalled")
    assert "in stall_here" in error.traceback
    assert "Native stacks:" in error.traceback
    assert "after step 4" in str(error).splitlines()[0]
    assert error.others == []


@on("local")
class TestLocal:
    def test_busy_and_alive_keep_a_node_from_counting_as_stalled(self, spark):
        def work(ctx):
            import time

            for step in range(4):
                ctx.log(step=step + 1)
            with ctx.busy("a long download"):
                time.sleep(4)
            for _ in range(8):
                ctx.alive()
                time.sleep(0.5)
            return "done"

        cluster = Cluster(spark, size=1, progress=False, stall_timeout=2)
        assert cluster.run(work).values == ["done"]

    def test_stall_timeout_none_waits(self, spark):
        def work(ctx):
            import time

            for step in range(4):
                ctx.log(step=step + 1)
            time.sleep(3)
            return "slept"

        cluster = Cluster(spark, size=1, progress=False, stall_timeout=None)
        assert cluster.run(work).values == ["slept"]
        with pytest.raises(errors.InvalidArgumentError, match="stall_timeout=-1"):
            Cluster(spark, size=1, stall_timeout=-1)

    def test_a_barrier_names_who_has_not_come(self, spark):
        def wait(ctx):
            import time

            if ctx.rank == 0:
                ctx.barrier("epoch", timeout=1)
            time.sleep(600)

        cluster = Cluster(spark, size=2, progress=False, grace=2)
        error = fail(cluster, wait)
        assert 'barrier "epoch" waited in vain for rank 1' in str(error)


@on("local", "standalone")
def test_a_stopped_node_is_named(spark, tmp_path):
    cluster = Cluster(spark, size=2, progress=False, grace=2, stop_timeout=2)
    error = kill_while_waiting(cluster, tmp_path, lambda v: os.kill(v.node(1), signal.SIGSTOP))
    assert (error.rank, error.cause) == (1, "stopped")
    assert "has been stopped by a signal" in str(error)


@on("standalone")
def test_a_stopped_agent_is_named_and_nothing_stays(spark, tmp_path):
    cluster = Cluster(spark, size=2, progress=False, grace=2, stop_timeout=6, heartbeat_timeout=3)
    error = kill_while_waiting(cluster, tmp_path, lambda v: os.kill(v.agent(1), signal.SIGSTOP))
    assert (error.rank, error.cause) == (1, "timeout")
    assert "the agent is silent" in str(error)


@on("standalone")
def test_a_stopped_spark_task_is_named(spark, tmp_path):
    cluster = Cluster(spark, size=2, progress=False, grace=2, stop_timeout=2)
    victims = []

    def stop(v: Victims) -> None:
        victims.append(v.feeder(1))
        os.kill(victims[0], signal.SIGSTOP)

    error = kill_while_waiting(cluster, tmp_path, stop)
    assert (error.rank, error.cause) == (1, "stopped")
    assert "the Spark task's Python process" in str(error)
    spark_testing.wait_for(
        lambda: not _liveness.is_stopped(victims[0]), 30, "end of the stopped Python worker"
    )


class StopsItsTask:
    """A result that stops the Spark task of its node when it is pickled, after the program."""

    def __reduce__(self):
        stat = Path(f"/proc/{os.getppid()}/stat").read_text()  # of the agent
        os.kill(int(stat.rsplit(")", 1)[1].split()[1]), signal.SIGSTOP)
        return (str, ("result",))


@on("standalone")
def test_a_task_that_does_not_return_with_its_result_ends_the_run(spark):
    cluster = Cluster(spark, size=2, progress=False, heartbeat_timeout=4)
    error = fail(cluster, lambda ctx: StopsItsTask() if ctx.rank == 1 else None)
    assert (error.rank, error.cause) == (1, "stopped")
    assert "every node finished" in str(error)
