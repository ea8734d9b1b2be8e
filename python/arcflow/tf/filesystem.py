# SPDX-License-Identifier: Apache-2.0
"""Teaches TensorFlow hdfs://, webhdfs://, swebhdfs:// and viewfs://."""

from __future__ import annotations

import functools
import re
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from .. import errors
from .._import_hook import after_import

_LIBRARY = Path(__file__).resolve().parent.parent / "tfops" / "libarcflow_filesystem.so"
_REMOTE = re.compile(r"(?:hdfs|webhdfs|swebhdfs|viewfs):/")
_lock = threading.Lock()
_registered = False


def register() -> None:
    """Make TensorFlow read and write ``hdfs://``, ``webhdfs://``, ``swebhdfs://`` and ``viewfs://``.

    Imports TensorFlow. Nodes of Arcflow do this by themselves; other programs call it once before
    the first such path is used. Calling it again does nothing. The cluster's addresses come from
    ``core-site.xml`` and ``hdfs-site.xml`` in ``HADOOP_CONF_DIR`` when the first file is opened.

    Raises
    ------
    UnimplementedError
        This installation was built without the library.
    AlreadyExistsError
        Another package (such as tensorflow-io) has registered one of the schemes.
    UnavailableError
        TensorFlow cannot load the library.
    """
    import tensorflow as tf

    _register(tf)


def register_when_imported() -> None:
    """`register`, as soon as TensorFlow is imported; what fails is a warning, since files may be local."""

    def act(tensorflow: ModuleType) -> None:
        try:
            _register(tensorflow)
        except errors.ArcflowError as error:
            warnings.warn(f"hdfs:// paths will not work here: {error}", RuntimeWarning)

    after_import("tensorflow", act)


def _register(tf: Any) -> None:
    global _registered
    with _lock:
        if _registered:
            return
        if not _LIBRARY.exists():
            raise errors.UnimplementedError(
                f"this installation of arcflow has no {_LIBRARY.name}: install a wheel that has it, "
                "or run `make develop` in a checkout"
            )
        try:
            tf.experimental.register_filesystem_plugin(str(_LIBRARY))
        except tf.errors.AlreadyExistsError as error:
            raise errors.AlreadyExistsError(
                "another package has registered hdfs:// with TensorFlow in this process (is "
                f"tensorflow_io imported?): {error.message}"
            ) from error
        except tf.errors.OpError as error:
            raise errors.UnavailableError(
                f"TensorFlow {tf.__version__} cannot load {_LIBRARY.name}: {error.message}"
            ) from error
        _registered = True
    after_import("keras.src.legacy.saving.legacy_h5_format", _guard_h5)


def _guard_h5(module: ModuleType) -> None:
    """HDF5 opens paths itself: ``model.save("hdfs://…/m.h5")`` would write to a local folder called ``hdfs:``."""

    def refuses(function: Callable[..., Any], position: int) -> Callable[..., Any]:
        @functools.wraps(function)
        def guarded(*args: Any, **kwargs: Any) -> Any:
            path = kwargs.get("filepath", args[position] if len(args) > position else "")
            if isinstance(path, str | Path) and _REMOTE.match(str(path)):
                raise errors.InvalidArgumentError(
                    f"{path}: the old .h5 format reads and writes local files only; save as "
                    ".keras, or the weights as .weights.h5"
                )
            return function(*args, **kwargs)

        return guarded

    for name, position in (("save_model_to_hdf5", 1), ("load_model_from_hdf5", 0)):
        if hasattr(module, name):
            setattr(module, name, refuses(getattr(module, name), position))
