# SPDX-License-Identifier: Apache-2.0
"""`make bench-hdfs`: reading and writing HDFS from TensorFlow, against curl and hdfs-native."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(HERE.parent), str(ROOT / "tools" / "hadoop")]
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import hdfs_cluster as hadoop  # noqa: E402

from harness import (  # noqa: E402
    Row,
    environment,
    interleaved,
    make_row,
    note,
    print_table,
    write_json,
)

MB = 1_000_000
READ_BYTES = 256 * MB
READ_STEP = 4 << 20
RANDOM_BYTES = 64 << 10
RANDOM_READS = 100
SAVED_BYTES = 500 * MB
REPEATS = {"sequential": 5, "random": 5, "checkpoint": 3}


def seconds(act: Callable[[], Any]) -> float:
    start = time.perf_counter()
    act()
    return time.perf_counter() - start


def sequential(hdfs: hadoop.Hdfs, tf: Any, native: Any, repeats: int) -> list[Row]:
    """Read a file of 256 MB from its beginning to its end, in steps of 4 MiB; MB/s."""
    path = "/bench/sequential"
    upload(hdfs, path, READ_BYTES)
    url = f"http://{hdfs.http}/webhdfs/v1{path}?op=OPEN"

    def arcflow() -> float:
        def read() -> None:
            with tf.io.gfile.GFile(hdfs.uri + path, "rb") as file:
                while file.read(READ_STEP):
                    pass

        return READ_BYTES / MB / seconds(read)

    def curl() -> float:
        command = ["curl", "-sSL", "--fail", "-o", "/dev/null", url]
        return READ_BYTES / MB / seconds(lambda: subprocess.run(command, check=True))

    cases: dict[str, Callable[[], float]] = {"arcflow": arcflow, "curl": curl}
    if native:

        def hdfs_native() -> float:
            def read() -> None:
                reader = native.Client(hdfs.uri).read(path)
                while len(reader.read(READ_STEP)):
                    pass

            return READ_BYTES / MB / seconds(read)

        cases["hdfs-native"] = hdfs_native
    got = interleaved(cases, repeats)
    return [
        make_row("read 256 MB", "rate", got["arcflow"], "MB/s", baseline=name,
                 baseline_values=got[name], goal=">= 1 x")
        for name in cases if name != "arcflow"
    ]  # fmt: skip


def at_random(hdfs: hadoop.Hdfs, tf: Any, native: Any, repeats: int) -> list[Row]:
    """Read 64 KiB 100 times anywhere in a file of 256 MB; reads a second."""
    path = "/bench/sequential"
    rng = random.Random(1)
    limit = READ_BYTES - RANDOM_BYTES

    def offsets() -> list[int]:
        return [rng.randrange(limit) for _ in range(RANDOM_READS)]

    from tensorflow.python.lib.io import _pywrap_file_io

    def arcflow() -> float:
        places = offsets()

        def read() -> None:
            # As TensorFlow's kernels read: without the buffer of gfile, which reads 512 KiB.
            file = _pywrap_file_io.BufferedInputStream(hdfs.uri + path, RANDOM_BYTES)
            for place in places:
                file.seek(place)
                assert len(file.read(RANDOM_BYTES)) == RANDOM_BYTES

        return RANDOM_READS / seconds(read)

    cases: dict[str, Callable[[], float]] = {"arcflow": arcflow}
    if native:

        def hdfs_native() -> float:
            places = offsets()

            def read() -> None:
                reader = native.Client(hdfs.uri).read(path)
                for place in places:
                    assert len(reader.read_range(place, RANDOM_BYTES)) == RANDOM_BYTES

            return RANDOM_READS / seconds(read)

        cases["hdfs-native"] = hdfs_native
    got = interleaved(cases, repeats)
    if not native:
        return [make_row("read 64 KiB at random", "rate", got["arcflow"], "reads/s")]
    return [
        make_row("read 64 KiB at random", "rate", got["arcflow"], "reads/s",
                 baseline="hdfs-native", baseline_values=got["hdfs-native"], goal=">= 0.7 x")
    ]  # fmt: skip


def checkpoint(hdfs: hadoop.Hdfs, tf: Any, native: Any, repeats: int) -> list[Row]:
    """Save a tf.train.Checkpoint of 500 MB to HDFS, and locally with an upload by curl; seconds."""
    del native
    count = SAVED_BYTES // 4 // 10
    variables = {f"v{i}": tf.Variable(tf.random.normal([count])) for i in range(10)}
    saver = tf.train.Checkpoint(**variables)
    folder = tempfile.mkdtemp(prefix="arcflow-bench-")

    def ours() -> float:
        taken = seconds(lambda: saver.write(f"{hdfs.uri}/bench/checkpoint/c"))
        tf.io.gfile.rmtree(f"{hdfs.uri}/bench/checkpoint")
        return taken

    def local_and_upload() -> float:
        def act() -> None:
            saver.write(f"{folder}/c")
            for name in os.listdir(folder):
                put(hdfs, os.path.join(folder, name), f"/bench/upload/{name}")

        return seconds(act)

    try:
        got = interleaved({"arcflow": ours, "local": local_and_upload}, repeats)
    finally:
        shutil.rmtree(folder)
    return [
        make_row("save a checkpoint of 500 MB", "time", got["arcflow"], "s",
                 baseline="local save + curl upload", baseline_values=got["local"],
                 goal="<= 1.5 x")
    ]  # fmt: skip


def put(hdfs: hadoop.Hdfs, source: str, path: str) -> None:
    """Upload a file with curl, in WebHDFS's two steps."""
    first = f"http://{hdfs.http}/webhdfs/v1{path}?op=CREATE&overwrite=true&user.name={USER}"
    where = subprocess.run(
        ["curl", "-sS", "--fail", "-o", "/dev/null", "-w", "%{redirect_url}", "-X", "PUT", first],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    subprocess.run(
        ["curl", "-sS", "--fail", "-o", "/dev/null", "-H", "Expect:", "-T", source, where],
        check=True,
    )


def upload(hdfs: hadoop.Hdfs, path: str, size: int) -> None:
    """Put a file of random bytes there."""
    with tempfile.NamedTemporaryFile(prefix="arcflow-bench-") as file:
        left = size
        while left > 0:
            left -= file.write(os.urandom(min(left, 16 << 20)))
        file.flush()
        put(hdfs, file.name, path)


USER = "root" if os.getuid() == 0 else os.environ.get("USER", "nobody")
PARTS = {"sequential": sequential, "random": at_random, "checkpoint": checkpoint}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/bench/hdfs.json"))
    parser.add_argument("--only", help=f"some of: {','.join(PARTS)} (random needs sequential)")
    parser.add_argument("--repeats", type=int, help="rounds of each comparison; 1 shows it runs")
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(PARTS)
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    lacking = hadoop.missing()
    if lacking:
        sys.exit(lacking)
    try:
        import hdfs_native as native
    except ImportError:
        native = None
        note("hdfs-native is not installed (requirements/demo.txt): no comparison with it")
    env = environment(["tensorflow-cpu", "hdfs-native"])
    rows: list[Row] = []
    failed = []
    with tempfile.TemporaryDirectory(prefix="arcflow-bench-") as folder:
        cache = ROOT / "build" / "hadoop"
        with hadoop.Hdfs(
            Path(folder) / "hdfs", cache, data_nodes=1, replication=1, fast=True
        ) as hdfs:
            os.environ["HADOOP_CONF_DIR"] = str(hdfs.conf_dir)
            import tensorflow as tf

            import arcflow.tf

            arcflow.tf.register()
            for part in wanted:
                note(f"== {part}")
                try:
                    rows += PARTS[part](hdfs, tf, native, options.repeats or REPEATS[part])
                except Exception:  # the other parts are worth having
                    traceback.print_exc()
                    failed.append(part)
    print_table(env, rows)
    write_json(options.output, env, rows)
    if failed:
        print(f"parts that failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
