# SPDX-License-Identifier: Apache-2.0
"""One node without Spark: a coordinator here, and a producer process that plays the Spark task."""

from __future__ import annotations

import base64
import json
import os
import pickle
import secrets
import socket
import sys
import tempfile
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from children import HERE, Child
from shapes import SHAPES

SEGMENT_BYTES = 16 << 20


class LocalRun:
    """A run of one node whose feeds come from `arcflow_producer.py`.

    Parameters
    ----------
    function
        Of `node_functions.py`.
    feeds
        Name of the feed to name of the shape.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        feeds: Mapping[str, str],
        *,
        args: Mapping[str, Any] | None = None,
        cache: str = "none",
        feed_memory_bytes: int = 256 << 20,
    ) -> None:
        import cloudpickle

        from arcflow import _core, _executor, _run

        self._feeds = list(feeds)
        secret = secrets.token_bytes(32)
        run_id = uuid.uuid4().hex
        options = json.dumps({"run_id": run_id})
        self._coordinator = _core.Coordinator("127.0.0.1", "127.0.0.1", 0, secret, 1, options)
        host, port = _run.split_address(self._coordinator.address)
        config = {
            "run_id": run_id,
            "secret": secret.hex(),
            "rank": 0,
            "size": 1,
            "role": "chief",
            "index": 0,
            "host": "127.0.0.1",
            "coordinator": {"host": host, "port": port},
            "python": [sys.executable, "-m", "arcflow._node"],
            "env": {
                "PYTHONPATH": os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")]).rstrip(
                    os.pathsep
                ),
                "TF_CPP_MIN_LOG_LEVEL": "2",
                "CUDA_VISIBLE_DEVICES": "-1",
            },
            "cwd": str(HERE),
            "versions": _executor.versions(),
            "jvm_pid": 0,
            "feeds": {
                n: {"schema": {"columns": [SHAPES[s].column]}, "cache": cache}
                for n, s in feeds.items()
            },
            "feed_memory_bytes": feed_memory_bytes,
            "segment_bytes": SEGMENT_BYTES,
            "local_dirs": [tempfile.gettempdir()],
            "grace_s": 5,
            "heartbeat_s": 1,
            "log_tail_lines": 50,
            "forward_log": False,
            "job": {"run_id": run_id, "remainder": "partial"},
        }
        self.producer = Child("arcflow_producer.py")
        for shape in set(feeds.values()):
            self.producer.call(do="prepare", shape=shape)
        payload = base64.b64encode(cloudpickle.dumps((function, dict(args or {})))).decode()
        self.agent_pid: int = self.producer.call(do="launch", config=config, payload=payload)[
            "agent"
        ]

    def write(self, feed: str, shape: str, batches: int) -> None:
        """Start writing; ``producer.receive()`` waits for its end."""
        self.producer.send(do="write", feed=feed, shape=shape, batches=batches)

    def finish(self) -> tuple[dict[str, Any], Any]:
        """End the feeds, wait for the node; return its outcome and what its function returned."""
        answer = self.producer.call(do="end", feeds=self._feeds)
        outcome = answer["outcome"]
        if outcome is None or outcome["status"] != "ok":
            raise RuntimeError(f"the node did not finish: {json.dumps(outcome, indent=1)}")
        value, _ = pickle.loads(base64.b64decode(answer["result"]))  # and what moved its tensors
        return outcome, value

    def __enter__(self) -> LocalRun:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.producer.__exit__(kind, error, trace)
        self._coordinator.close()


class NodeServer:
    """The bench's end of `node_functions.serve_reads`."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "node.sock")
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen(1)
        self._listener.settimeout(120)

    def accept(self) -> None:
        self._connection, _ = self._listener.accept()
        self._connection.settimeout(300)
        self._file = self._connection.makefile("rw")

    def call(self, **command: Any) -> dict[str, Any]:
        self._file.write(json.dumps(command) + "\n")
        self._file.flush()
        line = self._file.readline()
        if not line:
            raise RuntimeError("the node ended")
        return json.loads(line)

    def close(self) -> None:
        """Close the connection; the node's function returns when it sees that."""
        self._file.close()
        self._connection.close()
        self._listener.close()
