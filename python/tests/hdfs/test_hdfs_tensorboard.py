# SPDX-License-Identifier: Apache-2.0
"""TensorBoard over logs on HDFS: it shows what is written there, by the driver and by TensorFlow."""

from __future__ import annotations

import json
import urllib.request

import pytest
import spark_testing

from arcflow import _tensorboard

pytestmark = [pytest.mark.hdfs, pytest.mark.tf, pytest.mark.slow]


def test_scalars_on_hdfs_are_served(hdfs):
    folder = f"webhdfs://{hdfs.http}/tensorboard"  # needs no configuration
    settings = _tensorboard.checked({"dir": folder, "port": 0})
    shown, told = [], []
    board = _tensorboard.Board(settings, "r", lambda _, url: shown.append(url), told.append)
    with board:
        spark_testing.wait_for(lambda: board.poll() or shown or told, 120, "TensorBoard")
        assert not told
        counters = {"user_step": 3, "user_loss": 0.25}

        def is_seen():
            board.progress([{"rank": 0, "counters": counters}])
            with urllib.request.urlopen(
                shown[0] + "data/plugin/scalars/tags", timeout=30
            ) as answer:
                return "arcflow/loss" in json.load(answer).get("arcflow", {})

        spark_testing.wait_for(is_seen, 120, "the loss in TensorBoard")
