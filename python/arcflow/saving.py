# SPDX-License-Identifier: Apache-2.0
"""`ctx.save`: the chief's copy appears whole under its name; all nodes return, or fail, together."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from . import _signature, errors, files

Exchange = Callable[[bytes], Sequence[bytes]]
_RENAME_EXCHANGE = 2
_AT_FDCWD = -100


def save(
    model: Any, path: str, *, is_chief: bool, exchange: Exchange, features: Sequence[str] = ()
) -> str:
    """Save a Keras model or a `tf.Module`, atomically and on all nodes together.

    Every node must call it: variables that are synchronised on read need all replicas. What the others write
    goes to a scratch folder and is removed.

    Parameters
    ----------
    model
        A Keras model, or a `tf.Module` with a tf.function `serve` or `__call__` that has an input signature.
    path
        `*.keras` or `*.weights.h5`: that one file. Anything else: a folder that is a SavedModel and holds `model.keras`
        (Keras models) and `arcflow.json` too. What stood there before is replaced in one step (a folder at `hdfs://`
        in two: for a moment there is none).
    is_chief
        Whether this node's copy is the one that is kept.
    exchange
        Hands every node's message to every node and returns them in order of rank; a barrier.
    features
        DataFrame columns that the model was trained on.

    Returns
    -------
    str
        The path.

    Raises
    ------
    InvalidArgumentError
        If the model is of no known kind or the path cannot be a model's.
    ArcflowError
        If saving failed on any node; the message names the node's rank and its error. Nothing is left under `path` then
        but what stood there before.
    """
    path = _checked_path(path)
    scratch = ""
    staging = ""

    def write() -> None:
        nonlocal scratch, staging
        if is_chief and not files.is_hdfs(path):
            scratch = staging = _staging_path(path)
        else:
            scratch = tempfile.mkdtemp(prefix="arcflow-save-")
            staging = os.path.join(scratch, os.path.basename(path))
        _write(model, staging, tuple(features))

    def publish() -> None:
        if is_chief and files.is_hdfs(path):
            _upload(staging, path)
        elif is_chief:
            _publish(staging, path)

    try:
        _together(write, path, exchange)
        _together(publish, path, exchange)  # only when every node has written its copy
    finally:
        _remove(scratch)
    return path


def _together(act: Callable[[], None], path: str, exchange: Exchange) -> None:
    """Run `act` on every node and raise on all of them what went wrong on any."""
    answer = {"error": "", "code": "UNKNOWN"}
    try:
        act()
    except (
        Exception
    ) as failure:  # every kind of failure must reach the other nodes, or they would wait
        answer = {
            "error": f"{type(failure).__name__}: {failure}",
            "code": getattr(failure, "code", "UNKNOWN"),
        }
        if not isinstance(failure, errors.ArcflowError):
            answer["code"] = "UNKNOWN"
    answers = [json.loads(text) for text in exchange(json.dumps(answer).encode())]
    for rank, said in enumerate(answers):
        if said["error"]:
            raise errors.from_code(
                said["code"], f"saving to {path} failed on node {rank}: {said['error']}"
            )


def _checked_path(path: str) -> str:
    path = os.fspath(path)
    if not path or path in (os.sep, ".", ".."):
        raise errors.InvalidArgumentError(
            f"cannot save a model to {path!r}: give the name of a folder or of a .keras file"
        )
    remote = files.is_hdfs(path)
    if "://" in path and not remote:
        raise errors.InvalidArgumentError(
            f"cannot save to {path}: only files that every node can open, and hdfs:// paths, are supported"
        )
    if path.endswith(".h5") and not path.endswith(".weights.h5"):
        raise errors.InvalidArgumentError(
            f"cannot save to {path}: whole models go to *.keras or a folder, weights to *.weights.h5"
        )
    return path.rstrip("/") if remote else os.path.abspath(path)


def _staging_path(path: str) -> str:
    """Return a sibling with the same suffix, so that a rename stays within one file system."""
    folder, name = os.path.split(path)
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, f".arcflow-{uuid.uuid4().hex[:12]}-{name}")


def _write(model: Any, path: str, features: tuple[str, ...]) -> None:
    import tensorflow as tf

    os.makedirs(os.path.dirname(path), exist_ok=True)
    is_keras = hasattr(model, "save_weights") and hasattr(model, "export")
    if path.endswith(".weights.h5"):
        _require(is_keras, model)
        model.save_weights(path)
    elif path.endswith(".keras"):
        _require(is_keras, model)
        model.save(path)
    else:
        if is_keras:
            model.export(path, format="tf_saved_model", verbose=False)
            model.save(os.path.join(path, _signature.KERAS_NAME))
        elif isinstance(model, tf.Module):
            tf.saved_model.save(
                model, path, signatures={"serving_default": _serving_function(model)}
            )
        else:
            _require(False, model)
        with open(os.path.join(path, _signature.FILE_NAME), "w", encoding="utf-8") as file:
            file.write(_signature.of_saved_model(path, features).to_json())


def _require(condition: bool, model: Any) -> None:
    if not condition:
        raise errors.InvalidArgumentError(
            f"cannot save a {type(model).__name__} there: a Keras model is needed (folders also take a tf.Module)"
        )


def _serving_function(module: Any) -> Any:
    for name in ("serve", "__call__"):
        function = getattr(module, name, None)
        if getattr(function, "input_signature", None) is not None:
            return function
    raise errors.InvalidArgumentError(
        f"{type(module).__name__} has no tf.function 'serve' or '__call__' "
        "with an input_signature, so nobody could serve it"
    )


def _publish(staging: str, path: str) -> None:
    """Move the finished copy to its name; readers see the old model or the new one, never a part."""
    if not os.path.isdir(staging) or not os.path.lexists(path):
        os.replace(staging, path)
        return
    _check_replaceable(path, os.listdir(path) if os.path.isdir(path) else None)
    libc = ctypes.CDLL(None, use_errno=True)
    done = libc.renameat2(
        _AT_FDCWD, os.fsencode(staging), _AT_FDCWD, os.fsencode(path), _RENAME_EXCHANGE
    )
    if done != 0:  # a file system without exchange: two renames, with a moment between them
        old = _staging_path(path)
        os.rename(path, old)
        os.rename(staging, path)
        _remove(old)


def _upload(copy: str, path: str) -> None:
    """Publish a local copy at HDFS, where a rename replaces files but no folders."""
    folder, name = os.path.split(path)
    if not os.path.isdir(copy):
        files.makedirs(folder)
        files.upload(copy, path)
        return
    there = files.exists(path)
    if there:
        _check_replaceable(path, files.listdir(path) if files.is_dir(path) else None)
    staging = f"{folder}/.arcflow-{uuid.uuid4().hex[:12]}-{name}"
    old = f"{staging}-old"
    try:
        files.upload(copy, staging)
        if there:
            files.rename(path, old)
        files.rename(staging, path)
    except BaseException:
        with contextlib.suppress(errors.ArcflowError):
            if there and not files.exists(path):
                files.rename(old, path)
            files.remove(staging, recursive=True)
        raise
    if there:
        files.remove(old, recursive=True)


def _check_replaceable(path: str, names: Sequence[str] | None) -> None:
    """Refuse to replace a file (`names` is None) or a folder that holds other things than a model."""
    if names is None:
        raise errors.InvalidArgumentError(f"cannot save to {path}: a file of that name exists")
    if names and "saved_model.pb" not in names:
        raise errors.InvalidArgumentError(
            f"cannot save to {path}: it is a folder with other things in it, and saving replaces the whole folder"
        )


def _remove(path: str) -> None:
    if not path:
        return
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path, ignore_errors=True)
    elif os.path.lexists(path):
        os.unlink(path)
