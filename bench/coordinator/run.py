# SPDX-License-Identifier: Apache-2.0
"""How a coordinator grows with its agents: join, heartbeats, the news of a death, memory.

Agents are connections of one native process that send what real ones send; the coordinator is
another process. `make bench-coordinator` builds both.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
import resource
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))

import harness  # noqa: E402

SIZES = (10, 30, 100, 300, 1000)
HEARTBEAT_S = 1.0
GOALS = {"join": "<= 3", "beats": "<= 5", "death": "<= 1", "memory": "<= 100"}


class Process:
    """One side of the load, and what it prints."""

    def __init__(self, program: Path, *arguments: str, env: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            [str(program), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | env,
        )
        self.pid = self.popen.pid

    def line(self, word: str) -> list[str]:
        """Return the words after `word` of the next line that begins with it."""
        assert self.popen.stdout
        for line in self.popen.stdout:
            words = line.split()
            if words and words[0] == word:
                return words[1:]
            harness.note(f"{self.popen.args[1]}: {line.strip()}")
        raise RuntimeError(f"{self.popen.args} ended without {word!r}")

    def say(self, text: str) -> None:
        assert self.popen.stdin
        self.popen.stdin.write(text + "\n")
        self.popen.stdin.flush()

    def end(self) -> None:
        self.popen.kill()
        self.popen.wait()

    def cpu_s(self) -> float:
        """Processor time of all threads in seconds, as the scheduler counts it.

        The times in /proc/<pid>/stat are samples at ticks, which beats of many agents fall in with.
        """
        tasks = Path(f"/proc/{self.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def memory_mb(self, field: str) -> float:
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) / 1000
        return math.nan


@contextlib.contextmanager
def pair(program: Path, size: int, tls: str) -> Iterator[tuple[Process, Process]]:
    env = {"ARC_LOAD_SECRET": secrets.token_hex(32)}
    server = Process(program, "serve", str(size), tls, env=env)
    agents = None
    try:
        port = server.line("port")[0]
        agents = Process(program, "agents", port, str(size), str(HEARTBEAT_S), tls, env=env)
        yield server, agents
    finally:
        server.end()
        if agents:
            agents.end()


def measure(program: Path, size: int, window_s: float, tls: str) -> dict[str, float]:
    """One run of `size` agents: join, beat for a while, lose one."""
    with pair(program, size, tls) as (server, agents):
        join_s = float(agents.line("joined")[0]) / 1000
        join_cpu_s = server.cpu_s()
        time.sleep(4 * HEARTBEAT_S)  # every agent beats by now: in large runs every other second
        before, start = server.cpu_s(), time.monotonic()
        time.sleep(window_s)
        share = (server.cpu_s() - before) / (time.monotonic() - start)
        agents.say("beats?")
        beats = agents.line("beats")
        memory = server.memory_mb("VmHWM")  # now, because it ends with the run
        agents.say("kill")
        death_s = float(agents.line("told")[0]) / 1000
        server.line("all_finished")
    return {
        "join": join_s,
        "join_cpu": join_cpu_s,
        "beats": 100 * share,
        "death": death_s,
        "memory": memory,
        "sent": float(beats[0]),
        "rows": float(beats[2]),
    }


def rows_of(size: int, kept: list[dict[str, float]], tls: str) -> list[harness.Row]:
    case = f"{size} agents" + (", TLS" if tls == "tls" else "")
    metrics = (
        ("join", "all joined and told so", "s"),
        ("join_cpu", "of that, processor time of the coordinator", "s"),
        ("beats", "heartbeats and rows, of one core", "%"),
        ("death", "one death told to all", "s"),
        ("memory", "peak memory of the coordinator", "MB"),
    )
    return [
        harness.make_row(
            case,
            metric,
            [one[key] for one in kept],
            unit,
            goal=GOALS.get(key),
        )
        for key, metric, unit in metrics
    ]


def growth(medians: dict[int, dict[str, float]]) -> list[harness.Row]:
    """Return the power of n by which each figure grew from the smallest to the largest run."""
    low, high = min(medians), max(medians)
    if low == high:
        return []
    return [
        harness.make_row(
            f"{low} to {high} agents",
            f"power of n: {key}",
            [
                math.log(max(medians[high][key], 1e-9) / max(medians[low][key], 1e-9))
                / math.log(high / low)
            ],
            "",
        )
        for key in GOALS
    ]


def program() -> Path:
    for preset in ("bench", "release"):
        path = ROOT / "build" / preset / "cpp/arcflow/control/control_load"
        if path.exists():
            return path
    raise SystemExit("control_load is not built: use `make bench-coordinator`")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--window", type=float, default=10.0, help="seconds of heartbeats")
    parser.add_argument(
        "--sizes", type=lambda text: [int(n) for n in text.split(",")], default=SIZES
    )
    arguments = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # a descriptor an agent
    env = harness.environment()
    rows: list[harness.Row] = []
    medians: dict[int, dict[str, float]] = {}
    for tls in ("plain", "tls"):
        for size in arguments.sizes if tls == "plain" else [max(arguments.sizes)]:
            kept = []
            for repeat in range(arguments.repeats):
                kept.append(measure(program(), size, arguments.window, tls))
                harness.note(f"{size} agents, {tls}, {repeat + 1}: {kept[-1]}")
            rows += rows_of(size, kept, tls)
            if tls == "plain":
                keys = GOALS
                medians[size] = {k: sorted(one[k] for one in kept)[len(kept) // 2] for k in keys}
    rows += growth(medians)
    harness.print_table(env, rows)
    if arguments.output:
        harness.write_json(arguments.output, env, rows)


if __name__ == "__main__":
    main()
