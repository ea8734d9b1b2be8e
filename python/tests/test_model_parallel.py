# SPDX-License-Identifier: Apache-2.0
"""Model parallelism on real nodes: each example gives what the model in one piece gives, and lies where it should."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cloudpickle
import pytest
from spark_testing import on

from arcflow import Cluster, _roles, errors
from arcflow._roles import Roles

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
EXAMPLES = Path(__file__).resolve().parents[2] / "examples" / "model_parallel"
PROGRAMS = ("sharded_variables", "placed_layers", "pipeline", "dtensor_layers")
# What takes minutes; `make examples` runs it too.
on_nodes = [
    pytest.mark.tf, pytest.mark.slow, pytest.mark.timeout(900), pytest.mark.usefixtures("leftovers"),
]  # fmt: skip


@pytest.fixture
def example(monkeypatch):
    """Load one of the programs, as nodes get it: by value."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    loaded = []

    def load(name: str):
        for one in ("model_parallel_data", name):
            spec = importlib.util.spec_from_file_location(one, EXAMPLES / f"{one}.py")
            module = importlib.util.module_from_spec(spec)
            monkeypatch.setitem(sys.modules, one, module)
            spec.loader.exec_module(module)
            cloudpickle.register_pickle_by_value(module)
            loaded.append(module)
        return loaded[-1], loaded[-2]

    yield load
    for module in loaded:
        cloudpickle.unregister_pickle_by_value(module)


def run(spark, program, words, data=None, **options):
    args = program.parser().parse_args([*words, "--compare"])
    with Cluster(spark, progress=False, start_timeout=300, **options) as cluster:
        return cluster.run(lambda ctx: program.main(ctx, args), data=data).values


def test_workers_that_serve_are_not_fed_and_call_no_function():
    roles = Roles(3, evaluator=1, workers_serve=True)
    assert roles.chief_alone
    assert list(roles.fed) == [0]
    assert [roles.runs_function(rank) for rank in range(4)] == [True, False, False, True]
    assert Roles.from_json(roles.to_json()) == roles
    with pytest.raises(errors.InvalidArgumentError, match="leave workers_serve out"):
        _roles.checked(3, 1, 0, False, True)
    with pytest.raises(errors.InvalidArgumentError, match="size=2 or more"):
        _roles.checked(1, 0, 0, False, True)


def test_the_readme_has_the_submit_line_of_each_program():
    text = (EXAMPLES / "README.md").read_text().replace("\\\n", " ")
    for name in PROGRAMS:
        assert re.search(rf"spark-submit .*{name}\.py", text), name
        assert re.search(rf"arcflow submit {name}\.py", text), name


def ask_in_vain(ctx):
    said = []
    for ask in (lambda: ctx.device(1), lambda: ctx.strategy(variable_partitioner=lambda **_: [1])):
        try:
            ask()
        except errors.UnimplementedError as error:
            said.append(str(error))
    return said


def bytes_of_sockets(pid: int | None = None) -> int:
    """Bytes that the TCP sockets of a process, or of all, have received so far."""
    told = subprocess.run(["ss", "-tinHp"], capture_output=True, text=True, check=True).stdout
    total, mine = 0, False
    for line in told.splitlines():
        if not line.startswith((" ", "\t")):
            mine = pid is None or f"pid={pid}," in line
        elif mine and (found := re.search(r"bytes_received:(\d+)", line)):
            total += int(found[1])
    return total


def hand_over(ctx):
    """Let one worker hand a large tensor to the other; count what passes the chief."""
    import tensorflow as tf

    first, second = ctx.device(1), ctx.device("worker:1")

    @tf.function
    def step(value):
        with tf.device(first):
            large = tf.fill([ctx.args["numbers"]], value)
        with tf.device(second):
            return tf.reduce_sum(large)

    float(step(tf.constant(0.0)))
    before = bytes_of_sockets(os.getpid()), bytes_of_sockets()
    found = float(step(tf.constant(1.0)))
    return {
        "sum": found,
        "chief": bytes_of_sockets(os.getpid()) - before[0],
        "all": bytes_of_sockets() - before[1],
    }


class TestOnNodes:
    pytestmark = on_nodes

    @on("local")
    def test_a_pipeline_over_two_nodes_trains_as_the_model_in_one_piece(self, spark, example):
        program, data = example("pipeline")
        rows = data.digits_frame(600)
        words = ["--epochs", "3", "--batch_size", "50", "--micro_batches", "3"]
        chief, *workers = run(spark, program, words, rows, size=3, workers_serve=True)
        assert workers == [None, None]
        assert chief["difference"] < 1e-5
        assert chief["losses"][-1] < 0.7 * chief["losses"][0]
        (encoder,), (classifier,) = chief["places"]["encoder"], chief["places"]["classifier"]
        assert "/job:worker/replica:0/task:0" in encoder
        assert "/job:worker/replica:0/task:1" in classifier

    @pytest.mark.long
    @on("local")
    def test_layers_on_named_nodes_are_trained_by_fit_of_keras(self, spark, example, tmp_path):
        program, data = example("placed_layers")
        model = tmp_path / "m.keras"
        words = ["--epochs", "3", "--count", "600", "--model", str(model)]
        rows = data.digits_frame(600)
        chief = run(spark, program, words, rows, size=3, workers_serve=True)[0]
        assert chief["difference"] < 1e-5
        assert chief["losses"][-1] < 0.7 * chief["losses"][0]
        assert {name: where.split("/task:")[1][0] for name, where in chief["places"].items()} == {
            "tower0_0": "0", "tower0_1": "0", "tower1_0": "1", "tower1_1": "1",
        } | {name: "0" for name in chief["places"] if name.startswith("dense")}  # fmt: skip
        assert model.exists()

    @pytest.mark.long
    @on("local")
    def test_variables_split_over_parameter_servers_train_as_whole_ones(self, spark, example):
        program, _ = example("sharded_variables")
        words = ["--epochs", "2", "--count", "4000"]
        chief = run(spark, program, words, size=2, ps=2)[0]
        assert chief["difference"] < 1e-5
        assert chief["losses"][-1] < 0.7 * chief["losses"][0]
        for shards, rows in zip(chief["shards"], (1000, 501), strict=True):
            assert ["/task:0/" in shards[0][0], "/task:1/" in shards[1][0]] == [True, True]
            assert sum(shape[0] for _, shape in shards) == rows
            assert all("/job:ps/" in device for device, _ in shards)

    @pytest.mark.long
    @on("local")
    def test_weights_split_by_dtensor_train_as_whole_ones(self, spark, example):
        program, _ = example("dtensor_layers")
        found = run(spark, program, ["--epochs", "3", "--count", "640"], size=2)
        for value in found:
            assert value["parts"] == [(64, 32), (32, 10)]
            assert value["difference"] < 1e-5
            assert value["losses"] == found[0]["losses"]
        assert found[0]["losses"][-1] < 0.7 * found[0]["losses"][0]

    @pytest.mark.long
    @pytest.mark.skipif(shutil.which("ss") is None, reason="no ss: install iproute2")
    @on("local")
    def test_tensors_go_from_worker_to_worker_and_not_through_the_chief(self, spark):
        numbers = 1 << 24
        with Cluster(
            spark,
            size=3,
            workers_serve=True,
            progress=False,
            start_timeout=300,
            transport="tcp",  # shared memory is in no socket
        ) as cluster:
            found = cluster.run(hand_over, args={"numbers": numbers}).values[0]
        assert found["sum"] == pytest.approx(numbers)
        assert found["all"] >= 4 * numbers
        assert found["chief"] < numbers / 10

    @pytest.mark.long
    @on("local")
    def test_what_a_run_has_not_is_refused_with_what_to_change(self, spark):
        with Cluster(spark, size=1, progress=False) as cluster:
            (device, partitioner), *_ = cluster.run(ask_in_vain).values
        assert "workers_serve=True" in device
        assert "Cluster(ps=2, size=2)" in partitioner
