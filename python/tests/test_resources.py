# SPDX-License-Identifier: Apache-2.0
"""What a node gets of its host: accelerators, an address, a port; and that it reaches the others."""

from __future__ import annotations

import os
import socket
import stat
import sys
import threading

import cloudpickle
import pytest
import spark_testing
from spark_testing import on

from arcflow import Cluster, _gpus, _network, _reach, errors, preflight

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests


@pytest.fixture
def machine(tmp_path):
    """An empty machine: no accelerator, no tool that lists any."""
    return tmp_path, {"PATH": str(tmp_path / "bin")}


class TestGpus:
    def test_spark_is_asked_first_and_names_pass_through(self, machine):
        root, env = machine
        env["CUDA_VISIBLE_DEVICES"] = "5,6"
        found = _gpus.find({"gpu": ["MIG-1-2", "GPU-77"]}, env, str(root))
        assert _gpus.choose(found, 2, place=3, shared=False) == ("MIG-1-2", "GPU-77")
        assert _gpus.environment_of(found, ["MIG-1-2"]) == {"CUDA_VISIBLE_DEVICES": "MIG-1-2"}

    @pytest.mark.parametrize(
        "variable", ["CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES"]
    )
    def test_the_environment_is_asked_next_and_nodes_of_an_executor_share_none(
        self, machine, variable
    ):
        root, env = machine
        env[variable] = "4, 5,6,7"
        found = _gpus.find({}, env, str(root))
        assert [_gpus.choose(found, 2, place, False) for place in (0, 1)] == [
            ("4", "5"),
            ("6", "7"),
        ]
        assert _gpus.choose(found, 2, 1, shared=True) == ("4", "5")
        assert _gpus.environment_of(found, ["6", "7"]) == {variable: "6,7"}

    def test_what_is_there_is_found_by_the_drivers_tool(self, machine):
        root, env = machine
        tool = root / "bin" / "nvidia-smi"
        tool.parent.mkdir()
        tool.write_text("#!/bin/sh\nprintf '0\\n1\\n2\\n'\n")
        tool.chmod(0o755)
        found = _gpus.find({}, env, str(root))
        assert (found.addresses, found.per_host) == (("0", "1", "2"), True)

    def test_without_the_tool_the_kernels_list_counts(self, machine):
        root, env = machine
        for name in ("0000:01:00.0", "0000:02:00.0"):
            (root / "proc/driver/nvidia/gpus" / name).mkdir(parents=True)
        assert _gpus.find({}, env, str(root)).addresses == ("0", "1")

    def test_amd_devices_are_found_and_processors_are_none(self, machine):
        root, env = machine
        for number, identity in enumerate(("0", "4098", "4099")):
            folder = root / "sys/class/kfd/kfd/topology/nodes" / str(number)
            folder.mkdir(parents=True)
            (folder / "gpu_id").write_text(identity + "\n")
        found = _gpus.find({}, env, str(root))
        assert (found.addresses, found.variable) == (("0", "1"), "HIP_VISIBLE_DEVICES")

    @pytest.mark.parametrize("hidden", ["", "-1", "none"])
    def test_hidden_ones_are_none_and_asking_for_one_says_so(self, machine, hidden):
        root, env = machine
        env["CUDA_VISIBLE_DEVICES"] = hidden
        found = _gpus.find({}, env, str(root))
        with pytest.raises(
            errors.FailedPreconditionError, match=r"gpus=1 .* gives none .*lower gpus="
        ):
            _gpus.choose(found, 1, 0, False)


class TestNetwork:
    def test_an_address_is_chosen_by_network_or_interface(self):
        assert _network.choose(_network.checked("127.0.0.0/8")).startswith("127.")
        assert _network.choose("lo") == "127.0.0.1"
        with pytest.raises(errors.FailedPreconditionError, match=r"it has .*lo 127\.0\.0\.1"):
            _network.choose("192.0.2.128/28")

    @pytest.mark.parametrize("network", ["10.0.0.0/40", "fe80::/10", "an interface", "/"])
    def test_what_is_no_network_is_refused(self, network):
        with pytest.raises(errors.InvalidArgumentError, match="network="):
            _network.checked(network)

    @pytest.mark.parametrize("ports", ["0", "5-4", "70000", "a-b", "1-2-3", -1])
    def test_what_is_no_range_is_refused(self, ports):
        with pytest.raises(errors.InvalidArgumentError, match="ports="):
            _network.port_range(ports)

    def test_a_range_that_is_taken_is_named(self):
        with _network.bind_in("127.0.0.1", 0, 0) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(errors.ResourceExhaustedError, match=f"{port} to {port}"):
                _network.bind_in("127.0.0.1", port, port)


class Group:
    """Nodes in threads that meet as at the coordinator's barrier."""

    def __init__(self, targets):
        self.targets = targets
        self._words = {}
        self._barrier = threading.Barrier(len(targets))

    def check(self):
        """What each node's check raised, by name."""
        found = {}

        def one(name):
            def exchange(barrier, word):
                self._words[barrier, name] = word
                self._barrier.wait(30)
                return [self._words[barrier, other] for other in self.targets]

            try:
                _reach.check(name, {n: w for n, w in self.targets.items() if w}, exchange, 2.0)
            except errors.UnavailableError as error:
                found[name] = error

        threads = [threading.Thread(target=one, args=(name,)) for name in self.targets]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return found


def held_ports(count):
    sockets = []
    for _ in range(count):
        held = socket.socket()
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        held.bind(("127.0.0.1", 0))
        sockets.append(held)
    return sockets, [f"127.0.0.1:{held.getsockname()[1]}" for held in sockets]


def test_nodes_that_reach_each_other_are_silent_about_it():
    sockets, where = held_ports(3)
    targets = dict(zip(("chief:0", "worker:0", "ps:0"), where, strict=True)) | {"evaluator:0": None}
    assert Group(targets).check() == {}
    for held in sockets:
        port = held.getsockname()[1]
        assert not spark_testing.accepts(port)  # TensorFlow's server finds nobody there
        held.close()


def test_the_pair_that_fails_is_named_on_every_node(monkeypatch):
    sockets, where = held_ports(2)
    targets = {"chief:0": where[0], "worker:0": where[1]}
    stock = _reach.listening

    def deaf(address):  # as if a firewall stood before the worker
        return stock(None if address == where[1] else address)

    monkeypatch.setattr(_reach, "listening", deaf)
    found = Group(targets).check()
    assert set(found) == {"chief:0", "worker:0"}
    for error in found.values():
        assert f"chief:0 cannot reach worker:0 at {where[1]} (Connection refused)" in str(error)
        assert "network='10.0.0.0/8'" in str(error)
    assert not found["chief:0"].peer_loss
    assert found["worker:0"].peer_loss
    for held in sockets:
        held.close()


def devices(ctx):
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    return {name: os.environ.get(name) for name in names} | {"cluster": ctx.cluster}


@on("local")
@pytest.mark.usefixtures("leftovers")
class TestLocal:
    def test_nodes_get_ports_of_the_range_in_the_network_asked_for(self, spark):
        first = 41000 + os.getpid() % 2000 * 10
        with Cluster(
            spark, size=2, progress=False, network="127.0.0.0/8", ports=f"{first}-{first + 9}"
        ) as cluster:
            found = cluster.run(devices).values[0]["cluster"]
        addresses = [*found["chief"], *found["worker"]]
        assert all(one.startswith("127.0.0.1:") for one in addresses)
        assert {int(one.split(":")[1]) for one in addresses} == {first, first + 1}

    def test_a_network_that_is_not_there_is_refused_with_what_is(self, spark):
        with (
            Cluster(spark, size=2, progress=False, network="192.0.2.128/28") as cluster,
            pytest.raises(errors.FailedPreconditionError, match=r"no address there; it has .*lo"),
        ):
            cluster.run(devices)

    def test_accelerators_asked_for_and_absent_are_an_error(self, spark):
        with (
            Cluster(spark, size=2, progress=False, gpus=1) as cluster,
            pytest.raises(errors.FailedPreconditionError, match="gpus=1 a node"),
        ):
            cluster.run(devices)

    def test_none_means_none(self, spark):
        with Cluster(spark, size=1, progress=False, gpus=0) as cluster:
            value = cluster.run(devices).values[0]
        assert (value["CUDA_VISIBLE_DEVICES"], value["HIP_VISIBLE_DEVICES"]) == ("-1", "-1")

    def test_a_profile_needs_more_than_local_mode(self, spark):
        from pyspark.resource import ResourceProfileBuilder

        with pytest.raises(errors.UnimplementedError, match="leave profile= out"):
            Cluster(spark, size=1, profile=ResourceProfileBuilder().build)
        with pytest.raises(errors.InvalidArgumentError, match="ResourceProfile, not str"):
            preflight.checked_profile(spark, "two cores")


@pytest.mark.spark
@pytest.mark.usefixtures("leftovers")
def test_accelerators_of_sparks_tasks_reach_the_nodes(tmp_path):
    script = tmp_path / "discover.sh"
    script.write_text('#!/bin/sh\necho \'{"name": "gpu", "addresses": ["MIG-a", "MIG-b"]}\'\n')
    script.chmod(script.stat().st_mode | stat.S_IXUSR)
    settings = {
        f"spark.{who}.resource.gpu.{what}": value
        for who in ("worker", "executor")
        for what, value in (("amount", "2"), ("discoveryScript", str(script)))
    }
    settings["spark.task.resource.gpu.amount"] = "1"
    spark = spark_testing.classic_session("local-cluster[1,2,1024]", tmp_path, **settings)
    try:
        with Cluster(spark, size=2, progress=False) as cluster:
            values = cluster.run(devices).values
            assert {v["CUDA_VISIBLE_DEVICES"] for v in values} == {"MIG-a", "MIG-b"}
        with (
            Cluster(spark, size=2, progress=False, gpus=2) as cluster,
            pytest.raises(errors.FailedPreconditionError, match=r"spark\.task\.resource\.gpu"),
        ):
            cluster.run(devices)
    finally:
        spark_testing.stop_sessions()


@on("standalone")
@pytest.mark.usefixtures("leftovers")
def test_a_profile_is_asked_of_the_cluster(spark):
    from pyspark.resource import ResourceProfileBuilder, TaskResourceRequests

    def executor(ctx):
        from arcflow import _executor

        return _executor.jvm_pid()

    whole_executors = ResourceProfileBuilder().require(TaskResourceRequests().cpus(2)).build
    with Cluster(spark, size=2, progress=False, profile=whole_executors) as cluster:
        assert len(set(cluster.run(executor).values)) == 2  # of two cores each
