# SPDX-License-Identifier: Apache-2.0
"""From `Cluster.run` to the first line of the user's function, less TensorFlow's import; and steps of `fit`."""

from __future__ import annotations

import statistics
import time

from cluster import two_executors
from node_functions import entered, fit_and_loop

from harness import Row, make_row, note


def measure(repeats: int) -> list[Row]:
    import arcflow

    with two_executors(memory_mib=1536) as spark, arcflow.Cluster(spark, size=2) as cluster:
        overheads = []
        for number in range(repeats + 1):
            submitted = time.time()
            values = cluster.run(entered).values
            slowest = max(value["entered"] for value in values) - submitted
            imported = (
                max(value["import_s"] for value in values if not value["imported_before"])
                if not all(value["imported_before"] for value in values)
                else 0.0
            )
            note(f"run to function: {slowest:.2f} s, import in it afterwards {imported:.2f} s")
            if number:  # the first run warms Spark's Python workers
                overheads.append(slowest)
        steps = cluster.run(
            fit_and_loop, args={"batch": 64, "steps": 150, "rounds": 5 * repeats}
        ).values[0]
    rows = [
        make_row("launch, two nodes, warm", "run to user's function", overheads, "s", goal="<= 3"),
        make_row(
            "Keras fit, two nodes",
            "a step",
            steps["fit"],
            "ms",
            baseline="custom loop, same model",
            baseline_values=steps["loop"],
            goal="<= 1.3 x",
        ),
    ]
    note(
        f"fit {statistics.median(steps['fit']):.2f} ms, loop {statistics.median(steps['loop']):.2f} ms a step"
    )
    return rows
