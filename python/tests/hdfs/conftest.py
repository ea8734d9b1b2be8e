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

import hdfs_cluster  # noqa: E402


@pytest.fixture(scope="session")
def hdfs_servers(tmp_path_factory):
    """A NameNode and two DataNodes, gone afterwards."""
    lacking = hdfs_cluster.missing()
    if lacking:
        pytest.skip(lacking)
    with hdfs_cluster.Hdfs(tmp_path_factory.mktemp("hdfs"), ROOT / "build" / "hadoop") as running:
        yield running


@pytest.fixture
def hdfs(hdfs_servers, monkeypatch):
    """The servers, with HADOOP_CONF_DIR for the time of one test: a JVM must not inherit it."""
    monkeypatch.setenv("HADOOP_CONF_DIR", str(hdfs_servers.conf_dir))
    return hdfs_servers


def _prepare(conf_dir: str) -> None:
    os.environ.update(
        HADOOP_CONF_DIR=conf_dir,
        TF_CPP_MIN_LOG_LEVEL="2",
        CUDA_VISIBLE_DEVICES="-1",
        KERAS_BACKEND="tensorflow",
    )


@pytest.fixture(scope="session")
def tensorflow_process(hdfs_servers):
    """Call a function of hdfs_programs in a process that has TensorFlow: `tensorflow_process(fn, …)`."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        1, mp_context=context, initializer=_prepare, initargs=(str(hdfs_servers.conf_dir),)
    ) as pool:
        yield lambda function, *args: pool.submit(function, *args).result(timeout=240)
