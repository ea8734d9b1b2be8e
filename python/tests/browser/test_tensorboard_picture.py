# SPDX-License-Identifier: Apache-2.0
"""TensorBoard of a run in a real browser: headless Chromium opens it and sees the curves."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cloudpickle
import pytest
import spark_testing
from spark_testing import on

from arcflow import Cluster, progress

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # nodes cannot import tests
BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.browser, pytest.mark.spark, pytest.mark.tf, pytest.mark.slow, pytest.mark.timeout(600),
]  # fmt: skip
TAGS = ("epoch_loss", "arcflow/steps_per_second", "log/accuracy")
# Cards that are out of sight are not drawn, and there are more than fit. Curves as SVG: those of WebGL come from
# a thread for which the browser's virtual time does not wait.
VIEW = "?forceSVG=true&tagFilter=" + "%7C".join(TAGS) + "#timeseries"
# Where the picture of the docs is made: ARCFLOW_PICTURE=docs/guide/tensorboard.png make test-browser.
PICTURE = os.environ.get("ARCFLOW_PICTURE")


def train(ctx):
    import keras
    import numpy as np

    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(1)]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse")
    x = np.random.default_rng(1).normal(size=(400, 4)).astype("float32")
    y = np.sin(x.sum(axis=1, keepdims=True))
    board = keras.callbacks.TensorBoard(ctx.tensorboard_dir)
    epoch = 0
    while not Path(ctx.args).exists():  # until the browser has seen it
        epoch += 1
        history = model.fit(
            x,
            y,
            initial_epoch=epoch - 1,
            epochs=epoch,
            verbose=0,
            callbacks=[board, ctx.callback()],
        ).history
        ctx.log(step=13 * epoch, accuracy=1 / (1 + history["loss"][-1]))
        time.sleep(0.3)


def browse(folder: Path, url: str, *options: str) -> str:
    """Open a page in a browser that nobody sees; what it printed."""
    command = [
        str(BROWSER), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        "--no-first-run", "--disable-background-networking", f"--user-data-dir={folder / 'profile'}",
        "--window-size=1200,1400", "--virtual-time-budget=25000", *options, url,
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.communicate(timeout=180)[0]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


class Browser:
    """Waits for TensorBoard's address and some data, looks at it, and lets the run end."""

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.page, self.error = "", None
        self.picture, self._folder = folder / "picture.png", folder
        stock = progress.Progress.link

        def link(bar, name, url):
            stock(bar, name, url)
            threading.Thread(target=self._look, args=(url,), daemon=True).start()

        monkeypatch.setattr(progress.Progress, "link", link)

    def _look(self, url: str) -> None:
        try:
            time.sleep(20)  # a curve has more than a point
            spark_testing.wait_for(lambda: self._sees_all(url), 150, f"{TAGS} in the browser")
            spark_testing.wait_for(lambda: self._draws_curves(url), 150, "curves in the browser")
        except BaseException as error:
            self.error = error
        (self._folder / "seen").touch()

    def _sees_all(self, url: str) -> bool:
        self.page = browse(self._folder, f"{url}{VIEW}", "--dump-dom")
        return all(tag in self.page for tag in TAGS)

    def _draws_curves(self, url: str) -> bool:
        """Take a picture; the browser may take it before the page has its data."""
        browse(self._folder, f"{url}{VIEW}", f"--screenshot={self.picture}")
        from matplotlib import image

        charts = image.imread(self.picture)[150:1200, 250:900, :3]
        coloured = abs(charts[..., 0] - charts[..., 2]) > 0.25  # all else there is grey
        return bool(coloured.sum() > 500)


@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
@on("local")
@pytest.mark.usefixtures("leftovers")
def test_a_browser_shows_the_curves_of_a_run(spark, tmp_path, monkeypatch):
    browser = Browser(monkeypatch, tmp_path)
    with Cluster(
        spark, size=1, tensorboard={"dir": str(tmp_path / "logs"), "port": 0}, start_timeout=300
    ) as cluster:
        cluster.run(train, args=str(tmp_path / "seen"))
    assert browser.error is None, browser.error
    if PICTURE:
        shutil.copy(browser.picture, PICTURE)
