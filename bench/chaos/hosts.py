# SPDX-License-Identifier: Apache-2.0
"""A standalone Spark cluster whose Workers live on hosts of their own: namespaces with memory limits."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from faults import Container, Network

MARK = "ARCFLOW_CHAOS_MARK"
JAVA_OPTIONS = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"
_CORES = 3  # of each Worker: two hosts have a slot for every node of a layout, and one to spare


class Hosts:
    """Master here, one Worker on each of two hosts; everything carries `MARK` in its environment.

    `driver_container` limits the memory of the driver, which lives here too.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.network = Network(2)
        self._containers: list[Container] = []
        self._processes: list[subprocess.Popen[bytes]] = []
        self.url = ""

    def __enter__(self) -> Hosts:
        os.environ[MARK] = f"{os.getpid()}"
        os.environ["PYSPARK_PYTHON"] = sys.executable
        with contextlib.ExitStack() as stack:
            stack.enter_context(self.network)
            stack.callback(self._stop)
            self.driver_container = self._container(f"{self.network.tag}d")
            port = self._start_master()
            for host in range(2):
                self._start_worker(host)
            self._wait(lambda: self._log("master").count("Registering worker") >= 2, "Workers")
            self.url = f"spark://{self.network.address}:{port}"
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.close()

    def _start_master(self) -> int:
        with socket.socket() as probe:
            probe.bind((self.network.address, 0))
            port = probe.getsockname()[1]
        self._start("master", [], "master.Master", "-h", self.network.address, "-p", str(port))
        self._port = port
        self._wait(self._accepts, "Spark's Master")
        return port

    def _accepts(self) -> bool:
        with contextlib.suppress(OSError):
            socket.create_connection((self.network.address, self._port), 1).close()
            return True
        return False

    def _container(self, name: str) -> Container:
        self._containers.append(Container(name))
        return self._containers[-1]

    def _start_worker(self, host: int) -> None:
        self._start(
            f"worker{host}",
            ["ip", "netns", "exec", self.network.name(host)],
            "worker.Worker",
            f"spark://{self.network.address}:{self._port}",
            "-h",
            self.network.address_of(host),
            "-c",
            str(_CORES),
            "-m",
            "1500m",
            container=self._container(self.network.name(host)),
        )

    def _start(
        self,
        name: str,
        prefix: list[str],
        main: str,
        *args: str,
        container: Container | None = None,
    ) -> None:
        import pyspark

        home = Path(pyspark.__file__).parent
        folder = self._folder / name
        for path in (folder / "work", folder / "local"):
            path.mkdir(parents=True, exist_ok=True)
        env = os.environ | {
            "SPARK_HOME": str(home),
            "SPARK_WORKER_DIR": str(folder / "work"),
            "SPARK_LOCAL_DIRS": str(folder / "local"),
            "JAVA_TOOL_OPTIONS": JAVA_OPTIONS,
            "PYSPARK_PYTHON": sys.executable,
            "SPARK_DAEMON_MEMORY": "256m",
        }
        command = [*prefix, str(home / "bin/spark-class"), f"org.apache.spark.deploy.{main}", *args]
        with (folder / "log").open("wb") as log:
            self._processes.append(
                subprocess.Popen(
                    [*command, "--webui-port", "0"],
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    preexec_fn=container.enter if container else None,
                )
            )

    def _log(self, name: str) -> str:
        return (self._folder / name / "log").read_text(errors="replace")

    def _wait(self, condition: object, what: str, timeout_s: float = 120) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():  # type: ignore[operator]
            if time.monotonic() > deadline:
                raise TimeoutError(f"{what} did not come up; see {self._folder}")
            time.sleep(0.1)

    def host_of(self, pid: int) -> int:
        """On which host a process lives."""
        mine = os.stat(f"/proc/{pid}/ns/net").st_ino
        for host in range(2):
            if os.stat(f"/run/netns/{self.network.name(host)}").st_ino == mine:
                return host
        raise LookupError(f"process {pid} is on no host")

    def _stop(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for process in reversed(self._processes):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for pid in processes():  # what a cell left; it has been written down
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for container in self._containers:
            container.remove()


def processes() -> dict[int, str]:
    """Living agents and nodes that carry our mark: process id to command line."""
    mark = f"{MARK}={os.environ[MARK]}".encode()
    found = {}
    for path in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            command = Path(path, "cmdline").read_bytes().replace(b"\0", b" ").decode()
            ours = "arcflow-agent" in command or "arcflow._node" in command
            if ours and mark in Path(path, "environ").read_bytes().split(b"\0"):
                found[int(path.rsplit("/", 1)[1])] = command
    return found


def nodes() -> dict[str, int]:
    """Process ids of living nodes by ``"role:index"``, as their environment has it."""
    found = {}
    for pid, command in processes().items():
        if "arcflow-agent" in command:
            continue
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                if entry.startswith(b"ARCFLOW_NODE="):
                    found[entry.split(b"=", 1)[1].decode()] = pid
    return found


def leftovers() -> list[str]:
    """List what a run must not leave: processes, memfds, files in /dev/shm and the temporary folder."""
    found = [f"process {pid}: {command}" for pid, command in processes().items()]
    mark = f"{MARK}={os.environ[MARK]}".encode()
    for path in glob.glob("/proc/[0-9]*"):
        with contextlib.suppress(OSError):
            if mark not in Path(path, "environ").read_bytes().split(b"\0"):
                continue
            for link in glob.glob(f"{path}/fd/*"):
                with contextlib.suppress(OSError):
                    target = os.readlink(link)
                    if "memfd:arc" in target:
                        found.append(f"{path} holds {target}")
    found += glob.glob("/dev/shm/*arcflow*")
    found += glob.glob(os.path.join(os.environ["TMPDIR"], "*arcflow*"))
    return found
