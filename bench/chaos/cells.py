# SPDX-License-Identifier: Apache-2.0
"""The fault table: who is struck, by what, when; and what the driver has to say about it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

VICTIMS = ("chief", "worker", "ps", "evaluator", "agent", "feeder", "executor", "coordinator")
FAULTS = ("exception", "exit(1)", "abort", "SIGKILL", "SIGSTOP", "out of memory", "network cut")
STAGES = ("start", "training", "checkpoint", "shutdown")
# Faults that the node's own program commits; the others come from outside.
COMMITTED = ("exception", "exit(1)", "abort", "SIGKILL", "SIGSTOP", "out of memory")
NODES = ("chief", "worker", "ps", "evaluator")


@dataclass(frozen=True)
class Cell:
    """One entry of the table."""

    victim: str
    fault: str
    stage: str

    @property
    def name(self) -> str:
        return f"{self.victim}, {self.fault}, {self.stage}"

    @property
    def trigger(self) -> str:
        """The node whose program says that the stage is reached."""
        return {"chief": "chief:0", "ps": "chief:0", "coordinator": "chief:0"}.get(
            self.victim, "evaluator:0" if self.victim == "evaluator" else "worker:0"
        )

    @property
    def struck(self) -> str:
        """The node that fails: the victim itself, or the one that the victim serves."""
        return {"chief": "chief:0", "ps": "ps:0", "evaluator": "evaluator:0"}.get(
            self.victim, "worker:0"
        )

    @property
    def inside(self) -> bool:
        """Whether the victim's own program commits the fault."""
        return self.victim in ("chief", "worker", "evaluator") and self.fault in COMMITTED

    @property
    def ends_well(self) -> bool:
        """Whether the fault comes after the run is over for its user.

        What an evaluator does after the end of training is told, and no failure (docs/guide/roles.md).
        """
        return self.victim == "evaluator" and self.stage == "shutdown"

    @property
    def goes_on(self) -> bool:
        """Whether the run has to go on as if nothing had been.

        Nobody can tell the user of a driver that is stopped. It gets SIGCONT when its nodes have been
        silent for longer than it allows, and must not blame them.
        """
        return self.victim == "coordinator" and self.fault == "SIGSTOP"

    @property
    def within_s(self) -> float:
        """Seconds from the fault to the driver's error that are allowed."""
        silent = self.fault in ("SIGSTOP", "network cut")
        return SILENCE_S + REPORT_S if silent else REPORT_S


# What the runs of the table are set to, and the goals of the issue.
SILENCE_S = 15.0  # heartbeat_timeout and stall_timeout
REPORT_S = 5.0
LEFT_AFTER_S = 10.0

_CAUSES: dict[str, tuple[str, ...]] = {
    "exception": ("exception",),
    "exit(1)": ("exit",),
    "abort": ("signal",),
    "SIGKILL": ("signal",),
    "SIGSTOP": ("stalled", "stopped"),
    "out of memory": ("out of memory",),
    "network cut": ("timeout", "agent lost", "driver lost", "host lost"),
}
_OF_OTHERS = {
    "agent": ("agent lost", "timeout", "stopped"),
    "feeder": ("feeder", "stopped", "agent lost", "out of memory"),
    "executor": ("executor lost", "feeder", "stopped", "agent lost", "out of memory"),
}


def named_rightly(cell: Cell, answer: dict[str, Any]) -> bool:
    """Whether the driver's error names the node that was struck, and what struck it."""
    if cell.victim == "coordinator":
        # The driver itself: nobody is left to say anything, but for Ctrl-C and a cut network.
        if cell.goes_on:
            return answer.get("error") is None
        if cell.fault == "exception":
            return answer.get("error") == "RunInterruptedError"
        if cell.fault == "network cut":
            return answer.get("cause") in _CAUSES["network cut"]
        return answer.get("error") == "driver ended"
    if cell.ends_well and answer.get("error") is None:
        return True
    if cell.fault == "network cut":  # takes all nodes of a host along
        return answer.get("cause") in _CAUSES["network cut"] and answer.get("node") in answer.get(
            "cut", ()
        )
    causes = _CAUSES[cell.fault] if cell.victim in NODES else _OF_OTHERS[cell.victim]
    struck = {cell.struck, *answer.get("cut", ())}  # an executor may have both nodes
    return answer.get("node") in struck and answer.get("cause") in causes


def all_cells() -> Iterator[Cell]:
    """Every cell of the table, those of one cluster layout together."""
    for victim, fault, stage in itertools.product(VICTIMS, FAULTS, STAGES):
        yield Cell(victim, fault, stage)


def diagonal() -> list[Cell]:
    """One cell of each row and column: what `make test` runs."""
    pairs = zip(VICTIMS, (*FAULTS, "SIGKILL"), (*STAGES, *STAGES), strict=True)
    return [Cell(victim, fault, stage) for victim, fault, stage in pairs]
