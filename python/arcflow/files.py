# SPDX-License-Identifier: Apache-2.0
"""Small files, on the local disk or at an hdfs:// path, without TensorFlow.

For what is read and written whole: logs, metadata, checkpoints' state. Paths of HDFS begin with
``hdfs://``, ``webhdfs://``, ``swebhdfs://`` or ``viewfs://``; everything else is local.
"""

from __future__ import annotations

import contextlib
import glob as _glob
import os
import posixpath
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator

from . import errors

_HDFS = re.compile(r"(?:hdfs|webhdfs|swebhdfs|viewfs)://")
_MAX_BYTES = 1 << 30
_CHUNK_BYTES = 64 << 20  # of a file that is uploaded; held in memory


def is_hdfs(path: str) -> bool:
    """Whether a path is one of HDFS."""
    return _HDFS.match(path) is not None


def join(path: str, *parts: str) -> str:
    """Join names to a path, with slashes for HDFS."""
    return posixpath.join(path, *parts) if is_hdfs(path) else os.path.join(path, *parts)


def read_bytes(path: str, *, max_bytes: int = _MAX_BYTES) -> bytes:
    """Return a file's bytes.

    Raises
    ------
    NotFoundError
        There is no such file.
    ResourceExhaustedError
        It has more than `max_bytes`.
    """
    if is_hdfs(path):
        from . import _core

        return _core.hdfs_read(path, max_bytes)
    with _translated(path):
        if os.path.getsize(path) > max_bytes:
            raise errors.ResourceExhaustedError(f"{path} is larger than {max_bytes} bytes")
        with open(path, "rb") as file:
            return file.read()


def write_bytes(path: str, data: bytes) -> None:
    """Write a file; it has its name only when it is whole, and replaces what stood there."""
    if is_hdfs(path):
        from . import _core

        _core.hdfs_write(path, data)
        return
    with _translated(path):
        folder = os.path.dirname(os.path.abspath(path))
        os.makedirs(folder, exist_ok=True)
        fd, part = tempfile.mkstemp(prefix=f".{os.path.basename(path)}.", dir=folder)
        try:
            with open(fd, "wb") as file:
                file.write(data)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(part, 0o666 & ~mask)
            os.replace(part, path)
        except BaseException:
            os.unlink(part)
            raise


def upload(source: str, path: str) -> None:
    """Copy a local file, or a folder with all that is in it, to a path; for files of any length.

    A file has its name only when it is whole. A folder is filled in place: upload to a name that
    nobody reads, then `rename`.

    Parameters
    ----------
    source
        On the local disk.
    path
        As everywhere here; a file that stood there is replaced.
    """
    if os.path.isdir(source):
        makedirs(path)
        for name in sorted(os.listdir(source)):
            upload(os.path.join(source, name), join(path, name))
        return
    folder, name = os.path.split(path)
    part = join(folder, f".{name}.{uuid.uuid4().hex[:12]}")
    with _translated(source), open(source, "rb") as file:
        if os.fstat(file.fileno()).st_size <= _CHUNK_BYTES:
            write_bytes(path, file.read())
            return
        try:
            write_bytes(part, file.read(_CHUNK_BYTES))
            while chunk := file.read(_CHUNK_BYTES):
                append_bytes(part, chunk)
            rename(part, path)
        except BaseException:
            with contextlib.suppress(errors.ArcflowError):
                remove(part)
            raise


def append_bytes(path: str, data: bytes) -> None:
    """Append to a file; one that does not exist is made. At HDFS each call costs tens of milliseconds."""
    if is_hdfs(path):
        from . import _core

        _core.hdfs_append(path, data)
        return
    with _translated(path), open(path, "ab") as file:
        file.write(data)


def exists(path: str) -> bool:
    """Whether there is a file or folder."""
    if not is_hdfs(path):
        return os.path.exists(path)
    from . import _core

    try:
        _core.hdfs_stat(path)
    except errors.NotFoundError:
        return False
    return True


def is_dir(path: str) -> bool:
    """Whether there is a folder."""
    if not is_hdfs(path):
        return os.path.isdir(path)
    from . import _core

    try:
        return bool(_core.hdfs_stat(path)["is_directory"])
    except errors.NotFoundError:
        return False


def size(path: str) -> int:
    """Length of a file in bytes."""
    if is_hdfs(path):
        from . import _core

        return int(_core.hdfs_stat(path)["length"])
    with _translated(path):
        return os.path.getsize(path)


def listdir(path: str) -> list[str]:
    """Names in a folder, sorted."""
    if is_hdfs(path):
        from . import _core

        return sorted(str(entry["name"]) for entry in _core.hdfs_list(path))
    with _translated(path):
        return sorted(os.listdir(path))


def glob(pattern: str) -> list[str]:
    """Paths that match, sorted; a wildcard matches within one name."""
    if is_hdfs(pattern):
        from . import _core

        return _core.hdfs_glob(pattern)
    return sorted(_glob.glob(pattern, include_hidden=True))


def makedirs(path: str) -> None:
    """Make a folder and those above it, where they are missing."""
    if is_hdfs(path):
        from . import _core

        _core.hdfs_mkdirs(path)
        return
    with _translated(path):
        os.makedirs(path, exist_ok=True)


def remove(path: str, *, recursive: bool = False) -> None:
    """Delete a file, or a folder with all that is in it when `recursive`."""
    if is_hdfs(path):
        from . import _core

        _core.hdfs_delete(path, recursive)
        return
    with _translated(path):
        if not os.path.isdir(path) or os.path.islink(path):
            os.unlink(path)
        elif recursive:
            shutil.rmtree(path)
        else:
            os.rmdir(path)


def rename(source: str, target: str) -> None:
    """Give a file or folder another name on the same file system; a file that stood there is replaced."""
    if is_hdfs(source) != is_hdfs(target):
        raise errors.InvalidArgumentError(
            f"cannot rename {source} to {target}: they are on different file systems"
        )
    if is_hdfs(source):
        from . import _core

        _core.hdfs_rename(source, target)
        return
    with _translated(source):
        os.replace(source, target)


@contextlib.contextmanager
def _translated(path: str) -> Iterator[None]:
    """Raise our errors for the operating system's, so that callers need not know where a file lies."""
    try:
        yield
    except errors.ArcflowError:  # some are errors of the operating system's kind too
        raise
    except FileNotFoundError as error:
        raise errors.NotFoundError(f"{path}: {error.strerror}") from error
    except PermissionError as error:
        raise errors.PermissionDeniedError(f"{path}: {error.strerror}") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise errors.FailedPreconditionError(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise errors.UnavailableError(f"{path}: {error.strerror}") from error
