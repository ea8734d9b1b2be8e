# SPDX-License-Identifier: Apache-2.0
"""What a node counts, as TensorBoard scalars; written without TensorFlow, which may not be there.

The file is TensorFlow's record format (length, masked CRC-32C of it, data, masked CRC-32C of the
data) of ``Event`` messages, encoded by hand: ``tensorflow/core/util/event.proto``.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from . import _tensorboard, _transport
from ._metrics import share
from .errors import InvalidArgumentError

INTERVAL_S = 5.0
_NANO = 1e-9
# Name of a scalar, and counter whose growth by the second it is.
_RATES = (
    ("steps_per_s", "steps", 1.0),
    ("rows_per_s", "rows_used", 1.0),
    ("bytes_per_s", "bytes_used", 1.0),
    ("fed_rows_per_s", "rows_fed", 1.0),
    ("reader_wait_share", "wait_ns", _NANO),
    ("writer_wait_share", "feeder_wait_ns", _NANO),
    ("transport_sent_bytes_per_s", "transport_sent", 1.0),
    ("transport_received_bytes_per_s", "transport_received", 1.0),
)
# Counters that are shown as they are.
_LEVELS = ("depth_bytes", "epochs", "transport_fallbacks")


class EventFile:
    """An event file of TensorBoard, to which scalars are added.

    Parameters
    ----------
    directory
        Is made if it is not there.
    """

    def __init__(self, directory: str) -> None:
        os.makedirs(directory, exist_ok=True)
        name = (
            f"events.out.tfevents.{int(time.time())}.{socket.gethostname()}.{os.getpid()}.arcflow"
        )
        self._file = open(os.path.join(directory, name), "ab")  # noqa: SIM115
        self._add(_text(3, b"brain.Event:2"))

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Add values of a step, and hand them to the operating system."""
        parts = [_text(1, _text(1, name.encode()) + _float(2, v)) for name, v in values.items()]
        self._add(_varint_field(2, step) + _text(5, b"".join(parts)))
        self._file.flush()

    def _add(self, event: bytes) -> None:
        event = struct.pack("<Bd", 1 << 3 | 1, time.time()) + event
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))

    def close(self) -> None:
        """End the file."""
        self._file.close()


class Scalars:
    """Writes a node's rates every few seconds, and at the end of every pass, until it is closed.

    Parameters
    ----------
    file
        Where to.
    counters
        Gives the node's counters.
    interval_s
        Seconds between two points.
    """

    def __init__(
        self, file: EventFile, counters: Callable[[], Mapping[str, Any]], interval_s: float
    ) -> None:
        self._file = file
        self._counters = counters
        self._interval_s = interval_s
        self._end = threading.Event()
        self._told = False  # that nothing can be written
        self._last = dict(counters())
        self._at = time.monotonic()
        self._thread = threading.Thread(target=self._run, name="arcflow-scalars", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(min(self._interval_s, 1.0)):
            now = self._counters()
            late = time.monotonic() - self._at >= self._interval_s
            if late or now["epochs"] != self._last["epochs"]:
                self._write(now)

    def _write(self, now: Mapping[str, Any]) -> None:
        try:
            self._add(now)
        except OSError as error:  # a full disk is no reason to end a training
            if not self._told:
                print(f"arcflow: metrics are lost: {error}", file=sys.stderr, flush=True)
            self._told = True

    def _add(self, now: Mapping[str, Any]) -> None:
        last, self._last = self._last, dict(now)
        began, self._at = self._at, time.monotonic()
        seconds = max(self._at - began, 1e-6)
        grown = {key: now[key] - last.get(key, 0) for key in now if isinstance(now[key], int)}
        values = {
            f"arcflow/{name}": grown[key] * by / seconds for name, key, by in _RATES if key in grown
        }
        if grown["wait_ns"] + grown["compute_ns"] > 0:
            values["arcflow/feed_bound"] = share(grown["wait_ns"], grown["compute_ns"])
        values |= {f"arcflow/{name}": now[name] for name in _LEVELS if name in now}
        self._file.scalars(now["steps"], values)

    def close(self) -> None:
        """Write the last point."""
        self._end.set()
        self._thread.join()
        self._write(self._counters())
        with contextlib.suppress(OSError):
            self._file.close()


def checked_dir(metrics_dir: str | os.PathLike[str] | None) -> str | None:
    """Return the folder as the nodes shall use it."""
    if metrics_dir is None:
        return None
    path = os.fspath(metrics_dir).removeprefix("file://")
    if not path or "://" in path:
        raise InvalidArgumentError(
            f"metrics_dir={path!r}: a folder is needed that nodes can open as a file, such as one on NFS"
        )
    return os.path.abspath(path)


def folders_of(config: Mapping[str, Any]) -> list[str]:
    """Where a node writes: the run's folder for metrics, and TensorBoard's if it is no remote one."""
    job = config.get("job") or {}
    role, index = str(config["role"]), int(config["index"])
    folders = []
    if job.get("metrics_dir"):
        run_dir = os.path.join(job["metrics_dir"], str(job.get("run_id", "")))
        folders.append(os.path.join(run_dir, f"{role}-{index}"))
    shown = _tensorboard.node_dir(job, role, index)
    if shown is not None and "://" not in shown and shown not in folders:
        folders.append(shown)
    return folders


@contextlib.contextmanager
def written(link: Any, config: Mapping[str, Any]) -> Any:
    """While it is open, write a node's scalars if the run has folders for them."""

    def counters() -> dict[str, Any]:
        return {**link.counters(), **_transport.totals()}

    writers = []
    for folder in folders_of(config):
        try:
            writers.append(Scalars(EventFile(folder), counters, INTERVAL_S))
        except OSError as error:  # a folder is no reason to end a training
            print(f"arcflow: no metrics in {folder}: {error}", file=sys.stderr, flush=True)
    try:
        yield
    finally:
        for writer in writers:
            writer.close()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _varint_field(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _text(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _crc_table()


def _masked_crc(data: bytes) -> bytes:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
