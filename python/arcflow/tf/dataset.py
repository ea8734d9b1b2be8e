# SPDX-License-Identifier: Apache-2.0
"""Datasets whose elements are batches of a node's feed."""

from __future__ import annotations

import json
import os
import secrets
import uuid
import warnings
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import tensorflow as tf
from tensorflow.python.data.ops import dataset_ops

from .. import errors
from .._reader import shuffle_seed
from ..schema import values_of
from . import ops
from ._compose import Component, components, compose, is_plain
from ._per_node import per_node

REMAINDERS = ("pad", "drop", "refuse", "partial")
LABELS = ("label", "labels", "target", "y")  # names that a label column has by default
SAMPLE_WEIGHT = "sample_weight"
_shuffled: weakref.WeakSet[FeedDataset] = weakref.WeakSet()  # all that live


class FeedDataset(dataset_ops.DatasetSource):
    """The source: one element for each step, columns and nothing else done to them.

    Fixed-width columns come without a copy, as the bytes that lie in shared memory, whenever a
    batch lies in one segment there. Only the columns asked for are touched. The position of an
    iterator is saved with it (``tf.train.Checkpoint(iterator=…)``).

    Parameters
    ----------
    feed
        Name of the feed.
    structure
        Columns (names, or `Component`) in any structure of tuples and dicts: what an element will
        look like.
    columns
        All flat columns of the feed by name: ``{"name": …, "dtype": …, "shape": […]}``.
    batch_size
        Rows of a batch.
    remainder
        ``"pad"``, ``"drop"``, ``"refuse"`` or ``"partial"``.
    shuffle
        Seed of an order of all rows, another in each pass; None: as they came.
    padding_weight
        Appends ``w`` to the elements, float32, 1 for rows and 0 for padding: ``(*structure, w)``
        for a tuple, else ``(structure, w)``.
    """

    def __init__(
        self,
        feed: str,
        structure: Any,
        columns: Mapping[str, Mapping[str, Any]],
        batch_size: int,
        *,
        remainder: str = "pad",
        padding_weight: bool = False,
        shuffle: int | None = None,
    ) -> None:
        rows = batch_size if remainder in ("pad", "drop") else None
        parts = [Component(p) if isinstance(p, str) else p for p in tf.nest.flatten(structure)]
        # Kernels come and go with iterators; passes are counted by name.
        self._shuffle_id = "" if shuffle is None else uuid.uuid4().hex
        spec = tf.nest.pack_sequence_as(structure, [part.spec(columns, rows) for part in parts])
        if padding_weight:
            head = spec if isinstance(spec, tuple) else (spec,)
            spec = (*head, tf.TensorSpec([rows], tf.float32))
        self._structure = spec
        flat = tf.nest.flatten(spec)
        variant = ops.load().arcflow_feed_dataset(
            feed=feed,
            columns=tf.constant([part.part for part in parts], tf.string),
            bytes=tf.constant([part.data for part in parts], tf.string),
            batch_size=tf.constant(batch_size, tf.int64),
            kinds=[part.kind for part in parts],
            remainder=remainder,
            sample_weight=padding_weight,
            shuffle=shuffle is not None,
            seed=shuffle or 0,
            shuffle_id=self._shuffle_id,
            output_types=[s.dtype for s in flat],
            output_shapes=[s.shape for s in flat],
        )
        super().__init__(variant)
        self.arcflow_source = (feed, batch_size)  # for checkpoints, which count steps
        self.arcflow_seed = shuffle
        per_node(self, remainder=remainder)
        if shuffle is not None:
            _shuffled.add(self)

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next pass is, for its order; each pass after it is one more."""
        if self._shuffle_id:
            ops.load().arcflow_shuffle_epoch(
                tf.constant(epoch, tf.int64), shuffle_id=self._shuffle_id
            )

    @property
    def element_spec(self) -> Any:
        """As for every dataset."""
        return self._structure


def begin_epoch(epoch: int) -> None:
    """Say to every shuffled dataset of this process which epoch its next pass is."""
    for dataset in list(_shuffled):
        dataset.set_epoch(epoch)


class _Roles(NamedTuple):
    features: tuple[str, ...]
    labels: tuple[str, ...]
    weight: str | None


def make_dataset(
    feed: str,
    batch_size: int,
    *,
    schema: Mapping[str, Any] | Sequence[Mapping[str, Any]],
    features: str | Sequence[str] | None = None,
    label: str | Sequence[str] | Literal[False] | None = None,
    weight: str | None = None,
    remainder: str = "pad",
    shuffle: bool | int = False,
    size: int | None = None,
) -> tf.data.Dataset:
    """Make a dataset of a feed with elements as Keras takes them.

    Parameters
    ----------
    feed
        Name of the feed.
    batch_size
        Rows of a batch on this node.
    schema
        The feed's schema: ``{"columns": [...]}`` or the list.
    features
        Columns that are inputs; by default all but label and weight. One column is one tensor,
        several are a dict by name. A struct is a dict, arrays of different lengths are a
        `tf.RaggedTensor`, sparse vectors a `tf.SparseTensor`.
    label
        The label column; by default the one called label, labels, target or y, if there is one.
        False: none. Several are a dict by name.
    weight
        A column of numbers that weigh the rows.
    remainder
        When nodes hold different numbers of rows: ``"pad"`` fills up with rows of weight zero,
        ``"drop"`` leaves rows out, ``"refuse"`` is an error, ``"partial"`` lets this node make its
        own number of steps. With one node, ``"pad"`` ends with a short batch instead of padding.
    shuffle
        An integer: the seed of an order of all rows of this node, which is another one in each pass
        and the same in each run that feeds the same rows; the first batch then waits for the last
        row. True: a seed by chance.
    size
        Number of nodes; by default as ``TF_CONFIG`` says.

    Returns
    -------
    tf.data.Dataset
        Elements ``(x, y, w)`` under ``"pad"`` or with a weight column, else ``(x, y)``; without a
        label ``x``, or with weights a dict of the columns and ``"sample_weight"``. Every iteration
        is one pass over all rows. It counts as per node, see `arcflow.tf.per_node`.

    Raises
    ------
    InvalidArgumentError
        A column that does not exist or is not fit for its role; says what there is.
    """
    # Keras says so for every tf.data dataset, whatever fit was given.
    warnings.filterwarnings("ignore", message="`shuffle=True` was passed, but will be ignored")
    values = {value["name"]: value for value in values_of(schema)}
    columns = next(iter(values.values()))["columns"]
    _check(feed, batch_size, remainder)
    seed = shuffle_seed(shuffle, feed, secrets.token_hex(8))
    roles = _roles(feed, values, features, label, weight)
    nodes = _nodes() if size is None else size
    names = _structure(roles)
    source = FeedDataset(
        feed,
        tf.nest.map_structure(lambda name: components(values[name]), names),
        columns,
        batch_size,
        remainder="partial" if remainder == "pad" and nodes == 1 else remainder,
        padding_weight=remainder == "pad",
        shuffle=seed,
    )
    dataset: tf.data.Dataset = source
    plain = all(is_plain(values[name]) for name in tf.nest.flatten(names))
    moved = roles.weight or (remainder == "pad" and not roles.labels)
    if moved or not plain:
        dataset = dataset.map(_arrange(roles, values, names, has_padding=remainder == "pad"))
    options = tf.data.Options()
    options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.OFF
    dataset = per_node(dataset.with_options(options), remainder=remainder)
    dataset.features = roles.features
    dataset.set_epoch = source.set_epoch
    return dataset


def _structure(roles: _Roles) -> Any:
    """Arrange columns as the source gives them: (x, y, weight), without what there is not."""
    parts = [_one_or_dict(roles.features)]
    if roles.labels:
        parts.append(_one_or_dict(roles.labels))
    if roles.weight:
        parts.append(roles.weight)
    return tuple(parts) if len(parts) > 1 else parts[0]


def _arrange(
    roles: _Roles, values: Mapping[str, Mapping[str, Any]], names: Any, *, has_padding: bool
) -> Any:
    """Put values together, and one weight out of the column's and the padding's where it belongs."""
    count = len(names) if isinstance(names, tuple) else 1

    def arrange(*element: Any) -> Any:
        parts = [
            compose(values[name], part)
            if isinstance(name, str)
            else {each: compose(values[each], part[each]) for each in name}
            for name, part in zip(names if count > 1 else (names,), element, strict=False)
        ]
        weights = [element[-1]] if has_padding else []
        if roles.weight:
            weights.append(tf.cast(parts.pop(), tf.float32))
        if not weights:
            return tuple(parts) if count > 1 else parts[0]
        w = tf.multiply(*weights) if len(weights) == 2 else weights[0]
        if roles.labels:
            return (*parts, w)
        x = parts[0]
        return {**(x if len(roles.features) > 1 else {roles.features[0]: x}), SAMPLE_WEIGHT: w}

    return arrange


def _one_or_dict(names: Sequence[str]) -> Any:
    return names[0] if len(names) == 1 else {name: name for name in names}


def _nodes() -> int:
    cluster = json.loads(os.environ.get("TF_CONFIG") or "{}").get("cluster") or {}
    return max(1, sum(len(cluster.get(role, ())) for role in ("chief", "worker")))


def _check(feed: str, batch_size: int, remainder: str) -> None:
    if batch_size < 1:
        raise errors.InvalidArgumentError(f"feed {feed!r}: batch_size is {batch_size}")
    if remainder not in REMAINDERS:
        raise errors.InvalidArgumentError(
            f"feed {feed!r}: remainder is {remainder!r}, not one of {', '.join(REMAINDERS)}"
        )


def _roles(
    feed: str,
    values: Mapping[str, Mapping[str, Any]],
    features: str | Sequence[str] | None,
    label: str | Sequence[str] | Literal[False] | None,
    weight: str | None,
) -> _Roles:
    if label is None:
        taken = {weight, *_tuple(features)}
        label = next((name for name in LABELS if name in values and name not in taken), ())
    labels = _tuple(label or ())
    if features is None:
        features = tuple(name for name in values if name not in labels and name != weight)
    roles = _Roles(_tuple(features), labels, weight)
    for role, names in (
        ("features", roles.features),
        ("label", labels),
        ("weight", _tuple(weight)),
    ):
        for name in names:
            if name not in values:
                raise errors.InvalidArgumentError(
                    f"feed {feed!r}: {role} names {name!r}, but its columns are {', '.join(values)}"
                )
    if not roles.features:
        raise errors.InvalidArgumentError(
            f"feed {feed!r}: no column is left for features (columns: {', '.join(values)})"
        )
    if weight is not None and not _is_number(values[weight]):
        raise errors.InvalidArgumentError(
            f"feed {feed!r}: weight column {weight!r} has to hold one number a row"
        )
    if not labels and SAMPLE_WEIGHT in roles.features:
        raise errors.InvalidArgumentError(
            f"feed {feed!r}: a feature column must not be called {SAMPLE_WEIGHT!r}; name it as weight"
        )
    return roles


def _is_number(value: Mapping[str, Any]) -> bool:
    if value["kind"] != "dense":
        return False
    column = value["columns"][value["part"]]
    return not column["shape"] and column["dtype"] != "string"


def _tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    if names is None:
        return ()
    return (names,) if isinstance(names, str) else tuple(names)
