# SPDX-License-Identifier: Apache-2.0
"""What nodes count, as Prometheus reads it: text, and a small server for it in the driver."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import errors

_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NANO = 1e-9
# Name, kind, key in what agents report, factor, help.
_OF_NODES = (
    ("steps_total", "counter", "steps", 1, "Batches handed out by datasets and readers."),
    ("rows_used_total", "counter", "rows_used", 1, "Rows handed out, without padding."),
    ("rows_padded_total", "counter", "rows_padded", 1, "Padding rows handed out."),
    ("bytes_used_total", "counter", "bytes_used", 1, "Bytes of tensors handed out."),
    ("feed_wait_seconds_total", "counter", "wait_ns", _NANO, "Time that readers waited for rows."),
    ("compute_seconds_total", "counter", "compute_ns", _NANO, "Time between batches."),
    ("epochs_total", "counter", "epochs", 1, "Passes that reached their end."),
    ("batches_copied_total", "counter", "batches_copied", 1, "Batches that were not zero copy."),
    ("user_step", "gauge", "user_step", 1, "Step, as the program says."),
    ("user_epoch", "gauge", "user_epoch", 1, "Epoch, as the program says."),
    ("user_loss", "gauge", "user_loss", 1, "Loss, as the program says."),
)
_OF_FEEDS = (
    ("rows_total", "counter", "rows", 1, "Rows that Spark's tasks have brought."),
    ("bytes_total", "counter", "bytes", 1, "Bytes of the segments that hold them."),
    ("spilled_bytes", "gauge", "spilled_bytes", 1, "Bytes of them that lie on disk."),
    ("depth_bytes", "gauge", "depth_bytes", 1, "Bytes of segments that no reader has passed."),
    ("writer_wait_seconds_total", "counter", "acquire_wait_ns", _NANO,
     "Time that the feeder waited for memory."),
)  # fmt: skip


class Live:
    """The newest report of every node of the run under way, or of the last one.

    Threads: any.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._run: dict[str, str] = {}
        self._names: list[str] = []
        self._ranks: dict[int, Mapping[str, Any]] = {}

    def begin(self, run_id: str, attempt: int, names: Sequence[str]) -> None:
        """Forget the run before; `names` are those of the nodes, by rank (``"worker:0"``)."""
        with self._lock:
            self._run = {"run": run_id, "attempt": str(attempt)}
            self._names = list(names)
            self._ranks = {}

    def update(self, ranks: Sequence[Mapping[str, Any]]) -> None:
        """Take reports: ``rank``, ``counters``, ``feeds``, ``rss_bytes``; what is missing stays."""
        with self._lock:
            for one in ranks:
                rank = int(one["rank"])
                said = {key: value for key, value in one.items() if value}
                self._ranks[rank] = {**self._ranks.get(rank, {}), **said}

    def text(self) -> str:
        """Everything in Prometheus's text format; empty before the first run."""
        with self._lock:
            if not self._run:
                return ""
            return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield from _head("run_info", "gauge", "The run that the other values are of.")
        yield f"arcflow_run_info{_labels(self._run)} 1"
        yield from _head("nodes", "gauge", "Nodes that have reported.")
        yield f"arcflow_nodes {len(self._ranks)}"
        ranks = sorted(self._ranks.items())
        for name, kind, key, factor, text in _OF_NODES:
            values = [(rank, (one.get("counters") or {}).get(key)) for rank, one in ranks]
            yield from self._family(f"node_{name}", kind, text, values, factor)
        values = [(rank, one.get("rss_bytes")) for rank, one in ranks]
        yield from self._family("node_resident_bytes", "gauge", "Memory of the node.", values, 1)
        for name, kind, key, factor, text in _OF_FEEDS:
            yield from _head(f"feed_{name}", kind, text)
            for rank, one in ranks:
                for feed, levels in sorted((one.get("feeds") or {}).items()):
                    if (value := levels.get(key)) is not None:
                        labels = {**self._node(rank), "feed": feed}
                        yield f"arcflow_feed_{name}{_labels(labels)} {_number(value * factor)}"

    def _family(
        self, name: str, kind: str, text: str, values: Sequence[tuple[int, Any]], factor: float
    ) -> Iterator[str]:
        yield from _head(name, kind, text)
        for rank, value in values:
            if value is not None:
                yield f"arcflow_{name}{_labels(self._node(rank))} {_number(value * factor)}"

    def _node(self, rank: int) -> dict[str, str]:
        name = self._names[rank] if rank < len(self._names) else ""
        return {"rank": str(rank), "node": name}


class Server:
    """Answers ``GET /metrics`` until it is closed.

    Parameters
    ----------
    live
        What it tells.
    host, port
        Where it listens; port 0: any.

    Raises
    ------
    UnavailableError
        The address cannot be had.
    """

    def __init__(self, live: Live, host: str, port: int) -> None:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if self.path.partition("?")[0] != "/metrics":
                    self.send_error(404, "only /metrics is here")
                    return
                body = live.text().encode()
                self.send_response(200)
                self.send_header("Content-Type", _TYPE)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

            timeout = 10.0  # who connects and says nothing is let go

        try:
            self._server = http.server.ThreadingHTTPServer((host, port), Handler)
        except (OSError, OverflowError) as error:
            raise errors.UnavailableError(
                f"cannot serve metrics at {host}:{port}: {error}. Choose another host= or port="
            ) from error
        self._server.daemon_threads = True
        self.url = "http://{}:{}/metrics".format(*self._server.server_address[:2])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.2,), name="arcflow-metrics", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stop listening; a second call does nothing."""
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP arcflow_{name} {text}"
    yield f"# TYPE arcflow_{name} {kind}"


def _labels(labels: Mapping[str, str]) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{key}="{escaped(value)}"' for key, value in labels.items()) + "}"


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))
