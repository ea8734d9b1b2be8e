# SPDX-License-Identifier: Apache-2.0
"""read_files: every record once, every node as many, and options that mean something."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from cluster_testing import run_ranks  # noqa: E402

pytestmark = [pytest.mark.tf, pytest.mark.slow]
PROGRAM = HERE / "read_programs.py"
ALL = {f"{part}:{i}".encode() for part, count in enumerate((5, 17, 1, 30)) for i in range(count)}


def test_shares_of_records_and_files(tmp_path):
    (got,) = run_ranks(PROGRAM, "shares", 1, folder=str(tmp_path))
    # 53 records for 3 nodes: 17 each, no record twice, two left out.
    assert [len(share) for share in got["records"]] == [17, 17, 17]
    assert len(set().union(*got["records"])) == 51
    assert set().union(*got["records"]) < ALL
    # Four files for two nodes: two each, every record.
    assert [sorted({r[:1] for r in share}) for share in got["files"]] == [
        [b"0", b"2"],
        [b"1", b"3"],
    ]
    assert set().union(*got["files"]) == ALL
    assert set(got["single"][0]) == ALL
    assert len(got["single"][0]) == 53
    assert got["shuffled"] == got["again"]
    assert got["shuffled"] != got["records"]
    assert [set(share) for share in got["shuffled"]] == [set(share) for share in got["records"]]
    assert got["batches"] == [4, 4, 4, 4]  # full ones only: all nodes make as many steps
    assert got["folder"] == 53  # without _SUCCESS and what is being written
    assert got["marked"] == (True, "drop", "partial")
    assert got["none"].startswith("NotFoundError")
    assert "shard='records'" in got["few"]
    for name in ("rank", "shard", "format"):
        assert got[name].startswith("InvalidArgumentError"), got[name]


def test_lines_and_own_readers(tmp_path):
    (got,) = run_ranks(PROGRAM, "lines", 1, folder=str(tmp_path))
    assert got == [[b"1", b"3"], [b"1", b"3"], [b"2", b"4"], [b"2", b"4"]]
