# SPDX-License-Identifier: Apache-2.0
"""What runs in the nodes of the fault table: TensorFlow programs that fail where they are told to."""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

_HOLD_S = 60.0
_STEPS = 8
_ENDLESS = 100_000


class ChaosError(Exception):
    """What a program raises that has to."""


class Chaos:
    """The fault that a cell wants, seen from one node's program.

    Parameters
    ----------
    args
        ``folder`` shared with the bench; ``trigger``, ``stage``, ``fault``; ``inside``: whether this
        program commits the fault itself.
    me
        ``"role:index"`` of this node.
    """

    def __init__(self, args: dict[str, Any], me: str) -> None:
        self._folder = Path(args["folder"])
        self._args = args
        self.mine = me == args["trigger"]
        agent = os.getppid()
        feeder = int(Path(f"/proc/{agent}/stat").read_text().rsplit(")", 1)[1].split()[1])
        self.tell(f"ids.{me}", f"{os.getpid()} {agent} {feeder}")

    def tell(self, name: str, text: str) -> None:
        """Leave a file for the bench, whole or not at all."""
        temporary = self._folder / f".{name}.{os.getpid()}"
        temporary.write_text(text)
        temporary.rename(self._folder / name)

    def wants(self, stage: str) -> bool:
        return self.mine and stage == self._args["stage"]

    @property
    def struck(self) -> bool:
        return (self._folder / "struck").exists()

    def point(self, stage: str) -> None:
        """Commit the fault if it is due here; else say where we are and wait until it has come."""
        if not self.wants(stage):
            return
        if self._args["inside"]:
            return self._commit(threading.main_thread() is threading.current_thread())
        self.tell("reached", stage)
        deadline = time.monotonic() + _HOLD_S
        while not self.struck and time.monotonic() < deadline:
            time.sleep(0.02)

    def during(self, stage: str) -> None:
        """As `point`, from a thread of its own, a moment after this returns."""
        if self.wants(stage):
            timer = threading.Timer(0.05, self.point, [stage])
            timer.daemon = True
            timer.start()

    def _commit(self, in_main: bool) -> None:
        fault = self._args["fault"]
        if fault == "out of memory":
            hoard = []
            while True:  # the last time told is that of the death
                self.tell("struck", repr(time.time()))
                hoard.append(bytearray(64 << 20))
        self.tell("struck", repr(time.time()))
        if fault == "exception":
            if in_main:
                raise ChaosError("as the table wants it")
            ctypes.pythonapi.PyThreadState_SetAsyncExc(
                ctypes.c_ulong(threading.main_thread().ident or 0), ctypes.py_object(ChaosError)
            )
        elif fault == "exit(1)":
            os._exit(1)
        elif fault == "abort":
            os.abort()
        else:
            os.kill(os.getpid(), getattr(signal, fault))


class Value:
    """What a program returns: pickled after the program, so the run is shutting down by then."""

    def __init__(self, chaos: Chaos, value: Any) -> None:
        self._chaos, self._value = chaos, value

    def __reduce__(self) -> Any:
        self._chaos.point("shutdown")
        return (type(self._value), (self._value,))


def slow_files(chaos: Chaos) -> None:
    """Make a checkpoint's files take so long that what strikes meanwhile finds it half done."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        deadline = time.monotonic() + 1.0
        while not chaos.struck and time.monotonic() < deadline:
            time.sleep(0.02)
        real(descriptor)

    os.fsync = fsync  # type: ignore[assignment]


def program(ctx: Any) -> Any:
    """Train a variable in step, or over a parameter server; evaluate what was saved."""
    chaos = Chaos(ctx.args, f"{ctx.role}:{ctx.index}")
    chaos.point("start")
    if ctx.args["stage"] == "checkpoint":
        slow_files(chaos)
    if ctx.role == "evaluator":
        return Value(chaos, _evaluate(ctx, chaos))
    work = _serve_with_ps if "ps" in ctx.cluster else _train_in_step
    return Value(chaos, work(ctx, chaos))


def _train_in_step(ctx: Any, chaos: Chaos) -> int:
    import tensorflow as tf

    strategy = ctx.strategy()
    with strategy.scope():
        weights = tf.Variable(tf.zeros([1 << 16]))

    @tf.function
    def step() -> Any:
        def replica() -> Any:
            weights.assign_add(tf.ones_like(weights))
            context = tf.distribute.get_replica_context()
            return context.all_reduce("sum", tf.reduce_mean(weights))

        return strategy.run(replica)

    return _go_on(ctx, chaos, step, weights)


def _serve_with_ps(ctx: Any, chaos: Chaos) -> int:
    import tensorflow as tf

    strategy, coordinator = ctx.strategy(), ctx.coordinator()
    with strategy.scope():
        weights = tf.Variable(tf.zeros([1 << 16]))

    @tf.function
    def add() -> Any:
        return weights.assign_add(tf.ones_like(weights))

    def step() -> None:
        for _ in range(4):
            coordinator.schedule(add)
        coordinator.join()

    return _go_on(ctx, chaos, step, weights)


def _go_on(ctx: Any, chaos: Chaos, step: Any, weights: Any) -> int:
    """Make steps and checkpoints; without end where the fault has to end the run."""
    state = ctx.checkpoint([weights], directory=ctx.args["checkpoints"], every=4)
    ends = not ctx.args["endless"]
    done = 0
    while done < (_STEPS if ends else _ENDLESS):
        step()
        done += 1
        if done == 2:
            chaos.point("training")
        if done % 4 == 3:
            chaos.during("checkpoint")
        state.advance()
        if not ends:
            time.sleep(0.05)
    return done


def _evaluate(ctx: Any, chaos: Chaos) -> int:
    import tensorflow as tf

    state = ctx.checkpoint([tf.Variable(tf.zeros([1 << 16]))], directory=ctx.args["checkpoints"])
    chaos.point("training")
    looks = 0
    while not ctx.wait_for_end(0.1):
        chaos.during("checkpoint")
        looks += bool(state.refresh())
    return looks
