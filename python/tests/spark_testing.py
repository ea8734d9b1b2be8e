# SPDX-License-Identifier: Apache-2.0
"""Spark for tests: sessions and servers on loopback, each ended by its process id; and what runs left behind."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import spark_class_archive

import arcflow

# A classic driver is also what "local" has, and executors of a standalone cluster what "connect" has; both together
# are left to `make test-long` where a test does not depend on it.
EVERYWHERE = ("local", pytest.param("standalone", marks=pytest.mark.long), "connect")
SOURCE = str(Path(arcflow.__file__).resolve().parents[1])
# What executors, agents and nodes import from: arcflow, and Spark's daemon for tests.
PYTHONPATH = os.pathsep.join([SOURCE, str(Path(__file__).resolve().parent / "executors")])
DAEMON = "spark_daemon_of_tests"
JAVA_OPTIONS = spark_class_archive.java_options()
# In the environment of every process that a test starts, so that leftovers are ours and nobody else's.
MARK = "ARCFLOW_TEST_MARK"


def marks(*kinds: Any) -> list[Any]:
    """Marks of tests that run on sessions of these kinds: local, local-cluster, standalone, connect."""
    return [
        pytest.mark.spark,
        pytest.mark.parametrize("spark", kinds, indirect=True, scope="module"),
    ]


def on(*kinds: Any) -> Any:
    """As `marks`, for one test or class."""

    def mark(test: Any) -> Any:
        for one in marks(*kinds):
            test = one(test)
        return test

    return mark


def prepare_environment(temporary: str) -> None:
    """Set what Spark's processes, and so the agents and nodes, inherit.

    `temporary` is their folder for temporary files, so that what is left there is ours.
    """
    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    mark = os.environ.setdefault(MARK, uuid.uuid4().hex)
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and not mark.endswith(worker):  # pytest's workers inherit the mark of their starter
        os.environ[MARK] = f"{mark}-{worker}"
    os.environ["PYSPARK_PYTHON"] = sys.executable
    os.environ["PYTHONPATH"] = PYTHONPATH
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ["JAVA_TOOL_OPTIONS"] = JAVA_OPTIONS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Any, timeout_s: float, what: str) -> Any:
    """What `condition` returns once it is true; generous, because test machines can be very busy."""
    timeout_s *= 2
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.1)
    raise TimeoutError(f"{what} did not happen within {timeout_s} s; {agents_and_nodes()}")


def accepts(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


def classic_session(master: str, local_dir: Path, **conf: str) -> Any:
    """A Spark Classic session; stops whatever session this process had."""
    from pyspark.sql import SparkSession

    stop_sessions()
    builder = SparkSession.builder.master(master).appName("arcflow tests")
    settings = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "512m",
        "spark.executor.memory": "512m",
        "spark.executorEnv.PYTHONPATH": PYTHONPATH,
        "spark.python.daemon.module": DAEMON,
        "spark.executorEnv.JAVA_TOOL_OPTIONS": JAVA_OPTIONS,
        f"spark.executorEnv.{MARK}": os.environ[MARK],
        "spark.local.dir": str(local_dir),
        "spark.sql.shuffle.partitions": "2",
        "spark.log.level": "OFF",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.warehouse.dir": str(local_dir / "warehouse"),
    } | {key.replace("__", "."): value for key, value in conf.items()}
    for key, value in settings.items():
        builder = builder.config(key, value)
    return builder.getOrCreate()


def stop_sessions() -> None:
    from pyspark.sql import SparkSession

    active = SparkSession.getActiveSession()
    if active is not None:
        active.stop()
    os.environ.pop("SPARK_CONNECT_MODE_ENABLED", None)
    os.environ.pop("SPARK_REMOTE", None)


class Servers:
    """Java processes of Spark, ended by process id when the context ends."""

    def __init__(self, folder: Path) -> None:
        import pyspark

        self._home = Path(pyspark.__file__).parent
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Servers:
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes):
            process.send_signal(signal.SIGTERM)
        for process in reversed(self._processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(10)

    def start(self, name: str, command: list[str], memory: str = "256m") -> subprocess.Popen[bytes]:
        folder = self._folder / name
        for path in (folder / "work", folder / "local"):
            path.mkdir(parents=True, exist_ok=True)
        env = os.environ | {
            "SPARK_HOME": str(self._home),
            "SPARK_LOCAL_IP": "127.0.0.1",
            "SPARK_WORKER_DIR": str(folder / "work"),
            "SPARK_LOCAL_DIRS": str(folder / "local"),
            "SPARK_DAEMON_MEMORY": memory,
        }
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [str(self._home / "bin" / command[0]), *command[1:]],
                env=env,
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._processes.append(process)
        return process

    def log(self, name: str) -> str:
        return (self._folder / name / "log").read_text(errors="replace")

    def standalone(self, workers: int = 2, cores: int = 2, hosts: Sequence[str] = ()) -> str:
        """Start Master and Workers, each at its address of `hosts`; return the master's address."""
        port = free_port()
        master = ["spark-class", "org.apache.spark.deploy.master.Master"]
        self.start("master", [*master, "-h", "127.0.0.1", "-p", str(port), "--webui-port", "0"])
        wait_for(lambda: accepts(port), 60, "Spark Master")
        url = f"spark://127.0.0.1:{port}"
        for number in range(workers):
            worker = [
                "spark-class",
                "org.apache.spark.deploy.worker.Worker",
                url,
                "-h",
                hosts[number] if hosts else "127.0.0.1",
            ]
            resources = ["-c", str(cores), "-m", "1200m", "--webui-port", "0"]
            self.start(f"worker{number}", [*worker, *resources])
        joined = "Registering worker"
        wait_for(lambda: self.log("master").count(joined) >= workers, 60, "Workers at the Master")
        return url

    def connect(self, master: str, name: str = "connect", **conf: str) -> str:
        """Start a Spark Connect server; return its address."""
        port = free_port()
        settings = {
            "spark.ui.enabled": "false",
            "spark.driver.host": "127.0.0.1",
            "spark.executor.memory": "512m",
            "spark.executorEnv.PYTHONPATH": PYTHONPATH,
            "spark.python.daemon.module": DAEMON,
            "spark.executorEnv.JAVA_TOOL_OPTIONS": JAVA_OPTIONS,
            f"spark.executorEnv.{MARK}": os.environ[MARK],
            "spark.sql.shuffle.partitions": "2",
            "spark.log.level": "WARN",
            "spark.connect.grpc.binding.port": str(port),
        } | {key.replace("__", "."): value for key, value in conf.items()}
        command = ["spark-submit", "--master", master, "--driver-memory", "512m"]
        for key, value in settings.items():
            command += ["--conf", f"{key}={value}"]
        server = "org.apache.spark.sql.connect.service.SparkConnectServer"
        process = self.start(name, [*command, "--class", server, "spark-internal"], "640m")
        wait_for(lambda: accepts(port) or process.poll() is not None, 120, "Spark Connect server")
        assert process.poll() is None, self.log(name)
        return f"sc://127.0.0.1:{port}"


@contextlib.contextmanager
def connect_session(remote: str) -> Iterator[Any]:
    from pyspark.sql import SparkSession

    stop_sessions()
    spark = SparkSession.builder.remote(remote).create()
    try:
        yield spark
    finally:
        with contextlib.suppress(Exception):
            spark.stop()
        os.environ.pop("SPARK_CONNECT_MODE_ENABLED", None)


def marked_processes() -> dict[int, str]:
    """Command lines of living processes that carry this test run's mark, by process id."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = {}
    for path in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            pid = int(path.rsplit("/", 1)[1])
            if mark in Path(path, "environ").read_bytes().split(b"\0"):
                found[pid] = Path(path, "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def agents_and_nodes() -> dict[int, str]:
    return {
        pid: command
        for pid, command in marked_processes().items()
        if "arcflow-agent" in command or "arcflow._node" in command
    }


def nodes() -> list[int]:
    return [
        pid
        for pid, command in agents_and_nodes().items()
        if "arcflow._node" in command and "arcflow-agent" not in command
    ]


def agents() -> list[int]:
    return [
        pid
        for pid, command in agents_and_nodes().items()
        if command.split(" ")[0].endswith("arcflow-agent")
    ]


def arcflow_memfds() -> list[str]:
    """Memfds of Arcflow that a marked process, or this one, still holds."""
    found = []
    for pid in [*marked_processes(), os.getpid()]:
        for path in glob.glob(f"/proc/{pid}/fd/*"):
            with contextlib.suppress(OSError):
                target = os.readlink(path)
                if "memfd:arc" in target:
                    found.append(f"{pid}: {target}")
    return found


def named_leftovers(*folders: Path) -> list[str]:
    """Files of Arcflow in shared memory, the temporary folder and the folders given."""
    found = glob.glob("/dev/shm/*arcflow*")
    found += glob.glob(os.path.join(tempfile.gettempdir(), "*arcflow*"))
    for folder in folders:
        found += [str(path) for path in folder.rglob("*arcflow*")]
    return found


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])
