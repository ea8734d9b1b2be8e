# SPDX-License-Identifier: Apache-2.0
"""Prints what a bench wrote as a Markdown page, for docs/results: `bench/markdown.py build/bench/NAME.json`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import number_text


def line(row: Mapping[str, Any]) -> str:
    """Return one row of the table."""
    low, high = row.get("spread") or (None, None)
    met = {True: "met", False: "**not met**", None: ""}[row.get("met")]
    cells = [
        row["case"],
        row["metric"],
        number_text(row["value"]),
        f"{number_text(low)}..{number_text(high)}" if low is not None else "",
        row["unit"],
        row.get("baseline") or "",
        number_text(row.get("baseline_value")),
        number_text(row.get("ratio")),
        row.get("goal") or "",
        met,
    ]
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("json", type=Path)
    found = json.loads(parser.parse_args().json.read_text())
    env = found["env"]
    versions = ", ".join(f"{name} {version}" for name, version in env.get("versions", {}).items())
    print(
        f"{env['cpu']}, {env['cores']} cores, {env['memory_gib']} GiB, Linux {env['kernel']}; ",
        end="",
    )
    print(
        f"{env['compiler']}, {env['build']}; Python {env['python']}, {versions}; commit {env['commit']}."
    )
    print("Medians of interleaved repeats; a ratio is the median of each round's.\n")
    print("| case | metric | value | min..max | unit | baseline | is | ratio | goal | |")
    print("|---|---|--:|---|---|---|--:|--:|---|---|")
    for row in found["rows"]:
        print(line(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
