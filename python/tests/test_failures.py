# SPDX-License-Identifier: Apache-2.0
"""Failures: whatever dies, the driver raises one error that names it, soon, and nothing is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import pytest
import spark_testing
from spark_testing import EVERYWHERE, on

from arcflow import Cluster, Feed, errors

pytestmark = pytest.mark.usefixtures("leftovers")
cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests


@pytest.fixture
def cluster(spark):
    with Cluster(spark, size=2, progress=False, grace=2) as two:
        yield two


def fail(cluster, fn, **options):
    with pytest.raises(errors.NodeFailedError) as caught:
        cluster.run(fn, **options)
    return caught.value


def wait_in(folder, rank):
    """Say where this process is, and wait to be killed."""
    import os
    import time
    from pathlib import Path

    agent = os.getppid()
    feeder = int(Path(f"/proc/{agent}/stat").read_text().rsplit(")", 1)[1].split()[1])
    temporary = Path(folder, f"{rank}.tmp")
    temporary.write_text(f"{os.getpid()} {agent} {feeder}")
    temporary.rename(Path(folder, str(rank)))
    print(f"rank {rank} is here", flush=True)
    time.sleep(600)


class Victims:
    """Process ids of node, agent and feeder of each rank, as the nodes tell them."""

    def __init__(self, folder, size=2):
        self._folder, self._size = folder, size

    def when_there(self, action):
        """Call `action(self)` in a thread as soon as all nodes run."""

        def run():
            spark_testing.wait_for(
                lambda: all((self._folder / str(r)).exists() for r in range(self._size)),
                90,
                "nodes",
            )
            action(self)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        return thread

    def ids(self, rank):
        return [int(word) for word in (self._folder / str(rank)).read_text().split()]

    def node(self, rank):
        return self.ids(rank)[0]

    def agent(self, rank):
        return self.ids(rank)[1]

    def feeder(self, rank):
        return self.ids(rank)[2]

    def executor(self, rank):
        from arcflow import _executor

        return _executor.jvm_pid(self.feeder(rank))


def kill_while_waiting(cluster, folder, action):
    def wait(ctx):
        wait_in(ctx.args, ctx.rank)

    Victims(folder).when_there(action)
    return fail(cluster, wait, args=str(folder))  # nodes would sleep until the test's watchdog


@on(*EVERYWHERE)
class TestEverywhere:
    def test_exception_in_one_node_is_the_one_that_is_shown(self, cluster):
        def raise_in_1(ctx):
            import time

            if ctx.rank == 1:
                print("last words")
                raise ValueError("bad label 11")
            time.sleep(600)

        error = fail(cluster, raise_in_1)
        assert (error.rank, error.node, error.cause) == (1, "worker:0", "exception")
        assert (error.type, error.message) == ("ValueError", "bad label 11")
        assert "raise_in_1" in error.traceback
        assert "last words" in error.log_tail
        assert str(error).startswith(
            "node worker:0 (rank 1 on 127.0.0.1) failed: ValueError: bad label 11"
        )
        assert error.others == []

    def test_killed_node(self, cluster, tmp_path):
        error = kill_while_waiting(cluster, tmp_path, lambda v: os.kill(v.node(0), signal.SIGKILL))
        assert (error.rank, error.role, error.cause, error.signal) == (
            0,
            "chief",
            "signal",
            "SIGKILL",
        )
        assert "rank 0 is here" in error.log_tail

    def test_killed_agent(self, cluster, tmp_path):
        error = kill_while_waiting(cluster, tmp_path, lambda v: os.kill(v.agent(1), signal.SIGKILL))
        assert error.rank == 1
        assert error.cause == "agent lost"

    def test_other_causes_stand_beside_the_first(self, cluster):
        def both_raise(ctx):
            import time

            ctx.barrier("both are here")
            time.sleep(0.2 * ctx.rank)
            raise ValueError(f"bad rank {ctx.rank}")

        error = fail(cluster, both_raise)
        assert (error.rank, error.message) == (0, "bad rank 0")
        assert [(one["rank"], one["message"]) for one in error.others] == [(1, "bad rank 1")]
        assert "Other nodes failed too:\n  worker:0 on 127.0.0.1: ValueError: bad rank 1" in str(
            error
        )

    def test_logs_give_more_than_the_error(self, cluster):
        def talk(ctx):
            for i in range(120):
                print("line", i)
            if ctx.rank == 1:
                raise ValueError("enough")
            import time

            time.sleep(600)

        error = fail(cluster, talk)
        assert len(error.log_tail) == 50
        assert cluster.logs("worker:0")[:2] == ["line 0", "line 1"]
        assert cluster.logs(0, lines=3) == ["line 117", "line 118", "line 119"]


@on("local")
def test_log_dir_gets_all_output_one_file_a_node_and_run(spark, tmp_path):
    def talk(ctx):
        for i in range(2000):
            print(ctx.rank, i)

    with Cluster(spark, size=2, progress=False, log_dir=tmp_path / "logs") as cluster:
        cluster.run(talk)
        cluster.run(talk)
        assert len(cluster.logs(1, lines=1500)) == 1500
    files = sorted((tmp_path / "logs").rglob("*.log"))
    assert [file.name for file in files] == ["chief-0.log", "worker-0.log"] * 2
    assert files[1].read_text() == "".join(f"1 {i}\n" for i in range(2000))


@on("local")
def test_logs_of_a_run_that_goes_on(spark, cluster, tmp_path):
    seen = []

    def look(victims):
        seen.extend(cluster.logs(1))
        os.kill(victims.node(1), signal.SIGKILL)

    kill_while_waiting(cluster, tmp_path, look)
    assert "rank 1 is here" in seen


@on("local", pytest.param("connect", marks=pytest.mark.long))
def test_memory_that_cannot_be_had_is_out_of_memory(spark, cluster):
    def take(ctx):
        import numpy as np

        return np.ones(1 << 45)

    error = fail(cluster, take)
    assert error.cause == "out of memory"
    assert "out of memory: " in str(error)
    assert "in take" in error.traceback


@on("local")
def test_an_abort_tells_its_own_words(spark, cluster):
    def abort(ctx):
        import os
        import sys

        if ctx.rank == 1:
            print(
                "terminate called after throwing an instance of 'std::runtime_error'",
                file=sys.stderr,
            )
            print("  what():  no such kernel", file=sys.stderr)
            os.abort()
        import time

        time.sleep(600)

    error = fail(cluster, abort)
    assert (error.cause, error.signal, error.type) == ("signal", "SIGABRT", "std::runtime_error")
    assert "no such kernel" in str(error).splitlines()[0]
    assert "in abort" in error.traceback


@on("local", "standalone")
def test_killed_feeder(spark, cluster, tmp_path):
    error = kill_while_waiting(cluster, tmp_path, lambda v: os.kill(v.feeder(1), signal.SIGKILL))
    assert (error.rank, error.cause) == (1, "feeder")


@on("standalone", "connect")
def test_killed_executor(spark, cluster, tmp_path):
    killed = []

    def kill(victims):
        killed.append(victims.executor(0))
        os.kill(killed[0], signal.SIGKILL)

    error = kill_while_waiting(cluster, tmp_path, kill)
    assert error.cause in ("executor lost", "feeder", "agent lost")
    assert killed
    # the application goes on: Spark starts another executor
    spark_testing.wait_for(lambda: _runs(cluster), 120, "a run after the executor's death")


def _runs(cluster):
    try:
        return cluster.run(lambda ctx: ctx.rank).values == [0, 1]
    except errors.ArcflowError:
        return False


@on("local", "connect")
def test_ctrl_c_stops_everything_and_is_a_keyboard_interrupt(spark, cluster, tmp_path):
    def wait(ctx):
        wait_in(ctx.args, ctx.rank)

    Victims(tmp_path).when_there(lambda _: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt) as caught:
        cluster.run(wait, args=str(tmp_path))
    assert isinstance(caught.value, errors.RunInterruptedError)
    assert cluster.run(lambda ctx: ctx.rank).values == [0, 1]  # the session can be used again


@on("local")
class TestHowNodesEnd:
    def test_exit_code(self, cluster):
        def leave(ctx):
            import os

            print("leaving", flush=True)
            os._exit(3)

        error = fail(cluster, leave)
        assert (error.cause, error.exit_code) == ("exit", 3)
        assert "exit code 3" in str(error).splitlines()[0]

    def test_sys_exit_is_explained(self, cluster):
        def leave(ctx):
            import sys

            sys.exit(0)

        assert "called sys.exit(0); return from it instead" in str(fail(cluster, leave))

    def test_value_that_cannot_travel(self, cluster):
        def value(ctx):
            import threading

            return threading.Lock()

        assert "what the function returned (lock) cannot be sent" in str(fail(cluster, value))

    def test_module_that_the_node_lacks(self, spark, cluster, tmp_path, monkeypatch):
        (tmp_path / "only_here.py").write_text("def fn(ctx):\n    return 1\n")
        monkeypatch.syspath_prepend(tmp_path)
        import only_here

        error = fail(cluster, only_here.fn)
        assert "needs a module that the node cannot import: No module named 'only_here'" in str(
            error
        )
        assert "addPyFile" in str(error)

    def test_segmentation_fault_leaves_a_trace(self, cluster):
        def crash(ctx):
            import ctypes

            ctypes.string_at(0)

        error = fail(cluster, crash)
        assert (error.cause, error.signal) == ("signal", "SIGSEGV")
        assert "Fatal Python error: Segmentation fault" in str(error).splitlines()[0]
        assert "in crash" in error.traceback
        assert any("Segmentation fault" in line for line in error.log_tail)

    def test_grandchildren_of_a_failed_node_end_too(self, cluster, tmp_path):
        def spawn(ctx):
            import subprocess
            from pathlib import Path

            child = subprocess.Popen(["sleep", "600"])
            Path(ctx.args, str(ctx.rank)).write_text(str(child.pid))
            ctx.barrier("spawned")
            raise RuntimeError("boom")

        fail(cluster, spawn, args=str(tmp_path))
        children = [int((tmp_path / str(rank)).read_text()) for rank in range(2)]
        spark_testing.wait_for(
            lambda: not any(Path(f"/proc/{pid}/exe").exists() for pid in children), 20, "their end"
        )

    def test_nodes_that_wait_at_different_barriers_do_not_wait_for_ever(self, cluster):
        error = fail(cluster, lambda ctx: ctx.barrier(f"barrier {ctx.rank}"))
        assert "FailedPrecondition" in error.type

    def test_a_node_that_leaves_while_another_waits(self, cluster):
        def one_waits(ctx):
            if ctx.rank == 0:
                ctx.barrier("for both")

        assert "barrier" in str(fail(cluster, one_waits))


@on("local")
class TestFeeding:
    def test_a_null_is_refused_with_feed_column_and_row(self, spark, cluster):
        df = spark.range(0, 1000, 1, 2).selectExpr("if(id = 700, null, id) as id")

        def read(ctx):
            return sum(1 for _ in ctx.reader("train", 16, remainder="partial"))

        error = fail(cluster, read, data=df)
        assert error.cause == "feeder"
        assert "train" in error.message
        assert "'id'" in error.message
        assert "null" in error.message

    def test_arrays_of_different_length_are_refused(self, spark, cluster):
        df = spark.range(0, 100, 1, 2).selectExpr("array_repeat(id, if(id = 70, 3, 2)) as x")

        def read(ctx):
            return sum(1 for _ in ctx.reader("train", 16, remainder="partial"))

        error = fail(cluster, read, data=Feed(df))
        assert error.cause == "feeder"
        assert "'x'" in error.message

    def test_an_error_in_the_users_sql_is_told_as_spark_tells_it(self, spark, cluster):
        df = spark.range(0, 1000, 1, 2).selectExpr(
            "if(id = 700, cast(raise_error('bad input file') as bigint), id) as id"
        )

        def read(ctx):
            return sum(1 for _ in ctx.reader("train", 16, remainder="partial"))

        with pytest.raises(errors.ArcflowError, match="bad input file"):
            cluster.run(read, data=df)

    def test_refuse_tells_that_ranks_hold_different_numbers(self, spark, cluster):
        df = spark.range(0, 120, 1, 2).where("id < 61")  # 60 and 1, or evened out 31 and 30

        def read(ctx):
            return sum(1 for _ in ctx.reader("train", 16, remainder="refuse"))

        assert "FailedPrecondition" in fail(cluster, read, data=df).type


@on("local")
class TestSpark:
    def test_no_free_slots_end_in_an_error_that_says_so(self, spark, tmp_path):
        release, slots = tmp_path / "release", tmp_path / "slots"
        slots.mkdir()

        def occupy(batches):
            import os
            import time

            for _ in batches:
                pass
            open(f"{taken}/{os.getpid()}", "w").close()
            while not os.path.exists(path):
                time.sleep(0.1)
            yield from ()

        path, taken = str(release), str(slots)
        busy = threading.Thread(
            target=lambda: spark.range(0, 2, 1, 2).mapInArrow(occupy, "a bigint").collect()
        )
        busy.start()
        try:
            # Before both tasks hold their slots all four are free, and the run would have them.
            deadline = time.monotonic() + 60
            while len(list(slots.iterdir())) < 2:
                assert time.monotonic() < deadline, "two tasks of another job did not begin"
                time.sleep(0.05)
            cluster = Cluster(spark, size=4, progress=False, start_timeout=4)
            with pytest.raises(errors.DeadlineExceededError, match="no 4 free slots"):
                cluster.run(lambda ctx: None)
        finally:
            release.touch()
            busy.join(60)

    def test_a_cancelled_job_is_a_cancelled_run(self, spark, cluster, tmp_path):
        def wait(ctx):
            wait_in(ctx.args, ctx.rank)

        Victims(tmp_path).when_there(lambda _: spark.sparkContext.cancelAllJobs())
        with pytest.raises(errors.ArcflowError, match=r"(?i)cancel"):
            cluster.run(wait, args=str(tmp_path))

    def test_the_spark_error_stays_in_the_chain(self, spark, cluster):
        df = spark.range(0, 10, 1, 2).selectExpr("cast(raise_error('early') as bigint) as id")
        with pytest.raises(errors.ArcflowError) as caught:
            cluster.run(lambda ctx: None, data=Feed(df, probe=False))
        assert caught.value.__cause__ is not None


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
import spark_testing
from pathlib import Path
spark_testing.os.environ[spark_testing.MARK] = {mark!r}
spark = spark_testing.classic_session({master!r}, Path({folder!r}) / "local")
import arcflow
from test_failures import wait_in
cluster = arcflow.Cluster(spark, size=2, progress=False)
cluster.run(lambda ctx: wait_in(ctx.args, ctx.rank), args={folder!r})
"""


@pytest.fixture
def own_standalone(tmp_path):
    """A standalone cluster that no other test's application holds cores of."""
    with spark_testing.Servers(tmp_path / "servers") as running:
        yield running.standalone()


@pytest.mark.spark
def test_nodes_end_when_the_driver_is_killed(own_standalone, tmp_path):
    code = DRIVER.format(
        tests=str(Path(__file__).parent),
        mark=os.environ[spark_testing.MARK],
        master=own_standalone,
        folder=str(tmp_path),
    )
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log)
    try:
        spark_testing.wait_for(
            lambda: all((tmp_path / str(rank)).exists() for rank in range(2)), 120, "nodes"
        )
    except TimeoutError:
        pytest.fail((tmp_path / "log").read_text())
    finally:
        driver.kill()
        driver.wait(10)
    spark_testing.wait_for(lambda: not spark_testing.agents_and_nodes(), 60, "end of all nodes")
