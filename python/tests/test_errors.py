# SPDX-License-Identifier: Apache-2.0
"""Errors: hierarchy by code, pickling, and how a node's failure reads."""

import pickle

import pytest

from arcflow import errors

CODES = [
    "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE",
    "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
]  # fmt: skip

FAILURE = {
    "rank": 2, "role": "worker", "host": "10.0.0.7", "cause": "exception", "type": "ValueError",
    "message": "bad label 11", "traceback": "Traceback (most recent call last):\n  …\nValueError: bad label 11\n",
    "log_tail": ["epoch 1", "epoch 2"], "peer_loss": False,
}  # fmt: skip


@pytest.mark.parametrize("code", CODES)
def test_from_code_gives_the_class_of_that_code_and_survives_pickling(code):
    error = errors.from_code(code, "what went wrong")
    assert isinstance(error, errors.ArcflowError)
    assert error.code == code
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (again.code, again.message, str(again)) == (code, "what went wrong", "what went wrong")


def test_from_code_of_an_unknown_name_is_the_base_class():
    assert type(errors.from_code("NO_SUCH", "x")) is errors.ArcflowError


@pytest.mark.parametrize(
    ("code", "builtin"),
    [
        ("INVALID_ARGUMENT", ValueError),
        ("DEADLINE_EXCEEDED", TimeoutError),
        ("DATA_LOSS", OSError),
        ("NOT_FOUND", LookupError),
        ("OUT_OF_RANGE", IndexError),
        ("UNIMPLEMENTED", NotImplementedError),
        ("UNAVAILABLE", ConnectionError),
    ],
)
def test_errors_are_also_the_builtin_that_fits(code, builtin):
    with pytest.raises(builtin):
        raise errors.from_code(code, "x")


def test_node_failure_names_node_and_reason_first_then_traceback_then_log():
    text = str(errors.NodeFailedError(FAILURE))
    lines = text.splitlines()
    assert lines[0] == "node worker:1 (rank 2 on 10.0.0.7) failed: ValueError: bad label 11"
    assert text.index("Traceback") < text.index("epoch 1") < text.index("epoch 2")


def test_node_failure_has_attributes_and_survives_pickling():
    error = pickle.loads(
        pickle.dumps(errors.NodeFailedError(FAILURE, [{**FAILURE, "rank": 0, "role": "chief"}]))
    )
    assert (error.rank, error.role, error.node, error.host) == (2, "worker", "worker:1", "10.0.0.7")
    assert (error.cause, error.type, error.message) == ("exception", "ValueError", "bad label 11")
    assert error.log_tail == ["epoch 1", "epoch 2"]
    assert error.others[0]["rank"] == 0
    assert "chief:0 on 10.0.0.7: ValueError: bad label 11" in str(error)


def test_node_failure_by_signal_names_the_signal():
    failure = {
        "rank": 0,
        "role": "chief",
        "host": "h",
        "cause": "signal",
        "signal": "SIGKILL",
        "exit_code": -1,
        "message": "",
    }
    assert "failed: killed by SIGKILL" in str(errors.NodeFailedError(failure)).splitlines()[0]


def test_node_failure_by_exit_names_the_exit_code():
    failure = {"rank": 1, "role": "worker", "host": "h", "cause": "exit", "exit_code": 3}
    assert "exit code 3" in str(errors.NodeFailedError(failure)).splitlines()[0]


def test_interrupted_run_is_both_an_arcflow_error_and_a_keyboard_interrupt():
    error = pickle.loads(pickle.dumps(errors.RunInterruptedError("stopped by Ctrl-C")))
    assert isinstance(error, KeyboardInterrupt)
    assert isinstance(error, errors.ArcflowError)
    assert str(error) == "stopped by Ctrl-C"
