# SPDX-License-Identifier: Apache-2.0
"""What tasks do in test_tensors.py: the chief drives, workers serve; each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from arcflow import _transport

sys.path.insert(0, str(Path(__file__).parent))

SECRET = "7a" * 32
OWNER, USER = "/job:worker/task:0/device:CPU:0", "/job:worker/task:1/device:CPU:0"
NUMBERS = ("float32", "float64", "int32", "int64", "bfloat16", "float16", "complex64", "uint8")
LARGE = 40_000  # elements: 64 KiB and more of all but the smallest


def _task() -> tuple[str, int]:
    task = json.loads(os.environ["TF_CONFIG"])["task"]
    return task["type"], task["index"]


def _start(mode: str, **options: Any) -> str:
    """The protocol to make the server with; everybody calls this first."""
    from arcflow.tf import transport

    cluster = json.loads(os.environ["TF_CONFIG"])["cluster"]
    _transport.use(mode, SECRET, "test", cluster, **options)
    return transport.prepare()


def cluster_of(
    folder: str, drive: str, modes: list[str] | None = None, mode: str = "auto", **options: Any
) -> Any:
    """The chief runs the function of this file that is named; the others serve until it has.

    `modes`: of the chief and of each worker, where they are not all `mode`.
    """
    import tensorflow as tf

    role, index = _task()
    rank = 0 if role == "chief" else index + 1
    protocol = _start(modes[rank] if modes else mode, **options)
    spec = tf.train.ClusterSpec(json.loads(os.environ["TF_CONFIG"])["cluster"])
    over = Path(folder, "over")
    if role == "chief":
        try:
            tf.config.experimental_connect_to_cluster(
                spec, job_name="chief", task_index=0, protocol=protocol
            )
            values = globals()[drive](folder)
        finally:
            over.touch()
        return {"values": values, "report": _settled()}
    server = tf.distribute.Server(spec, job_name=role, task_index=index, protocol=protocol)
    Path(folder, f"pid{rank}").write_text(str(os.getpid()))
    while not over.exists():
        time.sleep(0.02)
    del server
    return {"report": _settled()}


def _settled() -> dict[str, Any]:
    """The report, once nothing is held any more for others: letting go takes a message."""
    end = time.monotonic() + 20
    while time.monotonic() < end and _transport.report().get("tensors", {}).get("held"):
        time.sleep(0.02)
    return _transport.report()


def _kill(folder: str, rank: int) -> None:
    os.kill(int(Path(folder, f"pid{rank}").read_text()), signal.SIGKILL)


def _crc(value: Any) -> tuple[str, list[int], int]:
    array = value.numpy()
    data = repr(array.tolist()).encode() if array.dtype == object else array.tobytes()
    return str(array.dtype), list(array.shape), zlib.crc32(data)


def _values(dtype: str, count: int) -> Any:
    import tensorflow as tf

    numbers = np.random.RandomState(len(dtype) + count).randint(0, 100, count)
    return tf.cast(tf.constant(numbers), dtype)


def variables(folder: str) -> dict[str, Any]:
    """Variables of one task that another reads and adds to, by type; as parameter servers have."""
    import tensorflow as tf

    found: dict[str, Any] = {}
    for dtype in NUMBERS:
        count = LARGE * (4 if dtype == "uint8" else 1)
        with tf.device(OWNER):
            variable = tf.Variable(_values(dtype, count))
        if _transport.settings()["mode"] == "grpc":  # there a function may overtake the assignment
            variable.read_value().numpy()

        @tf.function
        def read(variable: Any = variable) -> Any:
            with tf.device(USER):
                return tf.reverse(variable.read_value(), [0])

        @tf.function
        def add(variable: Any = variable, dtype: str = dtype, count: int = count) -> Any:
            with tf.device(USER):
                more = tf.reverse(tf.cast(tf.range(count) % 7, dtype), [0])
            with tf.device(OWNER):
                variable.assign_add(more)

        found[dtype] = [_crc(read())]
        add()
        found[dtype].append(_crc(variable.read_value()))
    return found


def odd_ones(folder: str) -> dict[str, Any]:
    """What is small, empty, no plain memory, or dead."""
    import tensorflow as tf

    inputs = {
        "strings": tf.strings.as_string(tf.range(30_000)),
        "scalar": tf.constant(3.5),
        "empty": tf.zeros([0, 7]),
        "small": tf.range(10.0),
        "just_below": tf.range((64 << 10) - 1) % 100,
        "bools": tf.range(100_000) % 3 == 0,
        "matrix": tf.reshape(tf.range(60_000.0), [3, 20_000]),
    }
    inputs["just_below"] = tf.cast(inputs["just_below"], tf.uint8)

    @tf.function
    def pass_on(value: Any) -> Any:
        with tf.device(OWNER):
            first = tf.identity(tf.concat([value, value], 0) if value.shape.rank else value)
        with tf.device(USER):
            return tf.identity(first)

    found = {name: _crc(pass_on(value)) for name, value in inputs.items()}

    @tf.function
    def choose(which: Any, value: Any) -> Any:
        with tf.device(OWNER):
            large = tf.identity(value)

        def there(factor: float) -> Callable[[], Any]:
            def branch() -> Any:
                with tf.device(USER):
                    return large * factor + 1.0

            return branch

        return tf.cond(which, there(2.0), there(3.0))

    for which in (True, False):
        found[f"cond{which}"] = _crc(choose(tf.constant(which), inputs["matrix"]))
    return found


def functions(folder: str) -> dict[str, Any]:
    """Functions on a server with large arguments and results; the driver's own tensors."""
    import tensorflow as tf

    @tf.function
    def swap(x: Any, y: Any) -> Any:
        return y * 2.0, x + 1.0

    x, y = tf.range(300_000.0), tf.reshape(tf.range(90_000.0), [300, 300])
    found: dict[str, Any] = {}
    for step in range(3):
        with tf.device(USER):
            first, second = swap(x + step, y - step)
            found[f"step{step}"] = [_crc(first), _crc(second)]
    with tf.device(OWNER):
        kept = tf.identity(x)
    with tf.device(USER):  # from server to server
        found["moved"] = _crc(kept + 1.0)
    return found


def everything(folder: str) -> dict[str, Any]:
    return {
        "variables": variables(folder),
        "odd_ones": odd_ones(folder),
        "functions": functions(folder),
    }


def and_then_the_owner_dies(folder: str) -> dict[str, Any]:
    """All of it in one cluster: starting TensorFlow is what takes time."""
    found = {**everything(folder), "cancelled": cancelled()}
    return {**found, "ordered": ordered(folder), "killed": killed(folder)}


def ordered(folder: str) -> dict[str, Any]:
    """Reads a variable in functions right after it was written behind a long operation.

    TensorFlow's own clients give old values here: the owner's queue is not waited for.
    """
    import tensorflow as tf

    with tf.device(OWNER):
        much, one = tf.ones([16 << 20]), tf.identity(1.0)
        large, counter = tf.Variable(tf.zeros([16 << 20])), tf.Variable(0.0)

    @tf.function
    def parts(variable: Any) -> Any:  # run by the chief, in parts on both tasks
        with tf.device(USER):
            return tf.identity(variable.read_value())

    @tf.function
    def whole(variable: Any) -> Any:  # handed to a task, which runs its parts
        return tf.identity(variable.read_value())

    def write() -> None:
        with tf.device(OWNER):
            for _ in range(3):
                large.assign_add(much)
            counter.assign_add(one)

    seen: dict[str, list[float]] = {"parts": [], "whole": []}
    for _ in range(8):
        write()
        seen["parts"].append(float(parts(counter)))
        write()
        with tf.device(USER):
            seen["whole"].append(float(whole(counter)))

    @tf.function
    def at_the_owner(variable: Any) -> Any:
        with tf.device(OWNER):
            return variable.read_value() + 0.0

    at_the_owner(counter)
    with tf.device(USER):
        elsewhere = tf.Variable(0.0)
        elsewhere.assign_add(tf.identity(1.0))
    stopped = int(Path(folder, "pid2").read_text())
    os.kill(stopped, signal.SIGSTOP)
    try:  # a function that does not need the stopped task does not wait for what was written there
        beside = float(at_the_owner(counter))
    finally:
        os.kill(stopped, signal.SIGCONT)
    return {"seen": seen, "beside": beside}


def cancelled() -> dict[str, Any]:
    """Functions are cancelled at many points of their reads; afterwards all is as it was."""
    import tensorflow as tf
    from tensorflow.python.eager import cancellation

    with tf.device(OWNER):
        variable = tf.Variable(tf.range(4.0 * (1 << 20)))

    @tf.function
    def read() -> Any:
        with tf.device(USER):
            return tf.reduce_max(tf.identity(variable.read_value()))

    want = float(read())
    names: dict[str, int] = {}
    function = read.get_concrete_function()
    for i in range(25):
        manager = cancellation.CancellationManager()
        timer = threading.Timer(0.001 * i, manager.start_cancel)
        timer.start()
        try:
            manager.get_cancelable_function(function)()
            name = "ok"
        except tf.errors.OpError as error:
            name = type(error).__name__
        timer.join()
        names[name] = names.get(name, 0) + 1
    return {"names": names, "equal": float(read()) == want}


def killed(folder: str) -> dict[str, Any]:
    """The owner of a variable dies while the driver and another task read it again and again."""
    import tensorflow as tf

    with tf.device(OWNER):
        variable = tf.Variable(tf.zeros([8 << 20]))

    @tf.function
    def read() -> Any:
        with tf.device(OWNER):
            value = variable.read_value()
        with tf.device(USER):
            return value, tf.reduce_sum(tf.identity(value))

    died = [0.0]

    def kill() -> None:
        _kill(folder, 1)
        died[0] = time.monotonic()

    killer = threading.Timer(1.0, kill)
    reads = -1
    try:
        while True:
            read()[0].numpy()
            reads += 1
            if reads == 0:
                killer.start()
    except tf.errors.OpError as error:
        seen = type(error).__name__, str(error)
        late = time.monotonic() - died[0]
    killer.join()
    return {"error": seen, "reads": reads, "late": late}


def some(folder: str) -> dict[str, Any]:
    return {"variables": variables(folder), "functions": functions(folder)}


def buffers(modes: list[str], count: int) -> dict[str, Any]:
    """An all-reduce that TensorFlow runs, because one of its ranks speaks gRPC only."""
    import tensorflow as tf

    role, index = _task()
    rank = 0 if role == "chief" else index + 1
    _start(modes[rank])
    from arcflow.tf import ClusterStrategy

    strategy = ClusterStrategy()

    @tf.function
    def step(x: Any) -> Any:
        return strategy.run(
            lambda y: tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(y)),
            args=(x,),
        )

    base = tf.cast(tf.range(count) % 1009, tf.float32)
    values = [_crc(step(base * (rank + 1.0) + float(i))) for i in range(3)]
    return {"values": values, "report": _settled()}


def refused(**options: Any) -> tuple[str, str]:
    """A server of this process alone, with transport='rdma'."""
    import tensorflow as tf

    from arcflow.tf import transport

    _transport.use("rdma", SECRET, "test", {}, **options)
    protocol = transport.prepare()
    assert protocol == "grpc_rdma"
    try:
        tf.distribute.Server({"worker": ["127.0.0.1:0"]}, "worker", 0, protocol=protocol)
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""
