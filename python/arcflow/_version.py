# SPDX-License-Identifier: Apache-2.0
"""The version of this package: from the installed distribution, or from VERSION in a source tree."""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path


@functools.cache
def version() -> str:
    """Return the version, such as ``"1.2.3"``; ``"0+unknown"`` when nothing tells it."""
    source = Path(__file__).resolve().parents[2] / "VERSION"
    if (
        source.parent.joinpath("python", "arcflow").is_dir() and source.is_file()
    ):  # a source tree wins over an older installed copy
        return source.read_text().strip()
    try:
        return importlib.metadata.version("arcflow")
    except importlib.metadata.PackageNotFoundError:
        return "0+unknown"
