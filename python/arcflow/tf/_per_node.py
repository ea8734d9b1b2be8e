# SPDX-License-Identifier: Apache-2.0
"""Which datasets hold one node's own rows, and therefore must be neither sharded nor rebatched."""

from __future__ import annotations

from typing import Any

_MARK = "_arcflow_per_node"


def per_node(dataset: Any, *, remainder: str = "refuse") -> Any:
    """Mark a dataset as holding this node's own rows, batched for this node.

    `ClusterStrategy` then hands its elements to this node as they are: it neither shards nor
    rebatches them, and ranks do not ask each other at every step whether all have data. Datasets
    that are made from a marked one (``map``, ``prefetch``, …) count as marked. Feeds are marked
    already; this is for programs that read their own files.

    Parameters
    ----------
    dataset : tf.data.Dataset
        Batched rows of this node.
    remainder
        ``"pad"``, ``"drop"`` or ``"refuse"`` promise that every rank makes the same number of
        steps. ``"partial"`` promises nothing; `fit` then refuses the dataset, evaluation and
        prediction take it.

    Returns
    -------
    tf.data.Dataset
        The same object.
    """
    setattr(dataset, _MARK, remainder)
    return dataset


def remainder_of(dataset: Any) -> str | None:
    """How a per-node dataset ends (see `per_node`); None for any other dataset."""
    todo, seen = [dataset], set()
    while todo:
        one = todo.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        mark = getattr(one, _MARK, None)
        if isinstance(mark, str):
            return mark
        inputs = getattr(one, "_inputs", None)  # every tf.data dataset lists what it reads from
        if callable(inputs):
            todo.extend(inputs())
    return None


def is_per_node(dataset: Any) -> bool:
    """Whether a dataset is, or derives from, a feed or a dataset marked by `per_node`."""
    return remainder_of(dataset) is not None
