# SPDX-License-Identifier: Apache-2.0
"""ClusterStrategy: synchronous training over several nodes, under Keras 3 and in custom loops."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import tensorflow as tf

from .. import _replicas, errors
from . import _callbacks, _keras, _padding, _reduce_lists, transport
from ._per_node import remainder_of


@dataclasses.dataclass
class _LastInput:
    """The dataset that was distributed last: Keras does that right before it makes its callbacks."""

    remainder: str | None  # None: not a per-node dataset


class ClusterStrategy(tf.distribute.MultiWorkerMirroredStrategy):
    """A ``MultiWorkerMirroredStrategy`` that Keras 3 works under, at the speed of a custom loop.

    Use it as any strategy: make model and optimizer inside ``scope()``; then `fit`, `evaluate`,
    `predict`, callbacks and metrics, or a loop around ``run``. Create it before anything else is
    asked of TensorFlow in the process. What differs from the base class, and why, is told in
    ``docs/design/strategy.md``; in short:

    - A per-node dataset (`Context.dataset`, `arcflow.tf.per_node`) is handed to this node as it
      is, ``batch_size`` rows at a step. Other datasets and arrays are sharded as TensorFlow does.
    - Logs that Keras shows after a step are this node's. Logs at the end of an epoch and results
      of `evaluate` are those of all nodes, equal on every rank. When a callback of yours reads
      logs after a step, or ``train_step`` is your own, they are reduced at every step.
    - `predict` on a per-node dataset gives this node's rows; on anything else all nodes' rows.
    - Rows of weight zero (padding) count neither in losses nor in metrics.

    Every rank has to make the same calls of `fit` and `evaluate`.

    Parameters
    ----------
    cluster_resolver
        Where the nodes are; by default ``TF_CONFIG``, with the server protocol of the run's
        ``transport``.
    communication_options
        ``tf.distribute.experimental.CommunicationOptions``.
    """

    def __init__(self, *, cluster_resolver: Any = None, communication_options: Any = None) -> None:
        _keras.install()
        protocol = transport.prepare()
        if cluster_resolver is None and protocol != "grpc":
            cluster_resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver(
                rpc_layer=protocol
            )
        try:
            super().__init__(
                cluster_resolver=cluster_resolver, communication_options=communication_options
            )
        except RuntimeError as error:
            if "program startup" not in str(error):
                raise
            raise errors.FailedPreconditionError(
                "ctx.strategy() has to come before the first dataset, tensor or model of the "
                "program: TensorFlow joins its cluster only while it is untouched"
            ) from error
        if self.extended._num_workers > 1:
            _reduce_lists.install(self.extended)
            _spare_scalar_cache(self.extended._collective_keys)
        if _replicas.accumulates():
            # Keras then updates in a branch of the graph, where replicas cannot meet in a merge call.
            # They need not: gradients are reduced by collectives of each replica.
            self.extended._use_merge_call = lambda: False
        self._arc_last_input: _LastInput | None = None
        self._arc_input_is_per_node = False  # so was the dataset distributed last
        self._arc_run_is_local = False  # arguments of the last `run` were this node's own rows
        self._arc_run_step: _keras.Step | None = None
        self._arc_reduce_step_logs = False
        self._arc_sums: dict[int, Any] = {}  # of metric variables, by id, while results are read

    # ---- What tf.distribute calls -------------------------------------------------------------

    def experimental_distribute_dataset(self, dataset: Any, options: Any = None) -> Any:
        """As in TensorFlow, but a per-node dataset keeps its rows and its batches."""
        remainder = remainder_of(dataset)
        self._arc_last_input = _LastInput(remainder)
        self._arc_input_is_per_node = remainder is not None
        if remainder is None:
            return super().experimental_distribute_dataset(dataset, options)
        if len(self.extended.worker_devices) == 1:
            return dataset
        return self._split_between_local_devices(dataset, options)

    def run(
        self, fn: Callable[..., Any], args: Any = (), kwargs: Any = None, options: Any = None
    ) -> Any:
        """As in TensorFlow; a Keras step on a per-node dataset leaves padding out of its metrics."""
        step = _keras.describe_step(fn)
        leaves = tf.nest.flatten((args, kwargs or {}))
        local = not any(isinstance(v, tf.distribute.DistributedValues) for v in leaves)
        if len(self.extended.worker_devices) > 1:  # then a per-node dataset gives such values too
            local = local or self._arc_input_is_per_node
        self._arc_run_is_local, self._arc_run_step = local, step
        if step is not None and local:
            fn = _padding.without_padding(fn, step.model)
        return super().run(fn, args=args, kwargs=kwargs, options=options)

    def reduce(self, reduce_op: Any, value: Any, axis: int | None) -> Any:
        """As in TensorFlow. A nest (Keras asks for the shapes of one batch) is answered locally."""
        if isinstance(value, tuple | list | dict):
            return tf.nest.map_structure(lambda v: self.experimental_local_results(v)[0], value)
        if id(value) in self._arc_sums:
            return self._arc_sums[id(value)]
        return super().reduce(reduce_op, value, axis)

    def _split_between_local_devices(self, dataset: Any, options: Any) -> Any:
        """Each local device gets its part of every batch; no rank asks another whether it has data."""
        parts = len(self.extended.worker_devices)
        batch = tf.nest.flatten(dataset.element_spec)[0].shape[0]
        if batch is None or batch % parts != 0:
            raise errors.InvalidArgumentError(
                f"this node has {parts} devices, so each batch of a per-node dataset is split into "
                f"{parts} parts of one size: use a fixed batch_size that is a multiple of {parts} "
                f"and remainder='pad' or 'drop' (the batch size here is {batch or 'not fixed'})"
            )
        split = dataset.rebatch(batch // parts, drop_remainder=True)
        extended = self.extended
        saved = extended.experimental_enable_get_next_as_optional
        extended.experimental_enable_get_next_as_optional = False
        try:
            return self.distribute_datasets_from_function(lambda _: split, options)
        finally:
            extended.experimental_enable_get_next_as_optional = saved

    # ---- What the Keras seams (_keras.py) call ------------------------------------------------

    def arc_begin_fit(self, model: Any, callbacks: Any) -> None:
        """Prepare for `fit`, which has its data and callbacks and makes its training function next.

        Raises
        ------
        UnimplementedError
            ``steps_per_execution`` above 1.
        InvalidArgumentError
            A per-node dataset whose ranks may make different numbers of steps.
        FailedPreconditionError
            Ranks hold backups of different epochs.
        """
        last, self._arc_last_input = self._arc_last_input, None
        remainder = last.remainder if last is not None else None
        if model.steps_per_execution > 1:
            raise errors.UnimplementedError(
                f"steps_per_execution={model.steps_per_execution} does not work with several nodes: "
                "Keras puts the step into a tf.function inside a loop, where TensorFlow cannot number "
                "its collectives. Compile the model with steps_per_execution=1."
            )
        if remainder == "partial":
            raise errors.InvalidArgumentError(
                "remainder='partial' lets ranks make different numbers of steps, and training would "
                "wait for ever at the first missing one: use remainder='pad', 'drop' or 'refuse' "
                "for the data of fit ('partial' is right for predict and validation_data)"
            )
        _callbacks.share_files(callbacks, self._arc_rank)
        wanted = _keras.has_own_step(model) or any(map(_callbacks.reads_step_logs, callbacks))
        wishes, epochs = self._exchange([float(wanted), float(_callbacks.backup_epoch(callbacks))])
        if len(set(epochs)) > 1:
            raise errors.FailedPreconditionError(
                "BackupAndRestore would let ranks go on from different epochs "
                f"({', '.join(str(int(e)) for e in epochs)} by rank): its folder has to be on a "
                "file system that all nodes share, or be empty"
            )
        if any(wishes) != self._arc_reduce_step_logs:
            self._arc_reduce_step_logs = any(wishes)
            model.train_function = None  # traced for the other way; fit makes it anew

    def arc_step_outputs(self, outputs: Any, reduction: str, stock: Callable[..., Any]) -> Any:
        """Turn what a Keras step gave into what Keras goes on with (`reduce_per_replica`)."""
        if reduction == "concat":
            if not self._arc_run_is_local:
                return stock(outputs, self, reduction)
            return tf.nest.map_structure(self._concat_local, outputs)
        local = tf.nest.map_structure(self._mean_local, outputs)
        step = self._arc_run_step
        if step is None or (step.kind == "train" and self._arc_reduce_step_logs):
            return self._mean_over_nodes(local)
        return local

    @contextlib.contextmanager
    def arc_reading_metrics(self, model: Any) -> Iterator[None]:
        """While it is open, results of `model`'s metrics cost one collective for each dtype.

        TensorFlow sums each variable of a metric over all ranks when it is read, one after another.
        """
        in_step = tf.distribute.has_strategy() and not tf.distribute.in_cross_replica_context()
        if in_step or not tf.executing_eagerly():
            yield  # a step reads this node's own
            return
        by_dtype: dict[Any, list[Any]] = {}
        for variable in _variables_summed_when_read(model):
            by_dtype.setdefault(variable.dtype, []).append(variable)
        for variables in by_dtype.values():
            local = [tf.add_n(self.experimental_local_results(v)) for v in variables]
            packed = tf.concat([tf.reshape(v, [-1]) for v in local], axis=0)
            sums = tf.split(
                super().reduce("SUM", packed, axis=None), [v.shape.num_elements() for v in local]
            )
            for variable, own, total in zip(variables, local, sums, strict=True):
                self._arc_sums[id(variable)] = tf.reshape(total, own.shape)
        try:
            yield
        finally:
            self._arc_sums.clear()

    @contextlib.contextmanager
    def arc_resetting_metrics(self, model: Any) -> Iterator[None]:
        """While it is open, TensorFlow does not sum what is assigned to `model`'s metrics.

        Each `assign` to such a variable ends with reading it, for a value that Keras drops. A metric
        of the user's may read in its ``reset_state``; then all is as in TensorFlow.
        """
        if all(map(_is_keras_metric, model.metrics)):
            for variable in _variables_summed_when_read(model):
                self._arc_sums[id(variable)] = self.experimental_local_results(variable)[0]
        try:
            yield
        finally:
            self._arc_sums.clear()

    def _concat_local(self, value: Any) -> Any:
        parts = self.experimental_local_results(value)
        return parts[0] if len(parts) == 1 else tf.concat(parts, axis=0)

    def _mean_local(self, value: Any) -> Any:
        parts = self.experimental_local_results(value)
        return parts[0] if len(parts) == 1 else tf.reduce_mean(parts, axis=0)

    def _mean_over_nodes(self, logs: Any) -> Any:
        """One collective for all values of `logs`, whatever their number."""
        flat = [tf.convert_to_tensor(v) for v in tf.nest.flatten(logs)]
        packed = tf.concat([tf.reshape(tf.cast(v, tf.float32), [-1]) for v in flat], axis=0)
        mean = super().reduce("MEAN", packed, axis=None)
        parts = tf.split(mean, [tf.size(v) for v in flat], num=len(flat))
        back = [
            tf.cast(tf.reshape(p, tf.shape(v)), v.dtype) for p, v in zip(parts, flat, strict=True)
        ]
        return tf.nest.pack_sequence_as(logs, back)

    @property
    def _arc_rank(self) -> int:
        return int(self.extended._id_in_cluster)

    def _exchange(self, numbers: list[float]) -> list[list[float]]:
        """For each number, what all ranks have, by rank. A collective."""
        own = tf.one_hot(self._arc_rank, self.extended._num_workers)
        table = tf.reshape(tf.constant(numbers)[:, None] * own, [-1])
        if self.extended._in_multi_worker_mode():
            table = super().reduce("SUM", table, axis=None)
        return tf.reshape(table, [len(numbers), -1]).numpy().tolist()


def _variables_summed_when_read(model: Any) -> list[Any]:
    """Variables of a model's metrics that live on each replica and count as their sum."""
    found = [getattr(v, "value", v) for metric in model.metrics for v in metric.variables]
    return [
        v
        for v in found
        if isinstance(v, tf.distribute.DistributedValues)
        and getattr(v, "synchronization", None) == tf.VariableSynchronization.ON_READ
        and v.aggregation == tf.VariableAggregation.SUM
        and v.shape.is_fully_defined()
    ]


def _is_keras_metric(metric: Any) -> bool:
    parts = getattr(metric, "metrics", ())  # of compile(metrics=…)
    return type(metric).__module__.startswith("keras.") and all(map(_is_keras_metric, parts))


def _spare_scalar_cache(keys: Any) -> None:
    """Make TensorFlow forget the keys of collectives that are over.

    Each call of a function takes new keys, and TensorFlow caches the tensor of every Python number
    for ever: half a kilobyte a step and collective. NumPy's numbers it does not cache.
    Source: ``ConvertToEagerTensor`` in TensorFlow's ``pywrap_tensor.cc``.
    """
    give = keys.get_instance_key
    keys.get_instance_key = lambda group_key, device: np.int32(give(group_key, device))


def default_strategy() -> tf.distribute.Strategy:
    """Return the strategy for this process: the same user code runs on one node and on many.

    Returns
    -------
    tf.distribute.Strategy
        `ClusterStrategy` when ``TF_CONFIG`` names several nodes; a ``ParameterServerStrategy``
        when it names parameter servers; a ``MirroredStrategy`` for one node, or an evaluator, with
        several accelerators; else TensorFlow's default.

    Examples
    --------
    >>> with default_strategy().scope():  # doctest: +SKIP
    ...     model = make_model()
    """
    return _strategy_for(os.environ.get("TF_CONFIG") or "{}")


@functools.cache  # a process can join its cluster only once
def _strategy_for(tf_config: str) -> tf.distribute.Strategy:
    config = json.loads(tf_config)
    cluster = config.get("cluster") or {}
    alone = (config.get("task") or {}).get("type") == "evaluator"
    if cluster.get("ps") and not alone:
        from .parameter_server import server_strategy

        return server_strategy()
    if not alone and sum(len(cluster.get(role, ())) for role in ("chief", "worker")) > 1:
        return ClusterStrategy()
    if len(tf.config.list_logical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
