# SPDX-License-Identifier: Apache-2.0
"""The processes of a system under measurement: they stay up, and measure when they are told to."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from arcflow import _executor

HERE = Path(__file__).resolve().parent
SYSTEMS = ("arcflow", "stock", "stock-whole")
KIB, MIB = 1 << 10, 1 << 20
Places = list[tuple[list[str], str]]


def shown(size: int) -> str:
    return f"{size // MIB} MiB" if size >= MIB else f"{size // KIB} KiB"


def steps_for(what: int | str) -> int:
    if isinstance(what, str):
        return 3
    # Many of the small ones: the kernel takes a while to give each rank a core of its own.
    return 10 if what >= 16 * MIB else 200 if what >= MIB else 1000


class Cluster:
    """The processes of one system; ended, by process id, when left."""

    def __init__(
        self, system: str, ranks: int, *, transport: str = "shm", places: Places | None = None
    ) -> None:
        """`places`: for each rank what its command begins with, and its address."""
        self.system = system
        where = places or [([], "127.0.0.1")] * ranks
        ports = free_ports(ranks)
        addresses = [f"{host}:{port}" for (_, host), port in zip(where, ports, strict=True)]
        self._children = []
        for rank in range(ranks):
            config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": rank}}
            env = {
                **os.environ, "TF_CONFIG": json.dumps(config), "TF_CPP_MIN_LOG_LEVEL": "3",
                # As nodes have it; here for all systems.
                "GLIBC_TUNABLES": _executor.with_large_pages(os.environ.get("GLIBC_TUNABLES", "")),
                "CUDA_VISIBLE_DEVICES": "-1", "KERAS_BACKEND": "tensorflow",
            }  # fmt: skip
            command = [sys.executable, str(HERE / "ranks.py"), system, transport]
            self._children.append(subprocess.Popen(
                [*where[rank][0], *command], env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ))  # fmt: skip

    def answers(self) -> list[dict[str, Any]]:
        found = []
        for child in self._children:
            line = child.stdout.readline()
            if not line:
                sys.exit(f"a rank of {self.system} ended: run bench/collective/ranks.py by hand")
            found.append(json.loads(line))
        return found

    def ask(self, **command: Any) -> dict[str, Any]:
        """Tell all ranks to do something; the answer is rank 0's."""
        for child in self._children:
            child.stdin.write(json.dumps(command) + "\n")
            child.stdin.flush()
        return self.answers()[0]

    def measure(self, what: int | str, steps: int) -> dict[str, float]:
        """Rank 0's step; all ranks take part."""
        return self.ask(**{"set" if isinstance(what, str) else "bytes": what}, steps=steps)

    def report(self) -> dict[str, Any]:
        """Return what rank 0 says of its transport."""
        return self.ask(report=True)

    def close(self) -> None:
        for child in self._children:
            child.kill()
            child.wait()


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            probe = stack.enter_context(socket.socket())
            probe.bind(("127.0.0.1", 0))
            found.append(probe.getsockname()[1])
        return found
