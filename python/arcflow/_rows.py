# SPDX-License-Identifier: Apache-2.0
"""Which task of the barrier stage gets which rows, in which order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .feed import PlannedFeed
from .schema import quote

_PARTITION = "arcflow partition"
_HASH = "arcflow hash"
_CHECK = "arcflow check"


def spread(frame: Any, size: int, fed: range) -> Any:
    """Return the frame in `size` partitions of which only those in `fed` hold rows, evenly.

    Parameters
    ----------
    frame : pyspark.sql.DataFrame
        Rows.
    size
        Number of partitions.
    fed
        Partitions that get rows; not empty.
    """
    from pyspark.sql import functions as fn

    turn = fn.pmod(fn.monotonically_increasing_id(), fn.lit(len(fed)))
    where = (fn.lit(fed.start) + turn).cast("int")
    tagged = frame.withColumn(_PARTITION, where)
    return tagged.repartitionById(size, fn.col(f"`{_PARTITION}`")).select(*_columns(frame))


def stable(
    spark: Any,
    feeds: Sequence[PlannedFeed],
    size: int,
    fed: range,
    mix: Callable[[Sequence[PlannedFeed]], Any],
) -> tuple[Any, bool]:
    """Return the rows of all feeds so that every attempt hands each task the same, in the same order.

    Spark promises neither: a shuffle delivers its blocks as they come, and files may be cut
    differently when executors were lost. So a row's task and place follow from the row itself: from
    a hash of all its values, or from the columns that `Feed` was given as ``order_by``. A frame of
    `Feed(stable=True)` that has one partition a task goes in as it is.

    Returns
    -------
    tuple of DataFrame, bool
        As `arcflow._job.make_input`.
    """
    from pyspark.sql import functions as fn

    from . import _job, _partitions

    if len(feeds) == 1:
        feed, frame = feeds[0], feeds[0].frame
        fits = fed == range(size) and not _job.is_connect(spark)
        if feed.stable and fits and _partitions.goes_straight_in(frame, size):
            return frame, False
        keys = [fn.col(quote(name)) for name in feed.order_by]
        return _by_value(frame, size, fed, keys, keys), False
    mixed = mix(feeds)
    in_order = [
        fn.col(f"f{number}").getField(f"c{feed.inputs.index(name)}")
        for number, feed in enumerate(feeds)
        for name in feed.order_by
    ]
    keys = [fn.col("tag"), *in_order] if in_order else []
    return _by_value(mixed, size, fed, keys, []), True


def _by_value(frame: Any, size: int, fed: range, order: list[Any], keys: list[Any]) -> Any:
    """Place rows by a hash of `keys` (all columns if none), and sort them by `order`, then by hashes.

    Two hashes, so that rows of one hash which differ still have an order.
    """
    from pyspark.sql import functions as fn

    names = _columns(frame)
    everything = [fn.col(name) for name in names]
    where = fn.lit(fed.start) + fn.pmod(fn.xxhash64(*(keys or everything)), fn.lit(len(fed)))
    tagged = (
        frame.withColumn(_HASH, fn.xxhash64(*everything))
        .withColumn(_CHECK, fn.hash(*everything))
        .withColumn(_PARTITION, where.cast("int"))
    )
    placed = tagged.repartitionById(size, fn.col(quote(_PARTITION)))
    ordered = placed.sortWithinPartitions(*order, fn.col(quote(_HASH)), fn.col(quote(_CHECK)))
    return ordered.select(*names)


def _columns(frame: Any) -> list[str]:
    return [quote(name) for name in frame.columns]
