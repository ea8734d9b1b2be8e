# SPDX-License-Identifier: Apache-2.0
"""Context: what the user's function gets in each node: its place in the run, its data, and its voice."""

from __future__ import annotations

import contextlib
import json
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from . import _side_node, _tensorboard
from ._reader import Batches, shuffle_seed
from ._roles import Roles
from ._strategies import Strategies
from .errors import ArcflowError, InvalidArgumentError, NotFoundError, UnimplementedError
from .schema import values_of

# A barrier without a timeout of its own (eleven days): the coordinator ends it when a node fails,
# leaves or stalls, and then in any case, with the ranks that have not come.
_FOREVER_S = 1e6


class Context(_side_node.LiveNode, Strategies):
    """One node's view of its run. Made by the node, never by users.

    Attributes
    ----------
    role, index
        ``"chief"``, ``"worker"`` or ``"evaluator"``, and the number within the role.
    rank, size
        Number of the node in the run, and how many training nodes there are.
    args
        What was given to `Cluster.run`.
    cluster
        Role to list of ``"host:port"``, as in ``TF_CONFIG``.
    feeds
        Name of each feed to its columns: ``name``, ``kind`` (``"dense"``, ``"ragged"``,
        ``"sparse"``, ``"strings"`` or ``"dict"``) and, if dense, ``dtype`` and ``shape`` of a row.
    """

    def __init__(
        self, link: Any, broker_fd: int, config: Mapping[str, Any], args: Any, end: Any = None
    ) -> None:
        self._link = link
        self._broker_fd = broker_fd
        self.role: str = config["role"]
        self.index: int = int(config["index"])
        self.rank: int = int(config["rank"])
        self._job: dict[str, Any] = dict(config.get("job") or {})
        self._roles = Roles.from_json(self._job.get("roles") or {"size": int(config["size"])})
        self.size: int = self._roles.size
        self._end = end  # of training, for an evaluator
        self._checkpoint: Any = None
        self.args = args
        self.cluster: dict[str, list[str]] = dict(config.get("cluster") or {})
        self._schemas: dict[str, dict[str, Any]] = dict(config.get("feeds") or {})
        self.feeds: dict[str, list[dict[str, Any]]] = {
            name: _described(schema) for name, schema in self._schemas.items()
        }
        self._features: tuple[str, ...] = ()
        self._saves = 0
        self._shuffled_passes: dict[str, int] = {}  # by feed
        self._progress: dict[str, float] = {"step": 0, "epoch": 0, "loss": math.nan}
        self._stands_for: tuple[int, int] | None = None
        self._busy: list[str] = []
        self._busy_lock = threading.Lock()

    def __repr__(self) -> str:
        return f"<arcflow.Context {self.role}:{self.index}, rank {self.rank} of {self.size}>"

    @property
    def world_size(self) -> int:
        """The number of nodes, as `size`."""
        return self.size

    @property
    def is_chief(self) -> bool:
        """Whether this node is the one that writes what is written once."""
        return self.rank == 0

    @property
    def run_id(self) -> str:
        """Identifier of the run, the same in all nodes."""
        return str(self._job.get("run_id", ""))

    @property
    def attempt(self) -> int:
        """Which attempt of the run this is, from 1; above 1 after a failure."""
        return int(self._job.get("attempt", 1))

    @property
    def tensorboard_dir(self) -> str | None:
        """Folder of this node for TensorBoard, such as for Keras's callback; None without TensorBoard.

        Examples
        --------
        >>> keras.callbacks.TensorBoard(ctx.tensorboard_dir)  # doctest: +SKIP
        """
        return _tensorboard.node_dir(self._job, self.role, self.index)

    @property
    def restored(self) -> Any:
        """What the last `checkpoint` of this attempt was restored from (a `Manifest`), or None."""
        return None if self._checkpoint is None else self._checkpoint.restored

    def dataset(
        self,
        name: str = "train",
        batch_size: int = 32,
        *,
        features: str | Sequence[str] | None = None,
        label: str | Sequence[str] | Literal[False] | None = None,
        weight: str | None = None,
        remainder: str | None = None,
        shuffle: bool | int = False,
        **options: Any,
    ) -> Any:
        """Return this node's rows of a feed as a `tf.data.Dataset` of batches.

        Parameters
        ----------
        name
            Of the feed.
        batch_size
            Rows of a batch on this node.
        features, label, weight
            Which columns are inputs, label and sample weight. By default the column called label,
            labels, target or y is the label (``label=False``: none), all others are features.
        remainder
            What happens when nodes hold different numbers of rows: ``"pad"``, ``"drop"``,
            ``"refuse"`` or ``"partial"``; by default as the `Cluster` says.
        shuffle
            A seed, for an order of all rows of this node that is another one in each pass and the
            same in each run that feeds the same rows; True for one by chance, the same in all
            attempts of the run. The first batch waits for the last row.
        options
            Passed to `arcflow.tf.make_dataset`.

        Returns
        -------
        tf.data.Dataset
            Every iteration is one pass over all rows.
        """
        from .tf import make_dataset

        self._check_feed(name)
        dataset = make_dataset(
            name,
            batch_size,
            schema=self._schemas[name],
            features=features,
            label=label,
            weight=weight,
            remainder=self._checked_remainder(remainder),
            shuffle=False if (seed := self._seed(name, shuffle)) is None else seed,
            size=self.size,
            **options,
        )
        found = getattr(dataset, "features", None)
        if found and not self._features:
            self._features = tuple(found)
        return dataset

    def _seed(self, name: str, shuffle: bool | int) -> int | None:
        return shuffle_seed(shuffle, name, self.run_id)

    @property
    def _remainder(self) -> str:
        if self._roles.chief_alone:
            return "partial"  # workers do not step together
        return str(self._job.get("remainder") or "pad")

    def _checked_remainder(self, remainder: str | None) -> str:
        if self._roles.chief_alone and remainder not in (None, "partial"):
            raise UnimplementedError(
                f"remainder={remainder!r} makes nodes step together, and workers that serve the chief "
                "do not: leave it out, or say 'partial'"
            )
        return remainder or self._remainder

    def _check_feed(self, name: str) -> None:
        if name not in self.feeds and self._job.get("live"):
            with self.busy(f"waiting for feed {name!r}"):
                schema = _side_node.await_feed(self._broker_fd, name)
            self._schemas[name], self.feeds[name] = schema, _described(schema)
        if name not in self.feeds:
            there = ", ".join(map(repr, self.feeds)) or "none: run() was called without data"
            raise NotFoundError(f"there is no feed {name!r} in this run; there is {there}")

    def reader(
        self,
        name: str = "train",
        batch_size: int = 32,
        *,
        remainder: str | None = None,
        shuffle: bool | int = False,
        timeout: float | None = None,
    ) -> Batches:
        """Iterate over this node's rows as NumPy batches, without TensorFlow.

        Parameters
        ----------
        name, batch_size, remainder, shuffle
            As for `dataset`. The first shuffled reader of a feed has the order of epoch 0, the next
            one that of epoch 1; ``set_epoch`` of what is returned says otherwise.
        timeout
            Seconds to wait for a batch; by default as long as it takes.

        Yields
        ------
        tuple of dict, int
            Arrays of ``[batch, …]`` by column (lists of bytes for strings, `arcflow.batches.Ragged`
            and `arcflow.batches.Sparse` for what is not rectangular, a dict for a struct), and how
            many rows at the end are padding.
        """
        from . import _core, batches

        self._check_feed(name)
        remainder = self._checked_remainder(remainder)
        seed = self._seed(name, shuffle)
        reader = _core.FeedReader(self._broker_fd, name, batch_size, remainder, seed)
        compose = batches.composer(values_of(self._schemas[name]))
        found = Batches(reader, (name, batch_size), timeout, compose, seed)
        if seed is not None:
            found.set_epoch(self._shuffled_passes.get(name, 0))
            self._shuffled_passes[name] = self._shuffled_passes.get(name, 0) + 1
        return found

    def read_files(self, pattern: str | Sequence[str], **options: Any) -> Any:
        """Return this node's even share of the records in files, for programs that feed themselves.

        Parameters
        ----------
        pattern
            Files, patterns or folders, local or at ``hdfs://``; the same on every node.
        options
            Passed to `arcflow.tf.read_files`: ``format``, ``shard``, ``batch_size``, ``parse``, …

        Returns
        -------
        tf.data.Dataset
        """
        from .tf import read_files

        rank, size = self._stands_for or (self.rank, self.size)
        return read_files(pattern, rank=rank, size=size, **options)

    @contextlib.contextmanager
    def _in_place_of(self, number: int, count: int) -> Iterator[None]:
        """While it is open, files are shared out as for one of the workers that serve this chief."""
        self._stands_for = (number, count)
        try:
            yield
        finally:
            self._stands_for = None

    def fit(self, model: Any, data: Any, **options: Any) -> Any:
        """Train a compiled model as the run is: in step, or asynchronously over parameter servers.

        `data` is a function that returns this node's batches, ``lambda: ctx.dataset("train", 64)``;
        `options` are those of `arcflow.tf.fit_async`, such as ``epochs`` and ``steps_per_epoch``.
        Returns Keras's history as a dict.
        """
        from .tf._fit import fit

        return fit(model, self, data, **options)

    @property
    def training_over(self) -> bool:
        """Whether all training nodes have returned; what an evaluator looks at between evaluations."""
        return bool(self._end and self._end.over)

    def wait_for_end(self, timeout: float | None = None) -> bool:
        """Wait, in an evaluator, until training has ended; False when `timeout` seconds are over first.

        An evaluator that does not return soon after the end of training is stopped; that is no failure.
        """
        if self._end is None:
            raise UnimplementedError("only an evaluator waits for the end of training")
        return bool(self._end.wait(timeout))

    def checkpoint(
        self,
        model: Any,
        optimizer: Any = None,
        *,
        directory: str,
        every: int | str = "epoch",
        keep: int = 3,
        resume: bool = False,
    ) -> Any:
        """Make the state that survives a failure, and restore it when this run has been here before.

        Every training node must call it with the same arguments. In an evaluator it follows the
        checkpoints of training: ``state.refresh()`` loads the newest.

        Parameters
        ----------
        model
            A Keras model, a `tf.Module`, a variable, or a list of such; built.
        optimizer
            By default the model's own.
        directory
            A folder that all nodes share. Checkpoints appear there whole or not at all.
        every
            Steps between checkpoints, or ``"epoch"``.
        keep
            How many of the newest stay.
        resume
            Go on from checkpoints of another run, such as one whose driver died.

        Returns
        -------
        arcflow.checkpoint.Checkpoint
            Walk through its ``epochs`` and ``batches``, or call its ``fit``.
        """
        from .checkpoint import Checkpoint

        self._checkpoint = Checkpoint(
            self, model, optimizer, directory, every=every, keep=keep, resume=resume
        )
        return self._checkpoint

    def checkpoint_callback(self, directory: str, *, keep: int = 3, resume: bool = False) -> Any:
        """Return a callback that saves at the end of each epoch of ``model.fit``, and restores there.

        For programs that keep their own call of `fit`. A failure costs the epoch it happens in;
        `checkpoint` and its ``fit`` go on within an epoch.
        """
        from .tf.checkpoint_callback import EpochCallback

        return EpochCallback(
            lambda model: self.checkpoint(
                model, directory=directory, every="epoch", keep=keep, resume=resume
            )
        )

    def _note_step(self, step: int, epoch: int) -> None:
        """Take step and epoch from the checkpoint, which counts over all attempts."""
        self._progress["step"], self._progress["epoch"] = step, epoch
        self._link.set_progress(step, epoch, self._progress["loss"])

    def _set_progress(self, step: int, epoch: int, loss: float) -> None:
        self._progress["loss"] = loss
        if self._checkpoint is None:
            self._progress["step"], self._progress["epoch"] = step, epoch
        now = self._progress
        self._link.set_progress(int(now["step"]), int(now["epoch"]), float(loss))

    @property
    def transport(self) -> dict[str, Any]:
        """How this node's tensors have travelled so far.

        Returns
        -------
        dict
            ``mode`` and TensorFlow's ``protocol``; ``pairs``: ``backend``, bytes ``sent`` and
            ``received`` for each other rank that shares memory with this one; once a strategy was
            made also ``collectives`` (counters), ``outputs``, ``tensors`` (of other tasks, fetched,
            and of this one, offered), and ``fallbacks``: why and how often TensorFlow's own
            transport ran instead.
        """
        from . import _transport

        return _transport.report()

    def save(self, model: Any, path: str) -> str:
        """Save a Keras model or `tf.Module`; every node must call it, the chief's copy is kept.

        Parameters
        ----------
        model
            What to save.
        path
            ``*.keras`` or ``*.weights.h5`` for one file, else a folder that becomes a SavedModel
            with ``model.keras`` and ``arcflow.json`` inside. What was there is replaced in one step.

        Returns
        -------
        str
            The absolute path; all nodes return together, or all raise.
        """
        from . import saving

        self._saves += 1
        name = f"arcflow/save/{self._saves}"
        mine_failed = True

        def exchange(payload: bytes) -> list[bytes]:
            nonlocal mine_failed
            mine_failed = bool(json.loads(payload).get("error"))
            return self.barrier(name, payload)

        try:
            with self.busy("saving a model"):
                return saving.save(
                    model, path, is_chief=self.is_chief, exchange=exchange, features=self._features
                )
        except ArcflowError as error:
            error.peer_loss = not mine_failed  # type: ignore[attr-defined]
            raise

    def barrier(
        self, name: str = "barrier", payload: bytes = b"", *, timeout: float | None = None
    ) -> list[bytes]:
        """Wait until every training node is here.

        Parameters
        ----------
        name
            All nodes must name the same barrier.
        payload
            At most 48 KiB that the others get.
        timeout
            Seconds; by default as long as it takes: waiting ends when a node fails, leaves or stalls.

        Returns
        -------
        list of bytes
            What each node brought, by rank.
        """
        if self._end is not None:
            raise UnimplementedError("an evaluator is not part of the barriers of training")
        ranks = 1 if self._roles.chief_alone else self.size
        wait_s = _FOREVER_S if timeout is None else timeout
        return list(self._link.barrier(name, payload, wait_s, ranks))

    def log(self, text: str | None = None, **scalars: Any) -> None:
        """Tell the driver something.

        Parameters
        ----------
        text
            A line to show above the progress bar.
        scalars
            Numbers to show in the bar (rank 0's): ``ctx.log(step=12, loss=0.3, accuracy=0.9)``.
        """
        if text is not None:
            self._link.log(str(text))
        if not scalars:
            return
        values = {name: _number(name, value) for name, value in scalars.items()}
        now = {**self._progress, **values}
        self._set_progress(int(now["step"]), int(now["epoch"]), float(now["loss"]))
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if finite:
            self._link.progress(json.dumps(finite))

    def alive(self) -> None:
        """Say that this node makes progress, where no step, row or log says so; costs nothing.

        See ``stall_timeout`` of `arcflow.Cluster`.
        """
        self._link.alive()

    @contextlib.contextmanager
    def busy(self, reason: str) -> Iterator[None]:
        """Say that no progress is to be expected for a while; no stall is looked for meanwhile.

        Parameters
        ----------
        reason
            What is being done, such as ``"exporting the model"``.

        Examples
        --------
        >>> with ctx.busy("downloading the vocabulary"):  # doctest: +SKIP
        ...     download()
        """
        with self._busy_lock:
            self._busy.append(reason or "busy")
            self._link.busy(self._busy[-1])
        try:
            yield
        finally:
            with self._busy_lock:
                self._busy.remove(reason or "busy")
                self._link.busy(self._busy[-1] if self._busy else "")
            self._link.alive()

    def callback(self) -> Any:
        """Return a Keras callback that shows step, epoch and loss of `fit` in the driver's bar."""
        from .tf import ProgressCallback

        return ProgressCallback(self._set_progress, alive=self._link.alive)


def _described(schema: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Values of a feed, the dense ones with type and shape."""
    out = []
    for value in values_of(schema):
        column = value.pop("columns").get(value.get("part"))
        if value["kind"] == "dense":
            value |= {"dtype": column["dtype"], "shape": column["shape"]}
        out.append(value)
    return out


def _number(name: str, value: Any) -> float | int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        raise InvalidArgumentError(f"log({name}={value!r}) is not a number") from None
