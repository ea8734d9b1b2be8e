# SPDX-License-Identifier: Apache-2.0
"""TensorFlow with `grpc_rdma` over real verbs, in the guest of `make rdma-test`; no pytest.

usage: rdma_in_guest.py reference FILE     on this machine: what TensorFlow's gRPC gives
       rdma_in_guest.py check FILE         in the guest: the same by RDMA must be equal
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]
from cluster_testing import run_ranks  # noqa: E402
from transport_programs import reduce_cases  # noqa: E402

_LIMIT_S = 2400.0  # importing TensorFlow takes minutes where a processor is emulated


def collectives(mode: str) -> list[dict[str, Any]]:
    """Two ranks under MultiWorkerMirroredStrategy."""
    return run_ranks(
        HERE / "transport_programs.py", "reduces_and_steps", 2, timeout_s=_LIMIT_S, mode=mode
    )


def tensors(mode: str, folder: str) -> list[dict[str, Any]]:
    """A chief and two tasks that serve it: variables are read and added to, as parameters are."""
    return run_ranks(
        HERE / "tensor_programs.py", "cluster_of", 3, timeout_s=_LIMIT_S, drive="some", mode=mode,
        folder=folder,
    )  # fmt: skip


def _values(reduced: list[dict[str, Any]], served: list[dict[str, Any]]) -> dict[str, Any]:
    found = {"reduced": [one["crc"] for one in reduced], "served": served[0]["values"]}
    return dict(json.loads(json.dumps(found)))


def _different(found: dict[str, Any], reference: dict[str, Any]) -> list[str]:
    """Name what is not equal: which reduction of which rank, which tensor."""
    cases = reduce_cases()
    lines = []
    for rank, (ours, theirs) in enumerate(zip(found["reduced"], reference["reduced"], strict=True)):
        for case, a, b in zip(cases, ours, theirs, strict=True):
            if a != b:
                lines.append(f"rank {rank}, {case}")
    for part, values in reference["served"].items():
        for name, theirs in values.items():
            ours = found["served"][part][name]
            if ours != theirs:
                lines.append(f"{part}, {name}: {ours} instead of {theirs}")
    return lines


def _check(reference: dict[str, Any], folder: str) -> None:
    start = time.monotonic()
    reduced = collectives("rdma")
    print(f"  collectives: {time.monotonic() - start:.0f} s", flush=True)
    start = time.monotonic()
    served = tensors("rdma", folder)
    print(f"  tensors: {time.monotonic() - start:.0f} s", flush=True)
    different = _different(_values(reduced, served), reference)
    for line in different:
        print(f"  other than by gRPC: {line}", flush=True)
    for one in [*reduced, *served]:
        report = one["report"]
        assert report["protocol"] == "grpc_rdma", report
        assert report["fallbacks"] == {}, report
    for one in reduced:
        assert one["steps"]["wrong"] == 0
        for name, pair in one["report"]["pairs"].items():
            print(f"  pair {name}: {pair}", flush=True)
            assert pair["backend"] == "rdma", pair
            assert pair["sent"] > 0, pair
    for one in served:
        for name, task in one["report"]["tensors"]["tasks"].items():
            print(f"  tensors of {name}: {task}", flush=True)
            assert task["backend"] in ("rdma", ""), task
    assert sum(
        task["bytes_fetched"]
        for one in served
        for task in one["report"]["tensors"]["tasks"].values()
    ) > 8 * (64 << 10)
    assert not different, f"{len(different)} values are others than by gRPC"


def main() -> int:
    what, file = sys.argv[1], Path(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="arcflow-test-") as folder:
        if what == "reference":
            file.write_text(json.dumps(_values(collectives("grpc"), tensors("grpc", folder))))
            return 0
        _check(json.loads(file.read_text()), folder)
    print("100% tests passed, 0 tests failed out of 2 (TensorFlow over verbs)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
