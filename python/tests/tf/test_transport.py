# SPDX-License-Identifier: Apache-2.0
"""Our server protocol under real TensorFlow processes, against TensorFlow's own."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent)]
import transport_programs  # noqa: E402
from cluster_testing import run_ranks  # noqa: E402
from namespaces import Namespaces, namespaces_work  # noqa: E402

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.timeout(600)]
PROGRAMS = HERE / "transport_programs.py"


def ranks(name: str, size: int, **kwargs: Any) -> list[Any]:
    return run_ranks(PROGRAMS, name, size, timeout_s=500, **kwargs)


@pytest.fixture(scope="module")
def stock() -> list[dict[str, Any]]:
    return ranks("everything", 2, mode="grpc")


@pytest.fixture(scope="module", params=["shm", "tcp"])
def ours(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    """Two ranks on one host, and on two (which are made on this one where that can be had)."""
    with contextlib.ExitStack() as stack:
        mode, hosts = "auto", None
        if request.param == "tcp" and namespaces_work():
            spaces = stack.enter_context(Namespaces(2))
            hosts = [(spaces.prefix(i), spaces.address(i)) for i in range(2)]
        elif request.param == "tcp":
            mode = "tcp"
        listed = request.param == "tcp"
        found = ranks("everything", 2, mode=mode, listed=listed, hosts=hosts)
    return [{**one, "backend": request.param} for one in found]


@pytest.fixture(scope="module")
def four() -> list[dict[str, Any]]:
    return ranks("four", 4)


Pair = list[dict[str, Any]]


@pytest.mark.parametrize("how", ["all_reduces", "shuffled"])
def test_all_reduce_of_two_is_equal_to_tensorflow_to_the_last_bit(
    ours: Pair, stock: Pair, how: str
) -> None:
    for rank in (0, 1):
        for case, mine, theirs in zip(
            transport_programs.reduce_cases(),
            ours[rank][how]["crc"],
            stock[rank]["all_reduces"]["crc"],
            strict=True,
        ):
            assert mine == theirs, case


def test_lists_are_reduced_where_they_lie_and_equal_tensorflow(ours: Pair, stock: Pair) -> None:
    for mine, theirs in zip(ours, stock, strict=True):
        assert mine["lists"]["crc"] == theirs["lists"]["crc"]
        assert mine["lists"]["kept"]
        # Of two all-reduces each: the types with more than one tensor, those with one.
        assert (mine["lists"]["lists"], mine["lists"]["singles"]) == (2, 4)
        assert theirs["lists"]["lists"] == 0


def test_bytes_are_told_for_each_pair(ours: Pair, stock: Pair) -> None:
    for rank in (0, 1):
        report = ours[rank]["report"]
        assert report["protocol"] == "grpc+arc"
        assert report["fallbacks"] == {}
        pair = report["pairs"][1 - rank]
        assert pair["backend"] == ours[rank]["backend"]
        assert pair["sent"] == ours[1 - rank]["report"]["pairs"][rank]["received"] > 0
    assert stock[0]["all_reduces"]["report"] == {"mode": "grpc", "protocol": "grpc", "pairs": {}}


def test_gather_broadcast_and_all_to_all_equal_tensorflow(ours: Pair, stock: Pair) -> None:
    for mine, theirs in zip(ours, stock, strict=True):
        assert len(mine["other"]) == 12
        for name in mine["other"]:
            np.testing.assert_array_equal(mine["other"][name], theirs["other"][name], name)


@pytest.mark.parametrize(
    ("compression", "digits"), [("bf16", 8), pytest.param("fp16", 11, marks=pytest.mark.long)]
)
def test_compression_halves_the_bytes_and_rounds_alike_on_all_ranks(
    compression: str, digits: int
) -> None:
    count = 1_000_003
    found = ranks("compressed", 2, compression=compression, count=count)
    assert found[0]["crc"] == found[1]["crc"]
    for one in found:
        assert 0 < one["off"] < 2.0**-digits * 2
        assert one["sent"] < 0.52 * 4 * count  # whole: 2n(p-1)/p = n


def test_reduce_scatter_works_on_cpus(ours: Pair) -> None:
    for key, count in ((901, 5), (902, 100_000)):
        total = sum(transport_programs.values(key, r, "int32", 2 * count) for r in range(2))
        for rank in range(2):
            np.testing.assert_array_equal(
                ours[rank]["scatter"][str(count)], total[rank * count : (rank + 1) * count]
            )


def check_memory(cluster: Pair) -> None:
    for one in cluster:
        steps = one["steps"]
        assert steps["wrong"] == 0
        half, end = steps["reports"]
        assert end["collectives"]["operations"] > half["collectives"]["operations"]
        for kept in ("mappings", "registrations"):
            assert end["collectives"][kept] == half["collectives"][kept]
        assert end["outputs"]["new"] == half["outputs"]["new"]
        how = "recycled" if one.get("backend") == "tcp" else "shared"
        assert end["outputs"][how] > half["outputs"][how]
        assert end["fallbacks"] == {}


def test_steps_of_two_under_the_strategy_use_the_same_memory(ours: Pair) -> None:
    check_memory(ours)


def test_results_are_the_programs_to_keep_and_to_change(ours: Pair) -> None:
    for one in ours:
        assert one["kept"]["wrong"] == []


def test_steps_of_four_under_the_strategy_use_the_same_memory(four: Pair) -> None:
    check_memory(four)


@pytest.mark.long
def test_steps_leave_nothing_behind() -> None:
    # TensorFlow alone gains 1.6 KB a step, 32 MB here: its cache of Python numbers and its tables
    # of collectives take each step's key.
    for one in ranks("soak", 2, mode="auto"):
        assert one["gained"] < 8e6


def test_update_server_def_keeps_our_collectives(tmp_path: Path) -> None:
    for one in ranks("update_server_def", 2, folder=str(tmp_path)):
        assert (one["first"], one["second"]) == (3.0, 5.0)
        assert one["after"] > one["before"]


def test_ranks_that_disagree_all_get_the_error(ours: Pair) -> None:
    for one in ours:
        name, message = one["disagree"]
        assert name == "InvalidArgumentError"
        assert "all-reduce add of 4 float32" in message
        assert "all-reduce add of 5 float32" in message


def test_all_reduce_of_four_goes_in_order_of_rank(four: Pair) -> None:
    found = [one["all_reduces"] for one in four]
    combine = {"Add": np.add, "Mul": np.multiply, "Max": np.maximum, "Min": np.minimum}
    for i, (dtype, merge, final, _) in enumerate(transport_programs.reduce_cases()):
        assert len({one["crc"][i] for one in found}) == 1  # all ranks have the same bits
        if dtype in ("bfloat16", "float16"):
            continue  # NumPy has no such sums; the kernels' own tests compare them bit by bit
        want = found[0]["inputs"][i].astype(dtype)
        for one in found[1:]:
            want = combine[merge](want, one["inputs"][i].astype(dtype))
        if final == "Div":
            want = np.trunc(want / 4) if dtype.startswith("int") else want / want.dtype.type(4)
        np.testing.assert_array_equal(
            found[0]["outputs"][i], want.astype(np.float64), str((dtype, merge, final))
        )


@pytest.mark.parametrize(
    ("victim", "count", "mode"), [(0, 100, "auto"), (1, 4 << 20, "auto"), (1, 4 << 20, "tcp")]
)
def test_a_killed_peer_is_unavailable(victim: int, count: int, mode: str) -> None:
    found = ranks("killed", 2, victim=victim, count=count, mode=mode, dead=(victim,))
    (first_name, first), (second_name, _) = found[1 - victim]["seen"]
    assert first_name == "UnavailableError", first
    assert f"rank {victim}" in first
    assert second_name in ("UnavailableError", "AbortedError", "FailedPreconditionError")


def test_a_peer_that_speaks_only_grpc_is_served(stock: Pair) -> None:
    found = ranks("mixed", 2)
    assert [one["crc"] for one in found] == [one["all_reduces"]["crc"] for one in stock]
    report = found[0]["report"]
    assert report["collectives"]["operations"] == 0
    assert any("does not speak grpc+arc" in reason for reason in report["fallbacks"])


def test_shared_memory_or_an_error() -> None:
    found = dict(ranks("shm_refused", 2))
    assert "transport='shm', but" in found.pop("FailedPreconditionError")
    # A rank that hears of it first ends, and the other may find it gone before it has asked.
    assert set(found) <= {"UnavailableError"}


def test_keras_trains_to_the_same_weights() -> None:
    mine, theirs = (ranks("train", 2, mode=mode, total_ranks=2) for mode in ("auto", "grpc"))
    for one, other in zip(mine, theirs, strict=True):
        assert one["strategy"] == "ClusterStrategy"
        assert one["report"]["collectives"]["operations"] > 0
        for weights, expected in zip(one["weights"], other["weights"], strict=True):
            np.testing.assert_array_equal(weights, expected)


def test_a_server_without_secret_is_refused() -> None:
    ((name, message),) = ranks("unconfigured", 1)
    assert name, "a server was made"
    assert "knows no run secret" in message
