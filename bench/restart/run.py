# SPDX-License-Identifier: Apache-2.0
"""Kill a node at a random step, with many seeds, and compare with the run in which nothing happened.

For each seed two runs of the same program on a standalone cluster: one undisturbed, one in which a
node of random rank is killed (SIGKILL) before a random step. Compared are the bytes of the final
weights, and the rows that each step read. The overhead is what a restart costs beyond the start that
TensorFlow itself takes: time from the kill to the first step of the second attempt, less the time
from the start of the first attempt's node to its first step.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cloudpickle

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "python" / "tests")]
if importlib.util.find_spec("arcflow") is None:
    sys.path.insert(0, str(ROOT / "python"))

import node_programs  # noqa: E402
import spark_testing  # noqa: E402

from arcflow import Cluster, Feed  # noqa: E402
from harness import environment, make_row, note, print_table, write_json  # noqa: E402

cloudpickle.register_pickle_by_value(node_programs)  # executors cannot import this folder
ROWS, BATCH, EPOCHS, EVERY, SIZE = 600, 10, 3, 5, 2


def frame(spark: Any) -> Any:
    """Return rows whose values follow from their numbers."""
    return spark.range(0, ROWS, 1, 6).selectExpr(
        "id",
        "transform(sequence(1, 8), i -> cast(sin(id * i) as float)) as x",
        "cast(cos(id) as float) as y",
    )


def one_run(spark: Any, data: Any, folder: Path, seed: int, death: dict[str, int] | None) -> Any:
    """Run the program once; return the result and what its nodes wrote down."""
    args = {"directory": str(folder / "checkpoints"), "notes": str(folder), "seed": seed,
            "batch": BATCH, "epochs": EPOCHS, "every": EVERY, "death": death}  # fmt: skip
    with Cluster(
        spark, size=SIZE, max_restarts=2, restart_backoff=0.2, progress=False, start_timeout=300,
        grace=1,
    ) as cluster:  # fmt: skip
        result = cluster.run(
            node_programs.train, data={"train": Feed(data, shapes={"x": (8,)})}, args=args
        )
    notes = [json.loads(line) for path in sorted(folder.glob("*.jsonl"))
             for line in path.read_text().splitlines()]  # fmt: skip
    return result, notes


def rows_of_steps(notes: list[dict[str, Any]]) -> dict[tuple[int, int], list[int]]:
    """Return the ids that each rank read in each step; a step that was made again counts as its last."""
    return {(one["rank"], one["step"]): one["ids"] for one in notes if "ids" in one}


def overhead_s(notes: list[dict[str, Any]]) -> float:
    """Seconds from the kill to the first step of attempt 2, less what a start takes anyway."""
    killed = next(one["time"] for one in notes if one.get("what") == "kill")
    first_steps = {
        attempt: max(
            min(
                o["time"]
                for o in notes
                if "ids" in o and o["attempt"] == attempt and o["rank"] == r
            )
            for r in range(SIZE)
        )
        for attempt in (1, 2)
    }
    began = {
        attempt: min(
            o["time"] for o in notes if o.get("what") == "began" and o["attempt"] == attempt
        )
        for attempt in (1, 2)
    }
    # From the kill until nodes run again, and what the second start took longer than the first.
    return (began[2] - killed) + max(0.0, (first_steps[2] - began[2]) - (first_steps[1] - began[1]))


def compare(spark: Any, data: Any, folder: Path, seed: int) -> dict[str, Any]:
    """Make both runs of a seed; return what is to be known about them."""
    chance = random.Random(seed)
    steps = EPOCHS * ROWS // (SIZE * BATCH)
    good, good_notes = one_run(spark, data, folder / "good", seed, None)
    death = {"rank": chance.randrange(SIZE), "step": chance.randrange(1, steps - 1)}
    again, again_notes = one_run(spark, data, folder / "again", seed, death)
    good_rows, again_rows = rows_of_steps(good_notes), rows_of_steps(again_notes)
    per_epoch: dict[int, list[int]] = {}
    for one in {(o["rank"], o["step"]): o for o in again_notes if "ids" in o}.values():
        per_epoch.setdefault(one["epoch"], []).extend(one["ids"])
    return {
        "seed": seed,
        "killed": death,
        "attempts": len(again.attempts),
        "restored": again.attempts[-1].restored,
        "equal": [v["weights"] for v in good.values] == [v["weights"] for v in again.values],
        "rows": good_rows == again_rows
        and all(sorted(ids) == list(range(ROWS)) for ids in per_epoch.values())
        and len(per_epoch) == EPOCHS,
        "overhead_s": overhead_s(again_notes),
    }


def main() -> int:
    """Run all seeds and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the servers end with us
    with tempfile.TemporaryDirectory(prefix="arc-bench-restart-") as name:
        spark_testing.prepare_environment(name)
        folder = Path(name)
        with spark_testing.Servers(folder / "servers") as servers:
            spark = spark_testing.classic_session(servers.standalone(), folder)
            data = frame(spark)
            found = []
            for seed in range(1, options.seeds + 1):
                begun = time.monotonic()
                for kind in ("good", "again"):
                    (folder / str(seed) / kind).mkdir(parents=True)
                found.append(compare(spark, data, folder / str(seed), seed))
                note(f"{found[-1]} ({time.monotonic() - begun:.1f} s)")
            spark_testing.stop_sessions()
    case = f"{len(found)} seeds, SIGKILL of a random node before a random step"
    share = [float(one["equal"]) for one in found]
    rows = [
        make_row(case, "runs with bit-equal weights", [sum(share) / len(share)], "share", goal=">= 1"),
        make_row(case, "runs with every row accounted for",
                 [sum(float(one["rows"]) for one in found) / len(found)], "share", goal=">= 1"),
        make_row(case, "restart beyond TensorFlow's start", [one["overhead_s"] for one in found], "s",
                 goal="<= 5"),
    ]  # fmt: skip
    where = environment(["tensorflow-cpu", "keras", "pyspark"])
    print_table(where, rows)
    if options.output:
        write_json(options.output, where, rows)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
