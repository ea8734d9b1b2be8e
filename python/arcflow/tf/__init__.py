# SPDX-License-Identifier: Apache-2.0
"""The TensorFlow face: datasets read from a node's feed, and a strategy that Keras 3 trains under.

Importing this package does not import TensorFlow; using one of its names does.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._fit import fit
    from ._per_node import is_per_node, per_node
    from ._read_files import read_files
    from .async_fit import fit_async
    from .dataset import FeedDataset, make_dataset
    from .filesystem import register
    from .keras_callback import ProgressCallback
    from .pipeline import Pipeline
    from .remote import place
    from .strategy import ClusterStrategy, default_strategy

__all__ = [
    "ClusterStrategy",
    "FeedDataset",
    "Pipeline",
    "ProgressCallback",
    "default_strategy",
    "fit",
    "fit_async",
    "is_per_node",
    "make_dataset",
    "per_node",
    "place",
    "read_files",
    "register",
]

_LAZY = {
    "ClusterStrategy": "strategy",
    "default_strategy": "strategy",
    "FeedDataset": "dataset",
    "make_dataset": "dataset",
    "ProgressCallback": "keras_callback",
    "is_per_node": "_per_node",
    "per_node": "_per_node",
    "register": "filesystem",
    "read_files": "_read_files",
    "fit": "_fit",
    "place": "remote",
    "Pipeline": "pipeline",
    "fit_async": "async_fit",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        value = getattr(importlib.import_module(f".{_LAZY[name]}", __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
