# SPDX-License-Identifier: Apache-2.0
"""Loads the op library that fits the TensorFlow of this process, when it is first used."""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Any

from .. import errors

_FOLDER = Path(__file__).resolve().parent.parent / "tfops"


def available() -> dict[str, Path]:
    """TensorFlow minor version, such as ``"2.21"``, to the op library that was built for it."""
    found = {}
    for path in sorted(_FOLDER.glob("libarcflow_ops_tf*.so")):
        match = re.fullmatch(r"libarcflow_ops_tf(\d+\.\d+)\.so", path.name)
        if match:
            found[match[1]] = path
    return found


def library_for(version: str) -> Path:
    """Path of the op library for a version of TensorFlow.

    Raises
    ------
    UnimplementedError
        There is none; the message lists the versions that there are.
    """
    minor = ".".join(version.split(".")[:2])
    libraries = available()
    if not libraries:
        raise errors.UnimplementedError(
            "this installation of arcflow was built without TensorFlow ops (there is no "
            "arcflow/tfops/libarcflow_ops_tf*.so): install a wheel that has them, or run "
            "`make develop` in a checkout"
        )
    if minor not in libraries:
        raise errors.UnimplementedError(
            f"arcflow has no ops for TensorFlow {version}, only for {', '.join(libraries)}: install "
            f"one of these, such as tensorflow=={list(libraries)[-1]}.*, on driver and executors"
        )
    return libraries[minor]


@functools.cache
def load() -> Any:
    """Load our ops and return their module.

    Raises
    ------
    UnimplementedError
        As `library_for`, or when TensorFlow cannot load the library.
    """
    import tensorflow as tf

    path = library_for(tf.__version__)
    try:
        return tf.load_op_library(str(path))
    except tf.errors.NotFoundError as e:
        raise errors.UnimplementedError(
            f"TensorFlow {tf.__version__} cannot load {path.name}: {e}"
        ) from e
