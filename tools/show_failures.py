#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes the ten commonest failures happen on local[4], and prints what the driver raises.

docs/guide/failures.md shows this output: run it again when a message changes.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

_MAX_LINES = 14


def exception(ctx: Any) -> None:
    if ctx.rank == 1:
        print("epoch 3, step 120")
        raise ValueError("labels must be below 10")
    time.sleep(600)


def memory(ctx: Any) -> None:
    import numpy as np

    np.zeros((1 << 20, 1 << 24))


def segfault(ctx: Any) -> None:
    import ctypes

    ctypes.string_at(0)


def abort(ctx: Any) -> None:
    import ctypes

    libc = ctypes.CDLL(None)
    libc.free.argtypes = [ctypes.c_void_p]
    libc.malloc.restype = ctypes.c_void_p
    block = libc.malloc(2048)
    libc.malloc(16)
    libc.free(block)
    libc.free(block)


def leave(ctx: Any) -> None:
    sys.exit("no GPU found")


def stall(ctx: Any) -> None:
    for step in range(5):
        ctx.log(step=step + 1)
    if ctx.rank == 1:
        threading.Lock().acquire() and time.sleep(600)
    ctx.barrier("end of epoch")


def wait(ctx: Any) -> None:
    Path(ctx.args, str(ctx.rank)).write_text(str(os.getpid()))
    time.sleep(600)


def barriers(ctx: Any) -> None:
    if ctx.rank == 0:
        ctx.barrier("checkpoint", timeout=2)
    time.sleep(600)


def read(ctx: Any) -> int:
    return sum(1 for _ in ctx.reader("train", 16, remainder="partial"))


def signalled(cluster: Any, what: int) -> Callable[[], Any]:
    """Run until both nodes are there, then send a signal to rank 1."""

    def run() -> Any:
        with tempfile.TemporaryDirectory() as folder:

            def send() -> None:
                path = Path(folder, "1")
                while not (path.exists() and path.read_text()):
                    time.sleep(0.1)
                os.kill(int(path.read_text()), what)

            threading.Thread(target=send, daemon=True).start()
            return cluster.run(wait, args=folder)

    return run


def main() -> None:
    from pyspark.sql import SparkSession

    from arcflow import Cluster, errors

    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.log.level": "OFF",
    }
    builder = SparkSession.builder.master("local[4]").appName("failures")
    for name, value in settings.items():
        builder = builder.config(name, value)
    spark = builder.getOrCreate()
    options = {"size": 2, "progress": False, "grace": 2, "log_lines": 5}
    cluster = Cluster(spark, **options)
    impatient = Cluster(spark, **options, stall_timeout=5, stop_timeout=3)
    nulls = spark.range(0, 1000, 1, 2).selectExpr("if(id = 700, null, id) as id")
    cases: dict[str, Callable[[], Any]] = {
        "The function raises": lambda: cluster.run(exception),
        "A node is killed": signalled(cluster, signal.SIGKILL),
        "Memory cannot be had": lambda: cluster.run(memory),
        "A native library crashes": lambda: cluster.run(segfault),
        "A native library aborts": lambda: cluster.run(abort),
        "The function calls sys.exit": lambda: cluster.run(leave),
        "A row cannot be fed": lambda: cluster.run(read, data=nulls),
        "A node stalls": lambda: impatient.run(stall),
        "A node is stopped by a signal": signalled(impatient, signal.SIGSTOP),
        "A node does not come to a barrier": lambda: cluster.run(barriers),
    }
    for title, case in cases.items():
        try:
            case()
        except errors.ArcflowError as error:
            lines = re.sub(r'"/[^"]*/', '"…/', str(error)).splitlines()
            shown = lines if len(lines) <= _MAX_LINES else [*lines[:_MAX_LINES], "…"]
            print(f"### {title}\n\n```\n" + "\n".join(shown) + "\n```\n", flush=True)
        else:
            print(f"### {title}: nothing was raised", flush=True)
    spark.stop()


if __name__ == "__main__":
    main()
