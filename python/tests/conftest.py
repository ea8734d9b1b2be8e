# SPDX-License-Identifier: Apache-2.0
"""Fixtures: Spark sessions shared within a module, and the check that a run left nothing behind."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import spark_testing  # noqa: E402

spark_testing.prepare_environment()


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Spark's own servers; started when first used."""
    with spark_testing.Servers(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture(scope="session")
def standalone(servers):
    """The address of a standalone cluster with two Workers of two cores."""
    return servers.standalone()


@pytest.fixture(scope="module")
def local_spark(tmp_path_factory):
    """A Classic session on local[4]."""
    yield spark_testing.classic_session("local[4]", tmp_path_factory.mktemp("local"))
    spark_testing.stop_sessions()


@pytest.fixture(scope="module")
def standalone_spark(standalone, tmp_path_factory):
    """A Classic session on the standalone cluster."""
    yield spark_testing.classic_session(standalone, tmp_path_factory.mktemp("driver"))
    spark_testing.stop_sessions()


@pytest.fixture(scope="module")
def cluster_spark(tmp_path_factory):
    """A Classic session on local-cluster: two executors of two cores."""
    yield spark_testing.classic_session(
        "local-cluster[2,2,1024]", tmp_path_factory.mktemp("cluster")
    )
    spark_testing.stop_sessions()


@pytest.fixture(scope="module")
def connect_spark(standalone, tmp_path_factory):
    """A Spark Connect session on the standalone cluster."""
    with (
        spark_testing.Servers(tmp_path_factory.mktemp("connect")) as running,
        spark_testing.connect_session(running.connect(standalone)) as spark,
    ):
        yield spark


@pytest.fixture
def leftovers():
    """After the test: no agent, node, memfd or named file of Arcflow is left."""
    before = set(spark_testing.named_leftovers())
    yield
    spark_testing.wait_for(
        lambda: not spark_testing.agents_and_nodes(), 20, "end of all agents and nodes"
    )
    spark_testing.wait_for(lambda: not spark_testing.arcflow_memfds(), 10, "closing of memfds")
    assert set(spark_testing.named_leftovers()) - before == set()
