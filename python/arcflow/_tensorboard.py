# SPDX-License-Identifier: Apache-2.0
"""TensorBoard beside a run: on the driver, or on the chief when only the chief sees its logs."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import json
import math
import os
import posixpath
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from .errors import FailedPreconditionError, InvalidArgumentError

_KEYS = ("dir", "host", "port", "where")
_PLACES = ("auto", "driver", "chief")
_DEFAULT_DIR = "tensorboard"
# Proves to the chief that the driver sees the same folder.
_TOKEN = ".arcflow-driver"
# Our scalars come at most this often.
_WRITE_INTERVAL_S = 1.0
_CLOSE_TIMEOUT_S = 10.0
SAID_KEY = "arcflow_tensorboard"


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `Cluster(tensorboard=…)` says.

    Attributes
    ----------
    dir
        Folder under which each run has one of its own; absolute, or a URL.
    host, port
        Where it listens; None: TensorBoard's own port, or the next one that is free.
    where
        ``"driver"``, ``"chief"``, or ``"auto"``: the driver, unless the chief cannot see the
        driver's folder.
    """

    dir: str
    host: str = "127.0.0.1"
    port: int | None = None
    where: str = "auto"

    @property
    def is_remote(self) -> bool:
        """Whether logs are on a file system that both driver and chief see."""
        return "://" in self.dir

    def run_dir(self, run_id: str) -> str:
        """Return the folder of one run."""
        return posixpath.join(self.dir, run_id)


def checked(wish: Any) -> Settings | None:
    """Return settings from what the user says: True, a folder, or a dict of `Settings`' fields.

    Raises
    ------
    InvalidArgumentError
        None of these; says what there is.
    FailedPreconditionError
        TensorBoard is not installed here.
    """
    if wish is None or wish is False:
        return None
    if wish is True:
        wish = {}
    elif isinstance(wish, str | os.PathLike):
        wish = {"dir": os.fspath(wish)}
    if not isinstance(wish, Mapping):
        raise InvalidArgumentError(
            f"tensorboard={wish!r} is neither True, nor a folder, nor a dict of {', '.join(_KEYS)}"
        )
    unknown = sorted(set(wish) - set(_KEYS))
    if unknown:
        raise InvalidArgumentError(
            f"tensorboard= has no {unknown[0]!r}; there are {', '.join(_KEYS)}"
        )
    where = wish.get("where", "auto")
    if where not in _PLACES:
        raise InvalidArgumentError(f"tensorboard= where={where!r} is not one of {_PLACES}")
    port = wish.get("port")
    if port is not None and (
        isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 65536
    ):
        raise InvalidArgumentError(f"tensorboard= port={port!r} is not a port (0 to 65535)")
    folder = str(wish.get("dir") or _DEFAULT_DIR)
    if "://" not in folder:
        folder = os.path.abspath(folder)
    if where != "chief" and importlib.util.find_spec("tensorboard") is None:
        raise FailedPreconditionError(
            f"TensorBoard is not installed for {sys.executable}: pip install tensorboard, or leave "
            "tensorboard= out"
        )
    return Settings(folder.rstrip("/"), str(wish.get("host") or "127.0.0.1"), port, where)


class Server:
    """A process that serves one folder, and writes scalars of ours into it.

    It ends when it is closed, and when this process ends in whatever way. Threads: one, but for
    the reader of what the process says.
    """

    def __init__(self, settings: Settings, folder: str) -> None:
        config = {"folder": folder, "host": settings.host, "port": settings.port}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "arcflow._tensorboard_server", json.dumps(config)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # a Ctrl-C in the driver ends the run, and the run ends this
        )
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._read, name="arcflow-tensorboard", daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line)

    def said(self, timeout_s: float = 0.0) -> dict[str, str] | None:
        """Return what it said next: ``{"url": …}`` or ``{"error": …}``; None when nothing yet."""
        try:
            word: dict[str, str] = json.loads(
                self._said.get(timeout=timeout_s or None) if timeout_s else self._said.get_nowait()
            )
            return word
        except queue.Empty:
            return None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write scalars; dropped when the process is gone."""
        assert self._process.stdin is not None
        word = {"step": step, "values": dict(values), "wall": time.time()}
        with contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(json.dumps(word) + "\n")
            self._process.stdin.flush()

    def close(self) -> None:
        """End it, and wait for that."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(_CLOSE_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()
        self._process.stdout.close()


class Board:
    """TensorBoard of one run, as the driver sees it; does nothing without settings.

    Parameters
    ----------
    settings
        None: no TensorBoard.
    run_id
        Of the run.
    show
        Called with a name and a URL once it is known.
    tell
        Called with a line of text when there is none to be had.
    """

    def __init__(
        self,
        settings: Settings | None,
        run_id: str,
        show: Callable[[str, str], object],
        tell: Callable[[str], object],
    ) -> None:
        self._settings = settings
        self._run_dir = settings.run_dir(run_id) if settings else ""
        self._run_id = run_id
        self._show, self._tell = show, tell
        self._server: Server | None = None
        self._token: Path | None = None
        self._rates = _Rates()

    def __enter__(self) -> Board:
        settings = self._settings
        if settings is None or settings.where == "chief":
            return self
        if not settings.is_remote:
            Path(self._run_dir).mkdir(parents=True, exist_ok=True)
            self._token = Path(self._run_dir, _TOKEN)
            self._token.write_text(self._run_id)
        self._server = Server(settings, self._run_dir)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._token is not None:
            self._token.unlink(missing_ok=True)
            with contextlib.suppress(OSError):  # is not empty: nodes wrote there
                self._token.parent.rmdir()
            self._token = None

    def poll(self) -> None:
        """Show the URL when there is one now."""
        word = self._server.said() if self._server is not None else None
        if word is None:
            return
        if "url" in word:
            self._show("TensorBoard", word["url"])
        else:
            self._tell(f"TensorBoard did not start: {word.get('error')}")

    def progress(self, ranks: Sequence[Mapping[str, Any]]) -> None:
        """Take the counters that agents reported."""
        if self._server is not None:
            found = self._rates.take(ranks)
            if found:
                self._server.write(*found)

    def said(self, rank: int, said: dict[str, Any]) -> None:
        """Take what a node said; what is meant for us is taken out."""
        moved = said.pop(SAID_KEY, None)
        if isinstance(moved, dict) and rank == 0:
            self._close()  # it would show an empty folder
            if "url" in moved:
                self._show(f"TensorBoard on the chief's host {moved.get('host')}", moved["url"])
            else:
                self._tell(f"TensorBoard did not start on the chief: {moved.get('error')}")
        if self._server is not None and rank == 0:
            numbers = {f"log/{k}": v for k, v in said.items() if _is_number(v)}
            if numbers:
                step = numbers.get("log/step", self._rates.step)
                self._server.write(int(step), numbers)


class _Rates:
    """Scalars out of counters that only grow."""

    def __init__(self) -> None:
        self.step = 0
        self._last: dict[str, float] = {}
        self._at: float | None = None

    def take(self, ranks: Sequence[Mapping[str, Any]]) -> tuple[int, dict[str, float]] | None:
        """Return a step and what happened since the last such; None when it is too early."""
        now = time.monotonic()
        if self._at is not None and now - self._at < _WRITE_INTERVAL_S:
            return None
        sums: dict[str, float] = {"wait_ns": 0, "compute_ns": 0}
        values: dict[str, float] = {}
        for one in ranks:
            counters = one.get("counters") or {}
            step = int(counters.get("user_step") or counters.get("steps") or 0)
            self.step = max(self.step, step)
            values[f"arcflow/step/rank_{one['rank']}"] = step
            for name in ("wait_ns", "compute_ns"):
                sums[name] += int(counters.get(name) or 0)
            for feed, facts in (one.get("feeds") or {}).items():
                key = f"rows/{feed}"
                sums[key] = sums.get(key, 0) + int(facts.get("rows") or 0)
            if int(one["rank"]) == 0 and _is_number(counters.get("user_loss")):
                values["arcflow/loss"] = counters["user_loss"]
        sums["step"] = self.step
        last, self._last = self._last, sums
        at, self._at = self._at, now
        if at is None:
            return self.step, values
        grown = {name: sums[name] - last.get(name, 0) for name in sums}
        values["arcflow/steps_per_second"] = grown["step"] / (now - at)
        for name in grown:
            if name.startswith("rows/"):
                values[f"arcflow/{name}_per_second"] = max(0.0, grown[name]) / (now - at)
        spent = grown["wait_ns"] + grown["compute_ns"]
        if spent > 0:
            values["arcflow/waiting_for_rows"] = max(0.0, grown["wait_ns"]) / spent
        return self.step, values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def node_dir(job: Mapping[str, Any], role: str, index: int) -> str | None:
    """Return the folder that a node's summaries go to; None without TensorBoard."""
    settings = job.get("tensorboard")
    if not settings:
        return None
    run_dir = Settings(**settings).run_dir(str(job["run_id"]))
    return posixpath.join(run_dir, f"{role}-{index}")


@contextlib.contextmanager
def on_chief(job: Mapping[str, Any], host: str, tell: Callable[[dict[str, Any]], object]) -> Any:
    """While it is open, serve the logs from this node if it is the one that has to.

    Parameters
    ----------
    job
        What the node knows of its run.
    host
        The chief's address, for people.
    tell
        Called once with what the driver must know.
    """
    wish = job.get("tensorboard")
    settings = Settings(**wish) if wish else None
    if settings is None or settings.where == "driver" or not _is_needed(settings, job):
        yield
        return
    run_dir = settings.run_dir(str(job["run_id"]))
    if importlib.util.find_spec("tensorboard") is None:
        tell(
            {SAID_KEY: {"error": f"pip install tensorboard for {sys.executable} on the executors"}}
        )
        yield
        return
    server = Server(settings, run_dir)

    def report() -> None:
        word = server.said(timeout_s=120.0) or {"error": "it said nothing for two minutes"}
        tell({SAID_KEY: {**word, "host": host}})

    reporter = threading.Thread(target=report, name="arcflow-tensorboard-url", daemon=True)
    reporter.start()
    try:
        yield
    finally:
        reporter.join(1.0)
        server.close()


def _is_needed(settings: Settings, job: Mapping[str, Any]) -> bool:
    """Whether the driver cannot see what this node writes."""
    if settings.where == "chief":
        return True
    return (
        not settings.is_remote and not Path(settings.run_dir(str(job["run_id"])), _TOKEN).exists()
    )
