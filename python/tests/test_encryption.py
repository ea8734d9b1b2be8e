# SPDX-License-Identifier: Apache-2.0
"""What of a run's secret can be seen, and control connections under TLS."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path

import cloudpickle
import pytest
import spark_testing
from spark_testing import on
from test_failures import Victims, fail, wait_in

from arcflow import Cluster, _encryption, _run

pytestmark = pytest.mark.usefixtures("leftovers")
cloudpickle.register_pickle_by_value(sys.modules["test_failures"])


class _Conf:
    def __init__(self, **settings):
        self.conf = self
        self._settings = {key.replace("__", "."): value for key, value in settings.items()}

    def get(self, name, default):
        return self._settings.get(name, default)


def test_spark_s_own_switches_decide_unless_the_user_does():
    assert not _encryption.wanted(_Conf(), None)
    assert _encryption.wanted(_Conf(spark__network__crypto__enabled="true"), None)
    assert _encryption.wanted(_Conf(spark__ssl__rpc__enabled="TRUE"), None)
    assert not _encryption.wanted(_Conf(spark__network__crypto__enabled="true"), False)
    assert _encryption.wanted(_Conf(), True)


@on("local", "connect")
def test_a_run_under_tls(spark):
    cluster = Cluster(spark, size=2, progress=False, encrypt=True)
    assert cluster.run(lambda ctx: len(ctx.barrier("b", b"x"))).values == [2, 2]
    assert fail(cluster, lambda ctx: 1 // (1 - ctx.rank)).type == "ZeroDivisionError"


def _texts(pid):
    for name in ("cmdline", "environ"):
        with contextlib.suppress(OSError):
            yield name, Path(f"/proc/{pid}/{name}").read_bytes()


@on("local", "standalone")
def test_the_secret_is_in_no_environment_command_line_or_log(spark, tmp_path, monkeypatch, capfd):
    secrets = []
    plan_of = _run.Run._plan

    def remember(self, secret, *more):
        secrets.append(secret)
        return plan_of(self, secret, *more)

    monkeypatch.setattr(_run.Run, "_plan", remember)

    def wait_with_child(ctx):
        import subprocess
        import sys

        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        wait_in(ctx.args, ctx.rank)

    seen = {}

    def look(victims):
        pids = [*spark_testing.marked_processes()]
        seen.update({(pid, name): text for pid in pids for name, text in _texts(pid)})
        seen["nodes"] = [*spark_testing.nodes()]
        os.kill(victims.node(1), signal.SIGKILL)

    logs = tmp_path / "logs"
    cluster = Cluster(spark, size=2, progress=True, grace=2, log_dir=logs)
    Victims(tmp_path).when_there(look)
    error = fail(cluster, wait_with_child, args=str(tmp_path))
    assert len(seen.pop("nodes")) == 2
    commands = [text for (_, name), text in seen.items() if name == "cmdline"]
    assert sum(b"time.sleep(600)" in text for text in commands) == 2  # grandchildren were looked at
    forms = [secrets[0], secrets[0].hex().encode(), secrets[0].hex().upper().encode()]
    printed = capfd.readouterr()
    texts = [
        *seen.values(),
        str(error).encode(),
        repr(error.failure).encode(),
        (printed.out + printed.err).encode(),
        *(path.read_bytes() for path in logs.rglob("*.log")),
        *(path.read_bytes() for path in tmp_path.parent.rglob("stderr")),
    ]
    for text in texts:
        assert not any(form in text for form in forms)
    below = [
        text
        for (_, name), text in seen.items()
        if name == "environ" and b"ARCFLOW_NODE_MARK=" in text
    ]
    assert len(below) >= 4  # nodes and their children
    for text in below:
        for name in (
            b"PYTHON_WORKER_FACTORY_SECRET",
            b"_SPARK_AUTH_SECRET",
            b"PYSPARK_GATEWAY_SECRET",
        ):
            assert name not in text
