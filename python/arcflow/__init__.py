# SPDX-License-Identifier: Apache-2.0
"""Arcflow runs TensorFlow on the Spark cluster you already have."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors

if TYPE_CHECKING:
    from .cluster import Cluster, Result
    from .context import Context
    from .feed import Feed
    from .inference import apply
    from .parquet import ParquetFeed
    from .preflight import doctor

__all__ = ["Cluster", "Context", "Feed", "ParquetFeed", "Result", "apply", "doctor", "errors"]

# Exported name -> module. Loaded when first used, so that `import arcflow` needs neither Spark nor TensorFlow.
_LAZY = {
    "Cluster": "cluster",
    "Result": "cluster",
    "Context": "context",
    "Feed": "feed",
    "ParquetFeed": "parquet",
    "apply": "inference",
    "doctor": "preflight",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from ._version import version

        return version()
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
