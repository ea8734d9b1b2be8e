# SPDX-License-Identifier: Apache-2.0
"""Checkpoint: what training needs to go on after a failure, and where in its feed it was."""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _checkpoint_files as files
from . import errors
from ._checkpoint_files import Manifest
from .files import is_hdfs, makedirs

if TYPE_CHECKING:
    from .context import Context

_EVERY_EPOCH = "epoch"


class Checkpoint:
    """State of a training program: saved in one step, restored in the next attempt of its run.

    Made by `Context.checkpoint`, which restores the newest checkpoint of the run at once. Every
    training node makes it, with the same arguments, and walks through `epochs` and `batches`, or
    calls `fit`. All nodes save together; the chief writes.

    Attributes
    ----------
    directory
        Where checkpoints are; a folder that all nodes share.
    step, epoch, step_in_epoch
        Steps done since the start of training, the epoch under way, and steps done of it.
    restored : Manifest or None
        What this attempt began from.

    Notes
    -----
    Threads: one. The rows of a step are the same in every attempt as long as the feed is (see
    ``docs/guide/restart.md``).
    """

    def __init__(
        self,
        context: Context,
        objects: Any,
        optimizer: Any,
        directory: str,
        *,
        every: int | str,
        keep: int,
        resume: bool,
    ) -> None:
        if every != _EVERY_EPOCH and (
            isinstance(every, bool) or not isinstance(every, int) or every < 1
        ):
            raise errors.InvalidArgumentError(f"every={every!r} is neither 'epoch' nor steps (1 …)")
        if keep < 1:
            raise errors.InvalidArgumentError(f"keep={keep}: at least one checkpoint has to stay")
        self._context = context
        self._objects = objects
        self._optimizer = optimizer
        self.directory = _checked_directory(directory)
        self._every, self._keep, self._resume = every, keep, resume
        self.step = self.epoch = self.step_in_epoch = 0
        self.restored: Manifest | None = None
        self._feed: tuple[str, int] | None = None  # of the epoch under way: name, batch size
        self._seed: int | None = None  # of its order
        self._saved_step = -1
        self._exchanges = 0
        self._named = _variables(context, objects, optimizer)
        slots = {id(one) for one in _of_optimizer(objects, optimizer)}
        self._own = {
            number
            for number, (_, one) in enumerate(self._named)
            if id(one) not in slots and _is_per_rank(one)
        }
        self._begin()

    # ---- Beginning ----------------------------------------------------------------------------

    def _begin(self) -> None:
        """Find the newest checkpoint, on all nodes the same, and go on from it."""
        found: dict[str, Any] = {}
        if self._context.is_chief:
            found = self._said(self._find)
        found = json.loads(self._exchange(found)[0])
        if found.get("error"):
            raise errors.from_code(found["code"], found["error"])
        if found.get("step") is not None:
            self._restore(files.manifest_of(self.directory, int(found["step"])))
        self._tell()

    @staticmethod
    def _said(act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `act` returns, or its error as the other nodes get it."""
        try:
            return act()
        except errors.ArcflowError as error:
            return {"error": error.message, "code": error.code}
        except OSError as error:
            return {"error": f"{type(error).__name__}: {error}", "code": "UNKNOWN"}

    def _find(self) -> dict[str, Any]:
        makedirs(self.directory)
        files.sweep(self.directory)
        run_id = self._context.run_id
        others = files.other_runs(self.directory, run_id)
        if others and not self._resume:
            raise errors.FailedPreconditionError(
                f"{self.directory} holds checkpoints of another run ({', '.join(others)}): say "
                "resume=True to go on from them, or choose another directory"
            )
        manifest = files.newest(self.directory, None if self._resume else run_id)
        return {"step": None if manifest is None else manifest.step}

    def _restore(self, manifest: Manifest) -> None:
        values = files.read(self.directory, manifest, self._context.rank)
        self._check_fits(manifest)
        for (_, variable), value in zip(self._named, values, strict=self._trains):
            _write(variable, value)
        self.step, self.epoch = manifest.step, manifest.epoch
        self.step_in_epoch = manifest.step_in_epoch
        self._saved_step = manifest.step
        self.restored = manifest

    def _check_fits(self, manifest: Manifest) -> None:
        mine = [(str(v.dtype), tuple(v.shape)) for v in map(_array_like, self._named)]
        theirs = [(e["dtype"], tuple(e["shape"])) for e in manifest.variables]
        if not self._trains:  # an evaluator needs no optimizer, whose variables come last
            theirs = theirs[: len(mine)]
        if mine != theirs:
            at = next(
                (i for i, pair in enumerate(zip(mine, theirs, strict=False)) if pair[0] != pair[1]),
                min(len(mine), len(theirs)),
            )
            name = self._named[at][0] if at < len(mine) else manifest.variables[at]["name"]
            raise errors.FailedPreconditionError(
                f"the checkpoint of step {manifest.step} in {self.directory} is of another model: "
                f"{len(theirs)} variables there, {len(mine)} here, and {name!r} is the first that "
                "differs. Choose another directory, or build the same model and optimizer"
            )
        if self._trains and manifest.size != self._context.size:
            raise errors.FailedPreconditionError(
                f"the checkpoint of step {manifest.step} in {self.directory} was written by "
                f"{manifest.size} nodes, this run has {self._context.size}: rows would be read twice "
                f"or never. Use size={manifest.size}"
            )

    @property
    def _trains(self) -> bool:
        return self._context.role != "evaluator"

    def refresh(self) -> bool:
        """Load the newest checkpoint if it is newer than what is loaded: for evaluators.

        Returns
        -------
        bool
            Whether there was one.
        """
        for _ in range(3):  # what was found may be pruned before it is read
            steps = files.steps_in(self.directory)
            if not steps or steps[0] <= self._saved_step:
                return False
            try:
                manifest = files.manifest_of(self.directory, steps[0])
                files.check(self.directory, manifest)
                self._restore(manifest)
                return True
            except (errors.NotFoundError, errors.DataLossError):
                continue
        return False

    # ---- Going on -----------------------------------------------------------------------------

    def epochs(self, count: int) -> Iterator[int]:
        """Yield the numbers of the epochs that are left of `count`; the first may be half done."""
        while self.epoch < count:
            yield self.epoch
            self.end_epoch()

    def batches(self, dataset: Any) -> Iterator[Any]:
        """Yield the elements of a dataset that are left of this epoch; count steps and save.

        Parameters
        ----------
        dataset : tf.data.Dataset
            Of `Context.dataset`, or any that gives the same elements in every attempt, as does
            `Context.reader`. A step has ended when the next element is asked for.
        """
        self.begin_epoch(dataset)
        for element in self._rest(dataset):
            yield element
            self.advance()

    def _rest(self, dataset: Any) -> Any:
        if hasattr(dataset, "skip"):
            return dataset.skip(self.step_in_epoch) if self.step_in_epoch else dataset
        return itertools.islice(dataset, self.step_in_epoch, None)

    def begin_epoch(self, dataset: Any = None) -> None:
        """Note which feed the steps that follow read; `batches` and `fit` do so themselves."""
        source = _source_of(dataset)
        self._feed = None if source is None else source.arcflow_source
        self._seed = getattr(source, "arcflow_seed", None)
        self._check_order()
        # So that orders are those of a run without a failure.
        if (datasets := sys.modules.get("arcflow.tf.dataset")) is not None:
            datasets.begin_epoch(self.epoch)
        if self._seed is not None:
            source.set_epoch(self.epoch)
        self._tell()

    def _check_order(self) -> None:
        """Refuse to go on within an epoch in another order than it began with."""
        if self.restored is None or self._feed is None or self.step != self.restored.step:
            return
        was = (self.restored.ranks[self._context.rank] or {}).get("feed") or {}
        if not self.step_in_epoch or was.get("name") != self._feed[0]:
            return
        if was.get("seed") != self._seed:
            said, here = (
                "no shuffle" if seed is None else f"shuffle={seed}"
                for seed in (was.get("seed"), self._seed)
            )
            raise errors.FailedPreconditionError(
                f"the checkpoint of step {self.step} in {self.directory} was made in the middle of an "
                f"epoch over feed {self._feed[0]!r} with {said}, this dataset has {here}: rows would be "
                f"read twice or never. Use the same seed"
            )

    def advance(self, steps: int = 1) -> None:
        """Count steps that were made, and save when it is time."""
        before = self.step
        self.step += steps
        self.step_in_epoch += steps
        self._context._note_step(self.step, self.epoch)
        if isinstance(self._every, int) and self.step // self._every > before // self._every:
            self.save()

    def end_epoch(self) -> None:
        """Count an epoch; save when checkpoints are made at the ends of epochs."""
        self.epoch += 1
        self.step_in_epoch = 0
        self._context._note_step(self.step, self.epoch)
        if self._every == _EVERY_EPOCH:
            self.save()

    def fit(
        self, dataset: Any, *, epochs: int, callbacks: Sequence[Any] = (), **options: Any
    ) -> dict[str, list[float]]:
        """Train a compiled Keras model from where the checkpoint is to the end of `epochs`.

        Parameters
        ----------
        dataset : tf.data.Dataset
            One pass is one epoch.
        epochs
            In all, those done by earlier attempts included.
        callbacks, options
            As for Keras's ``fit``. Callbacks begin anew in each attempt.

        Returns
        -------
        dict
            Keras's history of the epochs that this attempt made. Values of an epoch that was half
            done are those of its second half.
        """
        from .tf import checkpoint_callback

        model = self._objects
        if not hasattr(model, "fit"):
            raise errors.InvalidArgumentError(
                f"fit() needs ctx.checkpoint(model, …) of one Keras model, not {type(model).__name__}"
            )
        return checkpoint_callback.fit(self, model, dataset, epochs, list(callbacks), options)

    # ---- Saving -------------------------------------------------------------------------------

    def save(self) -> None:
        """Save now. Every training node must call it, at the same step.

        Raises
        ------
        ArcflowError
            A node could not do its part; raised on all.
        """
        if self.step == self._saved_step:
            return
        if not self._trains:
            raise errors.UnimplementedError("an evaluator does not save checkpoints of training")
        with self._context.busy("saving a checkpoint"):  # however long it takes: no stall
            self._save()

    def _save(self) -> None:
        word: dict[str, Any] = {"step": self.step, "feed": self._position()}
        staging = files.Staging(self.directory, files.Staging.new_name())  # the chief's counts
        if self._context.is_chief:
            word |= self._said(staging.make)
        words = self._agree(word)
        try:
            self._write(words, files.Staging(self.directory, words[0]["staging"]))
        finally:
            if self._context.is_chief:
                staging.discard()
        self._saved_step = self.step

    def _write(self, words: list[dict[str, Any]], staging: files.Staging) -> None:
        extra: dict[str, dict[str, Any]] = {}
        if self._own and len(words) > 1:
            arrays = [_read(self._named[number][1]) for number in sorted(self._own)]
            name = files.rank_file(self._context.rank)
            mine = self._said(lambda: {"file": name, "said": staging.write(name, arrays)})
            extra = {one["file"]: one["said"] for one in self._agree({"step": self.step, **mine})}
        if not self._context.is_chief:
            return
        named = [(name, _read(variable)) for name, variable in self._named]
        variables, written = staging.write_variables(named, self._own)
        staging.publish(
            Manifest(
                run_id=self._context.run_id,
                attempt=self._context.attempt,
                step=self.step,
                epoch=self.epoch,
                step_in_epoch=self.step_in_epoch,
                size=self._context.size,
                ranks=[{"feed": one["feed"]} for one in words],
                variables=variables,
                files={**written, **extra},
            )
        )
        files.prune(self.directory, self._keep)

    def _agree(self, word: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Exchange words; raise on all nodes what went wrong on one, or that steps differ."""
        words = [json.loads(text) for text in self._exchange(word)]
        for rank, one in enumerate(words):
            if one.get("error"):
                raise errors.from_code(
                    one["code"], f"the checkpoint failed on rank {rank}: {one['error']}"
                )
        steps = sorted({one["step"] for one in words})
        if len(steps) > 1:
            raise errors.FailedPreconditionError(
                f"ranks save at different steps ({steps}): every node must make the same steps"
            )
        return words

    def _exchange(self, word: Mapping[str, Any]) -> list[bytes]:
        payload = json.dumps(word).encode()
        if not self._trains:
            return [json.dumps(self._said(self._newest_for_evaluator)).encode()]
        self._exchanges += 1
        return self._context.barrier(f"arcflow/checkpoint/{self._exchanges}", payload)

    def _newest_for_evaluator(self) -> dict[str, Any]:
        manifest = files.newest(self.directory, None)
        return {"step": None if manifest is None else manifest.step}

    def _position(self) -> dict[str, Any] | None:
        """Where this rank is in its feed: the next row of the pass under way."""
        if self._feed is None:
            return None
        name, batch = self._feed
        place = {"name": name, "batch": batch, "row": self.step_in_epoch * batch}
        return place if self._seed is None else {**place, "seed": self._seed}

    def _tell(self) -> None:
        """Tell the driver where this attempt is, so that it can name the rows that kill it."""
        self._context._note_step(self.step, self.epoch)
        feed, batch = self._feed or ("", 0)
        word = {
            "first_step": self.step - self.step_in_epoch,
            "feed": feed,
            "batch": batch,
            "restored": None if self.restored is None else self.restored.step,
        }
        self._context._link.progress(json.dumps({"arcflow": word}))


def _checked_directory(directory: str) -> str:
    directory = os.fspath(directory)
    if is_hdfs(directory):
        return directory.rstrip("/")
    if not directory or "://" in directory:
        raise errors.InvalidArgumentError(
            f"checkpoints cannot go to {directory!r}: a folder is needed that every node can open, on "
            "a shared file system such as NFS or at hdfs://"
        )
    return os.path.abspath(directory)


def _variables(context: Context, objects: Any, optimizer: Any) -> list[tuple[str, Any]]:
    """List every variable of the objects and the optimizer, each once, in a stable order."""
    listed = list(objects) if isinstance(objects, list | tuple) else [objects]
    optimizer = _optimizer(objects, optimizer)
    if optimizer is not None:
        _build(context, optimizer, listed)
        listed.append(optimizer)
    found: dict[int, tuple[str, Any]] = {}
    for number, one in enumerate(listed):
        for variable in _of(one):
            name = str(getattr(variable, "path", None) or getattr(variable, "name", ""))
            found.setdefault(id(variable), (f"{number}/{name}", variable))
    if not found:
        raise errors.InvalidArgumentError(
            "ctx.checkpoint() found no variables: build the model first (give it an Input, or call "
            "it on a batch)"
        )
    return list(found.values())


def _optimizer(objects: Any, optimizer: Any) -> Any:
    first = objects[0] if isinstance(objects, list | tuple) and objects else objects
    return getattr(first, "optimizer", None) if optimizer is None else optimizer


def _of_optimizer(objects: Any, optimizer: Any) -> list[Any]:
    found = _optimizer(objects, optimizer)
    return [] if found is None else _of(found)


def _build(context: Context, optimizer: Any, listed: list[Any]) -> None:
    """Make the optimizer's variables now, so that they can be restored before the first step."""
    trainable = [v for one in listed for v in getattr(one, "trainable_variables", ())]
    if trainable and hasattr(optimizer, "build") and not getattr(optimizer, "built", False):
        with context.strategy().scope():
            optimizer.build(trainable)


def _of(one: Any) -> list[Any]:
    variables = getattr(one, "variables", None)
    if callable(variables):  # optimizers of old
        variables = variables()
    if variables is not None:
        if getattr(one, "built", True) is False:
            raise errors.InvalidArgumentError(
                f"ctx.checkpoint() got a {type(one).__name__} that is not built: give it an Input, or "
                "call it on a batch first"
            )
        return list(variables)
    if hasattr(one, "assign"):
        return [one]
    raise errors.InvalidArgumentError(
        f"ctx.checkpoint() cannot save a {type(one).__name__}: hand over models, tf.Modules, "
        "optimizers and variables"
    )


def _parts(variable: Any) -> list[Any]:
    """Return what a variable consists of on this node: one part a device."""
    if type(variable).__module__.startswith("keras."):
        variable = variable.value  # Keras 3 wraps TensorFlow's
    return list(getattr(variable, "_values", None) or [variable])


def _is_per_rank(variable: Any) -> bool:
    """Whether nodes may hold different values.

    Variables that are trained are equal on all nodes, and so are the optimizer's. The others follow
    from what each node saw: Keras 3 keeps the moving averages of BatchNormalization so.
    """
    return not getattr(variable, "trainable", True)


def _read(variable: Any) -> np.ndarray:
    return np.asarray(_parts(variable)[0].numpy())


def _array_like(named: tuple[str, Any]) -> np.ndarray:
    part = _parts(named[1])[0]
    dtype = getattr(part.dtype, "as_numpy_dtype", part.dtype)
    return np.empty(tuple(part.shape), dtype)


def _write(variable: Any, value: np.ndarray) -> None:
    for part in _parts(variable):
        part.assign(value)


def _source_of(dataset: Any) -> Any:
    """Return the feed that a dataset reads, found as `arcflow.tf.per_node` finds its mark, or None."""
    todo, seen = [dataset], set()
    while todo:
        one = todo.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        if hasattr(one, "arcflow_source"):
            return one
        inputs = getattr(one, "_inputs", None)
        if callable(inputs):
            todo.extend(inputs())
    return None
