# SPDX-License-Identifier: Apache-2.0
"""The demo's pictures: the learning curve, and a page of the digits that the model misread."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np


def learning_curve(history: Mapping[str, Sequence[float]], path: Path) -> None:
    """Draw accuracy and loss, for training and validation, against the epoch."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    for axis, metric in zip(axes, ("accuracy", "loss"), strict=True):
        for key, name in ((metric, "training"), (f"val_{metric}", "validation")):
            axis.plot(range(1, len(history[key]) + 1), history[key], label=name)
        axis.set(xlabel="epoch", ylabel=metric)
        axis.grid(alpha=0.3)
        axis.legend()
    figure.suptitle("Handwritten digits, two Spark executors")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def misread_page(rows: Sequence[Mapping[str, object]], path: Path, *, at_most: int = 40) -> None:
    """Draw the images of `rows` (``image``, ``label``, ``predicted``), what they are and what was read."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = rows[:at_most]
    columns = 8
    lines = max(1, -(-len(shown) // columns))
    figure, axes = pyplot.subplots(
        lines,
        columns,
        figsize=(columns * 1.1, lines * 1.5 + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for axis in axes.flat:
        axis.axis("off")
    for axis, row in zip(axes.flat, shown, strict=False):
        axis.imshow(np.reshape(row["image"], (8, 8)), cmap="gray_r", vmin=0, vmax=1)
        axis.set_title(f"{row['label']} read as {row['predicted']}", fontsize=8)
    figure.suptitle(f"{len(rows)} misread digits of the test part")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
