# SPDX-License-Identifier: Apache-2.0
"""10 GB pass through a node that keeps nothing: what agent and segments take at most."""

from __future__ import annotations

import tempfile
import threading
from pathlib import Path

from local_run import LocalRun, NodeServer
from node_functions import serve_reads
from shapes import SHAPES

from harness import Row, make_row, note

TOTAL_BYTES = 10 * 10**9
SETTING_BYTES = 128 << 20
# What an agent may take beside its segments.
AGENT_BYTES = 64 << 20


def _anonymous_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return 0


def _memfds(pid: int) -> dict[int, int]:
    """Inode to allocated bytes of every memfd that a process holds open or mapped."""
    found = {}
    for folder in ("fd", "map_files"):
        try:
            entries = list(Path(f"/proc/{pid}/{folder}").iterdir())
        except OSError:
            continue
        for entry in entries:
            try:
                if entry.readlink().name.startswith("memfd:") or "memfd:" in str(entry.readlink()):
                    status = entry.stat()
                    found[status.st_ino] = status.st_blocks * 512
            except OSError:
                continue  # closed meanwhile
    return found


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8")
    return [int(child) for child in text.split()]


class Sampler(threading.Thread):
    """Looks at agent and segments many times a second."""

    def __init__(self, agent: int, producer: int) -> None:
        super().__init__(daemon=True)
        self._agent, self._producer = agent, producer
        self._stopping = threading.Event()
        self.agent_bytes = self.segment_bytes = self.sum_bytes = self.samples = 0

    def run(self) -> None:
        while not self._stopping.wait(0.02):
            try:
                segments: dict[int, int] = {}
                for pid in (self._agent, self._producer, *_children(self._agent)):
                    segments |= _memfds(pid)
                agent = _anonymous_bytes(self._agent)
            except OSError:
                continue
            held = sum(segments.values())
            self.agent_bytes = max(self.agent_bytes, agent)
            self.segment_bytes = max(self.segment_bytes, held)
            self.sum_bytes = max(self.sum_bytes, held + agent)
            self.samples += 1

    def stop(self) -> None:
        self._stopping.set()
        self.join()


def measure(repeats: int) -> list[Row]:
    shape = SHAPES["784 float32"]
    batches = -(-TOTAL_BYTES // shape.batch_bytes) // 16 * 16
    with tempfile.TemporaryDirectory(prefix="arcflow-bench-") as name:
        server = NodeServer(Path(name))
        with LocalRun(
            serve_reads,
            {"feed0": shape.name},
            args={"socket": server.path},
            feed_memory_bytes=SETTING_BYTES,
        ) as run:
            server.accept()
            sampler = Sampler(run.agent_pid, run.producer.pid)
            sampler.start()
            run.write("feed0", shape.name, batches)
            answer = server.call(feed="feed0", shape=shape.name, batches=batches)
            run.producer.receive()
            sampler.stop()
            server.close()
            run.finish()
    passed = answer["rows"] * shape.row_bytes
    note(
        f"{passed / 1e9:.1f} GB passed through in {answer['seconds']:.1f} s, {sampler.samples} samples"
    )
    mib = 1 << 20
    limit, whole = SETTING_BYTES / mib, (SETTING_BYTES + AGENT_BYTES) / mib
    case = f"memory while {passed / 1e9:.0f} GB pass, feed memory {limit:.0f} MiB"
    return [
        make_row(
            case, "segments, most", [sampler.segment_bytes / mib], "MiB", goal=f"<= {limit:.0f}"
        ),
        make_row(
            case,
            "agent and segments, most",
            [sampler.sum_bytes / mib],
            "MiB",
            goal=f"<= {whole:.0f}",
        ),
    ]
