# SPDX-License-Identifier: Apache-2.0
"""Runs a function of a module as a node that `feed_harness` feeds made-up rows."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from cluster_testing import CHILD, RankFailedError

ROOT = Path(__file__).resolve().parents[3]


def built(name: str) -> Path | None:
    """Newest build of a developer target of cpp/plugins/tensorflow; ARCFLOW_TEST_BUILD names a folder."""
    folder = os.environ.get("ARCFLOW_TEST_BUILD")
    found = (
        Path(folder).rglob(name) if folder else ROOT.glob(f"build/*/cpp/plugins/tensorflow/{name}")
    )
    return max(found, key=lambda p: p.stat().st_mtime, default=None)


def column(name: str, dtype: str, source: str = "scalar", shape: tuple[int, ...] = ()) -> dict:
    return {"name": name, "dtype": dtype, "source": source, "shape": list(shape)}


def expected(col: dict, rows: np.ndarray) -> Any:
    """What feed_harness puts into these rows of a column."""
    if col["dtype"] == "string":
        return [f"row {r}".encode() + b"." * int(r % 7) for r in rows]
    k = int(np.prod(col["shape"]))
    values = rows[:, None].astype(np.int64) * k + np.arange(k)
    values = values % 2 == 1 if col["dtype"] == "bool" else values.astype(col["dtype"])
    return values.reshape(len(rows), *col["shape"])


def feed(columns: list[dict], rows: int, **more: Any) -> dict:
    return {"schema": {"columns": columns}, "rows": rows, **more}


def run_fed(
    program: Path | str,
    name: str,
    feeds: dict[str, dict],
    *,
    memory_bytes: int = 64 << 20,
    segment_bytes: int = 1 << 20,
    timeout_s: float = 120,
    env: dict | None = None,
    rank: int = 0,
    **kwargs: Any,
) -> tuple[Any, dict]:
    """The value that ``name(**kwargs)`` returned in the node, and the service's statistics."""
    harness = built("feed_harness")
    assert harness, (
        "feed_harness is not built: cmake --preset python -B build/tf -DARC_DEVELOPER=ON"
    )
    with tempfile.TemporaryDirectory(prefix="arcflow-test-") as folder:
        paths = {k: os.path.join(folder, k) for k in ("setup", "args", "result", "stats", "log")}
        setup = {
            "feeds": feeds, "memory_bytes": memory_bytes, "segment_bytes": segment_bytes,
            "stats": paths["stats"], "local_dir": folder, "rank": rank,
        }  # fmt: skip
        Path(paths["setup"]).write_text(json.dumps(setup))
        Path(paths["args"]).write_bytes(pickle.dumps(kwargs))
        with open(paths["log"], "wb") as log:
            harness_process = subprocess.Popen(
                [str(harness), paths["setup"], sys.executable, "-c", CHILD, str(program), name,
                 paths["args"], paths["result"]],
                env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1",
                     "KERAS_BACKEND": "tensorflow", "ARCFLOW_TEST_OPS": str(built("libarcflow_bench_ops*.so")),
                     **(env or {})},
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            )  # fmt: skip
        try:
            harness_process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise TimeoutError(Path(paths["log"]).read_text(errors="replace")[-3000:]) from None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(harness_process.pid, signal.SIGKILL)
            harness_process.wait()
        text = Path(paths["log"]).read_text(errors="replace")[-3000:]
        if not Path(paths["result"]).exists():
            raise RankFailedError(0, "exit", str(harness_process.returncode), text)
        status, value = pickle.loads(Path(paths["result"]).read_bytes())
        if status == "error":
            raise RankFailedError(0, *value)
        return value, json.loads(Path(paths["stats"]).read_text())
