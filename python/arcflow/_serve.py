# SPDX-License-Identifier: Apache-2.0
"""Nodes whose end is the end of training: TensorFlow servers (ps, workers under a ps), evaluators."""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

# All ranks come here last; nobody leaves while others still compute.
EXIT_BARRIER = "arcflow/exit"
FOREVER_S = 1e6


def serve(link: Any, config: Mapping[str, Any]) -> None:
    """Run this node's TensorFlow server until all training nodes have returned.

    The chief runs functions in this process. What they read from a feed, they read from this
    node's own agent, whose socket the environment names; so our operations are loaded before the
    server starts.
    """
    import tensorflow as tf

    from .tf import ops, transport

    if config.get("feeds"):
        ops.load()
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    server = tf.distribute.Server(
        resolver.cluster_spec(),
        job_name=config["role"],
        task_index=int(config["index"]),
        protocol=transport.prepare(),
        start=True,
    )
    link.barrier(EXIT_BARRIER, b"", FOREVER_S)
    del server


class TrainingEnd:
    """Tells an evaluator when training has ended, and ends it when it does not listen.

    Threads: one of its own waits; `wait` may be called from any.
    """

    def __init__(self, link: Any, result_when_late: bytes, grace_s: float) -> None:
        self._link = link
        self._grace_s = grace_s  # how long an evaluator may go on after training has ended
        self._result = result_when_late
        self._over = threading.Event()
        self._returned = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._watch, name="arcflow-end", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether all training nodes have returned."""
        return self._over.is_set()

    def wait(self, timeout_s: float | None) -> bool:
        """Wait for the end of training; False when the time is over first."""
        return self._over.wait(timeout_s)

    def call(self, fn: Callable[[], bytes]) -> bytes:
        """Run the evaluator's function; what it raises after the end of training is only shown."""
        try:
            value = fn()
        except Exception:
            if not self.over:
                raise
            traceback.print_exc()
            value = self._result
        self._over.wait()
        self._returned.set()
        if self._error is not None:
            raise self._error
        return value

    def _watch(self) -> None:
        try:
            self._link.barrier(EXIT_BARRIER, b"", FOREVER_S)
        except Exception as error:  # the run is ending for another reason; the agent stops us
            self._error = error
        self._over.set()
        if self._error is None and not self._returned.wait(self._grace_s):
            self._leave()

    def _leave(self) -> NoReturn:
        print("training has ended; the evaluator is stopped", file=sys.stderr, flush=True)
        self._link.result(self._result)
        os._exit(0)
