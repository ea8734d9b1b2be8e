# SPDX-License-Identifier: Apache-2.0
"""Which failure is first, and which stand beside it, as the driver judges rows of tasks."""

from __future__ import annotations

from arcflow import _causes


def failure(rank, cause, time, **more):
    return {"rank": rank, "cause": cause, "time": time, **more}


def test_a_consequence_never_beats_a_cause():
    first = _causes.first(
        [failure(0, "exception", 1.0, peer_loss=True), failure(1, "signal", 2.0, signal="SIGKILL")]
    )
    assert first["rank"] == 1


def test_an_exit_beside_a_death_is_its_consequence():
    rows = [failure(0, "exit", 1.0), failure(1, "out of memory", 1.1)]
    assert _causes.first(rows)["rank"] == 1
    assert _causes.others(rows[1], rows) == []


def test_others_are_those_that_the_first_did_not_make():
    rows = [
        failure(0, "exception", 1.0),
        failure(1, "exception", 3.0),
        failure(2, "exception", 1.5, peer_loss=True),
        failure(3, "agent lost", 2.0),
        failure(1, "exception", 3.0),
    ]
    assert [one["rank"] for one in _causes.others(rows[0], rows, rows)] == [3, 1]
    assert _causes.first([]) is None
