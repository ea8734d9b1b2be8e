# SPDX-License-Identifier: Apache-2.0
"""Which failures of a run stand beside the first one, when only the tasks' rows tell them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

# Ends of a process that another node's failure may have made; as kAmbiguous in
# cpp/arcflow/control/cause_order.cc.
_ENDS = {"exit", "interrupted", "driver lost"}
_ASKED = {"SIGTERM", "SIGINT", "SIGHUP"}
_TOLERANCE_S = 0.2


def is_ambiguous(failure: Mapping[str, Any]) -> bool:
    """Whether a failure may be the cause or the consequence of another."""
    cause = failure.get("cause")
    if cause == "signal":
        return failure.get("signal") in _ASKED
    if cause == "feeder":
        return not failure.get("type")
    return cause in _ENDS or cause == "agent lost"


def first(failures: Iterable[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """Return the failure to blame: no consequence if there is another, and the earliest."""
    return min(
        failures,
        key=lambda f: (
            bool(f.get("peer_loss")),
            float(f.get("time") or 0) + (_TOLERANCE_S if is_ambiguous(f) else 0),
        ),
        default=None,
    )


def others(
    failure: Mapping[str, Any], *lists: Iterable[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """Return failures of other ranks that are no consequences of `failure`, one a rank, by time."""
    found: dict[Any, Mapping[str, Any]] = {}
    for one in (each for known in lists for each in known):
        rank = one.get("rank")
        own = not is_ambiguous(one) or one.get("cause") == "agent lost"
        if rank != failure.get("rank") and own and not one.get("peer_loss"):
            found.setdefault(rank, one)
    return sorted(found.values(), key=lambda one: float(one.get("time") or 0))
