# SPDX-License-Identifier: Apache-2.0
"""One cell of each row and column of the fault table (bench/chaos), on hosts that are network namespaces."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.spark
@pytest.mark.tf
@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces and memory cgroups need root")
def test_each_victim_fault_and_stage_is_named_and_leaves_nothing(tmp_path):
    output = tmp_path / "chaos.json"
    command = [sys.executable, str(ROOT / "bench/chaos/run.py"), "--diagonal", "--patience", "8"]
    done = subprocess.run(
        [*command, "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    assert output.exists(), done.stderr[-4000:]
    rows = json.loads(output.read_text())["rows"]
    assert len(rows) == 8
    missed = [
        f"{row['case']}: {row['metric']}, {row['value']:.1f} s" for row in rows if not row["met"]
    ]
    assert not missed, done.stderr[-4000:]
