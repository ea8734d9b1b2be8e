# SPDX-License-Identifier: Apache-2.0
"""A Spark standalone cluster on this machine: one Master and some Workers as processes, on loopback only."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

# Quick to start rather than fast in the long run: what an example and a bench want.
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(
        1, signal.SIGKILL
    )  # PR_SET_PDEATHSIG: no Worker outlives a killed example


class StandaloneCluster:
    """Master and Workers for the length of a ``with`` block.

    Parameters
    ----------
    folder
        For logs and for what the Workers write; made when absent.
    workers
        Workers; each gets one executor of an application.
    cores, memory_mib
        Of each Worker.
    java_options
        For Master, Workers and everything that they start.
    """

    def __init__(
        self,
        folder: Path,
        *,
        workers: int = 2,
        cores: int = 1,
        memory_mib: int = 1024,
        java_options: str = JAVA_OPTIONS,
    ) -> None:
        self._folder = folder.resolve()
        self._workers, self._cores, self._memory_mib = workers, cores, memory_mib
        self._java_options = java_options
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = ""

    def __enter__(self) -> StandaloneCluster:
        try:
            port = _free_port()
            self.url = f"spark://127.0.0.1:{port}"
            self._start("master", "master.Master", "-h", "127.0.0.1", "-p", str(port))
            self._wait_for(port)
            for number in range(self._workers):
                self._start(
                    f"worker{number}",
                    "worker.Worker",
                    self.url,
                    "-h",
                    "127.0.0.1",
                    "-c",
                    str(self._cores),
                    "-m",
                    f"{self._memory_mib}m",
                )
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _start(self, name: str, main: str, *args: str) -> None:
        import pyspark

        home = Path(pyspark.__file__).parent
        work, local = self._folder / "work", self._folder / "local"
        for folder in (work, local):
            folder.mkdir(parents=True, exist_ok=True)
        env = os.environ | {
            "SPARK_HOME": str(home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_WORKER_DIR": str(work),
            "SPARK_LOCAL_DIRS": str(local),
            "JAVA_TOOL_OPTIONS": self._java_options,
            "PYSPARK_PYTHON": sys.executable,
        }
        command = [
            str(home / "bin/spark-class"),
            f"org.apache.spark.deploy.{main}",
            *args,
            "--webui-port",
            "0",
        ]
        with (self._folder / f"{name}.log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    command,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=_die_with_parent,
                )
            )

    def _wait_for(self, port: int, timeout_s: float = 180) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                ended = self._processes[0].poll()
                if ended is not None or time.monotonic() > deadline:
                    why = (
                        f"ended with {ended}"
                        if ended is not None
                        else f"was not up after {timeout_s:.0f} s"
                    )
                    raise RuntimeError(
                        f"Spark's Master {why}; see {self._folder}/master.log"
                    ) from None
                time.sleep(0.1)

    def session(self, name: str, **conf: str):
        """Return a Spark session on this cluster; dots of setting names are written as double underscores."""
        from pyspark.sql import SparkSession

        os.environ["PYSPARK_PYTHON"] = sys.executable
        os.environ["SPARK_LOCAL_IP"] = "127.0.0.1"
        settings = {
            "spark.driver.host": "127.0.0.1",
            "spark.driver.bindAddress": "127.0.0.1",
            "spark.ui.enabled": "false",
            "spark.log.level": "ERROR",
            "spark.ui.showConsoleProgress": "false",
            "spark.executor.cores": str(self._cores),
            "spark.sql.shuffle.partitions": str(self._workers * self._cores),
            "spark.executor.memory": f"{max(512, self._memory_mib - 384)}m",
            "spark.driver.extraJavaOptions": self._java_options,
            "spark.executor.extraJavaOptions": self._java_options,
            "spark.local.dir": str(self._folder / "local"),
            "spark.sql.warehouse.dir": str(self._folder / "warehouse"),
        }
        settings |= {key.replace("__", "."): value for key, value in conf.items()}
        builder = SparkSession.builder.master(self.url).appName(name)
        for key, value in settings.items():
            builder = builder.config(key, value)
        return builder.getOrCreate()

    def stop(self) -> None:
        """End what was started: the Workers first, so that they end their executors."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + 10
        for process in reversed(self._processes):
            try:
                process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()
