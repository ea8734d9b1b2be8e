# SPDX-License-Identifier: Apache-2.0
"""What a Spark task can learn about the executor it runs on: versions, addresses, processes, disks."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import socket
import sys
import sysconfig
import tempfile
from pathlib import Path

_TENSORFLOW = ("tensorflow", "tensorflow-cpu", "tensorflow-gpu", "tensorflow-intel", "tf-nightly")


@functools.cache
def versions() -> dict[str, str]:
    """Versions of Python, Arcflow, TensorFlow and Keras, without importing any of them.

    A package that is not installed has no entry.
    """
    from ._version import version

    found = {"python": ".".join(map(str, sys.version_info[:3])), "arcflow": version()}
    for key, names in (("tensorflow", _TENSORFLOW), ("keras", ("keras",))):
        for name in names:
            try:
                found[key] = importlib.metadata.version(name)
                break
            except importlib.metadata.PackageNotFoundError:
                continue
    return found


def agent_path() -> str:
    """Path of the agent executable inside this package."""
    return str(Path(__file__).resolve().parent / "bin" / "arcflow-agent")


def jvm_pid(pid: int | None = None) -> int:
    """Process id of the JVM that this Python worker descends from; 0 when there is none."""
    pid = os.getpid() if pid is None else pid
    for _ in range(8):
        try:
            status = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return 0
        name, rest = status[status.index("(") + 1 :].rsplit(")", 1)
        if name == "java":
            return pid
        pid = int(rest.split()[1])
        if pid <= 1:
            return 0
    return 0


def local_dirs() -> list[str]:
    """Directories for large temporary files: Spark's own, which Spark removes with the executor."""
    named = os.environ.get("SPARK_LOCAL_DIRS", "").split(",")
    dirs = [path for path in named if path and os.access(path, os.W_OK)]
    return dirs or [tempfile.gettempdir()]


def advertised_host(task_address: str, coordinator_host: str) -> str:
    """Return the IPv4 address under which other nodes reach this executor.

    Parameters
    ----------
    task_address
        ``host:port`` as Spark's barrier context tells it.
    coordinator_host
        Where the coordinator listens; decides which interface is used when the executor's own name
        resolves to loopback only.
    """
    host = task_address.rsplit(":", 1)[0] if task_address.count(":") == 1 else task_address
    for candidate in (host, os.environ.get("SPARK_LOCAL_IP", "")):
        address = resolve(candidate)
        if address and (not is_loopback(address) or is_loopback(coordinator_host)):
            return address
    return outward_address(coordinator_host)


def resolve(host: str) -> str:
    """IPv4 address of a host; empty when it has none."""
    try:
        return socket.gethostbyname(host) if host else ""
    except OSError:
        return ""


def is_loopback(host: str) -> bool:
    """Whether a host is this machine's loopback interface."""
    return resolve(host).startswith("127.")


def outward_address(peer: str) -> str:
    """Return the address of the interface that traffic to `peer` leaves by."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((peer, 9))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        return "127.0.0.1"


def node_python_path() -> str:
    """PYTHONPATH that lets a fresh interpreter import what this worker can import.

    Spark puts shipped files and archives on the worker's path; the interpreter's own directories
    are left out, because the node's interpreter knows its own.
    """
    own = [sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    kept = [
        os.path.abspath(entry)
        for entry in sys.path
        if entry and not any(os.path.abspath(entry).startswith(path) for path in own if path)
    ]
    return os.pathsep.join(dict.fromkeys(kept))


def with_large_pages(tunables: str) -> str:
    """GLIBC_TUNABLES under which large tensors lie in large pages, where the kernel gives them.

    Another process copies them faster then, and their first use costs fewer faults. What is said of
    large pages stays as it is; a C library that does not know the tunable passes over it.
    Source: glibc manual, "Memory Allocation Tunables".
    """
    if "glibc.malloc.hugetlb" in tunables:
        return tunables
    return ":".join([*filter(None, [tunables]), "glibc.malloc.hugetlb=1"])


def can_connect(host: str, port: int, timeout_s: float) -> bool:
    """Whether a TCP connection to the coordinator can be made from here."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
