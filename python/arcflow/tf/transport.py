# SPDX-License-Identifier: Apache-2.0
"""The plug-in that gives TensorFlow's server our transport: loaded, configured, asked for its counters."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any

from .. import _transport, errors
from . import ops

_ERROR_BYTES = 2048


@functools.cache
def _library() -> ctypes.CDLL:
    import tensorflow as tf

    path = library_path(tf.__version__)
    try:
        tf.load_library(str(path))  # registers the protocols
    except (tf.errors.NotFoundError, OSError) as e:
        raise errors.UnimplementedError(
            f"TensorFlow {tf.__version__} cannot load {path.name}: {e}. With transport='grpc' it is "
            "not needed"
        ) from e
    library = ctypes.CDLL(str(path))
    library.arcflow_transport_configure.argtypes = [
        ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t,
    ]  # fmt: skip
    library.arcflow_transport_stats.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
    library.arcflow_transport_stats.restype = ctypes.c_size_t
    return library


def library_path(version: str) -> Path:
    """Path of the plug-in for a version of TensorFlow.

    Raises
    ------
    UnimplementedError
        There is none.
    """
    minor = ".".join(version.split(".")[:2])
    path = ops.library_for(version).with_name(f"libarcflow_transport_tf{minor}.so")
    if not path.is_file():
        raise errors.UnimplementedError(
            f"this installation of arcflow has no {path.name}: run `make develop` in a checkout, or "
            "use transport='grpc'"
        )
    return path


@functools.cache
def operations() -> Any:
    """Return the plug-in's TensorFlow operations, as functions of a module."""
    import tensorflow as tf

    return tf.load_op_library(str(library_path(tf.__version__)))


def prepare() -> str:
    """Make this process ready for a server with our protocol; call it before TensorFlow makes one.

    With ``transport="auto"`` a plug-in that is not there is a warning, and TensorFlow's gRPC it is.

    Returns
    -------
    str
        The protocol that the server has to be made with.

    Raises
    ------
    UnimplementedError
        There is no plug-in for this TensorFlow.
    InvalidArgumentError
        The settings are wrong.
    """
    settings = _transport.settings()
    if settings is None or settings["mode"] == "grpc":
        return "grpc"
    names = ("mode", "secret", "run_id", "ports", "compression", "rdma_backend")
    wanted = {name: settings[name] for name in names if name in settings}
    try:
        _library()
    except errors.UnimplementedError as missing:
        if settings["mode"] != "auto":
            raise
        warnings.warn(f"tensors go by TensorFlow's gRPC: {missing}", stacklevel=2)
        _transport.do_without(str(missing))
        return "grpc"
    error = ctypes.create_string_buffer(_ERROR_BYTES)
    code = _library().arcflow_transport_configure(
        json.dumps(wanted).encode(), error, ctypes.sizeof(error)
    )
    if code:
        raise errors.InvalidArgumentError(error.value.decode(errors="replace"))
    # Else TensorFlow copies what goes from a driver to a server into the request. Then the server
    # asks for it, as for all other tensors. Read when the driver connects.
    os.environ.setdefault("TF_EAGER_REMOTE_USE_SEND_TENSOR_RPC", "0")
    return _transport.protocol()


def stats() -> dict[str, Any] | None:
    """Counters of the plug-in; None when this process has not loaded it."""
    if not _library.cache_info().currsize:
        return None
    size = 1 << 14
    while True:
        out = ctypes.create_string_buffer(size)
        needed = _library().arcflow_transport_stats(out, size)
        if needed <= size:
            return dict(json.loads(out.value))
        size = 2 * needed
