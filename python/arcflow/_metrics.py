# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run: rows by node and epoch, rates and waiting times, from what agents counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_SUMS = ("used", "padded", "dropped", "skipped")
_NANO = 1e-9


def rows_of_node(feed: Mapping[str, Any]) -> dict[str, Any]:
    """Account for every row of a feed on one node.

    Parameters
    ----------
    feed
        What the agent told of it.

    Returns
    -------
    dict
        ``fed``: after rows were evened out; ``given`` and ``taken`` by that, of what Spark brought
        to this node and from other nodes; ``used``, ``padded``, ``dropped`` and ``skipped`` of all
        passes that reached their end; ``unfinished``: rows used in the others; ``passes`` as told,
        the newest; ``epochs``: of those that reached their end, in order, the same counts, where
        ``fed`` is ``used`` and ``dropped`` and ``skipped`` together.
    """
    passes = list(feed.get("passes") or ())
    older = feed.get("older") or {}
    whole = [one for one in passes if one.get("complete")]
    counts = {key: older.get(key, 0) + sum(one.get(key, 0) for one in whole) for key in _SUMS}
    unfinished = sum(one.get("used", 0) for one in passes if not one.get("complete"))
    epochs = []
    for one in whole:
        sums = {key: int(one.get(key, 0)) for key in _SUMS}
        epochs.append({"fed": sums["used"] + sums["dropped"] + sums["skipped"], **sums})
    return {
        "fed": feed.get("rows", 0),
        "given": feed.get("given", 0),
        "taken": feed.get("taken", 0),
        **counts,
        "unfinished": older.get("unfinished", 0) + unfinished,
        "epochs": epochs,
        "passes": passes,
    }


def of_feed(feed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what one node's feed cost: as a whole, and each pass that reached its end.

    Returns
    -------
    dict
        ``rows`` and ``bytes`` fed (as they lie in memory), ``spilled_bytes``, ``writer_wait_s``:
        time that the feeder waited for memory; and ``epochs``, each with ``rows``, ``bytes`` (of
        tensors), ``steps``, ``seconds``, ``rows_per_s``, ``bytes_per_s``, ``reader_wait_s`` (for
        rows), ``compute_s`` (between batches), ``feed_bound`` (the share of waiting in both),
        ``writer_wait_s`` and ``peak_depth_bytes`` (how far the feeder was ahead).
    """
    epochs = [_epoch(one) for one in feed.get("passes") or () if one.get("complete")]
    return {
        "rows": feed.get("rows", 0),
        "bytes": feed.get("bytes", 0),
        "spilled_bytes": feed.get("spilled_bytes", 0),
        "writer_wait_s": feed.get("acquire_wait_ns", 0) * _NANO,
        "epochs": epochs,
    }


def _epoch(one: Mapping[str, Any]) -> dict[str, Any]:
    seconds = one.get("duration_ns", 0) * _NANO
    wait_s, compute_s = one.get("wait_ns", 0) * _NANO, one.get("compute_ns", 0) * _NANO
    rows, size = one.get("used", 0), one.get("bytes", 0)
    return {
        "rows": rows,
        "bytes": size,
        "steps": one.get("steps", 0),
        "seconds": seconds,
        "rows_per_s": rows / seconds if seconds else 0.0,
        "bytes_per_s": size / seconds if seconds else 0.0,
        "reader_wait_s": wait_s,
        "compute_s": compute_s,
        "feed_bound": share(wait_s, compute_s),
        "writer_wait_s": one.get("acquire_wait_ns", 0) * _NANO,
        "peak_depth_bytes": one.get("peak_depth_bytes", 0),
    }


def share(waited: float, computed: float) -> float:
    """Return the share of waiting for rows in the time that a node spent on its data; 0 to 1."""
    return waited / (waited + computed) if waited + computed > 0 else 0.0


def of_feeds(outcomes: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """For each feed what `of_feed` says of each node that had it, with its ``rank``."""
    found: dict[str, list[dict[str, Any]]] = {}
    for rank, outcome in enumerate(outcomes):
        for name, feed in (outcome.get("rows") or {}).items():
            found.setdefault(name, []).append({"rank": rank, **of_feed(feed)})
    return found
