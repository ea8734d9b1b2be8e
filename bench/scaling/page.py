# SPDX-License-Identifier: Apache-2.0
"""Write the page of results, and its picture, from what `bench/scaling/run.py --output` wrote."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from run import ANNOUNCED, WAYS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "results" / "scaling.md"
PICTURE = PAGE.with_suffix(".png")
_HEAD = """\
# Scaling

The announcement's experiment in miniature, made by `make bench-scaling` (`bench/scaling/run.py`; this
page by `bench/scaling/page.py`): speed-up in workers over one worker. A worker of the simulated models
sleeps for as long as an accelerator's step and exchanges real gradients, all on **one host**; the CNN
computes. Nothing here was measured on several hosts or on accelerators."""
_WAYS = """\
"as they appear": gradients in packs of 6 MB (Inception) or 25 MB (VGG), each exchanged while the backward
pass goes on (`CommunicationOptions(bytes_per_pack=…)`; what is exchanged after the last gradient is not
overlapped, so smaller packs pay where they are many); "after the pass": all at its end, TensorFlow's
default. "asynchronous": parts of a worker's compute differ by up to 20 % from step to step; a variable for
each quarter of 25 MB, all asked for when a step begins, each added to when its gradient appears; rounds end
when all steps have ended, which costs the last ones' length."""
_WORKERS = re.compile(r", (\d+) workers")


def curves(rows: list[dict[str, Any]]) -> dict[str, dict[int, float]]:
    """Return speed-ups by number of workers, for each model and way, ours and stock."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        size = _WORKERS.search(row["case"])
        if row["metric"] != "speed-up" or size is None:
            continue
        name = row["case"][: size.start()]
        found.setdefault(name, {1: 1.0})[int(size[1])] = row["value"]
        if row["baseline"]:
            found.setdefault(f"{name}, {row['baseline']}", {1: 1.0})[int(size[1])] = row[
                "baseline_value"
            ]
    return found


def plot(found: dict[str, dict[int, float]]) -> None:
    """Draw the speed-ups of simulated compute."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, all_axes = pyplot.subplots(1, 2, figsize=(8.5, 3.6), sharey=True)
    for axes, model in zip(all_axes, ("Inception", "VGG"), strict=True):
        axes.plot([1, 8], [1, 8], color="0.8", linewidth=1, label="ideal")
        axes.plot(
            *zip(*ANNOUNCED.items(), strict=True), "k--", linewidth=1, label="announcement, 2017"
        )
        for name, line in found.items():
            if model not in name or WAYS["after"] in name:
                continue
            stock = "gRPC" in name
            label = ("asynchronous" if "asynchronous" in name else "in step") + (
                ", stock gRPC" if stock else ""
            )
            axes.plot(
                *zip(*sorted(line.items()), strict=True),
                "o:" if stock else "o-",
                markersize=3,
                label=label,
            )
        axes.set_title(
            next((n.split(", in step")[0] for n in found if model in n), model), fontsize=9
        )
        axes.set_xticks([1, 2, 4, 8])
        axes.set_xlabel("workers")
    all_axes[0].set_ylabel("speed-up")
    all_axes[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=90, metadata={"Software": None})


def table(found: dict[str, dict[int, float]]) -> list[str]:
    """Return a table of all speed-ups."""
    sizes = sorted({size for line in found.values() for size in line})
    lines = ["| | " + " | ".join(map(str, sizes)) + " |", "|---|" + "---|" * len(sizes)]
    for name, line in {**found, "announcement, 2017": ANNOUNCED}.items():
        cells = (f"{line[size]:.2f}" if size in line else "" for size in sizes)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def page(told: dict[str, Any], found: dict[str, dict[int, float]]) -> str:
    """Return the page."""
    env, goals = told["env"], [row for row in told["rows"] if row["goal"]]
    where = {key: env[key] for key in ("cpu", "cores", "kernel", "commit", "load") if key in env}
    met = {True: "met", False: "**not met**"}
    seconds = (
        f"{row['case']}: {row['value']:.1f}" for row in told["rows"] if row["metric"] == "time"
    )
    lines = [
        *_HEAD.splitlines(),
        "",
        f"![speed-up by workers]({PICTURE.name})",
        "",
        *table(found),
        "",
        *_WAYS.splitlines(),
        "",
        "| goal | measured | |",
        "|---|---|---|",
    ]
    for row in goals:
        lines.append(
            f"| {row['case']}, {row['metric']} {row['goal']} | {row['value']:.2f} | {met[row['met']]} |"
        )
    lines += ["", "Seconds to the same accuracy: " + "; ".join(seconds) + "."]
    lines += ["", "Where: " + ", ".join(f"{key} {value}" for key, value in where.items()) + "."]
    return "\n".join(lines) + "\n"


def main() -> None:
    told = json.loads(Path(sys.argv[1]).read_text())
    found = curves(told["rows"])
    plot(found)
    PAGE.write_text(page(told, found))
    print(f"written: {PAGE}, {PICTURE}")


if __name__ == "__main__":
    main()
