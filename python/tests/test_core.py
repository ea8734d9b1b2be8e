# SPDX-License-Identifier: Apache-2.0
"""The extension module: real coordinator, agents and nodes on loopback, without Spark and TensorFlow."""

from __future__ import annotations

import ast
import contextlib
import gc
import json
import os
import secrets
import signal
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from arcflow import _executor, errors

_core = pytest.importorskip("arcflow._core")

AGENT = _executor.agent_path()
pytestmark = pytest.mark.skipif(not Path(AGENT).exists(), reason="the agent is not built")

SCHEMA = {
    "columns": [
        {"name": "x", "dtype": "float32", "source": "list", "shape": [3]},
        {"name": "y", "dtype": "int64", "source": "scalar", "shape": []},
        {"name": "s", "dtype": "string", "source": "scalar", "shape": []},
    ]
}
NODE_HEAD = """
import json, os, sys, time
import numpy as np
from arcflow import _core, errors
fd = int(os.environ["ARCFLOW_NODE_FD"])
link = _core.NodeLink(fd)
config, payload = link.config()
config = json.loads(config)
"""


def rows(begin: int, end: int) -> pa.RecordBatch:
    n = end - begin
    flat = pa.array(np.arange(3 * begin, 3 * end, dtype=np.float32))
    return pa.RecordBatch.from_arrays(
        [
            pa.FixedSizeListArray.from_arrays(flat, 3),
            pa.array(np.arange(begin, end, dtype=np.int64)),
            pa.array([f"row {i}" for i in range(begin, begin + n)]),
        ],
        names=["x", "y", "s"],
    )


class Run:
    """A coordinator, and agents whose nodes run `program`."""

    def __init__(self, size: int, program: str, *, cache: str = "auto", **config) -> None:
        secret = secrets.token_bytes(32)
        self.coordinator = _core.Coordinator(
            "127.0.0.1", "", 0, secret, size, json.dumps({"run_id": "test"})
        )
        host, port = self.coordinator.address.rsplit(":", 1)
        base = {
            "run_id": "test",
            "secret": secret.hex(),
            "size": size,
            "host": "127.0.0.1",
            "coordinator": {"host": host, "port": int(port)},
            "python": [sys.executable, "-c", NODE_HEAD + textwrap.dedent(program)],
            "env": {"PYTHONPATH": os.pathsep.join(sys.path)},
            "versions": {"python": "3"},
            "feeds": {"train": {"schema": SCHEMA, "cache": cache}},
            "feed_memory_bytes": 8 << 20,
            "segment_bytes": 64 << 10,
            "grace_s": 2,
            "job": {"hello": "node"},
            **config,
        }
        self.links = [
            _core.AgentLink.launch(
                AGENT,
                json.dumps(
                    {
                        **base,
                        "rank": rank,
                        "role": "chief" if rank == 0 else "worker",
                        "index": 0 if rank == 0 else rank - 1,
                    }
                ),
                b"payload\0bytes",
            )
            for rank in range(size)
        ]

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_) -> None:
        for link in self.links:
            link.close(5.0)
        self.coordinator.close()

    def outcome(self, rank: int = 0) -> tuple[dict, bytes]:
        ended = self.links[rank].wait(60)
        assert ended is not None, "no outcome"
        return json.loads(ended[0]), ended[1]

    def events(self) -> list[dict]:
        seen = []
        while (text := self.coordinator.next_event(30)) is not None:
            seen.append(json.loads(text))
        return seen


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def forever(call) -> None:
    while True:
        call()


def interrupt_after(seconds: float) -> threading.Timer:
    timer = threading.Timer(seconds, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    return timer


READ_ALL = """
    reader = _core.FeedReader(fd, "train", 64, "pad")
    seen, padding, shared = [], 0, 0
    while (batch := reader.next(60)) is not None:
        columns, pad = batch
        assert columns["x"].shape == (64, 3) and columns["x"].dtype == np.float32
        assert columns["y"].dtype == np.int64 and len(columns["s"]) == 64
        real = 64 - pad
        np.testing.assert_array_equal(columns["x"][:real, 0], 3 * columns["y"][:real])
        assert columns["s"][:real] == [b"row %d" % i for i in columns["y"][:real]]
        seen += columns["y"][:real].tolist()
        padding += pad
        shared += not columns["x"].flags.writeable
    link.set_progress(7, 2, 0.5)
    counters = link.counters()
    told = {"rows": seen, "padding": padding, "steps": reader.position, "shared": shared,
            "counters": counters, "payload": payload.decode(), "job": config["job"],
            "schema": json.loads(reader.schema_json), "page": "ARCFLOW_COUNTER_FD" in os.environ}
    link.result(json.dumps(told).encode())
"""


def test_rows_written_by_the_task_are_read_by_the_node():
    with Run(1, READ_ALL) as run:
        link = run.links[0]
        for begin in range(0, 1000, 100):
            assert link.write("train", rows(begin, begin + 100))
        link.end("train")
        outcome, result = run.outcome()
        assert outcome["status"] == "ok", outcome
        told = json.loads(result)
        stats = link.stats()
        events = run.events()
    assert told["rows"] == list(range(1000))
    assert told["padding"] == 16 * 64 - 1000
    assert told["steps"] == 16
    assert told["shared"] >= 10, "full batches should lie in shared memory"
    assert told["counters"]["rows_used"] == 1000
    assert told["counters"]["rows_padded"] == 24
    assert (told["counters"]["user_step"], told["counters"]["user_loss"]) == (7, 0.5)
    assert told["payload"] == "payload\0bytes"
    assert told["job"] == {"hello": "node"}
    assert [c["name"] for c in told["schema"]["columns"]] == ["x", "y", "s"]
    assert told["page"]
    assert stats["feeds"]["train"]["rows"] == 1000
    assert events[-1]["event"] == "all_finished"
    assert events[-1]["status"] == "ok"


def test_ranks_make_as_many_steps_and_meet_at_barriers():
    program = """
        reader = _core.FeedReader(fd, "train", 10, "pad")
        steps = 0
        while reader.next(60) is not None:
            steps += 1
        there = link.barrier("b", str(config["rank"]).encode(), 60)
        link.log("bye")
        link.result(json.dumps([steps, [p.decode() for p in there]]).encode())
    """
    with Run(2, program) as run:
        assert run.links[0].write("train", rows(0, 95))
        assert run.links[1].write("train", rows(0, 12))
        for link in run.links:
            link.end("train")
        for rank in (0, 1):
            outcome, result = run.outcome(rank)
            assert outcome["status"] == "ok", outcome
            assert json.loads(result) == [10, ["0", "1"]]


def test_node_that_returns_early_wants_no_more_rows():
    program = """
        reader = _core.FeedReader(fd, "train", 16, "partial")
        reader.next(60)
        link.result(b"enough")
    """
    with Run(1, program, feed_memory_bytes=1 << 20, cache="none") as run:
        link = run.links[0]
        batch = rows(0, 20_000)
        deadline = time.monotonic() + 60
        while link.write("train", batch):
            assert time.monotonic() < deadline, "the writer was never told"
        link.end("train")  # nothing to say any more, and no error
        link.abort("INTERNAL", "late", "")
        outcome, result = run.outcome()
    assert (outcome["status"], result) == ("ok", b"enough")


def test_wrong_columns_are_an_error_before_any_row_is_seen():
    with Run(1, "link.result(b'')") as run:
        bad = pa.RecordBatch.from_arrays([pa.array([1.0])], names=["x"])
        with pytest.raises(errors.InvalidArgumentError, match="x"):
            run.links[0].write("train", bad)
        with pytest.raises(errors.NotFoundError, match="nope"):
            run.links[0].write("nope", rows(0, 1))
        with pytest.raises(TypeError, match="__arrow_c_array__"):
            run.links[0].write("train", [1, 2, 3])
        run.links[0].end("train")
        run.outcome()


def test_exception_reported_by_a_node_is_its_failure():
    program = """
        link.failed(json.dumps({"type": "ValueError", "message": "boom", "traceback": "Traceback", "peer_loss": False}))
        os._exit(1)
    """
    with Run(1, program) as run:
        outcome, result = run.outcome()
    assert outcome["status"] == "failed"
    assert outcome["failure"]["type"] == "ValueError"
    assert outcome["failure"]["message"] == "boom"
    assert result == b""


def test_killed_agent_is_unavailable_and_takes_its_node_along():
    with Run(1, "link.log(str(os.getpid())); time.sleep(1000)") as run:
        node = None
        while node is None:
            event = json.loads(run.coordinator.next_event(60) or "{}")
            node = int(event["line"]) if event.get("event") == "log" else None
        os.kill(run.links[0].pid, signal.SIGKILL)
        with pytest.raises(errors.UnavailableError, match="SIGKILL"):
            run.links[0].wait(60)
        deadline = time.monotonic() + 30
        while alive(node) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not alive(node)


def test_interrupt_ends_a_wait_for_an_event():
    with Run(1, "time.sleep(1000)") as run:
        timer = interrupt_after(1.0)
        with pytest.raises(KeyboardInterrupt):
            forever(lambda: run.coordinator.next_event(60))
        timer.join()


def test_interrupt_ends_a_wait_for_the_outcome():
    with Run(1, "time.sleep(1000)") as run:
        timer = interrupt_after(0.5)
        with pytest.raises(KeyboardInterrupt):
            run.links[0].wait(120)
        timer.join()


def test_interrupt_ends_a_blocked_write():
    with Run(1, "time.sleep(1000)", feed_memory_bytes=1 << 20, cache="none") as run:
        run.links[0].write("train", rows(0, 1))
        timer = interrupt_after(1.0)
        batch = rows(0, 20_000)
        with pytest.raises(KeyboardInterrupt):
            forever(lambda: run.links[0].write("train", batch))
        timer.join()


def test_other_threads_run_while_one_waits():
    coordinator = _core.Coordinator("127.0.0.1", "", 0, secrets.token_bytes(32), 1, "{}")
    ticks = 0

    def wait() -> None:
        with contextlib.suppress(errors.CancelledError):
            coordinator.next_event(60)

    thread = threading.Thread(target=wait)
    thread.start()
    for _ in range(20):
        time.sleep(0.01)
        ticks += 1
    coordinator.close()
    thread.join(30)
    assert not thread.is_alive()
    assert ticks == 20


def test_arrays_keep_their_memory_until_they_are_dropped():
    program = """
        reader = _core.FeedReader(fd, "train", 64, "partial")
        kept = [reader.next(60)[0]["y"] for _ in range(10)]
        del reader
        import gc; gc.collect()
        link.result(json.dumps([a.tolist() for a in kept]).encode())
    """
    with Run(1, program) as run:
        run.links[0].write("train", rows(0, 640))
        run.links[0].end("train")
        outcome, result = run.outcome()
    assert outcome["status"] == "ok", outcome
    assert [y for batch in json.loads(result) for y in batch] == list(range(640))


def test_reader_seeks_cancels_and_refuses_bad_arguments():
    program = """
        reader = _core.FeedReader(fd, "train", 10, "partial")
        reader.next(60)
        reader.seek(5)
        first = int(reader.next(60)[0]["y"][0])
        said = [first, reader.position]
        try:
            _core.FeedReader(fd, "nope", 10, "pad")
        except errors.NotFoundError as error:
            said.append(str(error))
        import threading
        waiting = _core.FeedReader(fd, "train", 1000, "partial")
        threading.Timer(0.2, waiting.cancel).start()
        try:
            waiting.next(60)
        except errors.CancelledError:
            said.append("cancelled")
        try:
            _core.FeedReader(fd, "train", 1000, "partial").next(0.2)
        except errors.DeadlineExceededError:
            said.append("late")
        link.result(json.dumps(said).encode())
    """
    with Run(1, program) as run:
        run.links[0].write("train", rows(0, 100))
        outcome, result = run.outcome()
    assert outcome["status"] == "ok", outcome
    first, position, text, *rest = json.loads(result)
    assert (first, position, rest) == (50, 6, ["cancelled", "late"])
    assert "train" in text, "the message names the feeds that exist"


def test_dropped_links_leave_no_process_and_no_descriptor():
    gc.collect()
    before = len(os.listdir("/proc/self/fd"))
    with Run(1, "time.sleep(1000)") as run:
        pid = run.links[0].pid
        assert alive(pid)
    del run
    gc.collect()
    assert not alive(pid)
    assert len(os.listdir("/proc/self/fd")) <= before


def test_errors_are_classes_of_the_package():
    with pytest.raises(errors.InvalidArgumentError, match="32 bytes"):
        _core.Coordinator("127.0.0.1", "", 0, b"short", 1, "{}")
    with pytest.raises(errors.InvalidArgumentError, match="JSON"):
        _core.AgentLink.launch(AGENT, "not json", b"")
    with pytest.raises(errors.InvalidArgumentError, match="remainder"):
        _core.FeedReader(0, "train", 8, "sometimes")
    with pytest.raises(errors.InvalidArgumentError, match="batch_size"):
        _core.FeedReader(0, "train", -1, "pad")


def test_stubs_name_what_the_module_has():
    stubs = ast.parse((Path(_core.__file__).parent / "_core.pyi").read_text())
    classes = {c.name: c for c in stubs.body if isinstance(c, ast.ClassDef)}
    bound = {name for name, value in vars(_core).items() if isinstance(value, type)}
    assert {name for name in classes if not name.startswith("_")} == bound
    for name in bound:
        stubbed = {f.name for f in classes[name].body if isinstance(f, ast.FunctionDef)}
        there = {m for m in vars(getattr(_core, name)) if not m.startswith("_")}
        assert stubbed - {"__init__"} == there, name
