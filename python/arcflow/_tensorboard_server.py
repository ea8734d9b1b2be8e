# SPDX-License-Identifier: Apache-2.0
"""`python -m arcflow._tensorboard_server CONFIG`: TensorBoard, until standard input ends.

Lines of standard input are scalars to write; one line goes to standard output, with the URL or the
error. Without hdfs:// TensorFlow is not imported, which saves seconds.
"""

from __future__ import annotations

import json
import os
import posixpath
import signal
import sys
import types
from typing import Any, NoReturn

_OWN_RUN = "arcflow"
_MOST_FAILURES = 5


def main() -> NoReturn:
    """Serve; never returns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    config = json.loads(sys.argv[1])
    said = os.dup(1)
    os.dup2(2, 1)  # whatever else is printed belongs to standard error
    try:
        word = {"url": _launch(config)}
    except BaseException as error:
        word = {"error": f"{type(error).__name__}: {error}"}
    os.write(said, (json.dumps(word) + "\n").encode())
    os.close(said)
    try:
        if "url" in word:
            _write_scalars(config["folder"])
    finally:
        os._exit(0)


def _launch(config: dict[str, Any]) -> str:
    folder = config["folder"]
    if "://" in folder:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
        from arcflow.tf import register

        register()
    else:
        # The presence of this module makes TensorBoard use its own small stand-in for TensorFlow.
        sys.modules["tensorboard.compat.notf"] = types.ModuleType("tensorboard.compat.notf")
    from tensorboard import default, program

    board = program.TensorBoard(default.get_plugins())
    options = {"logdir": folder, "host": config["host"], "load_fast": "false", "reload_interval": 5}
    if config["port"] is not None:
        options["port"] = config["port"]
    board.configure(**options)
    return str(board.launch())


def _write_scalars(folder: str) -> None:
    """Write what comes, until nothing does."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    writer = None
    failures = 0
    for line in sys.stdin:
        if failures >= _MOST_FAILURES:
            continue
        word = json.loads(line)
        values = [Summary.Value(tag=k, simple_value=v) for k, v in word["values"].items()]
        event = Event(wall_time=word["wall"], step=word["step"], summary=Summary(value=values))
        try:
            if writer is None:
                writer = EventFileWriter(posixpath.join(folder, _OWN_RUN), flush_secs=2)
            writer.add_event(event)
        except Exception as error:  # a disk that is full, say: what is there is shown nevertheless
            writer, failures = None, failures + 1
            print(f"arcflow: scalars cannot be written to {folder}: {error}", file=sys.stderr)
    if writer is not None:
        writer.close()


if __name__ == "__main__":
    main()
