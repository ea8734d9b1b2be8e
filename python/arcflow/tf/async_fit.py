# SPDX-License-Identifier: Apache-2.0
"""`fit` for Keras 3 models over parameter servers: workers train without waiting for each other."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import tensorflow as tf
from tensorflow.python.distribute import input_lib
from tensorflow.python.distribute.coordinator import values as coordinator_values

from .. import errors
from . import _keras

if TYPE_CHECKING:
    from ..context import Context

# Steps that each worker has before it or in work: it never waits for the chief.
_STEPS_A_WORKER = 2
# How long to wait before a result is asked for again whose worker has died.
_AGAIN_S = 0.1
_LOST = (tf.errors.UnavailableError, tf.errors.AbortedError, tf.errors.CancelledError)
# How often logs of the steps so far are read from the parameter servers.
_LOGS_INTERVAL_S = 0.5


def fit_async(
    model: Any,
    ctx: Context,
    data: Callable[[], Any],
    *,
    steps_per_epoch: int,
    epochs: int = 1,
    validation_data: Any = None,
    validation_steps: int | None = None,
    callbacks: Sequence[Any] = (),
    directory: str | None = None,
    every: int | str = "epoch",
    keep: int = 3,
    resume: bool = False,
    verbose: int = 0,
) -> dict[str, list[float]]:
    """Train a compiled model over parameter servers; called by the chief, as ``model.fit`` would be.

    Each step is one batch of one worker, whose gradients are applied to the variables at once,
    whatever the others do meanwhile. Steps are counted on a parameter server, and so are loss and
    metrics summed, so that none is lost. A worker that dies is started again; its step is done by
    another one. See ``docs/guide/training-modes.md``.

    Parameters
    ----------
    model
        Made and compiled inside ``ctx.strategy().scope()``; of Keras 3, or of ``tf_keras``.
    ctx
        The chief's context, in a run with parameter servers.
    data
        Called once for each worker, and returns that worker's batches as a `tf.data.Dataset`:
        ``lambda: ctx.dataset("train", 64)`` or ``lambda: ctx.read_files(…)``. It is repeated.
    steps_per_epoch
        Steps of an epoch, of all workers together.
    epochs
        In all, those done by earlier attempts included.
    validation_data
        A function such as `data`, evaluated by the workers, or a dataset (or a tuple of arrays)
        that the chief evaluates itself.
    validation_steps
        Steps of an evaluation; needed when workers do it.
    callbacks
        Keras's and yours. Logs after a step are those of the steps so far, read now and then.
    directory, every, keep, resume
        As for `Context.checkpoint`: where checkpoints are, if there are to be any, and how often.
        The run goes on from its newest.
    verbose
        As for Keras's `fit`: 1 or 2 show its own progress bar.

    Returns
    -------
    dict
        Keras's history of the epochs that this attempt made.

    Raises
    ------
    UnimplementedError
        A run without parameter servers, another node than the chief, or a model whose training step
        is its own.
    InvalidArgumentError
        Something about the arguments; says what to change.
    """
    _check(model, ctx, data, steps_per_epoch, validation_data, validation_steps)
    if type(model).__module__.startswith("tf_keras"):
        return _fit_legacy(model, data, steps_per_epoch, epochs, callbacks, verbose, directory)
    return _Trainer(model, ctx, data, validation_data, validation_steps).fit(
        steps_per_epoch, epochs, callbacks, (directory, every, keep, resume), verbose
    )


def _check(
    model: Any,
    ctx: Context,
    data: Any,
    steps_per_epoch: Any,
    validation_data: Any,
    validation_steps: Any,
) -> None:
    if not ctx._roles.ps or ctx.role != "chief":
        raise errors.UnimplementedError(
            "fit_async needs parameter servers, and is the chief's: Cluster(size=2, ps=1); without "
            "them call model.fit under ctx.strategy()"
        )
    if not callable(data):
        raise errors.InvalidArgumentError(
            "data= is made on each worker, so it has to be a function: "
            f"lambda: ctx.dataset(…), not a {type(data).__name__}"
        )
    for name, value in (
        ("steps_per_epoch", steps_per_epoch),
        ("validation_steps", validation_steps),
    ):
        if value is not None and (
            isinstance(value, bool) or not isinstance(value, int) or value < 1
        ):
            raise errors.InvalidArgumentError(f"{name}={value!r} is not a number of steps (1 …)")
    if callable(validation_data) and validation_steps is None:
        raise errors.InvalidArgumentError(
            "validation_data= is evaluated by the workers, whose rows have no common end: say "
            "validation_steps="
        )


class _Trainer:
    """One model in training: what runs on workers, and the loop around it."""

    def __init__(
        self,
        model: Any,
        ctx: Context,
        data: Any,
        validation_data: Any,
        validation_steps: int | None,
    ) -> None:
        self._model, self._ctx = model, ctx
        self._strategy, self._coordinator = ctx.strategy(), ctx.coordinator()
        self._validation_data, self._validation_steps = validation_data, validation_steps
        self._rows = self._iterators(data)
        self._validation_rows = (
            self._iterators(validation_data) if callable(validation_data) else None
        )
        self._build()
        self._steps = ctx.step_counter()
        with self._strategy.scope():
            self._sums = [
                tf.Variable(
                    tf.zeros(one.shape, one.dtype),
                    trainable=False,
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )
                for one in self._metric_variables
            ]
        self._train_step = self._function(self._train_on)
        self._test_step = self._function(self._test_on)
        self._logs: dict[str, float] = {}
        self._next_logs = 0.0

    # ---- What workers have ----------------------------------------------------------------------

    def _iterators(self, data: Callable[[], Any]) -> Any:
        """Return an iterator on each worker; it is made anew when the worker is."""
        made = []
        workers = self._coordinator._cluster.workers
        for number, worker in enumerate(workers):
            with self._ctx._in_place_of(number, len(workers)):
                concrete = tf.function(
                    lambda: self._dataset(data), autograph=False
                ).get_concrete_function()
            remote = worker.create_resource(lambda concrete=concrete: iter(concrete()))
            remote._type_spec = input_lib.get_iterator_spec_from_dataset(
                self._strategy, concrete.structured_outputs
            )
            self._element_spec = concrete.structured_outputs.element_spec
            made.append(remote)
        return coordinator_values.PerWorkerDistributedIterator(tuple(made))

    def _dataset(self, data: Callable[[], Any]) -> Any:
        def rows(_: Any) -> tf.data.Dataset:
            dataset = data()
            if not isinstance(dataset, tf.data.Dataset):
                raise errors.InvalidArgumentError(
                    f"the function for data= returned a {type(dataset).__name__}, not a "
                    "tf.data.Dataset of batches"
                )
            return dataset.repeat()

        return self._strategy.distribute_datasets_from_function(rows)

    def _build(self) -> None:
        """Make all variables before any worker uses them."""
        model = self._model
        if not getattr(model, "compiled", False) or model.optimizer is None:
            raise errors.InvalidArgumentError(
                "compile() the model, with an optimizer, before fit_async"
            )
        if _keras.has_own_step(model):
            raise errors.UnimplementedError(
                f"{type(model).__name__} has a train_step of its own, and what it does to metrics "
                "cannot be shared by workers: write the loop with ctx.coordinator()"
            )
        example = tf.nest.map_structure(_example, self._element_spec)
        with self._strategy.scope():
            model._symbolic_build(data_batch=example)
            model.optimizer.build(model.trainable_variables)
        model.reset_metrics()
        self._metric_variables = list(model.metrics_variables)
        for one in self._metric_variables:
            if tf.reduce_any(tf.cast(one.value, tf.float64) != 0):
                raise errors.UnimplementedError(
                    f"metric variable {one.path!r} does not start at zero, so that workers cannot "
                    "add to it: leave the metric out, or evaluate it in a callback"
                )

    def _function(self, on_batch: Callable[[Any], Any]) -> Any:
        @tf.function
        def step(iterator: Any) -> Any:
            return self._strategy.run(on_batch, args=(next(iterator),))

        return step

    def _train_on(self, batch: Any) -> Any:
        import keras

        model = self._model
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        with tf.GradientTape() as tape:
            y_pred = model(x, training=True) if model._call_has_training_arg else model(x)
            loss = model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight, training=True)
            scaled = model.optimizer.scale_loss(loss)
        trained = model.trainable_weights
        model.optimizer.apply_gradients(zip(tape.gradient(scaled, trained), trained, strict=True))
        self._steps.add()
        self._add_metrics(x, y, y_pred, weight, loss)
        return loss

    def _test_on(self, batch: Any) -> Any:
        import keras

        model = self._model
        x, y, weight = keras.utils.unpack_x_y_sample_weight(batch)
        y_pred = model(x, training=False) if model._call_has_training_arg else model(x)
        loss = model._compute_loss(x=x, y=y, y_pred=y_pred, sample_weight=weight, training=False)
        self._add_metrics(x, y, y_pred, weight, loss)
        return loss

    def _add_metrics(self, x: Any, y: Any, y_pred: Any, weight: Any, loss: Any) -> None:
        """Add what this batch does to metrics to the sums; Keras alone would read, add and write."""
        import keras

        model = self._model
        start = [(v, tf.zeros(v.shape, v.dtype)) for v in self._metric_variables]
        with keras.StatelessScope(state_mapping=start) as scope:
            if model._loss_tracker is not None:
                rows = tf.shape(next(one for one in tf.nest.flatten(x) if one is not None))[0]
                model._loss_tracker.update_state(loss, sample_weight=rows)
            if model._compile_loss is not None and model._compile_loss.metrics:
                model._compile_loss(y, y_pred, weight)  # the losses of single outputs
            model.compute_metrics(x, y, y_pred, sample_weight=weight)
            ends = [scope.get_current_value(one) for one in self._metric_variables]
        for total, end in zip(self._sums, ends, strict=True):
            total.assign_add(tf.cast(end, total.dtype))

    # ---- The loop -------------------------------------------------------------------------------

    def fit(
        self,
        steps_per_epoch: int,
        epochs: int,
        callbacks: Sequence[Any],
        checkpoint: tuple[str | None, int | str, int, bool],
        verbose: int,
    ) -> dict[str, list[float]]:
        """Do what `fit_async` says."""
        import keras

        model = self._model
        state = self._state(*checkpoint)
        listed = keras.callbacks.CallbackList(
            list(callbacks),
            add_history=True,
            add_progbar=verbose != 0,
            verbose=verbose,
            epochs=epochs,
            steps=steps_per_epoch,
            model=model,
        )
        model.stop_training = False
        listed.on_train_begin()
        while state.epoch < epochs and not model.stop_training:
            epoch = state.epoch
            listed.on_epoch_begin(epoch)
            self._reset()
            self._train_epoch(state, steps_per_epoch, listed)
            logs = self._results()
            if self._validation_data is not None:
                logs |= {f"val_{name}": value for name, value in self._evaluate(listed).items()}
            # What Keras counts on each worker on its own; schedules of the learning rate read it.
            model.optimizer.iterations.assign(int(self._steps))
            listed.on_epoch_end(epoch, logs)
            state.end_epoch()
        listed.on_train_end(self._logs)
        return dict(model.history.history)

    def _state(self, directory: str | None, every: int | str, keep: int, resume: bool) -> Any:
        if directory is None:
            return _Position(self._ctx)
        state = self._ctx.checkpoint(
            [self._model, self._steps.variable],
            self._model.optimizer,
            directory=directory,
            every=every,
            keep=keep,
            resume=resume,
        )
        state.begin_epoch()
        return state

    def _train_epoch(self, state: Any, steps: int, listed: Any) -> None:
        """Make the steps that are left of the epoch, several at a time on all workers."""
        window = _STEPS_A_WORKER * len(self._coordinator._cluster.workers)
        begun = done = state.step_in_epoch
        pending: collections.deque[Any] = collections.deque()
        while done < steps:
            until = self._next_stop(state, done, steps)
            while begun < until and len(pending) < window:
                listed.on_train_batch_begin(begun)
                pending.append(self._coordinator.schedule(self._train_step, args=(self._rows,)))
                begun += 1
            loss = self._wait(pending.popleft())
            state.advance()
            listed.on_train_batch_end(done, self._running_logs(loss))
            self._ctx._set_progress(state.step, state.epoch, self._logs.get("loss", loss))
            done += 1
            if self._model.stop_training:
                steps = min(steps, begun)  # those in work are finished

    @staticmethod
    def _next_stop(state: Any, done: int, steps: int) -> int:
        """Return the step of the epoch at which no other may be in work, because a checkpoint is due."""
        every = getattr(state, "_every", None)
        if not isinstance(every, int):
            return steps
        return min(steps, done + every - state.step % every)

    def _wait(self, value: Any) -> float:
        """Return the loss of a step; an error of the program is raised as it was.

        A worker may die between the end of a step and the reading of its result. The step is then
        done again by another worker, and the same value becomes available again.
        """
        while True:
            try:
                return float(value.fetch())
            except _LOST:
                self._coordinator.done()  # raises the first error, of which this may be a consequence
                time.sleep(_AGAIN_S)
            except Exception:
                self._coordinator.done()
                raise

    def _evaluate(self, listed: Any) -> dict[str, float]:
        listed.on_test_begin()
        self._reset()
        for number, _ in enumerate(self._evaluated()):
            self._ctx.alive()
            listed.on_test_batch_begin(number)
            listed.on_test_batch_end(number)
        logs = self._results()
        listed.on_test_end(logs)
        return logs

    def _evaluated(self) -> Iterator[Any]:
        """Evaluate batch for batch, on the workers or here."""
        if self._validation_rows is not None:
            arguments = (self._validation_rows,)
            pending = [
                self._coordinator.schedule(self._test_step, args=arguments)
                for _ in range(self._validation_steps or 0)
            ]
            for one in pending:
                yield self._wait(one)
            return
        data = self._validation_data
        if not isinstance(data, tf.data.Dataset):
            data = tf.data.Dataset.from_tensors(tuple(data))
        on_batch = tf.function(self._test_on)
        for number, batch in enumerate(data):
            if number == self._validation_steps:
                return
            yield on_batch(batch)

    # ---- Metrics --------------------------------------------------------------------------------

    def _reset(self) -> None:
        for total in self._sums:
            total.assign(tf.zeros(total.shape, total.dtype))

    def _results(self) -> dict[str, float]:
        """Return what loss and metrics are by the sums so far."""
        import keras

        values = [
            (v, tf.constant(s.numpy()))
            for v, s in zip(self._metric_variables, self._sums, strict=True)
        ]
        with keras.StatelessScope(state_mapping=values):  # a result may be a variable
            found = self._model.get_metrics_result()
            self._logs = {name: float(value) for name, value in found.items()}
        return dict(self._logs)

    def _running_logs(self, loss: float) -> dict[str, float]:
        now = time.monotonic()
        if now >= self._next_logs:
            self._results()
            self._next_logs = time.monotonic() + _LOGS_INTERVAL_S
        return self._logs or {"loss": loss}


class _Position:
    """Where training is, when there are no checkpoints."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self.step = self.epoch = self.step_in_epoch = 0

    def advance(self) -> None:
        self.step += 1
        self.step_in_epoch += 1

    def end_epoch(self) -> None:
        self.epoch += 1
        self.step_in_epoch = 0


def _example(spec: tf.TensorSpec) -> tf.Tensor:
    """Return a batch as the model will get, for its building."""
    if not isinstance(spec, tf.TensorSpec):
        raise errors.UnimplementedError(
            f"a model for {type(spec).__name__.removesuffix('Spec')} inputs has to be built before "
            "fit_async: call it on a batch"
        )
    return tf.zeros([1 if size is None else size for size in spec.shape], spec.dtype)


def _fit_legacy(
    model: Any,
    data: Callable[[], Any],
    steps_per_epoch: int,
    epochs: int,
    callbacks: Sequence[Any],
    verbose: int,
    directory: str | None,
) -> dict[str, list[float]]:
    """Hand over to the `fit` of ``tf_keras``, which knows parameter servers."""
    import tf_keras

    if directory is not None:
        raise errors.UnimplementedError(
            "directory= is for Keras 3: with tf_keras use its BackupAndRestore callback"
        )
    creator = tf_keras.utils.experimental.DatasetCreator(lambda _: data().repeat())
    history = model.fit(
        creator,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        callbacks=list(callbacks),
        verbose=verbose,
    )
    return dict(history.history)
