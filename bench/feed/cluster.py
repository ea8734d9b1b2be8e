# SPDX-License-Identifier: Apache-2.0
"""The cluster that the benches with Spark share: two executors of one core on this machine."""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from harness import ROOT

sys.path.insert(0, str(ROOT / "examples"))


@contextlib.contextmanager
def two_executors(memory_mib: int = 3072) -> Iterator[Any]:
    """Yield a session on a standalone cluster with two Workers; the JVM compiles as on a real one."""
    from standalone import StandaloneCluster

    with tempfile.TemporaryDirectory(prefix="arcflow-bench-") as folder:
        cluster = StandaloneCluster(
            Path(folder), memory_mib=memory_mib, java_options="-XX:+UseParallelGC"
        )
        with cluster:
            spark = cluster.session(
                "arcflow-bench",
                spark__driver__memory="1g",
            )
            try:
                yield spark
            finally:
                spark.stop()
