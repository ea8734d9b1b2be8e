# SPDX-License-Identifier: Apache-2.0
"""TensorBoard beside a run: it shows the run's scalars by its HTTP API, and ends with the run."""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import cloudpickle
import pytest
import spark_testing
from spark_testing import on

from arcflow import Cluster, _tensorboard, errors, progress

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests


def test_settings_are_made_of_true_a_folder_or_a_dict(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert _tensorboard.checked(None) is None
    assert _tensorboard.checked(False) is None
    settings = _tensorboard.checked(True)
    assert (settings.dir, settings.host) == (str(tmp_path / "tensorboard"), "127.0.0.1")
    assert _tensorboard.checked("logs/").dir == str(tmp_path / "logs")
    settings = _tensorboard.checked({"dir": "hdfs://c/logs/", "port": 7006, "where": "driver"})
    assert settings == _tensorboard.Settings("hdfs://c/logs", "127.0.0.1", 7006, "driver")
    assert settings.run_dir("r1") == "hdfs://c/logs/r1"
    job = {"run_id": "r1", "tensorboard": vars(settings)}
    assert _tensorboard.node_dir(job, "worker", 1) == "hdfs://c/logs/r1/worker-1"
    assert _tensorboard.node_dir({"run_id": "r1", "tensorboard": None}, "chief", 0) is None


@pytest.mark.parametrize(
    ("wish", "reason"),
    [
        (3, "neither True"),
        ({"logdir": "x"}, "has no 'logdir'"),
        ({"where": "moon"}, "where='moon'"),
        ({"port": 70000}, "port=70000"),
        ({"port": True}, "port=True"),
    ],
)
def test_other_settings_are_refused(wish, reason):
    with pytest.raises(errors.InvalidArgumentError, match=reason):
        _tensorboard.checked(wish)


def test_a_driver_without_tensorboard_says_so_before_anything_starts(monkeypatch):
    monkeypatch.setattr(_tensorboard.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(errors.FailedPreconditionError, match="pip install tensorboard"):
        _tensorboard.checked(True)
    assert _tensorboard.checked({"where": "chief"}).where == "chief"


def servers() -> list[int]:
    found = spark_testing.marked_processes().items()
    return [pid for pid, command in found if "arcflow._tensorboard_server" in command]


def test_a_port_that_is_taken_is_told_and_leaves_no_process(tmp_path):
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = _tensorboard.Settings(str(tmp_path), port=taken.getsockname()[1])
        told = []
        with _tensorboard.Board(
            settings, "r", lambda *_: told.append("shown"), told.append
        ) as board:
            spark_testing.wait_for(lambda: board.poll() or told, 60, "word from TensorBoard")
    assert "did not start" in told[0]
    assert str(settings.port) in told[0]
    assert servers() == []


PLUGIN = """
from tensorboard.plugins import base_plugin
class Plugin(base_plugin.TBPlugin):
    plugin_name = "fake"
    def get_plugin_apps(self): return {}
    def is_active(self): return True
    def frontend_metadata(self): return base_plugin.FrontendMetadata(disable_reload=True)
"""


def test_plug_ins_that_are_installed_are_there(tmp_path, monkeypatch):
    # As the profile plug-in of the package xprof is, which is too large to come with the tests.
    (tmp_path / "site" / "fake-1.0.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "fake_plugin.py").write_text(PLUGIN)
    info = tmp_path / "site" / "fake-1.0.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[tensorboard_plugins]\nfake = fake_plugin:Plugin\n")
    paths = [str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    server = _tensorboard.Server(_tensorboard.Settings(str(tmp_path), port=0), str(tmp_path))
    try:
        url = server.said(timeout_s=120)["url"]
        with urllib.request.urlopen(url + "data/plugins_listing", timeout=60) as answer:
            listed = json.load(answer)
    finally:
        server.close()
    assert listed["fake"]["enabled"]


def test_rates_are_of_the_time_since_the_last_look(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(_tensorboard.time, "monotonic", lambda: clock[0])
    rates = _tensorboard._Rates()

    def ranks(step, rows, wait, compute):
        counters = {"user_step": step, "wait_ns": wait, "compute_ns": compute, "user_loss": 0.5}
        return [{"rank": 0, "counters": counters, "feeds": {"train": {"rows": rows}}}]

    assert rates.take(ranks(1, 10, 0, 0)) == (1, {"arcflow/step/rank_0": 1, "arcflow/loss": 0.5})
    clock[0] += 0.5
    assert rates.take(ranks(2, 20, 1, 1)) is None
    clock[0] += 1.5
    step, values = rates.take(ranks(5, 110, 3, 1))
    assert step == 5
    assert values["arcflow/steps_per_second"] == 2.0
    assert values["arcflow/rows/train_per_second"] == 50.0
    assert values["arcflow/waiting_for_rows"] == 0.75


class Viewer:
    """Looks at TensorBoard while a run goes on, and lets the run end when it has seen all."""

    def __init__(self, monkeypatch, seen_file: Path, name: str = "TensorBoard") -> None:
        self.name, self.url = name, ""
        self.tags: dict = {}
        self.wanted: set[str] = set()
        self.error: BaseException | None = None
        self._seen_file = seen_file
        stock = progress.Progress.link

        def link(bar, name, url):
            stock(bar, name, url)
            if name == self.name:
                self.url = url
                threading.Thread(target=self._look, daemon=True).start()

        monkeypatch.setattr(progress.Progress, "link", link)

    def _look(self) -> None:
        try:
            spark_testing.wait_for(self._has_all, 120, f"{self.wanted} in TensorBoard")
        except BaseException as error:
            self.error = error
        self._seen_file.touch()

    def _has_all(self) -> bool:
        with urllib.request.urlopen(self.url + "data/plugin/scalars/tags", timeout=30) as answer:
            self.tags = json.load(answer)
        return self.wanted <= {tag for tags in self.tags.values() for tag in tags}

    def scalars(self, run: str, tag: str) -> list:
        address = f"{self.url}data/plugin/scalars/scalars?run={run}&tag={tag}"
        with urllib.request.urlopen(address, timeout=30) as answer:
            return json.load(answer)


def train(ctx):
    """Keras's own callback, and what the driver learns from `ctx.log`; wait until it was seen."""
    import keras
    import numpy as np

    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    x = np.ones((8, 1), "float32")
    callbacks = [keras.callbacks.TensorBoard(ctx.tensorboard_dir), ctx.callback()]
    model.fit(x, x, epochs=3, batch_size=4, verbose=0, callbacks=callbacks)
    while not Path(ctx.args).exists():
        ctx.log(step=6, accuracy=0.5)
        time.sleep(0.5)
    return ctx.tensorboard_dir


def wait_until_seen(ctx):
    deadline = time.monotonic() + 240
    while not Path(ctx.args).exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@on("local")
@pytest.mark.usefixtures("leftovers")
class TestOnSpark:
    @pytest.mark.tf
    @pytest.mark.timeout(600)
    def test_it_shows_the_scalars_of_program_and_feed_and_ends_with_the_run(
        self, spark, tmp_path, monkeypatch, capfd
    ):
        viewer = Viewer(monkeypatch, tmp_path / "seen")
        viewer.wanted = {"epoch_loss", "arcflow/step/rank_0", "log/accuracy", "arcflow/steps_per_s"}
        logs = tmp_path / "logs"
        with Cluster(
            spark, size=1, tensorboard={"dir": str(logs), "port": 0}, start_timeout=300
        ) as cluster:
            folder = cluster.run(train, args=str(tmp_path / "seen")).values[0]
        assert viewer.error is None, viewer.error
        assert viewer.url.startswith("http://127.0.0.1:")
        assert f"TensorBoard: {viewer.url}" in capfd.readouterr().err
        (run,) = logs.iterdir()
        assert folder == str(run / "chief-0")
        assert "epoch_loss" in viewer.tags["chief-0/train"]
        assert "log/accuracy" in viewer.tags["arcflow"]
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(viewer.url, timeout=5)
        assert servers() == []
        assert not list(run.glob(".arcflow*"))  # the logs stay, the mark does not

    def test_a_chief_whose_folder_the_driver_does_not_see_serves_it(
        self, spark, tmp_path, monkeypatch
    ):
        name = "TensorBoard on the chief's host 127.0.0.1"
        viewer = Viewer(monkeypatch, tmp_path / "seen", name)
        # A driver on another host has not made the mark that the chief finds.
        monkeypatch.setattr(_tensorboard, "_TOKEN", ".elsewhere")
        with Cluster(
            spark, size=1, tensorboard={"dir": str(tmp_path / "logs"), "port": 0}
        ) as cluster:
            cluster.run(wait_until_seen, args=str(tmp_path / "seen"))
        assert viewer.error is None, viewer.error
        assert viewer.url.startswith("http://127.0.0.1:")
        spark_testing.wait_for(lambda: not servers(), 20, "end of TensorBoard")
