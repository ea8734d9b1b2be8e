# SPDX-License-Identifier: Apache-2.0
"""What ranks do in test_transport.py; each function runs in a process of its own."""

from __future__ import annotations

import functools
import json
import math
import os
import signal
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from arcflow import _transport

sys.path.insert(0, str(Path(__file__).parent))

SECRET = "5e" * 32
TYPES = ("float32", "float64", "int32", "int64", "bfloat16", "float16")
SIZES = (1, 1000, 100_003)
GROUP = 777


@functools.cache
def start(mode: str = "auto", run_id: str = "test") -> tuple[Any, int, int]:
    """The strategy, rank and number of ranks; a process has one. "rdma:ucx": over what UCX finds."""
    cluster = json.loads(os.environ["TF_CONFIG"])["cluster"]
    mode, _, backend = mode.partition(":")
    _transport.use(mode, SECRET, run_id, cluster, rdma_backend=backend or "rdma")
    from arcflow.tf import ClusterStrategy

    strategy = ClusterStrategy()
    return strategy, strategy._arc_rank, strategy.extended._num_workers


def values(kind: int, rank: int, dtype: str, count: int) -> np.ndarray:
    random = np.random.RandomState(1000 * kind + rank)
    if dtype.startswith("int"):
        return random.randint(-50, 50, count)
    return random.uniform(-2, 2, count)


def flushed(values: np.ndarray) -> np.ndarray:
    """Set what float16 has no exponent for to 0."""
    return np.where(np.abs(values) < 2**-14, np.zeros_like(values), values)


def reduce_cases() -> list[tuple[str, str, str, int]]:
    return [
        (dtype, merge, final, count)
        for dtype in TYPES
        for merge in ("Add", "Max", "Min", "Mul")
        for final in ("Id", "Div")
        for count in SIZES
    ]


def all_reduces(mode: str, shuffled: bool = False, flush: bool = False) -> dict[str, Any]:
    """Every type, merge and final op, all at once in one function; order of tracing by rank.

    `flush`: without float16's smallest numbers, which an emulated processor may make 0.
    """
    import random

    import tensorflow as tf
    from tensorflow.python.ops import collective_ops as ops

    _, rank, size = start(mode)
    cases = reduce_cases()
    order = list(range(len(cases)))
    if shuffled:
        random.Random(rank).shuffle(order)
    small = flushed if flush else lambda array: array
    inputs = [
        tf.cast(tf.constant(small(values(i, rank, dtype, count))), dtype)
        for i, (dtype, _, _, count) in enumerate(cases)
    ]
    tokens = [tf.Variable(0.0) for _ in cases] if shuffled else None

    @tf.function
    def run(base: Any, *xs: Any) -> list[Any]:
        out: list[Any] = [None] * len(xs)
        for i in order:
            _, merge, final, _ = cases[i]
            extra = {"ordering_token": tokens[i].handle} if tokens else {}
            out[i] = ops.all_reduce_v2(
                xs[i], size, GROUP, base + i, merge_op=merge, final_op=final, **extra
            )
        return out

    for step in range(2):
        outputs = run(tf.constant(10_000 + 5000 * shuffled + 1000 * step), *inputs)
    return {
        "crc": [zlib.crc32(small(o.numpy()).tobytes()) for o in outputs],
        "inputs": [tf.cast(x, tf.float64).numpy() for x in inputs],
        "outputs": [tf.cast(o, tf.float64).numpy() for o in outputs],
        "report": _transport.report(),
    }


def other_collectives(mode: str) -> dict[str, Any]:
    """Gather, broadcast and all-to-all, small and large."""
    import tensorflow as tf
    from tensorflow.python.ops import collective_ops as ops

    _, rank, size = start(mode)
    found: dict[str, Any] = {}
    key = 100
    for count in (3, 200_000):
        for dtype in ("float32", "int64"):
            key += 10
            x = tf.cast(tf.constant(values(key, rank, dtype, 2 * count).reshape(2, count)), dtype)
            name = f"{dtype}{count}"
            found["gather" + name] = ops.all_gather_v2(x, size, GROUP, key).numpy()
            parts = tf.reshape(tf.repeat(x[:1], size, axis=0), [size, count]) + tf.cast(
                tf.reshape(tf.range(size), [size, 1]), dtype
            )
            found["to_all" + name] = ops.all_to_all_v2(parts, size, GROUP, key + 1).numpy()
            if rank == size - 1:
                sent = ops.broadcast_send_v2(x, size, GROUP, key + 2)
            else:
                sent = ops.broadcast_recv_v2([2, count], dtype, size, GROUP, key + 2)
            found["broadcast" + name] = sent.numpy()
    return found


def reduce_scatter(mode: str) -> dict[str, Any]:
    """TensorFlow has this collective for GPUs only."""
    import tensorflow as tf

    _, rank, size = start(mode)
    found: dict[str, Any] = {}
    for key, count in ((901, 5), (902, 100_000)):
        x = tf.constant(values(key, rank, "int32", size * count), tf.int64)
        found[str(count)] = tf.raw_ops.CollectiveReduceScatterV2(
            input=x, group_size=size, group_key=GROUP, instance_key=key,
            ordering_token=[], merge_op="Add", final_op="Id",
        ).numpy()  # fmt: skip
    return found


def all_reduce_step(strategy: Any) -> Any:
    """Return a function that sums a tensor over all ranks, in a graph and under the strategy."""
    import tensorflow as tf

    @tf.function
    def step(x: Any) -> Any:
        return strategy.run(
            lambda y: tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(y)),
            args=(x,),
        )

    return step


def mwms_steps(mode: str, count: int, steps: int) -> dict[str, Any]:
    """All-reduce in a tf.function under the strategy, values new at each step; memory by step."""
    import tensorflow as tf

    strategy, rank, size = start(mode)

    step = all_reduce_step(strategy)
    wrong = 0
    reports = []
    for i in range(steps):
        base = np.arange(count, dtype=np.float32) % 1009
        got = step(tf.constant(base * (rank + 1) + i)).numpy()
        want = base * sum(r + 1 for r in range(size)) + i * size
        wrong += not np.array_equal(got, want)
        if i in (steps // 2, steps - 1):
            reports.append(_transport.report())
    return {"wrong": wrong, "reports": reports}


def results_kept(mode: str, count: int = 600_000, steps: int = 6) -> dict[str, Any]:
    """What a program does with sums that it keeps, writes on in place and gives to a variable; how many are wrong."""
    import tensorflow as tf

    strategy, rank, size = start(mode)
    variable = tf.Variable(tf.zeros([count]))

    @tf.function
    def step(x: Any) -> Any:
        def replica(y: Any) -> Any:
            total = tf.distribute.get_replica_context().all_reduce("SUM", y * 2)
            variable.assign(total)  # which may take the tensor's memory for its own
            variable.assign_add(tf.ones([count]) * float(rank))
            variable.assign(total)
            variable.scatter_update(tf.IndexedSlices(tf.constant([float(rank)]), tf.constant([3])))
            variable.assign(total)
            variable[:2].assign([float(rank), 1.0])
            own = tf.nn.relu(total * float(rank + 1))
            return total, own, variable.read_value()

        return strategy.run(replica, args=(x,))

    wrong = []
    kept = []
    for i in range(steps):
        base = np.arange(count, dtype=np.float32) % 1009
        total, own, changed = step(tf.constant(base + rank + i))
        want = (base * size + sum(range(size)) + i * size) * 2
        kept.append((total, want))
        if not np.array_equal(own, want * (rank + 1)):
            wrong.append(f"own {i}")
        if not np.array_equal(changed[:2], [rank, 1]) or not np.array_equal(changed[2:], want[2:]):
            wrong.append(f"variable {i}")
        if i == steps - 2:
            del kept[:2]  # their places may be used again; the others' not
    wrong += [f"kept {i}" for i, (a, b) in enumerate(kept) if not np.array_equal(a, b)]
    return {"wrong": wrong}


def soak(mode: str) -> dict[str, Any]:
    """Many small steps under the strategy: bytes that the process has gained by the second part."""
    import gc

    import tensorflow as tf

    strategy, _, _ = start(mode)

    step = all_reduce_step(strategy)
    x = tf.constant(np.arange(100, dtype=np.float32))
    resident = []
    for steps in (4_000, 20_000):
        for _ in range(steps):
            step(x)
        gc.collect()
        with open("/proc/self/statm") as file:
            resident.append(int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    return {"gained": resident[1] - resident[0]}


LIST = (
    ("float32", (300, 1001)), ("float32", (3,)), ("int32", (70_000,)), ("float32", (0, 5)),
    ("bfloat16", (100_003,)), ("float32", ()), ("float32", (17_000,)), ("float32", (40, 1000)),
)  # fmt: skip


def lists(mode: str) -> dict[str, Any]:
    """A list as an optimizer reduces it, by the strategy; one of the tensors has a shape that is not known before."""
    import tensorflow as tf

    strategy, rank, _ = start(mode)
    inputs = [
        tf.cast(tf.reshape(values(i, rank, "float32", math.prod(shape)) * 10, shape), dtype)
        for i, (dtype, shape) in enumerate(LIST)
    ]
    specs = [tf.TensorSpec(x.shape, x.dtype) for x in inputs]
    specs[-1] = tf.TensorSpec([None, None], inputs[-1].dtype)

    @tf.function(input_signature=specs)
    def step(*xs: Any) -> Any:
        def reduce(*ys: Any) -> Any:
            fresh = [y * 2 for y in ys]  # nobody else's: their memory may be used for the sums
            kept = [y + 1 for y in ys]
            return all_sums(fresh), all_sums(kept), kept

        def all_sums(ys: Any) -> Any:
            context = tf.distribute.get_replica_context()
            if mode != "grpc":
                return context.all_reduce("SUM", ys)
            sums = list(ys)  # TensorFlow's own takes one type at a time
            for dtype in dict.fromkeys(y.dtype for y in ys):
                places = [i for i, y in enumerate(ys) if y.dtype == dtype]
                reduced = context.all_reduce("SUM", [ys[i] for i in places])
                for place, one in zip(places, reduced, strict=True):
                    sums[place] = one
            return sums

        return strategy.run(reduce, args=xs)

    for _ in range(3):
        sums, more, kept = step(*inputs)
    operations = [node.op for node in step.get_concrete_function().graph.as_graph_def().node]
    for function in step.get_concrete_function().graph.as_graph_def().library.function:
        operations += [node.op for node in function.node_def]
    return {
        "crc": [zlib.crc32(x.numpy().tobytes()) for x in (*sums, *more)],
        "kept": all(
            np.array_equal(tf.cast(a, tf.float32), tf.cast(b + 1, tf.float32))
            for a, b in zip(kept, inputs, strict=True)
        ),
        "lists": operations.count("ArcflowAllReduceList"),
        "singles": operations.count("CollectiveReduceV2"),
    }


def disagree(listed: bool = False) -> tuple[str, str]:
    import tensorflow as tf
    from tensorflow.python.ops import collective_ops as ops

    from arcflow.tf import transport

    _, rank, size = start()
    ops.all_reduce_v2(tf.ones([4]), size, GROUP, 931)
    try:
        if listed:
            transport.operations().arcflow_all_reduce_list(
                [tf.ones([2]), tf.ones([2 + rank])], size, GROUP, 932, ordering_token=[]
            )
        else:
            ops.all_reduce_v2(tf.ones([4 + rank]), size, GROUP, 932)
    except tf.errors.OpError as error:
        return type(error).__name__, str(error)
    return "", ""


def killed(victim: int, count: int, mode: str) -> dict[str, Any]:
    """One rank dies in the middle of steps; how the others learn of it."""
    import threading

    import tensorflow as tf

    strategy, rank, _ = start(mode)
    x = tf.ones([count])

    step = all_reduce_step(strategy)
    step(x)
    if rank == victim:
        threading.Timer(1.0, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()
    seen = []
    for _ in range(2):
        try:
            while True:
                step(x)
                time.sleep(0)
        except tf.errors.OpError as error:
            seen.append((type(error).__name__, str(error)))
    return {"seen": seen}


def update_server_def(folder: str) -> dict[str, Any]:
    """The server gets a new cluster definition, and goes on with our collectives."""
    import tensorflow as tf
    from tensorflow.python.eager import context
    from tensorflow.python.ops import collective_ops as ops

    _, rank, size = start()
    first = float(ops.all_reduce_v2(tf.fill([70_000], rank + 1.0), size, GROUP, 921)[-1])
    before = _transport.report()["collectives"]["operations"]
    here = context.context()
    here.enable_collective_ops(here._collective_ops_server_def)
    Path(folder, str(rank)).touch()  # a rank that is early would ask a server that is not new yet
    while len(os.listdir(folder)) < size:
        time.sleep(0.05)
    second = float(ops.all_reduce_v2(tf.fill([70_000], rank + 2.0), size, GROUP, 922)[-1])
    after = _transport.report()["collectives"]["operations"]
    return {"first": first, "second": second, "before": before, "after": after}


def mixed() -> dict[str, Any]:
    """The chief speaks grpc+arc, the others gRPC only."""
    chief = json.loads(os.environ["TF_CONFIG"])["task"]["type"] == "chief"
    return all_reduces("auto" if chief else "grpc")


def shm_refused() -> tuple[str, str]:
    """All want shared memory, but are told to belong to other runs."""
    import tensorflow as tf
    from tensorflow.python.ops import collective_ops as ops

    index = json.loads(os.environ["TF_CONFIG"])["task"]
    try:
        _, _, size = start("shm", run_id=str(index))
        ops.all_reduce_v2(tf.ones([4]), size, GROUP, 1)
    except tf.errors.OpError as error:
        return type(error).__name__, str(error)
    return "", ""


def train(mode: str, total_ranks: int) -> dict[str, Any]:
    import strategy_programs

    cluster = json.loads(os.environ["TF_CONFIG"])["cluster"]
    _transport.use(mode, SECRET, "test", cluster)
    found = strategy_programs.train_equal_shares(total_ranks=total_ranks)
    return {**found, "report": _transport.report()}


def unconfigured() -> tuple[str, str]:
    """A server of our protocol in a process that knows no secret."""
    import tensorflow as tf

    from arcflow.tf import transport

    transport._library()
    try:
        tf.distribute.Server({"worker": ["127.0.0.1:0"]}, "worker", 0, protocol="grpc+arc")
    except Exception as error:
        return type(error).__name__, str(error)
    return "", ""


def compressed(compression: str, count: int) -> dict[str, Any]:
    """A mean of random floats by TCP, and how far it is from the exact one."""
    import tensorflow as tf

    cluster = json.loads(os.environ["TF_CONFIG"])["cluster"]
    _transport.use("tcp", SECRET, "test", cluster, compression=compression)
    from arcflow.tf import ClusterStrategy

    strategy = ClusterStrategy()
    rank, size = strategy._arc_rank, strategy.extended._num_workers

    @tf.function
    def step(x: Any) -> Any:
        def mean(y: Any) -> Any:
            parts = [y[: count // 3], y[count // 3 :]]  # a list, as gradients are
            return tf.concat(tf.distribute.get_replica_context().all_reduce("MEAN", parts), 0)

        return strategy.run(mean, args=(x,))

    inputs = [
        np.random.RandomState(r).uniform(-1, 1, count).astype(np.float32) for r in range(size)
    ]
    got = step(tf.constant(inputs[rank])).numpy()
    return {
        "crc": zlib.crc32(got.tobytes()),
        "off": float(np.abs(got - np.mean(inputs, axis=0)).max()),
        "sent": sum(pair["sent"] for pair in _transport.report()["pairs"].values()),
    }


def reduces_and_steps(mode: str) -> dict[str, Any]:
    """For rdma_in_guest.py; arrays stay where they were made."""
    found = all_reduces(mode, flush=True)
    return {
        "crc": found["crc"],
        "steps": mwms_steps(mode, count=300_003, steps=4),
        "report": _transport.report(),
    }


def everything(mode: str, listed: bool = False) -> dict[str, Any]:
    """All that one cluster can do after another: starting TensorFlow is what takes time."""
    found: dict[str, Any] = {"all_reduces": all_reduces(mode), "other": other_collectives(mode)}
    found["lists"] = lists(mode)
    if mode == "grpc":
        return found
    found["shuffled"] = all_reduces(mode, shuffled=True)
    found["scatter"] = reduce_scatter(mode)
    found["steps"] = mwms_steps(mode, count=2_000_003, steps=12)
    found["kept"] = results_kept(mode)
    found["report"] = _transport.report()
    found["disagree"] = disagree(listed)  # TensorFlow is of no more use after an error
    return found


def four() -> dict[str, Any]:
    return {
        "all_reduces": all_reduces("auto"),
        "steps": mwms_steps("auto", count=300_003, steps=12),
    }
