# SPDX-License-Identifier: Apache-2.0
"""TensorFlow and Keras on real HDFS, by the filesystem plug-in."""

from __future__ import annotations

import os
import subprocess
import sys

import hdfs_programs as programs
import pytest

from arcflow import files

pytestmark = [pytest.mark.hdfs, pytest.mark.tf, pytest.mark.slow]


@pytest.fixture
def base(hdfs, request):
    return f"{hdfs.uri}/tf/{request.node.name}"


def test_gfile(tensorflow_process, base):
    got = tensorflow_process(programs.gfile, base)
    assert got["lines"] == ["hello\n", "world\n"]
    assert got["tail"] == (b"world\n", 12, 12)
    assert got["renamed"] == "AlreadyExistsError"
    assert got["y"] == "z"
    assert got["glob"] == [f"{base}/a/x.txt", f"{base}/a/y.txt"]  # the authority is kept
    assert got["listdir"] == ["b", "x.txt", "y.txt"]
    assert got["walk"][0] == (f"{base}/a", ["b"], ["x.txt", "y.txt"])
    assert got["is_dir"] == (True, False, False)
    assert got["length"] == 12
    assert got["missing"].startswith("NotFoundError")
    assert "/none" in got["missing"]
    assert got["after"] is False


def test_tf_data_reads_records(tensorflow_process, base):
    sizes = [i % 1500 for i in range(2000)]
    assert tensorflow_process(programs.records, base) == (6000, 3 * sum(sizes))


def test_checkpoints(tensorflow_process, base):
    latest, there = tensorflow_process(programs.checkpoint, base)
    assert latest == [f"{base}/ck/ckpt-3"]
    assert there == [
        "checkpoint", "ckpt-2.data-00000-of-00001", "ckpt-2.index",
        "ckpt-3.data-00000-of-00001", "ckpt-3.index",
    ]  # fmt: skip


def test_saved_models_and_keras_files(tensorflow_process, base):
    assert tensorflow_process(programs.models, base) == ["exported", "m.keras", "m.weights.h5"]


def test_model_checkpoint_and_backup(tensorflow_process, base):
    got = tensorflow_process(programs.callbacks, base)
    assert got["first"] == "interrupted"
    assert got["resumed"][-1] == 3
    assert len(got["resumed"]) < 4
    assert got["files"] == ["1.keras", "2.keras", "3.keras", "4.keras"]


def test_summaries_are_seen_while_they_are_written(tensorflow_process, base):
    assert tensorflow_process(programs.summaries, base) == (20, 50)


def test_h5_to_hdfs_is_refused(tensorflow_process, base, tmp_path):
    said, *there = tensorflow_process(programs.h5, base, str(tmp_path))
    assert said.startswith("InvalidArgumentError")
    assert ".keras" in said
    assert there == ["local.h5"]  # and no folder called "hdfs:"


def test_a_mount_table(hdfs, tensorflow_process):
    got = tensorflow_process(programs.gfile, "viewfs://view/mounted/g")
    assert got["glob"][0] == "viewfs://view/mounted/g/a/x.txt"


def test_nodes_register_when_tensorflow_is_imported(hdfs):
    files.write_bytes(f"{hdfs.uri}/node/x", b"x")
    code = f"""if True:
        import sys
        from arcflow.tf.filesystem import register_when_imported
        register_when_imported()
        assert "tensorflow" not in sys.modules
        import tensorflow as tf
        print(tf.io.gfile.listdir("{hdfs.uri}/node"))
    """
    env = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip() == "['x']", done.stderr


def test_a_file_that_vanishes(hdfs, tensorflow_process):
    path = f"{hdfs.uri}/vanish"
    files.write_bytes(path, os.urandom(12 << 20))
    tensorflow_process(programs.start_reading, path)
    files.remove(path)
    said = tensorflow_process(programs.finish_reading)
    assert isinstance(said, str)
    assert said.startswith("NotFoundError")
    assert "/vanish" in said


def test_a_data_node_that_dies_mid_read(hdfs, tensorflow_process):
    path, data = f"{hdfs.uri}/dying/read", os.urandom(24 << 20)
    files.write_bytes(path, data)
    for i in (0, 1):  # one of them is the one that is read from
        head = tensorflow_process(programs.start_reading, path)
        hdfs.kill(f"dn{i}")
        rest = tensorflow_process(programs.finish_reading)
        assert isinstance(rest, bytes), rest
        assert head + rest == data
        hdfs.restart_data_node(i)


def test_data_nodes_that_die_mid_write_leave_nothing(hdfs, tensorflow_process):
    files.write_bytes(f"{hdfs.uri}/ending/other", b"stays")
    path = f"{hdfs.uri}/ending/write"
    tensorflow_process(programs.start_writing, path, 20 << 20)
    for i in (0, 1):
        hdfs.kill(f"dn{i}")
    said = tensorflow_process(programs.finish_writing, 20 << 20)
    assert "Error" in said
    assert "writing /ending/write at offset " in said
    assert files.listdir(f"{hdfs.uri}/ending") == ["other"]
    for i in (0, 1):
        hdfs.restart_data_node(i)
