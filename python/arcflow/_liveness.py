# SPDX-License-Identifier: Apache-2.0
"""What a Spark task does about an agent that is stopped by a signal: it cannot end itself."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from pathlib import Path

_LOOK_S = 0.5
# The coordinator hears nothing of a stopped agent and tells the run so before this is over.
_LEAST_S = 1.0


def is_stopped(pid: int) -> bool:
    """Whether a signal (SIGSTOP, a terminal) or a debugger holds a process."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[-1].split()[:1] in (["T"], ["t"])


class Watch:
    """A thread that kills a process which stays stopped.

    Threads: `end` by the one who made it. The process must not be reaped before `end` returned.
    """

    def __init__(self, pid: int, limit_s: float) -> None:
        self._pid = pid
        self._limit_s = max(limit_s, _LEAST_S)
        self._over = threading.Event()
        self._killed = False
        self._thread = threading.Thread(target=self._run, name="arcflow-watch", daemon=True)
        if limit_s > 0:
            self._thread.start()

    @property
    def explanation(self) -> str:
        """What to add to the news of the process's end."""
        if not self._killed:
            return ""
        return (
            f"; it had been stopped by a signal (SIGSTOP, a debugger) for {self._limit_s:g} s "
            "and was killed"
        )

    def _run(self) -> None:
        since: float | None = None
        while not self._over.wait(_LOOK_S):
            if not is_stopped(self._pid):
                since = None
                continue
            now = time.monotonic()
            since = now if since is None else since
            if now - since >= self._limit_s:
                self._killed = True
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
                return

    def end(self) -> None:
        """Stop watching."""
        self._over.set()
        if self._thread.is_alive():
            self._thread.join()


def watch_agent(pid: int, limit_s: float) -> Watch:
    """Kill the agent when it has been stopped for `limit_s` seconds; 0: never."""
    return Watch(pid, limit_s)
