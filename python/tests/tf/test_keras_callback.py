# SPDX-License-Identifier: Apache-2.0
"""ProgressCallback: every step is reported, the loss only now and then."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from cluster_testing import run_ranks  # noqa: E402

pytestmark = [pytest.mark.tf, pytest.mark.slow, pytest.mark.timeout(120)]


def reports() -> tuple[list, int]:
    import keras
    import numpy as np

    from arcflow.tf import ProgressCallback

    class Logs(dict):
        reads = 0

        def __getitem__(self, key: str) -> float:
            Logs.reads += 1
            return dict.__getitem__(self, key)

    seen: list[tuple[int, int, float]] = []
    callback = ProgressCallback(lambda *report: seen.append(report), interval_s=3600)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((12, 2), "f4")
    model.fit(x, x[:, :1], batch_size=4, epochs=2, verbose=0, callbacks=[callback])
    callback.on_train_begin()
    callback.on_epoch_begin(0)
    for batch in range(5):
        callback.on_train_batch_end(batch, Logs(loss=1.0))
    return seen, Logs.reads


def test_reports_each_step_and_rarely_reads_the_loss() -> None:
    seen, reads = run_ranks(__file__, "reports", 1)[0]
    assert [r[:2] for r in seen[:8]] == [
        (1, 0), (2, 0), (3, 0), (3, 0), (4, 1), (5, 1), (6, 1), (6, 1),
    ]  # fmt: skip
    losses = [r[2] for r in seen[:8]]
    assert all(loss > 0 for loss in losses)
    assert losses[0] == losses[1] == losses[2]  # read once, at the first step …
    assert losses[3] != losses[2]  # … and at the end of the epoch
    assert [r[0] for r in seen[8:]] == [1, 2, 3, 4, 5]
    assert reads == 1
