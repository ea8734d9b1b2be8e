# SPDX-License-Identifier: Apache-2.0
"""Nodes that run beside the Spark job, on the driver's host: parameter servers asked for there."""

from __future__ import annotations

import threading
import time
from typing import Any

from . import _executor, _task, errors

# Added to the grace period: how long such a node may take to end once the run has.
_END_SLACK_S = 15.0


class NodesBeside:
    """The parameter servers of a run that were asked for on the driver's host; often none.

    Each has an agent of its own, a child of this process, which ends with it as it would with a
    Spark task. Threads: one for each node; methods from one thread at a time.

    Parameters
    ----------
    plan
        The run.
    host
        Address under which the executors reach this host.
    """

    def __init__(self, plan: _task.Plan, host: str) -> None:
        who = plan.who
        self._plan = plan
        self._host = _executor.resolve(host) or host
        self._outcomes: dict[int, tuple[dict[str, Any], bytes]] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(rank,), name=f"arcflow-ps-{rank}", daemon=True)
            for rank in range(who.tasks, who.total)
        ]

    def start(self) -> None:
        """Start them."""
        for thread in self._threads:
            thread.start()

    def _run(self, rank: int) -> None:
        try:
            self._outcomes[rank] = _task.run_beside(self._plan, rank, self._host)
        except errors.ArcflowError as error:
            role, _ = self._plan.who.of(rank)
            failure = {
                "rank": rank,
                "role": role,
                "host": self._host,
                "cause": "launch",
                "message": error.message,
            }
            self._outcomes[rank] = {"status": "failed", "failure": failure}, b""

    def wait(self, grace_s: float) -> list[tuple[int, dict[str, Any], bytes]]:
        """Wait for their ends, which follow the end of the run; return (rank, outcome, result)."""
        deadline = time.monotonic() + grace_s + _END_SLACK_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        return [(rank, outcome, result) for rank, (outcome, result) in self._outcomes.items()]

    def close(self, grace_s: float) -> None:
        """Wait for their ends, whatever they were."""
        if any(thread.is_alive() for thread in self._threads):
            self.wait(grace_s)
