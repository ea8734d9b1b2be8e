# SPDX-License-Identifier: Apache-2.0
"""The command line: `arcflow doctor` says what is wrong, how to mend it, and exits non-zero then."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import spark_testing

import arcflow
from arcflow import _doctor, cli


def command(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "arcflow", *arguments],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": spark_testing.SOURCE, **env},
        check=False,
    )


def test_version():
    done = command("--version")
    assert (done.returncode, done.stdout.strip()) == (0, arcflow.__version__)


def test_no_command_is_wrong_usage_and_shows_help(capsys):
    assert cli.main([]) == 2
    assert "doctor" in capsys.readouterr().out


def test_doctor_of_this_machine(capsys, monkeypatch):
    ok = [
        _doctor.Check("python", "ok", "3.11"),
        _doctor.Check("java", "note", "none", "install it"),
    ]
    monkeypatch.setattr(_doctor, "machine_checks", lambda: iter(ok))
    assert cli.main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "python" in out
    assert "-> install it" in out


def test_doctor_fails_with_a_mend_beside_the_failure(capsys, monkeypatch):
    bad = [_doctor.Check("tensorflow", "failed", "2.20", "pip install tensorflow==2.21.*")]
    monkeypatch.setattr(_doctor, "machine_checks", lambda: iter(bad))
    assert cli.main(["doctor"]) == 1
    captured = capsys.readouterr()
    assert "failed  tensorflow  2.20" in captured.out
    assert "-> pip install tensorflow==2.21.*" in captured.out
    assert "has to be mended" in captured.err


@pytest.mark.spark
def test_doctor_checks_a_cluster():
    done = command(
        "doctor", "--master", "local[2]", "--size", "2", "--conf", "spark.driver.host=127.0.0.1"
    )
    assert "slots" in done.stdout
    assert "2 tasks at once, size=2" in done.stdout
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.long
@pytest.mark.spark
def test_doctor_fails_when_size_exceeds_the_slots():
    done = command(
        "doctor", "--master", "local[2]", "--size", "3", "--conf", "spark.driver.host=127.0.0.1"
    )
    assert done.returncode == 1
    assert "lower size= to 2" in done.stdout


@pytest.mark.spark
def test_doctor_fails_when_there_is_no_cluster():
    port = spark_testing.free_port()
    done = command("doctor", "--remote", f"sc://127.0.0.1:{port}")
    assert done.returncode == 1
    assert f"no session: nobody listens at 127.0.0.1:{port}" in done.stdout
