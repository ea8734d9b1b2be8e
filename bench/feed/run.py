# SPDX-License-Identifier: Apache-2.0
"""`make bench-feed`: how fast rows reach TensorFlow, against other ways measured in the same run."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
os.environ["PYTHONPATH"] = os.pathsep.join(
    sys.path[:2]
)  # executors and nodes import what is measured from here

from harness import Row, environment, note, print_table, write_json  # noqa: E402

# Module of this folder: repeats of a full run.
PARTS = {
    "memory_to_tensor": 5,
    "epochs": 25,
    "shuffle": 5,
    "bounded_memory": 1,
    "spark_to_tensor": 7,
    "arrays": 5,
    "launch": 5,
    "uneven": 5,
    "exchange": 5,
    "remote": 5,
    "partitions": 3,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/bench/feed.json"))
    parser.add_argument("--only", help=f"some of: {','.join(PARTS)}")
    parser.add_argument(
        "--repeats", type=int, help="rounds of each comparison; 1 shows that it runs"
    )
    options = parser.parse_args()
    wanted = options.only.split(",") if options.only else list(PARTS)
    unknown = sorted(set(wanted) - set(PARTS))
    if unknown:
        parser.error(f"no such part: {', '.join(unknown)}")
    env = environment(["tensorflow-cpu", "keras", "pyspark", "pyarrow", "numpy"])
    rows: list[Row] = []
    failed = []
    for part in wanted:
        note(f"== {part}")
        try:
            rows += importlib.import_module(part).measure(options.repeats or PARTS[part])
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
