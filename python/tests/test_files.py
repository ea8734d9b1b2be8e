# SPDX-License-Identifier: Apache-2.0
"""`arcflow.files` on the local disk; tests/hdfs has HDFS."""

from __future__ import annotations

import os

import pytest

from arcflow import errors, files


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = str(tmp_path / "new" / "f")
    files.write_bytes(path, b"one")
    files.write_bytes(path, b"two")
    assert files.read_bytes(path) == b"two"
    assert files.listdir(str(tmp_path / "new")) == ["f"]
    with pytest.raises(TypeError):
        files.write_bytes(path, "text")
    assert files.read_bytes(path) == b"two"
    assert files.listdir(str(tmp_path / "new")) == ["f"]
    assert os.stat(path).st_mode & 0o077 == 0o077 & ~_umask() & 0o666


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_appending_listing_renaming_and_removing(tmp_path):
    base = files.join(str(tmp_path), "d")
    files.makedirs(base)
    files.makedirs(base)
    files.append_bytes(files.join(base, "a"), b"1")
    files.append_bytes(files.join(base, "a"), b"2")
    assert files.size(files.join(base, "a")) == 2
    files.rename(files.join(base, "a"), files.join(base, "b"))
    assert files.glob(files.join(base, "*")) == [files.join(base, "b")]
    assert files.is_dir(base)
    assert files.exists(base)
    with pytest.raises(errors.ArcflowError):
        files.remove(base)
    files.remove(base, recursive=True)
    assert not files.exists(base)


def test_errors_are_those_of_hdfs(tmp_path):
    missing = str(tmp_path / "none")
    for act in (files.read_bytes, files.size, files.listdir, files.remove):
        with pytest.raises(errors.NotFoundError, match="none"):
            act(missing)
    files.write_bytes(missing, b"xx")
    with pytest.raises(errors.ResourceExhaustedError):
        files.read_bytes(missing, max_bytes=1)
    with pytest.raises(errors.InvalidArgumentError, match="different file systems"):
        files.rename(missing, "hdfs://h/x")


def test_paths():
    assert files.is_hdfs("swebhdfs://h/x")
    assert not files.is_hdfs("/hdfs://x")
    assert files.join("hdfs://h/a", "b", "c") == "hdfs://h/a/b/c"


@pytest.fixture(params=["local", "hdfs"])
def base(request, tmp_path, web_hdfs):
    return f"{web_hdfs.url}/up" if request.param == "hdfs" else str(tmp_path / "up")


def test_uploading_files_of_any_length_and_folders(base, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK_BYTES", 1000)
    source = tmp_path / "source"
    (source / "sub").mkdir(parents=True)
    (source / "long").write_bytes(bytes(range(250)) * 10)
    (source / "sub" / "short").write_bytes(b"x")
    (source / "sub" / "empty").write_bytes(b"")
    files.upload(str(source), base)
    files.upload(str(source), base)  # replaces
    assert files.read_bytes(files.join(base, "long")) == bytes(range(250)) * 10
    assert files.read_bytes(files.join(base, "sub", "short")) == b"x"
    assert files.read_bytes(files.join(base, "sub", "empty")) == b""
    assert files.listdir(base) == ["long", "sub"]


def test_an_upload_that_breaks_leaves_what_was_there(tmp_path, web_hdfs, monkeypatch):
    monkeypatch.setattr(files, "_CHUNK_BYTES", 4)
    source = tmp_path / "source"
    source.write_bytes(b"0123456789")
    path = f"{web_hdfs.url}/d/f"
    files.write_bytes(path, b"old")
    web_hdfs.refuse = {"APPEND"}
    with pytest.raises(errors.PermissionDeniedError):
        files.upload(str(source), path)
    assert files.read_bytes(path) == b"old"
    assert files.listdir(f"{web_hdfs.url}/d") == ["f"]
