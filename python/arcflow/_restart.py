# SPDX-License-Identifier: Apache-2.0
"""What happens after a failure: another attempt from the newest checkpoint, or a clear end."""

from __future__ import annotations

import dataclasses
import random
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import errors

_MAX_BACKOFF_S = 60.0
_JITTER = 0.25
# Exceptions of a program that the next attempt would raise again.
_NEVER_HEAL = {
    "ImportError",
    "ModuleNotFoundError",
    "SyntaxError",
    "IndentationError",
    "NameError",
    "UnboundLocalError",
    "AttributeError",
    "TypeError",
    "NotImplementedError",
    "InvalidArgumentError",
    "UnimplementedError",
    "FailedPreconditionError",
    "NotFoundError",
    "PicklingError",
    "SystemExit",
}
# Causes that a step can have; a lost executor is none of its making.
_OF_THE_PROGRAM = ("exception", "exit", "signal", "out of memory", "stalled")
# What may go away by itself when it is not the failure of a node.
_HEALING = (errors.AbortedError, errors.UnavailableError, errors.DeadlineExceededError)


@dataclasses.dataclass(frozen=True)
class Policy:
    """How often, and after how long, a run is started again."""

    max_restarts: int = 0
    backoff_s: float = 1.0

    def delay_s(self, restart: int) -> float:
        """Seconds before a restart (1, 2, …): twice as long each time, a little different each time."""
        base = min(_MAX_BACKOFF_S, self.backoff_s * 2.0 ** (restart - 1))
        return base * (1 + _JITTER * (2 * random.random() - 1))


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a node said that it was: what `arcflow.checkpoint` tells the driver.

    Attributes
    ----------
    restored
        Step that the attempt began from; None for the beginning.
    feed, batch
        What the epoch reads, and rows of a step; ``""`` and 0 when it reads no feed.
    first_step
        Number of the first step of the epoch.
    step
        Steps done; None when the node tells none.
    """

    restored: int | None = None
    feed: str = ""
    batch: int = 0
    first_step: int = 0
    step: int | None = None

    @property
    def rows(self) -> tuple[int, int] | None:
        """First and last row, in this rank's part of the feed, of the step under way."""
        if self.step is None or not self.batch:
            return None
        first = (self.step - self.first_step) * self.batch
        return first, first + self.batch - 1


@dataclasses.dataclass(frozen=True)
class Attempt:
    """One try of a run.

    Attributes
    ----------
    number
        From 1.
    seconds
        How long it took.
    restored
        Step of the checkpoint that it began from; None for the beginning.
    step
        Steps done, as far as was known, by the node that failed (by the chief, if none did).
    error
        What ended it; None when it was the last, and good.
    node, cause
        Of the failure, such as ``"worker:0"`` and ``"signal"``; ``""`` without one.
    """

    number: int
    seconds: float
    restored: int | None
    step: int | None
    error: str | None
    node: str = ""
    cause: str = ""


def may_heal(error: BaseException) -> bool:
    """Whether another attempt could end better.

    Examples
    --------
    >>> may_heal(errors.InvalidArgumentError("size=0"))
    False
    >>> may_heal(errors.NodeFailedError({"cause": "signal", "signal": "SIGKILL"}))
    True
    """
    if isinstance(error, KeyboardInterrupt | errors.PoisonBatchError):
        return False
    if isinstance(error, errors.NodeFailedError):
        if error.cause == "interrupted":  # somebody wanted it
            return False
        return not (error.cause == "exception" and error.type in _NEVER_HEAL)
    return isinstance(error, _HEALING)


class Supervisor:
    """Makes attempts until one is good or none may follow.

    Parameters
    ----------
    policy
        How many, how soon.
    prepare
        Called before each restart; raises when the cluster is no longer large enough.
    say
        Shows a line to the user.
    """

    def __init__(
        self,
        policy: Policy,
        prepare: Callable[[], None] = lambda: None,
        say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
    ) -> None:
        self._policy = policy
        self._prepare = prepare
        self._say = say
        self.attempts: list[Attempt] = []
        self._last: tuple[int | None, int | None] | None = None  # rank and step of the last failure

    def run(self, attempt: Callable[[int], Any], positions: Callable[[], Mapping[int, Any]]) -> Any:
        """Call ``attempt(number)`` until it returns.

        Parameters
        ----------
        attempt
            One try; raises what ended it.
        positions
            Where the ranks of the last try were: rank to `Position`.

        Raises
        ------
        PoisonBatchError
            Two attempts in a row ended at the same step of the same node.
        ArcflowError
            What ended the last attempt. Its ``attempts`` tells all of them.
        """
        for number in range(1, self._policy.max_restarts + 2):
            begun = time.monotonic()
            try:
                result = attempt(number)
            except errors.ArcflowError as error:
                self._note(number, time.monotonic() - begun, error, positions())
                self._judge(number, error, positions())
                self._pause(number, error)
                continue
            self._note(number, time.monotonic() - begun, None, positions())
            return result
        raise AssertionError("the last attempt returned or raised")

    def _note(
        self,
        number: int,
        seconds: float,
        error: errors.ArcflowError | None,
        positions: Mapping[int, Position],
    ) -> None:
        failed = error if isinstance(error, errors.NodeFailedError) else None
        where = positions.get(failed.rank if failed else 0) or positions.get(0) or Position()
        self.attempts.append(
            Attempt(
                number,
                seconds,
                where.restored,
                where.step,
                None if error is None else str(error).partition("\n")[0],
                failed.node if failed else "",
                failed.cause if failed else "",
            )
        )

    def _judge(
        self, number: int, error: errors.ArcflowError, positions: Mapping[int, Position]
    ) -> None:
        """Raise when no other attempt may follow."""
        error.attempts = list(self.attempts)  # type: ignore[attr-defined]
        if self._policy.max_restarts == 0 or not may_heal(error):
            raise error
        rank = error.rank if isinstance(error, errors.NodeFailedError) else None
        here = positions.get(-1 if rank is None else rank, Position())
        place = (rank, here.step)
        own = isinstance(error, errors.NodeFailedError) and error.cause in _OF_THE_PROGRAM
        same = own and here.step is not None and self._last == place
        self._last = place if own else None
        if same:
            assert isinstance(error, errors.NodeFailedError)
            poison = errors.PoisonBatchError(error.failure, error.others)
            poison.step, poison.feed, poison.rows = here.step, here.feed, here.rows
            poison.attempts = list(self.attempts)
            raise poison from error
        if number > self._policy.max_restarts:
            raise error

    def _pause(self, number: int, error: errors.ArcflowError) -> None:
        delay_s = self._policy.delay_s(number)
        first_line = str(error).partition("\n")[0]
        self._say(
            f"arcflow: attempt {number} failed: {first_line}; restart {number} of "
            f"{self._policy.max_restarts} in {delay_s:.1f} s"
        )
        try:
            time.sleep(delay_s)
            self._prepare()
        except KeyboardInterrupt:
            raise errors.RunInterruptedError(
                "the run was interrupted in the driver between two attempts"
            ) from error
        except errors.ArcflowError as refused:
            refused.attempts = list(self.attempts)  # type: ignore[attr-defined]
            raise refused from error
