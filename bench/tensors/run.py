# SPDX-License-Identifier: Apache-2.0
"""Compare what parameter servers do with large variables: ours by shared memory and TCP, stock gRPC.

Every system is three processes that stay up, a chief, a worker and a parameter server; they measure
in turn, so that a change of load meets them all alike. `--small` shows that all of it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "bench" / "collective")]

from processes import MIB, free_ports, shown  # noqa: E402

from arcflow import _executor  # noqa: E402
from harness import environment, interleaved, make_row, print_table, write_json  # noqa: E402

SYSTEMS = ("arcflow", "arcflow-tcp", "stock")
CASES = {
    "read": "worker reads the server's variable",
    "assign_add": "worker adds to the server's variable",
    "fetch": "chief gets a tensor of the server",
}
# What the system's default road has to reach, as a share of stock gRPC's time.
GOALS = {("read", 64 * MIB): 1 / 3, ("assign_add", 64 * MIB): 1 / 3}


class Cluster:
    """The processes of one system; ended, by process id, when left."""

    def __init__(self, system: str) -> None:
        self.system = system
        roles = ("chief", "worker", "ps")
        ports = free_ports(len(roles))
        cluster = {role: [f"127.0.0.1:{port}"] for role, port in zip(roles, ports, strict=True)}
        self._children: dict[str, subprocess.Popen[str]] = {}
        for role in reversed(roles):
            config = {"cluster": cluster, "task": {"type": role, "index": 0}}
            env = {
                **os.environ, "TF_CONFIG": json.dumps(config), "TF_CPP_MIN_LOG_LEVEL": "3",
                # As nodes have it; here for all systems.
                "GLIBC_TUNABLES": _executor.with_large_pages(os.environ.get("GLIBC_TUNABLES", "")),
                "CUDA_VISIBLE_DEVICES": "-1",
            }  # fmt: skip
            self._children[role] = subprocess.Popen(
                [sys.executable, str(HERE / "tasks.py"), system], env=env, text=True,
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip

    def ask(self, command: dict[str, Any] | None = None) -> dict[str, Any]:
        chief = self._children["chief"]
        if command is not None:
            chief.stdin.write(json.dumps(command) + "\n")
            chief.stdin.flush()
        line = chief.stdout.readline()
        if not line:
            sys.exit(f"the chief of {self.system} ended: run bench/tensors/tasks.py by hand")
        return json.loads(line)

    def close(self) -> None:
        for child in self._children.values():
            child.kill()
            child.wait()


@contextlib.contextmanager
def clusters() -> Iterator[dict[str, Cluster]]:
    found: dict[str, Cluster] = {}
    try:
        for system in SYSTEMS:
            found[system] = Cluster(system)
        for cluster in found.values():
            cluster.ask()  # ready
        yield found
    finally:
        for cluster in found.values():
            cluster.close()


def rows_of(what: str, size: int, found: dict[str, list[Any]]) -> list[Any]:
    case = f"{CASES[what]}, {shown(size)}, one host"
    ms = {system: [one["ms"] for one in values] for system, values in found.items()}
    limit = GOALS.get((what, size))
    return [
        make_row(
            case, name, ms[system], "ms", baseline="stock gRPC", baseline_values=ms["stock"],
            goal=f"<= {limit:.4f} x" if limit and system == "arcflow" else None,
        )
        for system, name in (("arcflow", "step"), ("arcflow-tcp", "step over TCP"))
    ]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--small", action="store_true", help="one size, one repeat: a smoke run")
    parser.add_argument("--output", type=Path, default=Path("build/bench/tensors.json"))
    args = parser.parse_args()
    sizes = (MIB,) if args.small else (MIB, 64 * MIB)
    rows = []
    with clusters() as systems:
        for what in CASES:
            for size in sizes:
                command = {"what": what, "bytes": size, "steps": 10 if size > MIB else 30}
                cases = {name: lambda c=one, q=command: c.ask(q) for name, one in systems.items()}
                found = interleaved(cases, 1 if args.small else args.repeats)
                rows += rows_of(what, size, found)
        for name in ("arcflow", "arcflow-tcp"):
            fallbacks = systems[name].ask({"report": True})["fallbacks"]
            if fallbacks:
                sys.exit(f"{name} did not measure what it should: {fallbacks}")
    env = environment(["tensorflow-cpu", "numpy"])
    print_table(env, rows)
    write_json(args.output, env, rows)


if __name__ == "__main__":
    main()
