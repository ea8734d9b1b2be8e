# SPDX-License-Identifier: Apache-2.0
"""Files straight into `tf.data`, each node its own even share, without Spark in the data path."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Sequence
from typing import Any, Literal

import tensorflow as tf

from .. import errors
from ._per_node import per_node

SHARDS = ("auto", "files", "records")
# A node must have this many files before whole files are even enough.
_FILES_A_NODE = 8


def find_files(pattern: str | Sequence[str]) -> list[str]:
    """Return the files that match, in the same order on every node.

    Names that begin with ``.`` or ``_`` are left out, as Spark does: they are parts that are being
    written, and marks such as ``_SUCCESS``.

    Raises
    ------
    NotFoundError
        Nothing matches a pattern.
    """
    patterns = [pattern] if isinstance(pattern, str) else list(pattern)
    found: set[str] = set()
    for one in patterns:
        where = posixpath.join(one, "*") if tf.io.gfile.isdir(one) else one
        names = [
            name for name in tf.io.gfile.glob(where) if posixpath.basename(name)[:1] not in "._"
        ]
        names = [name for name in names if not tf.io.gfile.isdir(name)]
        if not names:
            raise errors.NotFoundError(f"no file matches {one!r}")
        found.update(names)
    return sorted(found)


def read_files(
    pattern: str | Sequence[str],
    *,
    rank: int,
    size: int,
    format: str | Callable[[Any], Any] = "tfrecord",
    shard: Literal["auto", "files", "records"] = "auto",
    batch_size: int | None = None,
    parse: Callable[..., Any] | None = None,
    shuffle: int = 0,
    seed: int = 0,
    compression: str = "",
    parallel: int = 4,
) -> Any:
    """Make a dataset of this node's share of the records in files.

    Parameters
    ----------
    pattern
        Files, patterns or folders, local or at ``hdfs://``; the same on every node.
    rank, size
        This node, and how many there are.
    format
        ``"tfrecord"``, ``"text"`` (a record is a line), or a function from a file's name (a
        tensor) to a dataset of records.
    shard
        ``"records"``: every node reads all files and keeps each `size`-th record, so that all have
        **the same number**; up to ``size - 1`` records at the end are left out. ``"files"``: every
        node reads its own files only, as many as the others or one more. ``"auto"``: files when
        every node gets the same number of them, or at least eight; else records.
    batch_size
        Records of a batch; None leaves records single. With ``"records"`` a batch is always full,
        so that all nodes make the same number of steps.
    parse
        Called with each record (with each batch, if there is a `batch_size`).
    shuffle
        Records of this node to mix among; files are then read in another order each epoch.
    seed
        Of the mixing.
    compression
        ``""``, ``"GZIP"`` or ``"ZLIB"``.
    parallel
        Files that are read at once.

    Returns
    -------
    tf.data.Dataset
        Marked as per node (`arcflow.tf.per_node`), so that a strategy neither shards nor rebatches
        it. Under ``"files"`` nodes may make different numbers of steps: `fit` on several nodes
        refuses that, unless the dataset is made to repeat and ``steps_per_epoch`` is given.

    Raises
    ------
    InvalidArgumentError
        An option has no meaning, or there are fewer files than nodes under ``"files"``.
    NotFoundError
        Nothing matches.
    """
    if shard not in SHARDS:
        raise errors.InvalidArgumentError(f"shard is {shard!r}, not one of {', '.join(SHARDS)}")
    if not 0 <= rank < size:
        raise errors.InvalidArgumentError(f"rank {rank} is not one of {size} nodes")
    files = find_files(pattern)
    if shard == "auto":
        even = len(files) % size == 0 or len(files) >= _FILES_A_NODE * size
        shard = "files" if even else "records"
    if shard == "files" and len(files) < size:
        raise errors.InvalidArgumentError(
            f"{len(files)} files cannot be shared by {size} nodes: use shard='records'"
        )
    by_record = shard == "records" and size > 1
    mine = files if by_record else files[rank::size]
    # Every node must see the records in one order to divide them, so only one's own are mixed.
    names = tf.data.Dataset.from_tensor_slices(mine)
    if shuffle and not by_record:
        names = names.shuffle(len(mine), seed=seed)
    dataset = names.interleave(
        _opener(format, compression),
        cycle_length=min(parallel, len(mine)),
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True if by_record else not shuffle,
    )
    if by_record:
        dataset = dataset.batch(size, drop_remainder=True).map(
            lambda group: tf.nest.map_structure(lambda one: one[rank], group)
        )
    if shuffle:
        dataset = dataset.shuffle(shuffle, seed=seed + rank)
    if batch_size is not None:
        dataset = dataset.batch(batch_size, drop_remainder=by_record)
    if parse is not None:
        dataset = dataset.map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = dataset.with_options(options).prefetch(tf.data.AUTOTUNE)
    same_steps = by_record or size == 1
    return per_node(dataset, remainder="drop" if same_steps else "partial")


def _opener(format: str | Callable[[Any], Any], compression: str) -> Callable[[Any], Any]:
    if callable(format):
        return format
    if format == "tfrecord":
        return lambda name: tf.data.TFRecordDataset(name, compression_type=compression)
    if format == "text":
        return lambda name: tf.data.TextLineDataset(name, compression_type=compression)
    raise errors.InvalidArgumentError(
        f"format is {format!r}, not 'tfrecord', 'text' or a function from a name to a dataset"
    )
