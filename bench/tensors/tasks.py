# SPDX-License-Identifier: Apache-2.0
"""One task of a bench: the chief measures when it is told to; a parameter server and a worker serve it.

The chief reads one JSON command a line from stdin, ``{"what": name, "bytes": n, "steps": k}`` or
``{"report": true}``, and answers with one JSON line each. Arguments: the system; its cluster and
task are in ``TF_CONFIG``.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import answer, commands

SECRET = "b4" * 32
PS, WORKER = "/job:ps/task:0/device:CPU:0", "/job:worker/task:0/device:CPU:0"
TRANSPORTS = {"arcflow": "auto", "arcflow-tcp": "tcp", "stock": "grpc"}


class Bench:
    """Steps over variables of the server; variables and functions are made once for each size."""

    def __init__(self) -> None:
        import tensorflow as tf

        self.tf = tf
        self._made: dict[tuple[str, int], Callable[[], Any]] = {}

    def _make(self, what: str, size: int) -> Callable[[], Any]:
        """`read` and `assign_add`: by the worker, of the server's variable; `fetch`: by the chief."""
        tf, count = self.tf, size // 4
        with tf.device(PS):
            variable = tf.Variable(tf.random.stateless_uniform([count], (1, 2)))
        with tf.device(WORKER):
            gradient = tf.Variable(tf.random.stateless_uniform([count], (3, 4)))

        @tf.function
        def read() -> Any:
            with tf.device(WORKER):
                return tf.identity(variable.read_value())[-1]

        @tf.function
        def assign_add() -> Any:
            with tf.device(WORKER):
                fresh = gradient.read_value()  # nothing is computed: what is measured is the way
            with tf.device(PS):
                return variable.assign_add(fresh, read_value=True)[-1]

        @tf.function
        def fetch() -> Any:
            with tf.device(PS):
                return variable.read_value() + 1.0

        steps = {
            "read": lambda: read().numpy(),
            "assign_add": lambda: assign_add().numpy(),
            "fetch": lambda: fetch().numpy(),
        }
        return steps[what]

    def measure(self, what: str, size: int, steps: int) -> dict[str, float]:
        """Median wall time and mean CPU time of the chief, of a step, in milliseconds."""
        if (what, size) not in self._made:
            self._made[what, size] = self._make(what, size)
            for _ in range(3):
                self._made[what, size]()
        run, times = self._made[what, size], []
        before = _cpu_seconds()
        for _ in range(steps):
            start = time.perf_counter()
            run()
            times.append(time.perf_counter() - start)
        cpu = (_cpu_seconds() - before) / steps
        return {"ms": statistics.median(times) * 1e3, "cpu_ms": cpu * 1e3}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _protocol(system: str, cluster: dict[str, list[str]]) -> str:
    if system == "stock":
        return "grpc"
    from arcflow import _transport
    from arcflow.tf import transport

    _transport.use(TRANSPORTS[system], SECRET, "bench", cluster)
    return transport.prepare()


def main() -> None:
    config = json.loads(os.environ["TF_CONFIG"])
    protocol = _protocol(sys.argv[1], config["cluster"])
    import tensorflow as tf

    spec, role = tf.train.ClusterSpec(config["cluster"]), config["task"]["type"]
    if role != "chief":
        server = tf.distribute.Server(spec, job_name=role, task_index=0, protocol=protocol)
        sys.stdin.read()  # until the bench ends
        del server
        os._exit(0)
    tf.config.experimental_connect_to_cluster(
        spec, job_name="chief", task_index=0, protocol=protocol
    )
    bench = Bench()
    for command in commands():
        if command.get("report"):
            from arcflow import _transport

            answer(**_transport.report())
        else:
            answer(**bench.measure(command["what"], command["bytes"], command["steps"]))
    os._exit(0)  # TensorFlow's own shutdown waits for peers


if __name__ == "__main__":
    main()
