# SPDX-License-Identifier: Apache-2.0
"""The fault table as a page for people: docs/results/chaos.md is made by `run.py --page`."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cells import FAULTS, LEFT_AFTER_S, REPORT_S, SILENCE_S, STAGES, VICTIMS

from harness import Row

_MARK = {True: "", False: "**not met:** "}


def page(env: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """Return the whole table as Markdown; a cell that was not measured says so."""
    by_name = {row.case: row for row in rows}
    met = sum(bool(row.met) for row in rows)
    text = [
        f"# The fault table, {time.strftime('%Y-%m-%d')}",
        "",
        "Made by `make chaos` (`bench/chaos/run.py --page`), not by hand. "
        f"{env.get('cpu', '')}, {env.get('cores', '?')} cores. {met} of {len(rows)} cells met.",
        "",
        "A standalone cluster on two hosts (network namespaces, each in a memory cgroup of its own); "
        "chief and worker, with a parameter server or an evaluator where the victim is one. Each cell "
        "shows whom the driver's error names, the cause, and the seconds from the fault to that error. "
        f"Met: the struck node is named with its cause, within {REPORT_S:g} s ({SILENCE_S:g} s of "
        f"silence more for SIGSTOP and a cut network), and {LEFT_AFTER_S:g} s later no process, memfd "
        "or file of the run is left. A cell that was not met is measured again alone (`--again`) once "
        "its cause is mended, so cells may come from several runs of the day.",
        "",
    ]
    for victim in VICTIMS:
        text += [f"## {victim}", "", f"| fault | {' | '.join(STAGES)} |", "|---" * 5 + "|"]
        for fault in FAULTS:
            cells = [_cell(by_name.get(f"{victim}, {fault}, {stage}")) for stage in STAGES]
            text.append(f"| {fault} | {' | '.join(cells)} |")
        text.append("")
    return "\n".join(text)


def _cell(row: Row | None) -> str:
    if row is None:
        return "not measured"
    said = re.sub(r"\S*/(?=python)", "", row.metric).replace("|", "\\|")  # no paths of this machine
    return f"{_MARK[bool(row.met)]}{said}, {row.value:.1f} s"
