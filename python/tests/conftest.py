# SPDX-License-Identifier: Apache-2.0
"""Fixtures: Spark sessions shared within a module, and the check that a run left nothing behind."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_webhdfs
import spark_testing

_TEMPORARY = tempfile.TemporaryDirectory(prefix="arc-pytest-", ignore_cleanup_errors=True)
spark_testing.prepare_environment(_TEMPORARY.name)


@pytest.fixture(scope="session")
def servers(tmp_path_factory):
    """Spark's own servers; started when first used."""
    with spark_testing.Servers(tmp_path_factory.mktemp("servers")) as running:
        yield running


@pytest.fixture
def web_hdfs(tmp_path):
    """A WebHDFS server over a folder, with its `url` and `root`."""
    root = tmp_path / "hdfs"
    root.mkdir()
    with fake_webhdfs.FakeWebHdfs(root) as server:
        yield server


@pytest.fixture(scope="session")
def standalone(servers):
    """The address of a standalone cluster with two Workers of two cores."""
    return servers.standalone()


@pytest.fixture(scope="session")
def connect(tmp_path_factory):
    """The address of a Connect server, on a standalone cluster of its own, whose cores it holds for good."""
    with spark_testing.Servers(tmp_path_factory.mktemp("connect")) as running:
        yield running.connect(running.standalone())


@pytest.fixture(scope="module")
def spark(request, tmp_path_factory):
    """A session of the kind that the test names: `@on("local", "connect")`; one at a time."""
    kind = request.param
    folder = tmp_path_factory.mktemp(kind)
    if kind == "connect":
        with spark_testing.connect_session(request.getfixturevalue("connect")) as session:
            yield session
        return
    if kind == "local":
        master = "local[4]"
    elif kind == "local-cluster":
        master = "local-cluster[2,2,1024]"
    else:
        master = request.getfixturevalue("standalone")
    yield spark_testing.classic_session(master, folder)
    spark_testing.stop_sessions()


@pytest.fixture(scope="module")
def local_spark(tmp_path_factory):
    """A Classic session on local[4], for modules of which only some tests need Spark."""
    yield spark_testing.classic_session("local[4]", tmp_path_factory.mktemp("local"))
    spark_testing.stop_sessions()


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


# Where several processes share the files, the longest come first, so that none ends alone long after the others
# (`--durations` tells; the order is only a matter of time).
_LONGEST = (
    "test_restart.py", "test_chaos.py", "test_strategy.py", "test_transport.py", "test_roles.py",
    "test_examples.py", "test_cluster.py", "test_async_fit.py", "test_live_deaths.py", "test_liveness.py",
    "test_failures.py", "test_types.py", "test_resources.py", "test_live.py", "test_host_loss.py",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
