# SPDX-License-Identifier: Apache-2.0
"""How tensors travel: the setting, its refusals, and what a run tells of it."""

from __future__ import annotations

import os
import sys

import cloudpickle
import pytest
from spark_testing import on
from tensorboard.backend.event_processing import event_accumulator

from arcflow import Cluster, _transport, errors

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests


@pytest.fixture(autouse=True)
def _forget():
    yield
    _transport.remember({"size": 1})


def test_modes_that_cannot_be_are_refused():
    with pytest.raises(errors.InvalidArgumentError, match="is not one of"):
        _transport.check_mode("carrier pigeon")
    for mode in ("auto", "shm", "tcp", "rdma", "grpc"):
        assert _transport.check_mode(mode) == mode


def test_compression_is_for_what_goes_between_hosts():
    assert _transport.check_compression(None, "shm") == ""
    assert _transport.check_compression("bf16", "auto") == "bf16"
    with pytest.raises(errors.InvalidArgumentError, match="not one of"):
        _transport.check_compression("int8", "auto")
    for mode in ("shm", "grpc"):
        with pytest.raises(errors.InvalidArgumentError, match="use transport='auto'"):
            _transport.check_compression("fp16", mode)


def test_the_protocol_follows_the_setting():
    assert _transport.protocol() == "grpc"
    protocols = {
        "auto": "grpc+arc", "shm": "grpc+arc", "tcp": "grpc+arc", "rdma": "grpc_rdma", "grpc": "grpc",
    }  # fmt: skip
    for mode, protocol in protocols.items():
        _transport.use(mode, "00" * 32)
        assert _transport.protocol() == protocol


def test_a_node_remembers_its_configuration_and_one_alone_has_no_peers():
    transport = {"mode": "shm", "secret": "00" * 32, "ports": [40000, 40100]}
    job = {"run_id": "r", "transport": transport}
    _transport.remember({"size": 2, "job": job, "cluster": {"chief": ["a:1"]}})
    assert _transport.settings() == {
        "mode": "shm",
        "secret": "00" * 32,
        "ports": [40000, 40100],
        "run_id": "r",
        "cluster": {"chief": ["a:1"]},
    }
    _transport.remember({"size": 1, "job": job})
    assert _transport.settings() is None
    assert _transport.report() == {"mode": "grpc", "protocol": "grpc", "pairs": {}}


def test_without_the_plug_in_auto_goes_by_grpc_and_says_so():
    _transport.use("auto", "00" * 32)
    _transport.do_without("no plug-in")
    assert _transport.protocol() == "grpc"
    report = _transport.report()
    assert report["fallbacks"] == {"no plug-in": 1}
    assert report["pairs"] == {}


def test_tasks_have_the_ranks_of_their_nodes():
    _transport.use("auto", "00" * 32, cluster={"chief": ["a:1"], "worker": ["b:1", "c:1"]})
    ranks = [
        _transport._rank_of(f"/job:{job}/replica:0/task:{task}")
        for job, task in (("chief", 0), ("worker", 0), ("worker", 1), ("ps", 0))
    ]
    assert ranks == [0, 1, 2, None]


def reduce_something(ctx):
    import tensorflow as tf

    strategy = ctx.strategy()

    @tf.function
    def step(x):
        return strategy.run(
            lambda y: tf.distribute.get_replica_context().all_reduce("SUM", tf.identity(y)),
            args=(x,),
        )

    total = step(tf.fill([300_000], ctx.rank + 1.0))
    return float(total[-1]), ctx.transport


@on("local")
@pytest.mark.tf
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("leftovers")
@pytest.mark.parametrize(
    ("mode", "backend"), [("auto", "shm"), pytest.param("tcp", "tcp", marks=pytest.mark.long)]
)
def test_a_run_tells_what_each_pair_used(spark, tmp_path, mode, backend):
    options = {"metrics_dir": tmp_path, "progress": False, "start_timeout": 300}
    with Cluster(spark, size=2, transport=mode, **options) as cluster:
        result = cluster.run(reduce_something)
    (folder,) = tmp_path.glob("*/chief-0")
    events = event_accumulator.EventAccumulator(str(folder)).Reload()
    for way in ("sent", "received"):
        rates = [one.value for one in events.Scalars(f"arcflow/transport_{way}_bytes_per_s")]
        assert max(rates) > 0
    for rank, (total, inside) in enumerate(result.values):
        assert total == 3.0
        after = result.metrics["transport"][rank]
        assert after["mode"] == inside["mode"] == mode
        assert after["protocol"] == "grpc+arc"
        assert set(inside["pairs"]) == {1 - rank}
        assert inside["pairs"][1 - rank]["backend"] == backend
        assert inside["pairs"][1 - rank]["sent"] >= 300_000 * 4
        assert after["collectives"]["operations"] >= inside["collectives"]["operations"] > 0
        assert after["fallbacks"] == {}


@on("local")
@pytest.mark.tf
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("leftovers")
@pytest.mark.skipif(os.path.isdir("/sys/class/infiniband"), reason="this machine has RDMA")
def test_rdma_where_there_is_none_is_an_error_that_says_so(spark):
    with (
        Cluster(spark, size=2, transport="rdma", progress=False, start_timeout=300) as cluster,
        pytest.raises(errors.NodeFailedError, match=r"there is no RDMA device|libucp"),
    ):
        cluster.run(reduce_something)
