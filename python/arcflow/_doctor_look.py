# SPDX-License-Identifier: Apache-2.0
"""What `arcflow doctor` looks at on an executor, from inside a barrier task."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from . import _executor, _gpus, _network, _reach, errors

_CONNECT_S = 5.0
Gather = Callable[[str], Sequence[str]]


@dataclasses.dataclass
class Wants:
    """What the run would ask for.

    Attributes
    ----------
    driver
        Address that executors would be told of the driver.
    feed_memory_bytes, gpus, share_gpus, network, ports
        As for `arcflow.Cluster`.
    hdfs
        Name nodes as ``host:port``; empty when no HDFS is configured.
    """

    driver: str = "127.0.0.1"
    feed_memory_bytes: int = 1 << 30
    gpus: int | None = None
    share_gpus: bool = False
    network: str = ""
    ports: tuple[int, int] = (0, 0)
    hdfs: tuple[str, ...] = ()


def look(wants: Wants, context: Any) -> dict[str, Any]:
    """Examine this executor together with the other tasks of the stage.

    Parameters
    ----------
    wants
        What the run would ask for.
    context : pyspark.BarrierTaskContext
        Of this task.
    """
    rank = context.partitionId()
    addresses = [info.address for info in context.getTaskInfos()]
    found: dict[str, Any] = {
        "host": addresses[rank].rsplit(":", 1)[0],
        "executor": addresses[rank],
        "versions": _executor.versions(),
        "agent": os.access(_executor.agent_path(), os.X_OK),
        "memory_bytes": memory_limit()[0],
        "memory_of": memory_limit()[1],
        "descriptors": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "disk_bytes": shutil.disk_usage(_executor.local_dirs()[0]).free,
        "disk": _executor.local_dirs()[0],
        "memfd": _said(_memfd),
        "gpus": _said(lambda: _look_for_gpus(wants, context, addresses, rank)),
        "hdfs": {where: reach(where) for where in wants.hdfs},
    }
    found |= _look_at_network(wants, addresses[rank], rank, context.allGather)
    return found


def _said(act: Callable[[], Any]) -> dict[str, Any]:
    """Return ``{"value": …}`` or ``{"error": …}``."""
    try:
        return {"value": act()}
    except errors.ArcflowError as error:
        return {"error": error.message}
    except OSError as error:
        return {"error": f"{type(error).__name__}: {error}"}


def _memfd() -> str:
    descriptor = os.memfd_create("arcflow-doctor", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(descriptor, 1 << 20)
        os.pwrite(descriptor, b"1", (1 << 20) - 1)
    finally:
        os.close(descriptor)
    return "ok"


def memory_limit(root: str = "/") -> tuple[int, str]:
    """Return the bytes that this process may use, and who says so: its container, or the host."""
    limits = [(_total(root), "host")]
    try:
        lines = Path(root, "proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            folder, name = Path(root, "sys/fs/cgroup"), "memory.max"
        elif "memory" in controllers.split(","):
            folder, name = Path(root, "sys/fs/cgroup/memory"), "memory.limit_in_bytes"
        else:
            continue
        parts = [part for part in path.split("/") if part and part != ".."]
        for depth in range(len(parts) + 1):
            with contextlib.suppress(OSError, ValueError):
                limit = int(folder.joinpath(*parts[:depth], name).read_text())
                limits.append((limit, "container"))
    return min(limits)


def _total(root: str) -> int:
    try:
        for line in Path(root, "proc/meminfo").read_text().splitlines():
            if line.startswith("MemTotal:"):
                return int(line.split()[1]) << 10
    except (OSError, ValueError):
        pass
    return 1 << 62


def _look_for_gpus(wants: Wants, context: Any, addresses: list[str], rank: int) -> list[str]:
    resources = {name: list(one.addresses) for name, one in context.resources().items()}
    found = _gpus.find(resources, os.environ)
    if wants.gpus is None:
        return list(found.addresses)
    if found.per_host:
        addresses = [address.rsplit(":", 1)[0] for address in addresses]
    place = addresses[:rank].count(addresses[rank])
    return list(_gpus.choose(found, wants.gpus, place, wants.share_gpus))


def reach(where: str) -> str:
    """Return why nobody answers at ``host:port``; empty when somebody does."""
    host, port = where.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_S):
            return ""
    except OSError as error:
        return str(error)


def _look_at_network(wants: Wants, address: str, rank: int, gather: Gather) -> dict[str, Any]:
    """Listen as a node would, connect to all others, and compare clocks with rank 0."""
    try:
        if wants.network:
            host = _network.choose(wants.network)
        else:
            host = _executor.advertised_host(address, wants.driver)
        server = _network.bind_in(host, *wants.ports)
    except (errors.ArcflowError, OSError) as error:
        gather(json.dumps({"rank": rank, "where": None}))
        gather("")
        return {"address": None, "network": str(error), "unreached": {}, "skew_s": None}
    with server, _telling_time(server):
        where = f"{host}:{server.getsockname()[1]}"
        words = [json.loads(text) for text in gather(json.dumps({"rank": rank, "where": where}))]
        others = {str(w["rank"]): w["where"] for w in words if w["where"] and w["rank"] != rank}
        unreached = _reach.connect_all(others, _CONNECT_S)
        skew = _skew(others["0"]) if "0" in others and "0" not in unreached else None
        gather("")  # nobody closes while others still connect
    said = {name: f"{others[name]} ({why})" for name, why in unreached.items()}
    return {"address": where, "network": "", "unreached": said, "skew_s": skew}


@contextlib.contextmanager
def _telling_time(server: socket.socket) -> Iterator[None]:
    """Answer every connection with the time of day, as long as the context lasts."""
    server.listen(1024)
    server.settimeout(0.2)
    over = threading.Event()

    def answer() -> None:
        while not over.is_set():
            with contextlib.suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.sendall(repr(time.time()).encode())

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _skew(where: str) -> float | None:
    """Return how many seconds this clock is ahead of that of a peer; None when it does not tell."""
    host, port = where.rsplit(":", 1)
    begun = time.time()
    try:
        with socket.create_connection((host, int(port)), timeout=_CONNECT_S) as connection:
            theirs = float(connection.recv(64))
    except (OSError, ValueError):
        return None
    return (begun + time.time()) / 2 - theirs
