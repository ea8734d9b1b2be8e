# SPDX-License-Identifier: Apache-2.0
"""Tensors between tasks, fetched through our transport: equal to TensorFlow's gRPC, counted, no hang."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE)]
from cluster_testing import run_ranks  # noqa: E402

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.timeout(600)]
PROGRAMS = HERE / "tensor_programs.py"
CHIEF, OWNER, USER = (
    f"/job:{task}" for task in ("chief/replica:0/task:0", "worker/replica:0/task:0", "worker/replica:0/task:1")
)  # fmt: skip

Found = list[dict[str, Any]]


def cluster(drive: str, dead: tuple[int, ...] = (), **kwargs: Any) -> Found:
    """What chief, owner and user told; the last two are the workers, which serve the chief."""
    with tempfile.TemporaryDirectory(prefix="arcflow-test-") as folder:
        return run_ranks(
            PROGRAMS,
            "cluster_of",
            3,
            timeout_s=500,
            dead=dead,
            folder=folder,
            drive=drive,
            **kwargs,
        )


def tasks(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return found["report"]["tensors"]["tasks"]


@pytest.fixture(scope="module")
def stock() -> Found:
    return cluster("everything", mode="grpc")


@pytest.fixture(scope="module", params=["shm", "tcp"])
def ours(request: pytest.FixtureRequest) -> Found:
    mode = "auto" if request.param == "shm" else "tcp"
    found = cluster("and_then_the_owner_dies", dead=(1,), mode=mode)
    found[0]["backend"] = request.param
    return found


@pytest.mark.parametrize("part", ["variables", "odd_ones", "functions"])
def test_values_are_those_of_grpc(ours: Found, stock: Found, part: str) -> None:
    assert ours[0]["values"][part] == stock[0]["values"][part]


def test_large_tensors_are_fetched_and_counted(ours: Found, stock: Found) -> None:
    chief, _, user = ours
    assert chief["report"]["fallbacks"] == user["report"]["fallbacks"] == {}
    for one, other in ((chief, OWNER), (chief, USER), (user, OWNER)):
        assert tasks(one)[other]["backend"] == chief["backend"]
        assert tasks(one)[other]["bytes_fetched"] >= 8 * (64 << 10)
    # What the chief handed to the user came by the same road, and nothing is kept for it.
    assert tasks(user)[CHIEF]["bytes_fetched"] == tasks(chief)[USER]["bytes_offered"] > 0
    assert tasks(chief)[USER]["bytes_fetched"] == tasks(user)[CHIEF]["bytes_offered"]
    for one in (chief, user):
        assert one["report"]["tensors"]["held"] == 0
        assert one["report"]["tensors"]["expired"] == 0
    assert "tensors" not in stock[0]["report"]


def test_what_is_cancelled_ends_and_harms_nothing(ours: Found) -> None:
    found = ours[0]["values"]["cancelled"]
    assert found["equal"]
    assert set(found["names"]) <= {"CancelledError", "ok"}
    assert found["names"]["CancelledError"] > 0


def test_functions_run_after_what_was_written_before_them(ours: Found) -> None:
    found = ours[0]["values"]["ordered"]
    assert found["seen"] == {
        "parts": [float(i) for i in range(1, 16, 2)],
        "whole": [float(i) for i in range(2, 17, 2)],
    }
    assert found["beside"] == 16.0


def test_an_owner_that_dies_is_unavailable(ours: Found) -> None:
    found = ours[0]["values"]["killed"]
    name, message = found["error"]
    assert name in ("UnavailableError", "AbortedError"), message
    assert OWNER in message
    assert found["reads"] > 0


@pytest.mark.long
def test_a_task_that_speaks_only_grpc_is_served_and_counted(stock: Found) -> None:
    chief, owner, user = cluster("some", modes=["auto", "auto", "grpc"])
    for part in ("variables", "functions"):
        assert chief["values"][part] == stock[0]["values"][part]
    (reason,) = chief["report"]["fallbacks"]
    assert USER in reason
    assert "does not speak grpc+arc" in reason
    assert chief["report"]["fallbacks"][reason] > 1
    assert set(tasks(chief)) == {OWNER}
    assert set(tasks(owner)) == {CHIEF}
    assert "tensors" not in user["report"]


@pytest.mark.long
def test_another_setting_than_auto_is_kept_or_an_error() -> None:
    from cluster_testing import RankFailedError

    with pytest.raises(RankFailedError, match="does not speak grpc") as caught:
        cluster("some", modes=["tcp", "tcp", "grpc"])
    assert caught.value.type_name == "FailedPreconditionError"
    assert "transport='tcp'" in caught.value.message


@pytest.mark.long
def test_buffers_of_tensorflows_own_collectives_are_fetched() -> None:
    count = 300_003
    found = run_ranks(
        PROGRAMS, "buffers", 3, timeout_s=500, modes=["auto", "auto", "grpc"], count=count
    )
    base = (np.arange(count) % 1009).astype(np.float32)
    for one in found:
        assert one["values"] == found[0]["values"]
    import zlib

    assert found[0]["values"][1] == ("float32", [count], zlib.crc32((base * 6 + 3).tobytes()))
    moved = [tasks(one) for one in found[:2]]
    # A ring of three: each of the two that can fetches from its neighbour, which may be the third.
    assert sum(task["bytes_fetched"] for one in moved for task in one.values()) > 0
    assert any("operations of such groups" in reason for reason in found[0]["report"]["fallbacks"])


def test_rdma_is_a_device_or_an_error_that_says_what_is_missing() -> None:
    ((name, message),) = run_ranks(PROGRAMS, "refused", 1)
    if Path("/sys/class/infiniband").is_dir() and os.listdir("/sys/class/infiniband"):
        pytest.skip("this machine has an RDMA device")
    assert name == "UnavailableError"
    assert "protocol grpc_rdma: transport='rdma'" in message
    assert "there is no RDMA device" in message or "libucp" in message


@pytest.mark.long
def test_the_code_of_rdma_over_what_ucx_finds_gives_what_grpc_gives(stock: Found) -> None:
    """Over UCX's TCP here; `make rdma-test` has verbs."""
    found = cluster("everything", mode="rdma", rdma_backend="ucx")
    assert found[0]["values"] == stock[0]["values"]
    for one in found:
        assert one["report"]["protocol"] == "grpc_rdma"
        assert one["report"]["fallbacks"] == {}
        assert {task["backend"] for task in tasks(one).values() if task["fetched"]} == {"ucx"}


@pytest.mark.long
def test_collectives_of_rdma_over_what_ucx_finds_give_what_grpc_gives() -> None:
    programs = HERE / "transport_programs.py"
    mine, theirs = (
        run_ranks(programs, "all_reduces", 2, timeout_s=500, mode=mode)
        for mode in ("rdma:ucx", "grpc")
    )
    for one, other in zip(mine, theirs, strict=True):
        assert one["crc"] == other["crc"]
        assert one["report"]["fallbacks"] == {}
        assert {pair["backend"] for pair in one["report"]["pairs"].values()} == {"ucx"}
