# SPDX-License-Identifier: Apache-2.0
"""One rank of a bench: a TensorFlow process that measures all-reduces when it is told to.

Reads one JSON command a line from stdin, answers with one JSON line each:
``{"bytes": n, "steps": k}`` (one tensor of float32), ``{"set": "vgg19", "steps": k}``,
``{"soak": n, "steps": k}`` or ``{"report": true}``. Arguments: the system, and for arcflow the transport.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from commands import answer, commands

SECRET = "b3" * 32


def vgg19() -> list[tuple[int, ...]]:
    """Shapes of the 38 variables of VGG-19: 143.7 million parameters."""
    shapes: list[tuple[int, ...]] = []
    inputs = 3
    for channels in (64, 64, 128, 128, 256, 256, 256, 256, *(512,) * 8):
        shapes += [(3, 3, inputs, channels), (channels,)]
        inputs = channels
    dense = ((25088, 4096), (4096, 4096), (4096, 1000))
    return shapes + [shape for pair in dense for shape in (pair, pair[1:])]


def set_whole_buffers() -> None:
    """TensorFlow's gRPC without cutting tensors into chunks: ``recv_buf_max_chunk=-1``."""
    from tensorflow.python.eager import context

    original = context.Context.enable_collective_ops

    def enable(self: Any, server_def: Any) -> Any:
        server_def.default_session_config.experimental.recv_buf_max_chunk = -1
        return original(self, server_def)

    context.Context.enable_collective_ops = enable


def make_strategy(system: str, transport: str) -> Any:
    """Make the strategy over ``TF_CONFIG``: stock, stock-whole or arcflow."""
    import tensorflow as tf

    tf.config.threading.set_inter_op_parallelism_threads(2)
    options = tf.distribute.experimental.CommunicationOptions(
        implementation=tf.distribute.experimental.CommunicationImplementation.RING
    )
    if system == "arcflow":
        from arcflow import _transport
        from arcflow.tf import ClusterStrategy

        cluster = json.loads(os.environ["TF_CONFIG"])["cluster"]
        _transport.use(transport, SECRET, "bench", cluster)
        return ClusterStrategy(communication_options=options)
    if system == "stock-whole":
        set_whole_buffers()
    return tf.distribute.MultiWorkerMirroredStrategy(communication_options=options)


class Bench:
    """Steps of one strategy; functions and tensors are made once for each command."""

    def __init__(self, system: str, transport: str) -> None:
        import tensorflow as tf

        self.tf = tf
        self.strategy = make_strategy(system, transport)
        self._steps: dict[Any, Any] = {}

    def _make_step(self, what: Any) -> Any:
        tf, strategy = self.tf, self.strategy
        shapes = vgg19() if what == "vgg19" else [(max(1, what // 4),)]
        tensors = [tf.random.stateless_uniform(shape, (i, 7)) for i, shape in enumerate(shapes)]

        @tf.function
        def step(*xs: Any) -> Any:
            def reduce(*ys: Any) -> Any:
                fresh = [tf.identity(y) for y in ys]
                return tf.distribute.get_replica_context().all_reduce("SUM", fresh)

            return strategy.run(reduce, args=xs)

        run = lambda: step(*tensors)  # noqa: E731
        for _ in range(3):
            run()
        return run

    def measure(self, what: Any, steps: int) -> dict[str, float]:
        """Median wall time and mean CPU time of a step, in milliseconds."""
        from tensorflow.python.eager import context

        run = self._steps.get(what) or self._steps.setdefault(what, self._make_step(what))
        times = []
        before = _cpu_seconds()
        for _ in range(steps):
            start = time.perf_counter()
            kept = run()
            context.async_wait()
            times.append(time.perf_counter() - start)
        del kept
        cpu = (_cpu_seconds() - before) / steps
        return {"ms": statistics.median(times) * 1e3, "cpu_ms": cpu * 1e3}

    def soak(self, what: int, steps: int) -> dict[str, float]:
        """Take steps, and tell how much memory the process has in the end, in megabytes."""
        import gc

        run = self._steps.get(what) or self._steps.setdefault(what, self._make_step(what))
        for _ in range(steps):
            run()
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return {"rss_mb": pages * resource.getpagesize() / 1e6}


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    bench = Bench(*sys.argv[1:3])
    for command in commands():
        if command.get("report"):
            from arcflow import _transport

            answer(**_transport.report())
        elif "soak" in command:
            answer(**bench.soak(command["soak"], command["steps"]))
        else:
            answer(**bench.measure(command.get("set") or command["bytes"], command["steps"]))
    os._exit(0)  # TensorFlow's own shutdown waits for peers


if __name__ == "__main__":
    main()
