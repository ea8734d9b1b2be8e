# SPDX-License-Identifier: Apache-2.0
"""Fixtures: real HDFS on loopback, and a process in which TensorFlow uses it."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
sys.path[:0] = [str(ROOT / "tools" / "hadoop"), str(Path(__file__).parent)]

import cluster as hadoop


@pytest.fixture(scope="session")
def hdfs(tmp_path_factory):
    """A NameNode and two DataNodes; HADOOP_CONF_DIR names their configuration."""
    lacking = hadoop.missing()
    if lacking:
        pytest.skip(lacking)
    before = os.environ.get("HADOOP_CONF_DIR")
    folder = tmp_path_factory.mktemp("hdfs")
    with hadoop.Hdfs(folder, ROOT / "build" / "hadoop") as running:
        os.environ["HADOOP_CONF_DIR"] = str(running.conf_dir)
        yield running
        if before is None:
            del os.environ["HADOOP_CONF_DIR"]
        else:
            os.environ["HADOOP_CONF_DIR"] = before
    assert not running._processes


@pytest.fixture(scope="session")
def tensorflow_process(hdfs):
    """Call a function of hdfs_programs in a process that has TensorFlow: `tensorflow_process(fn, …)`."""
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    os.environ["KERAS_BACKEND"] = "tensorflow"
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=240)
