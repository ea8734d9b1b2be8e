# SPDX-License-Identifier: Apache-2.0
"""The tf.data source and make_dataset, in a node that a real feed service feeds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from feed_testing import built, column, expected, feed, run_fed  # noqa: E402

pytestmark = [
    pytest.mark.tf,
    pytest.mark.slow,
    pytest.mark.timeout(150),
    pytest.mark.skipif(
        not built("feed_harness") or not built("libarcflow_bench_ops*.so"),
        reason="needs feed_harness and arcflow_bench_ops: a build with ARC_TENSORFLOW and ARC_DEVELOPER",
    ),
]
PROGRAMS = HERE / "feed_programs.py"
X = column("x", "float32", "list", (16,))
LABEL = column("label", "int64")


def node(name: str, feeds: dict, **kwargs: Any) -> tuple[Any, dict]:
    return run_fed(PROGRAMS, name, feeds, **kwargs)


EVERY_TYPE = [
    *[
        column(f"s_{d}", d)
        for d in ("float32", "float64", "int8", "uint8", "int16", "int32", "int64", "bool")
    ],
    column("s_string", "string"),
    column("l_float32", "float32", "list", (3,)),
    column("l_int64", "int64", "list", (2, 2)),
    column("l_bool", "bool", "list", (5,)),
    column("r_uint8", "uint8", "raw", (4, 3)),
    column("r_float32", "float32", "raw", (8,)),
]


@pytest.fixture(scope="module")
def every_type() -> list:
    value, _ = node(
        "read_all", {"train": feed(EVERY_TYPE, 150, batch_rows=37, ranks=[[0, False], [200, True]])},
        columns=EVERY_TYPE, batch_size=64, padding_weight=True,
    )  # fmt: skip
    return [value["batches"], value["spec"]]


@pytest.mark.parametrize("index", range(len(EVERY_TYPE)), ids=[c["name"] for c in EVERY_TYPE])
def test_column_type_arrives_as_it_was_written(every_type: list, index: int) -> None:
    batches, spec = every_type
    col = EVERY_TYPE[index]
    assert spec[index] == (col["dtype"], [64, *col["shape"]])
    assert len(batches) == 4  # as many as the rank with 200 rows
    for step, batch in enumerate(batches):
        got = batch[index]
        rows = np.arange(step * 64, min(step * 64 + 64, 150))
        assert len(got) == 64
        want = expected(col, rows)
        if col["dtype"] == "string":
            assert got.tolist()[: len(rows)] == want
        else:
            assert got.dtype == np.dtype(col["dtype"])
            np.testing.assert_array_equal(got[: len(rows)], want)


def test_padding_has_weight_zero_and_harmless_values(every_type: list) -> None:
    batches, _ = every_type
    assert [float(b[-1].sum()) for b in batches] == [64, 64, 22, 0]
    assert batches[2][-1].tolist() == [1.0] * 22 + [0.0] * 42
    last = next(i for i, c in enumerate(EVERY_TYPE) if c["name"] == "s_int64")
    assert batches[2][last][22:].tolist() == [149] * 42  # the last row again
    assert batches[3][last].tolist() == [0] * 64


def test_rows_come_in_order_and_counted(tmp_path: Path) -> None:
    value, stats = node(
        "read_all", {"train": feed([X, LABEL], 1000, batch_rows=77)}, segment_bytes=1 << 12,
        columns=[X, LABEL], batch_size=30, take=["label"], remainder="partial",
    )  # fmt: skip
    labels = np.concatenate([b[0] for b in value["batches"]])
    assert labels.tolist() == list(range(1000))
    assert value["spec"] == [("int64", [None])]
    told = stats["feeds"]["train"]["passes"][0]
    assert {name: told[name] for name in told if not name.endswith("_ns")} == {
        "used": 1000, "padded": 0, "dropped": 0, "steps": 34, "complete": True, "skipped": 0,
        "bytes": 1000 * 72, "peak_depth_bytes": told["peak_depth_bytes"],
    }  # fmt: skip
    assert 0 < told["duration_ns"] >= told["wait_ns"]


def test_fixed_width_columns_are_not_copied() -> None:
    found, _ = node(
        "addresses", {"train": feed([X], 1024, batch_rows=100)}, column=X, batch_size=64
    )
    assert len(found) == 16
    assert all(zero_copy and offset == 0 for zero_copy, offset in found)


def test_batches_that_do_not_lie_aligned_are_copied() -> None:
    odd = column(
        "x", "float32", "list", (3,)
    )  # 10 rows are 120 bytes: only every eighth batch is aligned
    found, _ = node("addresses", {"train": feed([odd], 160)}, column=odd, batch_size=10)
    assert [zero_copy for zero_copy, _ in found] == [i % 8 == 0 for i in range(16)]
    assert all(offset == 0 for _, offset in found)


def test_kernels_do_not_write_into_the_feed() -> None:
    assert node("kernels_leave_it_alone", {"train": feed([X], 256)}, column=X)[0]


WIDE = column("x", "float32", "list", (256,))  # 1 KiB a row


def test_a_consumer_that_keeps_every_tensor_does_not_starve_the_writer() -> None:
    (rows, zero_copy, right), _ = node(
        "hoards", {"train": feed([WIDE], 4096, cache="none")}, column=WIDE, batch_size=64,
        memory_bytes=1 << 20, segment_bytes=1 << 17,
    )  # fmt: skip
    assert rows == 4096
    assert right
    assert 0 < zero_copy < 64  # some were leased, the others had to be copied


@pytest.mark.parametrize("cache", ["none", "auto"])
def test_shuffling_more_batches_than_there_are_segments_does_not_deadlock(cache: str) -> None:
    right, stats = node(
        "shuffles", {"train": feed([WIDE], 8192, cache=cache)}, column=WIDE, batch_size=32, buffer=100,
        memory_bytes=1 << 20, segment_bytes=1 << 17,
    )  # fmt: skip
    assert right
    assert stats["peak_buffers_bytes"] <= 1 << 20


def test_cancellation_ends_a_blocked_reader() -> None:
    (error, waited, _), stats = node("cancelled", {"train": feed([X], 15, hold=True)}, column=X)
    assert error == "CancelledError"
    assert waited < 5
    assert not stats["feeds"]["train"]["ended"]


def test_an_iterator_goes_on_where_its_checkpoint_was_made(tmp_path: Path) -> None:
    (first, rest, again), _ = node(
        "save_and_restore", {"train": feed([X], 205)}, column=X, folder=str(tmp_path)
    )
    assert rest == again
    rows = [v / 16 for batch in first + rest for v in batch]
    assert rows == list(range(205))


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_keras_loses_no_row_although_it_opens_several_iterators(cache: str) -> None:
    columns = [X, LABEL]
    if cache == "none":  # rows can be read once: one pass of a loop
        value, _ = node(
            "read_all", {"train": feed(columns, 700, cache="none")}, columns=columns, batch_size=32,
            remainder="partial",
        )  # fmt: skip
        assert sum(len(b[1]) for b in value["batches"]) == 700
        return
    value, stats = node(
        "keras_fit", {"train": feed(columns, 700)}, columns=columns, batch_size=32, size=1
    )
    assert value["epochs"] == 3
    assert value["rows"] == 3 * 700
    assert value["steps"] == 3 * 22
    assert value["predicted"] == (700, 1)
    assert all(p["used"] in (32, 64, 700) for p in stats["feeds"]["train"]["passes"])


def test_rebatch_and_distribution_keep_rows() -> None:
    value, _ = node(
        "rebatched",
        {"train": feed([X, LABEL], 130, ranks=[[0, False], [100, True]])},
        columns=[X, LABEL],
    )
    assert value["rebatch"] == [20] * 7 + [10]  # 150 rows, 20 of them padding
    assert value["distributed"] == [50] * 3
    assert value["per_node"]
    assert value["zip"]
    assert value["marked"]
    assert not value["other"]


A, B = column("a", "float32", "list", (2,)), column("b", "string")
W = column("w", "float64")


def test_elements_are_as_keras_takes_them() -> None:
    columns = [A, B, LABEL, W]
    cases = [
        {"size": 1},
        {"features": "a", "size": 1},
        {"features": ["a", "b"], "weight": "w", "size": 1},
        {"features": "a", "remainder": "partial"},
        {"features": "a", "remainder": "drop", "weight": "w"},
        {"features": ["a"], "label": False, "remainder": "drop"},
        {"features": ["a"], "label": False, "size": 1},
        {"features": "a", "label": ["label", "w"], "remainder": "drop"},
        {"features": "nope"},
        {"weight": "b"},
        {"remainder": "spill"},
    ]
    made, _ = node("elements", {"train": feed(columns, 10)}, columns=columns, cases=cases)
    f, y = ("float32", [None, 2]), ("int64", [None])
    w = ("float32", [None])
    assert made[0][0] == ({"a": f, "b": ("string", [None]), "w": ("float64", [None])}, y, w)
    assert made[0][2] == ("a", "b", "w")
    assert made[1][0] == (f, y, w)
    _x, label, weight = made[1][1]
    assert label.tolist() == [8, 9]  # one node: a short batch instead of padding
    assert weight.tolist() == [1, 1]
    assert made[2][0] == ({"a": f, "b": ("string", [None])}, y, w)
    assert made[2][1][2].tolist() == [8, 9]
    assert made[3][0] == (f, y)
    assert made[4][0] == (("float32", [4, 2]), ("int64", [4]), ("float32", [4]))
    assert made[4][1][2].tolist() == [4, 5, 6, 7]
    assert made[5][0] == ("float32", [4, 2])
    assert made[6][0] == {"a": f, "sample_weight": w}
    assert made[7][0] == (("float32", [4, 2]), {"label": ("int64", [4]), "w": ("float64", [4])})
    assert made[8][0] == "InvalidArgumentError"
    assert "'nope'" in made[8][1]
    assert "a, b, label, w" in made[8][1]
    assert "one number a row" in made[9][1]
    assert "pad, drop, refuse, partial" in made[10][1]


def test_a_weight_column_multiplies_the_weight_of_padding() -> None:
    columns = [A, LABEL, W]
    made, _ = node(
        "elements", {"train": feed(columns, 6, ranks=[[0, False], [9, True]])}, columns=columns,
        cases=[{"features": "a", "weight": "w", "size": 2}],
    )  # fmt: skip
    structure, last, _ = made[0]
    assert structure == (("float32", [4, 2]), ("int64", [4]), ("float32", [4]))
    assert last[2].tolist() == [0, 0, 0, 0]  # a step of padding only


def test_an_empty_feed_makes_the_steps_of_the_others() -> None:
    value, stats = node(
        "read_all", {"train": feed([X], 0, ranks=[[0, False], [7, True]])}, columns=[X], batch_size=4,
        padding_weight=True,
    )  # fmt: skip
    assert [b[1].tolist() for b in value["batches"]] == [[0, 0, 0, 0]] * 2
    assert all((b[0] == 0).all() for b in value["batches"])
    assert stats["feeds"]["train"]["passes"][0]["padded"] == 8


def test_drop_makes_the_steps_of_the_rank_with_fewest_rows() -> None:
    value, stats = node(
        "read_all", {"train": feed([LABEL], 20, ranks=[[0, False], [9, True]])}, columns=[LABEL],
        batch_size=4, remainder="drop",
    )  # fmt: skip
    assert np.concatenate([b[0] for b in value["batches"]]).tolist() == list(range(8))
    assert stats["feeds"]["train"]["passes"][0]["dropped"] == 12


def test_refuse_is_an_error_that_names_the_rows_of_the_ranks() -> None:
    (error, message), _ = node(
        "fails_with",
        {"train": feed([X], 20, ranks=[[0, False], [9, True]])},
        columns=[X],
        remainder="refuse",
    )
    assert error == "FailedPreconditionError"
    assert "20" in message
    assert "9" in message


def test_the_op_checks_what_it_is_asked_for() -> None:
    found, _ = node("op_errors", {"train": feed([X], 20)}, columns=[X])
    assert {k: v[0] for k, v in found.items()} == {
        "feed": "NotFoundError", "column": "NotFoundError", "dtype": "InvalidArgumentError",
        "shape": "InvalidArgumentError",
    }  # fmt: skip
    assert "train" in found["feed"][1]  # the feeds that there are
    assert "is float32, not int32" in found["dtype"][1]


def test_reading_outside_a_node_says_so() -> None:
    (error, message), _ = node("outside_a_node", {"train": feed([X], 1)}, columns=[X])
    assert error == "FailedPreconditionError"
    assert "only inside a node" in message


def test_batches_are_counted_in_the_page_that_the_agent_reads() -> None:
    found, _ = node("counts", {"train": feed([X], 95)}, column=X)
    assert found == {"steps": 10, "rows_used": 95, "rows_padded": 0}


def test_shuffle_gives_each_pass_its_order_and_positions_go_on_exactly(tmp_path: Path) -> None:
    columns = [column("x", "int64")]
    found, _ = node(
        "shuffled", {"train": feed(columns, 1000, batch_rows=33)}, columns=columns,
        directory=str(tmp_path),
    )  # fmt: skip
    seven = found["seven"]
    for order in [*seven, *found["chance"], *found["eight"]]:
        assert sorted(order) == list(range(1000))
    orders = [tuple(o) for o in [*seven, *found["chance"], *found["eight"]]]
    assert len(set(orders)) == 6
    assert found["again"] == seven
    assert found["before"] + found["after"] == seven[1]
    assert found["next"] == [seven[2]]
    assert found["chosen"] == [seven[2][64:]]
    assert "shuffle seed 7, this dataset has 8" in found["refused"]


def test_shuffled_order_does_not_depend_on_where_the_rows_lie() -> None:
    rows = 20_000  # 1.3 MB
    feeds = {cache: feed([X], rows, cache=cache) for cache in ("memory", "disk", "auto")}
    found, stats = node(
        "shuffled_passes", feeds, columns=[X], names=list(feeds), memory_bytes=2 << 20,
        segment_bytes=32 << 10,
    )  # fmt: skip
    for cache in feeds:
        told = stats["feeds"][cache]
        assert (told["spilled_segments"] > 0) == (cache != "memory")
        assert [one["used"] for one in told["passes"]] == [rows, rows]
        for order in found[cache]:
            assert np.array_equal(np.sort(order), expected(X, np.arange(rows))[:, 0])
    first, second = found["memory"]
    assert not np.array_equal(first, second)
    for cache in ("disk", "auto"):
        assert np.array_equal(found[cache][0], first)
        assert np.array_equal(found[cache][1], second)


def test_shuffle_of_rows_that_can_be_read_only_once_is_refused() -> None:
    columns = [column("x", "int64")]
    found, _ = node(
        "shuffle_needs_all_rows", {"train": feed(columns, 1000, cache="none")}, columns=columns
    )
    assert "cache='auto'" in found
