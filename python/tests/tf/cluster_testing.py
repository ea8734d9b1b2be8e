# SPDX-License-Identifier: Apache-2.0
"""Runs a function of a module in several local processes that form a TensorFlow cluster on loopback."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CHILD = """
import importlib, importlib.util, os, pickle, sys, traceback
path, name, args_file, result_file = sys.argv[1:]
spec = importlib.util.spec_from_file_location("program", path)
module = importlib.util.module_from_spec(spec); sys.modules["program"] = module
try:
    spec.loader.exec_module(module)
    with open(args_file, "rb") as f:
        kwargs = pickle.load(f)
    result = ("ok", getattr(module, name)(**kwargs))
except BaseException as e:
    result = ("error", (type(e).__name__, str(e), traceback.format_exc()))
with open(result_file + ".part", "wb") as f:
    pickle.dump(result, f)
os.rename(result_file + ".part", result_file)
sys.stdout.flush(); sys.stderr.flush()
os._exit(0)  # TensorFlow's own shutdown waits for peers, seconds long
"""


class RankFailedError(RuntimeError):
    def __init__(self, rank: int, type_name: str, message: str, text: str) -> None:
        super().__init__(f"rank {rank}: {text}")
        self.rank, self.type_name, self.message = rank, type_name, message


def _held_ports(count: int, stack: contextlib.ExitStack) -> list[int]:
    """Ports that nobody else gets while `stack` is open, but a server told to share ports.

    Without that another test takes one while the ranks still load TensorFlow.
    """
    ports = []
    for _ in range(count):
        held = stack.enter_context(socket.socket())
        held.bind(("127.0.0.1", 0))
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)  # only now, for gRPC to come
        ports.append(held.getsockname()[1])
    return ports


def run_ranks(
    program: Path | str,
    name: str,
    size: int,
    *,
    timeout_s: float = 240,
    env: dict | None = None,
    dead: tuple[int, ...] = (),
    hosts: Sequence[tuple[list[str], str]] | None = None,
    **kwargs: Any,
) -> list[Any]:
    """Values that ``name(**kwargs)`` of the file `program` returned, by rank.

    `hosts`: for each rank what its command begins with, and its address; by default all are on
    loopback. Raises RankFailedError with the first rank's error, TimeoutError when a rank hangs. All
    processes are gone afterwards. Ranks in `dead` are to end without a value; theirs is None.
    """
    cluster: dict[str, list[str]] = {}
    places = hosts or [([], "127.0.0.1")] * size
    with (
        tempfile.TemporaryDirectory(prefix="arcflow-test-") as folder,
        contextlib.ExitStack() as stack,
    ):
        for rank, port in enumerate(_held_ports(size, stack)):
            where = f"{places[rank][1]}:{port}"
            cluster.setdefault("chief" if rank == 0 else "worker", []).append(where)
        args_file = os.path.join(folder, "args")
        Path(args_file).write_bytes(pickle.dumps(kwargs))
        children = []
        try:
            for rank in range(size):
                task = {"type": "worker" if rank else "chief", "index": max(rank - 1, 0)}
                child_env = {
                    **os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1",
                    "KERAS_BACKEND": "tensorflow", "TF_GRPC_REUSE_PORT": "true", **(env or {}),
                }  # fmt: skip
                child_env.pop("TF_CONFIG", None)
                if size > 1:
                    child_env["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": task})
                log = stack.enter_context(open(os.path.join(folder, f"log{rank}"), "wb"))
                children.append(subprocess.Popen(
                    [*places[rank][0], sys.executable, "-c", CHILD, str(program), name, args_file,
                     os.path.join(folder, f"result{rank}")],
                    env=child_env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
                ))  # fmt: skip
            return _collect(folder, children, time.monotonic() + timeout_s, dead)
        finally:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
                child.wait()


def _collect(
    folder: str, children: list[subprocess.Popen], deadline: float, dead: tuple[int, ...]
) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(children):
        for rank, child in enumerate(children):
            if rank in results:
                continue
            ended = child.poll() is not None
            file = Path(folder, f"result{rank}")
            if file.exists():
                status, value = pickle.loads(file.read_bytes())
                if status == "error":
                    raise RankFailedError(rank, *value)
                results[rank] = value
            elif ended and rank in dead:
                results[rank] = None
            elif ended:
                tail = Path(folder, f"log{rank}").read_text(errors="replace")[-3000:]
                raise RankFailedError(rank, "exit", str(child.returncode), tail)
        if time.monotonic() > deadline:
            logs = [
                Path(folder, f"log{r}").read_text(errors="replace")[-2000:]
                for r in range(len(children))
            ]
            raise TimeoutError(
                f"ranks {set(range(len(children))) - set(results)} did not end: {logs}"
            )
        time.sleep(0.02)
    return [results[rank] for rank in range(len(children))]
