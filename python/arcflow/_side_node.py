# SPDX-License-Identifier: Apache-2.0
"""A node's side of a run that lives on: feeds that come later, and requests to serve."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from . import batches as _batches
from .errors import FailedPreconditionError, InvalidArgumentError, UnimplementedError, from_code
from .schema import values_of

_WAIT_S = 3600.0


class LiveNode:
    """What a `Context` can do besides in a run of `Cluster.start`."""

    _broker_fd: int
    _job: dict[str, Any]

    def busy(self, reason: str) -> AbstractContextManager[None]:
        """See `Context.busy`."""
        raise NotImplementedError

    def enough(self, name: str = "train") -> None:
        """Say that this node wants no more rows of a feed; for nodes of `Cluster.start`.

        Rows that are there can still be read, then the feed ends on this node. When all nodes have
        said so, the driver's `feed` cancels its Spark job and returns.
        """
        self._check_live("enough")
        say_enough(self._broker_fd, name)

    def requests(self, batch_size: int | None = None) -> Requests:
        """Iterate over blocks of rows that the driver's `infer` asks about, until it stops the run.

        Parameters
        ----------
        batch_size
            Most rows of a block; by default as many as Spark hands over at once.

        Yields
        ------
        Block
            ``columns`` (as `reader` gives them), ``rows``, and ``reply(values)``: any number of
            output rows, any number of times, before the next block is asked for.
        """
        self._check_live("requests")
        return Requests(self._broker_fd, batch_size, lambda: self.busy("waiting for requests"))

    def serve(self, fn: Callable[[dict[str, Any]], Any], batch_size: int | None = None) -> int:
        """Answer the driver's `infer` with ``fn(columns)`` until it stops the run.

        Parameters
        ----------
        fn
            Takes the columns of a block; returns its output rows (a dict of arrays, a list of dicts,
            or an Arrow table), None for none, or a generator of such.
        batch_size
            As for `requests`.

        Returns
        -------
        int
            How many rows were served.
        """
        self._check_live("serve")
        rows = 0
        for block in self.requests(batch_size):
            values = fn(block.columns)
            for each in values if isinstance(values, Generator) else (values,):
                if each is not None:
                    block.reply(each)
            rows += block.rows
        return rows

    def _check_live(self, what: str) -> None:
        if not self._job.get("live"):
            raise UnimplementedError(
                f"ctx.{what}() is for nodes of cluster.start(), which Spark jobs feed and ask; this "
                "run was started by cluster.run()"
            )


class Requests(Iterator["Block"]):
    """Blocks of rows that `infer` asks about, until the driver stops the run.

    Parameters
    ----------
    broker_fd
        Descriptor of the agent's broker.
    batch_size
        Most rows of a block; None: as they come.
    idle
        Entered while there is nothing to do.
    """

    def __init__(
        self,
        broker_fd: int,
        batch_size: int | None,
        idle: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        from . import _core

        if batch_size is not None and batch_size < 1:
            raise InvalidArgumentError(f"batch_size={batch_size} is not a number of rows above 0")
        self._broker_fd = broker_fd
        self._batch_size = batch_size
        self._idle = idle
        self._session: Any = _core.NodeSession(broker_fd, "side")
        self._session.send('{"op": "server"}')
        self._stage = ""
        self._reader: Any = None
        self._compose: Callable[[dict[str, Any]], dict[str, Any]] = dict
        self._block: Block | None = None

    def __next__(self) -> Block:
        self._settle()
        while True:
            if self._reader is None:
                self._open(self._hear())
            batch = self._reader.next(_WAIT_S)
            if batch is not None:
                columns, padding = batch
                self._block = Block(self, self._compose(columns), padding)
                return self._block
            self._session.send(json.dumps({"op": "served", "feed": self._stage}))
            self._reader = None

    def _settle(self) -> None:
        """Leave the block at hand: what was not answered has no outputs."""
        if self._block is not None:
            self._block.over = True
            self._block = None

    def _hear(self) -> dict[str, Any]:
        if self._session is None:
            raise StopIteration
        heard = self._session.receive(0.0)
        if heard is None:
            with self._idle():
                while (heard := self._session.receive(_WAIT_S)) is None:
                    pass
        packet: dict[str, Any] = json.loads(heard[0])
        if packet["op"] == "error":
            raise from_code(packet["code"], packet["message"])
        if packet["op"] == "end":
            self.close()
            raise StopIteration
        return packet

    def _open(self, packet: dict[str, Any]) -> None:
        from . import _core

        rows = int(packet["rows"])
        self._stage = packet["feed"]
        size = max(1, min(rows, self._batch_size or rows))
        self._reader = _core.FeedReader(self._broker_fd, self._stage, size, "partial")
        self._compose = _batches.composer(values_of(json.loads(self._reader.schema_json)))

    def answer(self, block: Block, values: Any) -> None:
        """Send outputs of a block."""
        if block.over:
            raise FailedPreconditionError(
                "this block is over: reply before asking for the next one"
            )
        rows = to_arrow(values)
        self._session.send(json.dumps({"op": "rows", "feed": self._stage}), _ipc(rows))

    def close(self) -> None:
        """Stop serving."""
        self._session = None
        self._reader = None


class Block:
    """Rows that somebody asks about.

    Attributes
    ----------
    columns
        Arrays of ``[rows, …]`` by column, as `Context.reader` gives them.
    rows
        How many.
    over
        Whether it is too late to answer.
    """

    def __init__(self, requests: Requests, columns: dict[str, Any], padding: int) -> None:
        self._requests = requests
        self.columns = columns
        first = next(iter(columns.values()))
        self.rows = _rows_of(first) - padding
        self.over = False

    def reply(self, values: Any) -> None:
        """Give output rows for this block: any number of rows, any number of times.

        Parameters
        ----------
        values
            Dict of column to array or list, all of one length; a list of dicts, one a row; or a
            pyarrow RecordBatch or Table.
        """
        self._requests.answer(self, values)


def _rows_of(value: Any) -> int:
    while isinstance(value, Mapping):
        value = next(iter(value.values()))
    return len(value)


def to_arrow(values: Any) -> Any:
    """Return what a program answers as a pyarrow Table."""
    import pyarrow as pa

    if isinstance(values, pa.Table):
        return values
    if isinstance(values, pa.RecordBatch):
        return pa.Table.from_batches([values])
    if isinstance(values, Mapping):
        columns = {str(name): _column(value, str(name)) for name, value in values.items()}
        if len({len(column) for column in columns.values()}) > 1:
            lengths = {name: len(column) for name, column in columns.items()}
            raise InvalidArgumentError(
                f"the columns of an answer have different lengths: {lengths}"
            )
        return pa.table(columns)
    if isinstance(values, Sequence) and all(isinstance(row, Mapping) for row in values):
        return pa.Table.from_pylist([dict(row) for row in values])
    raise InvalidArgumentError(
        f"an answer is a dict of columns, a list of dicts or an Arrow table, not {type(values).__name__}"
    )


def _column(value: Any, name: str) -> Any:
    import pyarrow as pa

    from .inference import _to_arrow

    if hasattr(value, "numpy"):  # a tensor
        value = value.numpy()
    if isinstance(value, np.ndarray):
        if value.ndim == 0:
            raise InvalidArgumentError(f"column {name!r} of an answer is one value, not one a row")
        if value.dtype.kind in "biuf":
            return _to_arrow(value, name, len(value))
        value = value.tolist()
    return pa.array(value)


def _ipc(table: Any) -> bytes:
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table)
    return bytes(sink.getvalue())


def await_feed(broker_fd: int, name: str) -> dict[str, Any]:
    """Wait until the driver has fed something under a name; return the feed's schema.

    Raises
    ------
    FailedPreconditionError
        The run was stopped before.
    """
    from . import _core

    session = _core.NodeSession(broker_fd, "side")
    session.send(json.dumps({"op": "await", "feed": name}))
    while (heard := session.receive(_WAIT_S)) is None:
        pass
    packet = json.loads(heard[0])
    if packet["op"] == "error":
        raise from_code(packet["code"], packet["message"])
    schema: dict[str, Any] = json.loads(heard[1])
    return schema


def say_enough(broker_fd: int, name: str) -> None:
    """Tell the agent that this node wants no more rows of a feed; returns when it knows."""
    from . import _core

    session = _core.NodeSession(broker_fd, "side")
    session.send(json.dumps({"op": "enough", "feed": name}))
    while session.receive(_WAIT_S) is None:
        pass
