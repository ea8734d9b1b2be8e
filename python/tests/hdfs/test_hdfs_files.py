# SPDX-License-Identifier: Apache-2.0
"""`arcflow.files` on real HDFS, without TensorFlow: round trips, rights, quota."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request

import pytest

from arcflow import errors, files

pytestmark = [pytest.mark.hdfs, pytest.mark.slow]


def call(hdfs, method: str, path: str, query: str) -> None:
    """An administrator's operation, by WebHDFS."""
    user = "root" if os.getuid() == 0 else os.environ["USER"]
    url = f"http://{hdfs.http}/webhdfs/v1{path}?user.name={user}&{query}"
    urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=20).close()


def test_round_trips_of_every_size(hdfs):
    for n in (0, 1, 70_000, 20 << 20):
        path, data = f"{hdfs.uri}/round/{n}", os.urandom(n)
        files.write_bytes(path, data)
        assert files.read_bytes(path) == data
        assert files.size(path) == n
    assert files.listdir(f"{hdfs.uri}/round") == sorted(map(str, (0, 1, 70_000, 20 << 20)))
    with pytest.raises(errors.ResourceExhaustedError):
        files.read_bytes(f"{hdfs.uri}/round/70000", max_bytes=1000)


def test_names_lists_and_renames(hdfs):
    base = f"{hdfs.uri}/names"
    odd = f"{base}/größe %41 a+b&c=d#?"
    files.write_bytes(odd, b"1")
    files.write_bytes(f"{base}/b.txt", b"22")
    assert files.read_bytes(odd) == b"1"
    assert files.glob(f"{base}/*.txt") == [f"{base}/b.txt"]
    files.rename(odd, f"{base}/b.txt")
    assert files.read_bytes(f"{base}/b.txt") == b"1"
    assert files.listdir(base) == ["b.txt"]
    assert files.exists(base)
    assert files.is_dir(base)
    assert not files.is_dir(f"{base}/b.txt")
    with pytest.raises(errors.FailedPreconditionError):
        files.remove(base)
    files.remove(base, recursive=True)
    assert not files.exists(base)
    with pytest.raises(errors.NotFoundError, match="/names"):
        files.remove(base)


def test_appending(hdfs):
    path = f"{hdfs.uri}/append/log"
    files.append_bytes(path, b"one ")
    files.append_bytes(path, b"two")
    assert files.read_bytes(path) == b"one two"


def test_names_without_authority_and_through_a_mount_table(hdfs):
    files.write_bytes("hdfs:///mounted/x", b"x")
    assert files.read_bytes(f"{hdfs.uri}/mounted/x") == b"x"
    assert files.read_bytes("viewfs://view/mounted/x") == b"x"
    assert files.listdir("viewfs://view/") == ["mounted"]
    assert files.read_bytes(f"webhdfs://{hdfs.http}/mounted/x") == b"x"


def test_quota_is_an_error_with_path_and_leaves_nothing(hdfs):
    base = f"{hdfs.uri}/quota"
    files.makedirs(base)
    call(hdfs, "PUT", "/quota", f"op=SETQUOTA&storagespacequota={1 << 20}")
    for n in (1000, 30 << 20):  # in one request, and streamed: a block does not fit either way
        with pytest.raises(
            errors.ResourceExhaustedError, match=r"writing /quota/f at offset.*uota"
        ):
            files.write_bytes(f"{base}/f", b"x" * n)
    assert files.listdir(base) == []


def test_rights_of_other_users(hdfs):
    files.write_bytes(f"{hdfs.uri}/private/f", b"x")
    call(hdfs, "PUT", "/private", "op=SETPERMISSION&permission=700")
    code = f"""if True:
        from arcflow import errors, files
        for act in (lambda: files.read_bytes("{hdfs.uri}/private/f"),
                    lambda: files.write_bytes("{hdfs.uri}/private/g", b"x")):
            try:
                act()
                print("allowed")
            except errors.PermissionDeniedError as error:
                print("denied", "/private" in str(error), "mallory" in str(error))
    """
    env = {**os.environ, "HADOOP_USER_NAME": "mallory"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split("\n")[:2] == ["denied True True"] * 2, done.stderr


def test_acting_for_another_user(hdfs):
    call(hdfs, "PUT", "/for-alice", "op=MKDIRS&permission=777")
    code = f'from arcflow import files; files.write_bytes("{hdfs.uri}/for-alice/f", b"x")'
    env = {**os.environ, "HADOOP_PROXY_USER": "alice"}
    subprocess.run([sys.executable, "-c", code], env=env, check=True, timeout=60)
    with urllib.request.urlopen(
        f"http://{hdfs.http}/webhdfs/v1/for-alice/f?op=GETFILESTATUS", timeout=20
    ) as answer:
        assert b'"owner":"alice"' in answer.read()


def test_malformed_configuration_names_the_file_and_the_place(hdfs, tmp_path):
    (tmp_path / "core-site.xml").write_text("<configuration>\n<property></configuration>")
    code = "from arcflow import files; files.exists('hdfs:///x')"
    env = {**os.environ, "HADOOP_CONF_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60
    )
    assert f"InvalidArgumentError: {tmp_path}/core-site.xml:2:" in done.stderr
