# SPDX-License-Identifier: Apache-2.0
"""ClusterStrategy: Keras 3 over two and three real processes against the same training in one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from cluster_testing import run_ranks  # noqa: E402

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.timeout(400)]
PROGRAMS = HERE / "strategy_programs.py"


def ranks(name: str, size: int, **kwargs: Any) -> list[Any]:
    return run_ranks(PROGRAMS, name, size, **kwargs)


def assert_identical(a: list[np.ndarray], b: list[np.ndarray]) -> None:
    for one, other in zip(a, b, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("size", [2, pytest.param(3, marks=pytest.mark.long)])
def test_training_on_several_nodes_equals_training_on_one(size: int) -> None:
    alone = ranks("train_equal_shares", 1, total_ranks=size)[0]
    together = ranks("train_equal_shares", size, total_ranks=size)
    assert alone["strategy"] == "_DefaultDistributionStrategy" or "Default" in alone["strategy"]
    for one in together:
        assert one["strategy"] == "ClusterStrategy"
        for mine, expected in zip(one["weights"], alone["weights"], strict=True):
            np.testing.assert_allclose(mine, expected, atol=1e-6, rtol=0)
        for name, values in alone["history"].items():
            np.testing.assert_allclose(
                one["history"][name], values, rtol=2e-3 if "auc" in name else 1e-5, err_msg=name
            )
        for name, value in alone["evaluate"].items():
            assert one["evaluate"][name] == pytest.approx(
                value, rel=2e-3 if "auc" in name else 1e-5
            )
    for other in together[1:]:  # what ranks hold and report is the same to the last bit
        assert_identical(together[0]["weights"], other["weights"])
        assert_identical(together[0]["optimizer"], other["optimizer"])
        assert together[0]["history"] == other["history"]
        assert together[0]["evaluate"] == other["evaluate"]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return ranks("everything", 2, folder=str(tmp_path_factory.mktemp("strategy")))


def test_is_a_multi_worker_mirrored_strategy(pair: list[dict]) -> None:
    assert all(r["is_mwms"] for r in pair)


def test_step_logs_are_this_nodes_own(pair: list[dict]) -> None:
    a, b = (r["steps_local"] for r in pair)
    assert len(a) == len(b) == 4
    assert a != b


def test_step_logs_that_a_callback_reads_are_those_of_all_nodes(pair: list[dict]) -> None:
    a, b = (r["steps_read"] for r in pair)
    assert len(a) == 4
    assert a == b


def test_a_callback_on_one_rank_hangs_nobody(pair: list[dict]) -> None:
    assert [r["steps_one_rank"] for r in pair] == [4, 0]


def test_keras_callbacks_decide_alike_on_all_ranks(pair: list[dict]) -> None:
    assert pair[0]["early_epochs"] == pair[1]["early_epochs"] < 20
    assert_identical(pair[0]["loaded"], pair[1]["loaded"])


def test_backup_and_restore_goes_on_from_the_backup(pair: list[dict]) -> None:
    for r in pair:
        assert r["resumed_epochs"] == [2, 3, 4]
    assert_identical(pair[0]["weights"], pair[1]["weights"])


def test_ranks_that_name_the_same_files_leave_one_of_each(pair: list[dict]) -> None:
    for r in pair:  # each looked at a moment of its own
        assert [name for name in r["left"] if not name.startswith("bk")] == [
            "log0.csv",
            "log1.csv",
            "m.keras",
        ]


def test_backups_of_different_epochs_are_refused(pair: list[dict]) -> None:
    for r in pair:
        assert r["backups"][0] == "FailedPreconditionError"
        assert "3, 0 by rank" in r["backups"][1]


def test_predict_gives_this_nodes_rows_of_a_per_node_dataset(pair: list[dict]) -> None:
    assert [r["predict_shape"] for r in pair] == [(13, 1), (23, 1)]
    assert [r["predict_on_batch"] for r in pair] == [(13, 1), (23, 1)]
    assert all(r["predict_own"] < 1e-6 for r in pair)


def test_predict_on_an_array_gives_all_rows_on_every_rank(pair: list[dict]) -> None:
    for r in pair:
        shape, error = r["predict_array"]
        assert shape == (50, 1)
        assert error < 1e-6


@pytest.mark.parametrize("kind", ["evaluate_partial", "evaluate_padded"])
def test_evaluate_counts_every_row_of_uneven_nodes_once(pair: list[dict], kind: str) -> None:
    x, y = pair[0]["rows"]
    expected = ranks("evaluate_alone", 1, weights=pair[0]["evaluated_weights"], x=x, y=y)[0]
    assert pair[0][kind] == pair[1][kind]
    for name, value in expected.items():
        assert pair[0][kind][name] == pytest.approx(value, rel=1e-5), name


def test_results_of_all_metrics_cost_one_collective(pair: list[dict]) -> None:
    for r in pair:
        assert r["evaluate_reductions"] == 1  # loss, accuracy, four vectors of an AUC; reset before


def test_fit_on_arrays_still_shards_them(pair: list[dict]) -> None:
    assert pair[0]["fit_array"] == pair[1]["fit_array"]


def test_fit_refuses_a_partial_dataset(pair: list[dict]) -> None:
    for r in pair:
        assert r["partial"][0] == "InvalidArgumentError"
        assert "remainder='pad'" in r["partial"][1]


def test_fit_refuses_steps_per_execution(pair: list[dict]) -> None:
    for r in pair:
        assert r["spe"][0] == "UnimplementedError"
        assert "steps_per_execution=1" in r["spe"][1]


def test_logs_of_an_own_train_step_are_equal_on_all_ranks() -> None:
    a, b = ranks("own_train_step", 2)
    assert a == b
    assert len(a["my_loss"]) == 2


def test_terminate_on_nan_stops_all_ranks_at_the_same_step() -> None:
    a, b = ranks("stops_on_nan", 2)
    assert a == b == {"steps": 4}


@pytest.mark.parametrize("counts", [[70, 100], [100, 0, 33]])
def test_training_on_padded_ranks_equals_training_with_the_same_rows_on_one(
    counts: list[int],
) -> None:
    steps = -(-max(counts) // 32)
    alone = ranks("padded_training", 1, counts=counts, steps=steps)[0]
    together = ranks("padded_training", len(counts), counts=counts, steps=steps)
    for one in together:
        for mine, expected in zip(one["weights"], alone["weights"], strict=True):
            np.testing.assert_allclose(mine, expected, atol=1e-6, rtol=0)
        assert one["history"] == together[0]["history"]


def test_padding_counts_in_no_metric() -> None:
    for r in ranks("padded_metrics", 2, counts=[70, 100], steps=4):
        for name, exact in r["exact"].items():
            assert r["history"][name] == pytest.approx(exact, rel=1e-5), name
