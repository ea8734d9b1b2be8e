# SPDX-License-Identifier: Apache-2.0
"""Progress: what people read while a run goes on, in a terminal and elsewhere."""

from __future__ import annotations

import io

import pytest

from arcflow.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def ranks(rows=1000, steps=10, wait=1, compute=9, loss=None, epoch=0):
    counters = {"steps": steps, "wait_ns": wait, "compute_ns": compute, "user_epoch": epoch}
    if loss is not None:
        counters["user_loss"] = loss
    feeds = {"train": {"rows": rows, "ended": False}}
    return [{"rank": rank, "counters": counters, "feeds": feeds} for rank in range(2)]


def test_plain_stream_gets_lines_and_no_control_characters():
    stream = io.StringIO()
    with Progress(2, ["train"], stream=stream) as sut:
        sut.note("all nodes started")
        sut.line("hello from rank 0")
        sut.update(ranks())
    text = stream.getvalue()
    assert "\r" not in text
    assert "\x1b" not in text
    assert "arcflow: 2 nodes: all nodes started\n" in text
    assert "hello from rank 0\n" in text
    assert "train 2,000 rows | step 10" in text.splitlines()[-1]


def test_terminal_gets_one_bar_with_log_lines_above():
    stream = Terminal()
    with Progress(2, ["train"], stream=stream) as sut:
        sut.line("epoch 1 begins")
        sut.update(ranks(loss=0.5))
    text = stream.getvalue()
    assert "epoch 1 begins\n" in text
    assert "loss 0.5" in text
    assert "\r" in text


def test_feed_bound_is_told_with_the_share_of_waiting_since_the_last_look():
    stream = Terminal()
    with Progress(2, ["train"], stream=stream) as sut:
        sut.update(ranks(wait=35, compute=65))
        assert "feed-bound 35%" in stream.getvalue()
        sut.update(ranks(wait=36, compute=165))
        assert "compute-bound 99%" in stream.getvalue().split("feed-bound 35%")[-1]


def test_nothing_known_yet_shows_no_loss_and_no_bound():
    stream = Terminal()
    with Progress(1, ["train"], stream=stream) as sut:
        sut.update([{"rank": 0, "counters": {"user_loss": float("nan")}, "feeds": {}}])
        sut.update([{"rank": 0, "counters": {"user_loss": None}}])
    assert "loss" not in stream.getvalue()
    assert "bound" not in stream.getvalue()


def test_scalars_of_rank_0_are_shown_and_those_of_others_not():
    stream = Terminal()
    with Progress(2, ["train"], stream=stream) as sut:
        sut.update(ranks())
        sut.node(0, {"accuracy": 0.912345})
        sut.node(1, {"accuracy": 0.1})
    assert "accuracy 0.9123" in stream.getvalue()
    assert "accuracy 0.1 " not in stream.getvalue()


def test_disabled_writes_nothing():
    stream = Terminal()
    with Progress(2, ["train"], enabled=False, stream=stream) as sut:
        sut.note("x")
        sut.line("y")
        sut.update(ranks())
    assert stream.getvalue() == ""


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_a_failure_passes_through_and_closes_the_bar(stream):
    with pytest.raises(RuntimeError, match="boom"), Progress(1, [], stream=stream):
        raise RuntimeError("boom")
    assert "done" not in stream.getvalue()
