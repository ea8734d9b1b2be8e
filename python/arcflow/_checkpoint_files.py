# SPDX-License-Identifier: Apache-2.0
"""Checkpoints as files, local or on HDFS: whole or invisible, checked when read, the newest few kept."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import tempfile
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from . import errors, files

VERSION = 1  # docs/formats/checkpoint.md
_MANIFEST = "manifest.json"
_VARIABLES = "variables.bin"
_NAME = re.compile(r"checkpoint-(\d{12})")
_STAGING = ".arcflow-checkpoint-"
_ALIGNMENT = 64
_ANY_LENGTH = 1 << 62  # of a file of variables, which is held in memory once
Arrays = Sequence[tuple[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What a checkpoint says about itself.

    Attributes
    ----------
    run_id, attempt
        Who wrote it.
    step, epoch, step_in_epoch
        Steps since the start of training; the epoch under way; steps of that epoch that are done.
    size
        Number of training nodes.
    ranks
        For each training node its position in its ``feed``: ``name``, ``batch`` (rows of a step)
        and ``row``, the first one of the epoch that no step has used, and ``seed`` of a shuffled
        epoch, whose places ``row`` counts; None when it reads none.
    variables
        ``name``, ``dtype``, ``shape``, ``offset``, ``bytes`` of each, in order.
    files
        Name to ``bytes`` and ``sha256``.
    """

    run_id: str
    attempt: int
    step: int
    epoch: int
    step_in_epoch: int
    size: int
    ranks: list[dict[str, Any]]
    variables: list[dict[str, Any]]
    files: dict[str, dict[str, Any]]
    version: int = VERSION


def name_of(step: int) -> str:
    """Folder name of the checkpoint of a step."""
    return f"checkpoint-{step:012d}"


def rank_file(rank: int) -> str:
    """Name of the file with the variables that only one rank has."""
    return f"rank-{rank}.bin"


def steps_in(directory: str) -> list[int]:
    """List steps of all checkpoints in a folder, newest first; also of such as cannot be read."""
    try:
        found = [_NAME.fullmatch(name) for name in files.listdir(directory)]
    except errors.NotFoundError:
        return []
    return sorted((int(match[1]) for match in found if match), reverse=True)


def manifest_of(directory: str, step: int) -> Manifest:
    """Read what a checkpoint says about itself, without looking at its variables.

    Raises
    ------
    DataLossError
        It is damaged, or of a version that is not known.
    NotFoundError
        It is not there (any more).
    """
    path = files.join(directory, name_of(step), _MANIFEST)
    try:
        fields = json.loads(files.read_bytes(path))
        if fields.get("version") != VERSION:
            raise errors.DataLossError(
                f"{path} has version {fields.get('version')!r}; this arcflow reads {VERSION}"
            )
        return Manifest(**fields)
    except errors.NotFoundError as error:
        raise errors.NotFoundError(f"there is no checkpoint {path}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise errors.DataLossError(f"{path} is no manifest of a checkpoint: {error}") from error


def check(directory: str, manifest: Manifest) -> None:
    """Compare every file of a checkpoint with its checksum; DataLossError names one that differs."""
    for name, said in manifest.files.items():
        path = files.join(directory, name_of(manifest.step), name)
        try:
            found = _digest(path)
        except (errors.ArcflowError, OSError) as error:
            raise errors.DataLossError(f"{path} cannot be read: {error}") from error
        if found != said:
            raise errors.DataLossError(f"{path} is damaged: its bytes do not fit its checksum")


def read(directory: str, manifest: Manifest, rank: int) -> list[np.ndarray]:
    """Return the variables as a rank has to set them, in the manifest's order."""
    folder = files.join(directory, name_of(manifest.step))
    shared = files.read_bytes(files.join(folder, _VARIABLES), max_bytes=_ANY_LENGTH)
    own = b""
    if rank_file(rank) in manifest.files:
        own = files.read_bytes(files.join(folder, rank_file(rank)), max_bytes=_ANY_LENGTH)
    values = []
    own_offset = 0
    for entry in manifest.variables:
        data, offset = shared, entry["offset"]
        if entry.get("per_rank") and own:
            data, offset = own, own_offset
            own_offset = _aligned(own_offset + entry["bytes"])
        values.append(_array(data, offset, entry))
    return values


def _array(data: bytes, offset: int, entry: dict[str, Any]) -> np.ndarray:
    if offset + entry["bytes"] > len(data):
        raise errors.DataLossError(f"a checkpoint is too short for its variable {entry['name']!r}")
    dtype = _dtype(entry["dtype"])
    count = entry["bytes"] // dtype.itemsize
    return np.frombuffer(data, dtype, count, offset).reshape(entry["shape"])


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # comes with TensorFlow: bfloat16 and the like

        return np.dtype(getattr(ml_dtypes, name))


class Staging:
    """A checkpoint that is being written; invisible until `publish`.

    Parameters
    ----------
    directory
        Where checkpoints are; made when it does not exist.
    name
        Of the hidden folder, the same on all ranks; the chief makes one by `new_name`.
    """

    def __init__(self, directory: str, name: str) -> None:
        self._directory = directory
        self._path = files.join(directory, name)

    @staticmethod
    def new_name() -> str:
        """Return a name that nobody else uses."""
        return f"{_STAGING}{uuid.uuid4().hex[:16]}"

    def make(self) -> dict[str, Any]:
        """Make the folder, as the chief does; return its name for the other ranks."""
        files.makedirs(self._path)
        return {"staging": os.path.basename(self._path)}

    def write(self, name: str, arrays: Iterable[np.ndarray]) -> dict[str, Any]:
        """Write arrays one after the other into a file; return its length and checksum."""
        path = files.join(self._path, name)
        if files.is_hdfs(path):  # from the local disk, as everything that is uploaded
            with tempfile.TemporaryDirectory(prefix="arcflow-checkpoint-") as folder:
                said = self._write_local(os.path.join(folder, name), arrays)
                files.upload(os.path.join(folder, name), path)
                return said
        return self._write_local(path, arrays)

    @staticmethod
    def _write_local(path: str, arrays: Iterable[np.ndarray]) -> dict[str, Any]:
        digest = hashlib.sha256()
        length = 0
        with open(path, "wb") as file:
            for array in arrays:
                data = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
                padding = bytes(_aligned(data.nbytes) - data.nbytes)
                for part in (data, padding):
                    file.write(part)
                    digest.update(part)
                    length += len(part) if isinstance(part, bytes) else part.nbytes
            file.flush()
            os.fsync(file.fileno())
        return {"bytes": length, "sha256": digest.hexdigest()}

    def write_variables(
        self, arrays: Arrays, per_rank: set[int]
    ) -> tuple[list[dict[str, Any]], dict[str, dict[str, Any]]]:
        """Write the variables that all ranks share; return the manifest's lists of them and of files."""
        entries, offset = [], 0
        for number, (name, array) in enumerate(arrays):
            entry = {
                "name": name,
                "dtype": array.dtype.name,
                "shape": list(array.shape),
                "offset": offset,
                "bytes": array.nbytes,
            }
            if number in per_rank:
                entry["per_rank"] = True
            entries.append(entry)
            offset += _aligned(array.nbytes)
        said = self.write(_VARIABLES, (array for _, array in arrays))
        return entries, {_VARIABLES: said}

    def publish(self, manifest: Manifest) -> str:
        """Give the finished checkpoint its name, in one step; return its path."""
        path = files.join(self._path, _MANIFEST)
        files.write_bytes(path, json.dumps(dataclasses.asdict(manifest)).encode())
        _sync(path)
        _sync(self._path)
        final = files.join(self._directory, name_of(manifest.step))
        if files.exists(final):  # of an attempt that died later, or damaged
            old = files.join(self._directory, Staging.new_name())
            files.rename(final, old)
            files.rename(self._path, final)
            _remove(old)
        else:
            files.rename(self._path, final)
        _sync(self._directory)
        return final

    def discard(self) -> None:
        """Remove what was written; nothing after `publish`."""
        _remove(self._path)


def newest(directory: str, run_id: str | None) -> Manifest | None:
    """Return the newest checkpoint that is whole; damaged ones are passed over.

    Parameters
    ----------
    directory
        Where checkpoints are.
    run_id
        Only of this run; None for any.
    """
    for step in steps_in(directory):
        try:
            manifest = manifest_of(directory, step)
            if run_id is not None and manifest.run_id != run_id:
                continue
            check(directory, manifest)
        except (errors.DataLossError, errors.NotFoundError) as error:
            print(f"a checkpoint is passed over: {error}", flush=True)
            continue
        return manifest
    return None


def other_runs(directory: str, run_id: str) -> list[str]:
    """Ids of other runs that have checkpoints in the folder."""
    found = set()
    for step in steps_in(directory):
        try:
            found.add(manifest_of(directory, step).run_id)
        except (errors.DataLossError, errors.NotFoundError):
            continue
    return sorted(found - {run_id})


def prune(directory: str, keep: int) -> None:
    """Remove all checkpoints but the newest `keep`."""
    for step in steps_in(directory)[keep:]:
        gone = files.join(directory, Staging.new_name())
        try:
            files.rename(files.join(directory, name_of(step)), gone)
        except errors.NotFoundError:
            continue
        _remove(gone)


def sweep(directory: str) -> None:
    """Remove what attempts that died in the middle of writing left."""
    try:
        names = files.listdir(directory)
    except errors.NotFoundError:
        return
    for name in names:
        if name.startswith(_STAGING):
            _remove(files.join(directory, name))


def _remove(path: str) -> None:
    """Remove a folder of ours as far as it can be; what stays is invisible, and swept away later."""
    with contextlib.suppress(errors.ArcflowError, OSError):
        files.remove(path, recursive=True)


def _digest(path: str) -> dict[str, Any]:
    if files.is_hdfs(path):
        data = files.read_bytes(path, max_bytes=_ANY_LENGTH)
        return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"bytes": file.tell(), "sha256": digest}


def _aligned(length: int) -> int:
    return -(-length // _ALIGNMENT) * _ALIGNMENT


def _sync(path: str) -> None:
    """Have a local file or folder on its disk; HDFS has what a writer has closed."""
    if files.is_hdfs(path):
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
