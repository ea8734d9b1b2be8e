# SPDX-License-Identifier: Apache-2.0
"""Errors that Arcflow raises: one class for each status code of the core, and two for what ends a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


class ArcflowError(Exception):
    """Every error that Arcflow raises.

    Attributes
    ----------
    code : str
        Name of the status code, as google.rpc.Code has it.
    """

    code = "UNKNOWN"

    @property
    def message(self) -> str:
        """What went wrong, without the code."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return self.message


class CancelledError(ArcflowError):
    """The operation was ended on purpose."""

    code = "CANCELLED"


class InvalidArgumentError(ArcflowError, ValueError):
    """The caller has to change something; nothing was done."""

    code = "INVALID_ARGUMENT"


class DeadlineExceededError(ArcflowError, TimeoutError):
    """Something did not happen in time."""

    code = "DEADLINE_EXCEEDED"


class NotFoundError(ArcflowError, LookupError):
    """A named thing (feed, file, column) does not exist."""

    code = "NOT_FOUND"


class AlreadyExistsError(ArcflowError, OSError):
    """A thing of that name exists."""

    code = "ALREADY_EXISTS"


class PermissionDeniedError(ArcflowError, PermissionError):
    """The operating system or a peer does not allow it."""

    code = "PERMISSION_DENIED"


class ResourceExhaustedError(ArcflowError):
    """A bound (memory, disk, descriptors) is used up; the message names the setting."""

    code = "RESOURCE_EXHAUSTED"


class FailedPreconditionError(ArcflowError, RuntimeError):
    """The system is not in a state in which this can be done."""

    code = "FAILED_PRECONDITION"


class AbortedError(ArcflowError, RuntimeError):
    """The run or the group ended while the operation was under way."""

    code = "ABORTED"


class OutOfRangeError(ArcflowError, IndexError):
    """A position lies beyond the end."""

    code = "OUT_OF_RANGE"


class UnimplementedError(ArcflowError, NotImplementedError):
    """Not possible with this version; the message says what to do instead."""

    code = "UNIMPLEMENTED"


class InternalError(ArcflowError, RuntimeError):
    """A defect of Arcflow."""

    code = "INTERNAL"


class UnavailableError(ArcflowError, ConnectionError):
    """A peer or service cannot be reached, or is gone."""

    code = "UNAVAILABLE"


class DataLossError(ArcflowError, OSError):
    """Bytes that came from outside are damaged."""

    code = "DATA_LOSS"


class UnauthenticatedError(ArcflowError, PermissionError):
    """A peer did not prove that it knows the run's secret."""

    code = "UNAUTHENTICATED"


_BY_CODE: dict[str, type[ArcflowError]] = {
    cls.code: cls
    for cls in (
        ArcflowError,
        CancelledError,
        InvalidArgumentError,
        DeadlineExceededError,
        NotFoundError,
        AlreadyExistsError,
        PermissionDeniedError,
        ResourceExhaustedError,
        FailedPreconditionError,
        AbortedError,
        OutOfRangeError,
        UnimplementedError,
        InternalError,
        UnavailableError,
        DataLossError,
        UnauthenticatedError,
    )
}


def from_code(code_name: str, message: str) -> ArcflowError:
    """Return (not raise) the error for a status code.

    Parameters
    ----------
    code_name
        Upper-case name of the code, such as ``"INVALID_ARGUMENT"``; any other text gives
        `ArcflowError` itself.
    message
        What went wrong.

    Examples
    --------
    >>> from_code("INVALID_ARGUMENT", "size is 0")
    InvalidArgumentError('size is 0')
    """
    return _BY_CODE.get(code_name, ArcflowError)(message)


class NodeFailedError(ArcflowError):
    """A node of the run failed; the others were stopped because of it.

    Attributes
    ----------
    rank, role, node, host
        Which node: rank in the run (-1 when unknown), its role, ``"role:index"``, and its host.
    cause
        ``"exception"``, ``"exit"``, ``"signal"``, ``"out of memory"``, ``"stalled"``,
        ``"stopped"``, ``"feeder"``, ``"agent lost"``, ``"executor lost"``, ``"driver lost"``,
        ``"interrupted"``, ``"timeout"``, ``"rejected"`` or ``"launch"``.
    type, traceback
        Of the exception in the node, when there was one.
    signal, exit_code
        ``"SIGKILL"`` and the like, or ``""``; the exit code, or None.
    log_tail : list of str
        The node's last lines of output.
    others : list of dict
        Failures of other nodes that were not consequences of this one.
    """

    code = "ABORTED"

    def __init__(
        self, failure: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.failure = dict(failure)
        self.others = [dict(other) for other in others]
        super().__init__(self.failure, self.others)
        self.rank = int(self.failure.get("rank", -1))
        self.role = str(self.failure.get("role") or "worker")
        self.node = node_name(self.role, self.rank, self.failure.get("index"))
        self.host = str(self.failure.get("host") or "")
        self.cause = str(self.failure.get("cause") or "exception")
        self.type = str(self.failure.get("type") or "")
        self.traceback = str(self.failure.get("traceback") or "")
        self.signal = str(self.failure.get("signal") or "")
        exit_code = int(self.failure.get("exit_code", -1))
        self.exit_code: int | None = exit_code if exit_code >= 0 else None
        self.log_tail = [str(line) for line in self.failure.get("log_tail") or ()]

    @property
    def message(self) -> str:
        """What the node reported, without place and traceback."""
        return str(self.failure.get("message") or "")

    def _reason(self) -> str:
        if self.cause == "exception" or (self.cause == "feeder" and self.type):
            text = f"{self.type}: {self.message}" if self.type else self.message
            return text if self.cause == "exception" else f"while feeding it: {text}"
        if self.cause == "out of memory" and self.traceback:
            return f"out of memory: {self.type}: {self.message}"
        if self.cause == "signal" and self.signal:
            text = f"killed by {self.signal}"
            # what the agent begins with, said already
            told = self.message.removeprefix(f"the node was {text}").lstrip(":; ")
            return f"{text}: {told}" if told else text
        elif self.cause == "exit" and self.exit_code is not None:
            text = f"its process ended with exit code {self.exit_code} before it returned a result"
        else:
            text = self.cause
        return f"{text} ({self.message})" if self.message and self.message not in text else text

    def __str__(self) -> str:
        place = f"node {self.node}" + (f" (rank {self.rank}" if self.rank >= 0 else "")
        if self.rank >= 0:
            place += f" on {self.host})" if self.host else ")"
        parts = [f"{place} failed: {self._reason()}"]
        if self.traceback:
            parts += ["", self.traceback.rstrip()]
        if self.log_tail:
            parts += ["", f"Last lines that {self.node} wrote:"]
            parts += ["  " + line for line in self.log_tail]
        if self.others:
            parts += ["", "Other nodes failed too:"]
            for other in self.others:
                twin = NodeFailedError(other)
                parts.append(f"  {twin.node} on {twin.host}: {twin._reason()}")
        return "\n".join(parts)


class PoisonBatchError(NodeFailedError):
    """The same step of the same node ended two attempts in a row: its rows are what kills it.

    Attributes
    ----------
    step
        Number of the step, from 0.
    feed, rows
        The feed that the node read, ``""`` if none, and the first and last row of the step in that
        rank's part of it; None if it read none.
    attempts : list of Attempt
        All attempts.
    """

    step: int | None = None
    feed: str = ""
    rows: tuple[int, int] | None = None
    attempts: list[Any] = []  # noqa: RUF012 - set on each error

    def __str__(self) -> str:
        where = f"step {self.step} killed {self.node} in two attempts in a row"
        if self.rows:
            where += (
                f"; it read rows {self.rows[0]} to {self.rows[1]} of rank {self.rank}'s part of feed "
                f"{self.feed!r}: look at these (ctx.reader in a run of one step), or leave them out"
            )
        return f"poison batch: {where}.\n{super().__str__()}"


class RunInterruptedError(ArcflowError, KeyboardInterrupt):
    """The user interrupted the run (Ctrl-C); every node was stopped."""

    code = "CANCELLED"


def node_name(role: str, rank: int, index: int | None = None) -> str:
    """``"role:index"``; without an index it follows from the rank (rank 0 is the chief)."""
    if index is None:
        index = rank - 1 if role == "worker" and rank > 0 else max(rank, 0)
    return f"{role}:{index}"
