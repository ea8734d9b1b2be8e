# SPDX-License-Identifier: Apache-2.0
"""What every bench shares: where it ran, interleaved repeats, medians, the table and the JSON file."""

from __future__ import annotations

import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Row:
    """One line of the table: a figure, what it is compared with, and the goal.

    Attributes
    ----------
    case, metric, value, unit
        What was measured.
    baseline, baseline_value
        What ran beside it in the same run; None when the figure stands alone.
    ratio
        ``value / baseline_value``; when there is no baseline and the goal is a limit, ``value / limit``.
    goal
        Such as ``">= 0.75 x"``: a comparison with the ratio (``x``) or with the value itself.
    met
        Whether the goal is reached; None when there is none.
    spread
        Smallest and largest of the repeats.
    """

    case: str
    metric: str
    value: float
    unit: str
    baseline: str | None = None
    baseline_value: float | None = None
    ratio: float | None = None
    goal: str | None = None
    met: bool | None = None
    spread: tuple[float, float] | None = None
    samples: int = 1


def make_row(
    case: str,
    metric: str,
    values: Sequence[float],
    unit: str,
    *,
    baseline: str | None = None,
    baseline_values: Sequence[float] = (),
    goal: str | None = None,
) -> Row:
    """Make a row of medians; with a baseline of the same rounds, the ratio is the median of each round's."""
    value = statistics.median(values)
    row = Row(case, metric, value, unit, baseline, goal=goal, samples=len(values))
    row.spread = (min(values), max(values))
    if baseline_values:
        row.baseline_value = statistics.median(baseline_values)
        if len(values) == len(baseline_values):
            pairs = zip(values, baseline_values, strict=True)
            row.ratio = statistics.median(v / b if b else math.inf for v, b in pairs)
        else:
            row.ratio = value / row.baseline_value
    if goal:
        comparison, limit, *kind = goal.split()
        measured = row.ratio if kind == ["x"] else value
        if measured is not None:
            row.met = measured >= float(limit) if comparison == ">=" else measured <= float(limit)
    return row


def interleaved(
    cases: Mapping[str, Callable[[], Any]], repeats: int, *, warmup: bool = True
) -> dict[str, list[Any]]:
    """Run every case in turn, `repeats` times, so that a change of load meets them all alike.

    The first round, where pages and caches are cold, is thrown away when `warmup` is true.
    """
    results: dict[str, list[Any]] = {name: [] for name in cases}
    for round_number in range(repeats + (1 if warmup else 0)):
        for name, case in cases.items():
            start = time.perf_counter()
            value = case()
            kept = round_number > 0 or not warmup
            if kept:
                results[name].append(value)
            shown = f"{value:.4g}" if isinstance(value, float) else "done"
            seconds = time.perf_counter() - start
            note(f"{name}: {shown} ({'kept' if kept else 'warm-up'}, {seconds:.1f} s)")
    return results


def note(text: str) -> None:
    """Say on stderr how far the bench is."""
    print(f"  {text}", file=sys.stderr, flush=True)


def _first_line(*command: str) -> str:
    try:
        output = subprocess.run(
            command, capture_output=True, text=True, timeout=20, check=True, cwd=ROOT
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return (output.stdout.splitlines() or [""])[0].strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def environment(packages: Sequence[str] = ()) -> dict[str, Any]:
    """Machine, kernel, compiler, commit, load and versions."""
    versions = {}
    for package in ("arcflow", *packages):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "absent"
    changed = _first_line("git", "status", "--porcelain", "--untracked-files=no")
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "kernel": platform.release(),
        "compiler": _first_line("c++", "--version"),
        "build": "Release",
        "python": platform.python_version(),
        "versions": versions,
        "commit": _first_line("git", "rev-parse", "--short=12", "HEAD") + ("+" if changed else ""),
        "load": [round(v, 2) for v in os.getloadavg()],
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def number_text(value: float | None) -> str:
    """Three digits that matter; "" for what is not there."""
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def print_table(env: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Print where it ran, then one line a row."""
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    print(f"\n{env['cpu']}, {env['cores']} cores, {env['memory_gib']} GiB, Linux {env['kernel']}")
    print(f"{env['compiler']}, {env['build']}, commit {env['commit']}, load {env['load']}")
    print(f"Python {env['python']}, {versions}\n")
    head = ("case", "metric", "value", "min..max", "unit", "baseline", "is", "ratio", "goal", "")
    lines = [head]
    for row in rows:
        spread = f"{number_text(row.spread[0])}..{number_text(row.spread[1])}" if row.spread else ""
        met = {True: "met", False: "NOT MET", None: ""}[row.met]
        lines.append(
            (
                row.case,
                row.metric,
                number_text(row.value),
                spread,
                row.unit,
                row.baseline or "",
                number_text(row.baseline_value),
                number_text(row.ratio),
                row.goal or "",
                met,
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    right = {2, 3, 6, 7}
    for number, line in enumerate(lines):
        cells = (
            c.rjust(w) if i in right else c.ljust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        print("  ".join(cells).rstrip())
        if number == 0:
            print("  ".join("-" * w for w in widths))


def write_json(path: Path, env: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Write `{"env": …, "rows": […]}`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"env": dict(env), "rows": [asdict(row) for row in rows]}, indent=1)
    path.write_text(text + "\n", encoding="utf-8")
    print(f"\nwritten: {path}")
