# SPDX-License-Identifier: Apache-2.0
"""Placed layers and pipelines: both directions run where they should, and give what one place gives."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cluster_testing import run_ranks

pytestmark = [pytest.mark.tf, pytest.mark.slow]
PROGRAMS = Path(__file__).with_name("placing_programs.py")
# The default run trains a pipeline over real nodes (test_model_parallel.py); `make examples` this one too.


def run(name, **arguments):
    (value,) = run_ranks(PROGRAMS, name, 1, **arguments)
    return value


def test_a_placed_layer_computes_there_in_both_directions_and_what_cannot_be_is_refused():
    found = run("placed")
    assert found["lies"] == ["CPU:1", "CPU:1"]
    # Forward, and the gradients of its input and its kernel; not those of the layers around it.
    assert found["matmuls"]["CPU:1"] == 3
    assert found["tanh"] == {"CPU:1": 1}
    assert found["jit"] is False
    assert found["difference"] < 1e-6
    assert "place it right after it is made" in found["refused"]
    none, unbuilt, parts = found["pipelines"]
    assert "needs stages" in none
    assert "keras.Input" in unbuilt
    assert "micro_batches=0" in parts


@pytest.mark.long
def test_a_pipeline_does_what_the_model_in_one_piece_does():
    micro_batches = 3
    # Parts are uneven, and the last batch is short.
    found = run("pipelined", micro_batches=micro_batches, rows=28)
    assert found["difference"] < 1e-5
    ours, keras_own = found["losses"]
    assert ours == pytest.approx(keras_own, rel=1e-4)
    assert found["lies"] == found["slots"] == ["CPU:0", "CPU:1", "CPU:2"]
    # Of each micro-batch: forward, the gradient of the kernel, and that of the stage's input.
    assert found["matmuls"]["CPU:1"] == found["matmuls"]["CPU:2"] == 3 * micro_batches
