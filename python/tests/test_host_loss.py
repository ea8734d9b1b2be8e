# SPDX-License-Identifier: Apache-2.0
"""A host is cut off the network while it trains: noticed, named, and the run goes on elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import cloudpickle
import pytest
import restart_programs
import spark_testing
from namespaces import Namespaces, namespaces_work
from restart_programs import count

from arcflow import Cluster

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
cloudpickle.register_pickle_by_value(restart_programs)
HOSTS = 3


class Hosts(Namespaces):
    """Hosts with a Spark Worker of one core in each."""

    def __init__(self, folder: Path) -> None:
        super().__init__(HOSTS)
        self._folder = folder
        self._workers: list[subprocess.Popen[bytes]] = []

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.send_signal(signal.SIGTERM)
        for worker in self._workers:
            try:
                worker.wait(15)
            except subprocess.TimeoutExpired:
                worker.kill()
                worker.wait(15)
        with contextlib.suppress(TimeoutError):
            spark_testing.wait_for(lambda: not spark_testing.agents_and_nodes(), 20, "the end")
        super().__exit__()

    def start_worker(self, number: int, master: str) -> None:
        import pyspark

        home = Path(pyspark.__file__).parent
        folder = self._folder / f"host{number}"
        folder.mkdir()
        env = os.environ | {
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_IP": self.address(number),
            "SPARK_WORKER_DIR": str(folder),
            "SPARK_LOCAL_DIRS": str(folder),
            "SPARK_DAEMON_MEMORY": "192m",
        }
        command = [
            *self.prefix(number), str(home / "bin" / "spark-class"),
            "org.apache.spark.deploy.worker.Worker", master, "-h", self.address(number),
            "-c", "1", "-m", "700m", "--webui-port", "0",
        ]  # fmt: skip
        with (folder / "log").open("wb") as log:
            self._workers.append(
                subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            )


def start_master(servers: spark_testing.Servers, host: str) -> str:
    port = spark_testing.free_port()
    servers.start(
        "master",
        ["spark-class", "org.apache.spark.deploy.master.Master", "-h", host, "-p", str(port),
         "--webui-port", "0"],
    )  # fmt: skip
    spark_testing.wait_for(lambda: "I have been elected" in servers.log("master"), 60, "Master")
    return f"spark://{host}:{port}"


@pytest.mark.spark
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.usefixtures("leftovers")
@pytest.mark.skipif(not namespaces_work(), reason="needs root and network namespaces")
def test_a_host_that_is_cut_off_is_named_and_the_run_goes_on_without_it(tmp_path):
    with spark_testing.Servers(tmp_path / "servers") as servers, Hosts(tmp_path) as hosts:
        master = start_master(servers, hosts.driver)
        for number in range(HOSTS):
            hosts.start_worker(number, master)
        spark_testing.wait_for(
            lambda: servers.log("master").count("Registering worker") >= HOSTS, 90, "Workers"
        )
        settings = {
            "spark.driver.host": hosts.driver,
            "spark.driver.bindAddress": hosts.driver,
            "spark.executor.heartbeatInterval": "1s",
            "spark.executor.heartbeat.maxFailures": "10",
            "spark.network.timeout": "15s",
            "spark.network.timeoutInterval": "5s",
        }
        spark = spark_testing.classic_session(master, tmp_path / "driver", **settings)
        try:
            _cut_one(spark, hosts, tmp_path)
        finally:
            spark_testing.stop_sessions()


def _cut_one(spark, hosts, folder):
    def run(name, **args):
        with Cluster(
            spark, size=2, max_restarts=2, restart_backoff=0.1, progress=False, grace=1,
            heartbeat_timeout=3, start_timeout=60,
        ) as cluster:  # fmt: skip
            args = {"directory": str(folder / name), "step": -1, "how": "node", **args}
            return cluster.run(count, data=spark.range(0, 230, 1, 5), args=args)

    good = run("good")
    where = folder / "where"

    def cut_when_told():
        spark_testing.wait_for(where.exists, 120, "a node that asks to be cut off")
        hosts.cut(where.read_text())

    cutter = threading.Thread(target=cut_when_told, daemon=True)
    cutter.start()
    again = run("again", step=13, how="wait", where=str(where))
    cutter.join(10)
    # The host that is cut off sees by itself that nobody answers: its node outlives the run by little.
    spark_testing.wait_for(lambda: not spark_testing.agents_and_nodes(), 15, "the cut host's node")
    assert [value["total"] for value in again.values] == [value["total"] for value in good.values]
    first = again.attempts[0]
    assert (first.node, first.cause) == ("worker:0", "timeout")
    assert "no heartbeat" in first.error
    assert {value["began"] for value in again.values} == {10}
