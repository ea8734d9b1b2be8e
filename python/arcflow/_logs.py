# SPDX-License-Identifier: Apache-2.0
"""Output of nodes: where it is written in full, and its last lines as the driver knows them."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from . import files
from .errors import ArcflowError, InvalidArgumentError, NotFoundError, UnimplementedError

# Lines that agents keep, and that all nodes together may send to the driver at the end.
_MAX_LINES = 1000
_NODE_BYTES = 256 * 1024
_RUN_BYTES = 32 << 20
_LEAST_BYTES = 16 * 1024
_ANSWER_S = 5.0
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*://")


def checked_dir(log_dir: str | os.PathLike[str] | None) -> str | None:
    """Return the folder as the executors shall use it; refuse what cannot be written.

    Raises
    ------
    UnimplementedError
        A kind of path that Arcflow cannot write to.
    ArcflowError
        HDFS refuses to write there.
    """
    if log_dir is None:
        return None
    path = os.fspath(log_dir).removeprefix("file://")
    if not path:
        raise InvalidArgumentError("log_dir='' is no folder; leave it out to keep no logs")
    if files.is_hdfs(path):
        probe = f"{path.rstrip('/')}/.arcflow-{uuid.uuid4().hex[:12]}"
        files.write_bytes(probe, b"")
        files.remove(probe)
        return path.rstrip("/")
    if scheme := _SCHEME.match(path):
        raise UnimplementedError(
            f"log_dir={path!r}: this version cannot write to {scheme[0]}; name a folder of HDFS, or one "
            "that all executors see (a shared mount), or a local one on each host"
        )
    return os.path.abspath(path)


def file_name(run_id: str, role: str, index: int) -> str:
    """Name of one node's file below the folder: one for each node and run."""
    return f"{run_id}/{role}-{index}.log"


@contextlib.contextmanager
def written(log_dir: str | None, config: dict[str, Any], local_dirs: list[str]) -> Iterator[None]:
    """Let the agent write the node's output to `log_dir`; in the Spark task, around its agent.

    A folder of HDFS gets the file when the node has ended: until then it lies in a folder of Spark's.

    Parameters
    ----------
    log_dir
        As `checked_dir` returned it.
    config
        The agent's configuration; gets ``log_file``.
    local_dirs
        Folders for the temporary file.
    """
    if log_dir is None:
        yield
        return
    name = file_name(config["run_id"], config["role"], int(config["index"]))
    if not files.is_hdfs(log_dir):
        config["log_file"] = os.path.join(log_dir, name)
        yield
        return
    folder = tempfile.mkdtemp(prefix="arcflow-log-", dir=local_dirs[0])
    config["log_file"] = os.path.join(folder, "log")
    try:
        yield
    finally:
        try:
            files.upload(config["log_file"], f"{log_dir}/{name}")
        except Exception as error:  # a run does not fail for its logs
            print(f"arcflow: {log_dir}/{name} was not written: {error}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)


def report_bytes(size: int) -> int:
    """Bytes of last lines that each of `size` nodes may send to the driver."""
    return max(_LEAST_BYTES, min(_NODE_BYTES, _RUN_BYTES // max(size, 1)))


class NodeLogs:
    """The last lines of every node of the newest run.

    Threads: any; `ask` waits for the thread that sees the run through.
    """

    def __init__(self, log_dir: str | None = None) -> None:
        self._log_dir = log_dir
        self._changed = threading.Condition()
        self._run_id = ""
        self._request: Callable[[int, int], None] | None = None
        self._lines: dict[int, list[str]] = {}
        self._answers: dict[int, int] = {}
        self._names: dict[str, int] = {}

    def begin(self, run_id: str, request: Callable[[int, int], None]) -> None:
        """Forget the run before; `request(rank, lines)` asks a node that runs."""
        with self._changed:
            self._run_id, self._request = run_id, request
            self._lines, self._answers, self._names = {}, {}, {}

    def end(self) -> None:
        """Note that the run is over: nobody is left to ask."""
        with self._changed:
            self._request = None
            self._changed.notify_all()

    def members(self, cluster: Iterable[Mapping[str, Any]]) -> None:
        """Learn which rank a name such as ``worker:1`` stands for."""
        with self._changed:
            for one in cluster:
                self._names[f"{one['role']}:{one['index']}"] = int(one["rank"])

    def take(self, rank: int, lines: Iterable[str]) -> None:
        """Keep what a node wrote last; a shorter answer does not replace a longer one."""
        new = [str(line) for line in lines]
        with self._changed:
            old = self._lines.get(rank, [])
            if len(new) >= len(old) or new[-1:] != old[-1:]:
                self._lines[rank] = new
            self._answers[rank] = self._answers.get(rank, 0) + 1
            self._changed.notify_all()

    def rank_of(self, node: int | str) -> int:
        """Rank of ``"worker:1"``, ``"chief"`` or a rank."""
        if isinstance(node, int):
            return node
        name = node if ":" in node else f"{node}:0"
        with self._changed:
            if name in self._names:
                return self._names[name]
            known = ", ".join(sorted(self._names)) or "no run yet"
        raise NotFoundError(f"there is no node {node!r}; there is {known}")

    def last(self, node: int | str, lines: int) -> list[str]:
        """Return a node's last lines: of its file where we see it, of itself while it runs."""
        if lines < 1:
            raise InvalidArgumentError(f"lines={lines} is below 1")
        rank = self.rank_of(node)
        written = self._from_file(rank, lines)
        if written is not None:
            return written
        self._ask(rank, min(lines, _MAX_LINES))
        with self._changed:
            if rank not in self._lines:
                raise NotFoundError(
                    f"nothing is known of what rank {rank} wrote: it has not started, or its "
                    "executor was lost; log_dir= keeps the output of nodes"
                )
            return self._lines[rank][-lines:]

    def _ask(self, rank: int, lines: int) -> None:
        with self._changed:
            request, before = self._request, self._answers.get(rank, 0)
        if request is None:
            return
        with contextlib.suppress(ArcflowError):
            request(rank, lines)
        deadline = time.monotonic() + _ANSWER_S
        with self._changed:
            while self._request is not None and self._answers.get(rank, 0) == before:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    return

    def _from_file(self, rank: int, lines: int) -> list[str] | None:
        if self._log_dir is None or files.is_hdfs(self._log_dir):
            return None
        with self._changed:
            name = next((name for name, of in self._names.items() if of == rank), None)
            run_id = self._run_id
        if name is None:
            return None
        role, index = name.rsplit(":", 1)
        path = Path(self._log_dir, file_name(run_id, role, int(index)))
        try:
            return _tail(path, lines)
        except OSError:  # on the executor's own disk
            return None


def _tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a file without reading all of a large one."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        block = 64 * 1024
        while True:
            start = max(0, size - block)
            file.seek(start)
            found = file.read(size - start).decode(errors="replace").splitlines()
            if start == 0 or len(found) > lines:
                return found[-lines:]
            block *= 4
