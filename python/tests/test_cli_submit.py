# SPDX-License-Identifier: Apache-2.0
"""`arcflow submit`: the spark-submit line that it prints is the one that runs, on a real cluster."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import textwrap
from pathlib import Path

import pytest
import spark_testing

from arcflow import errors
from arcflow.cli import submit

PROGRAM = """
import argparse, json, sys
from pyspark.sql import SparkSession
import arcflow.cli

def where(ctx):
    return {"role": ctx.role, "size": ctx.size, "args": vars(ctx.args)["epochs"]}

if __name__ == "__main__":
    parser = arcflow.cli.add_arguments(argparse.ArgumentParser())
    parser.add_argument("--epochs", type=int, default=1)
    args = parser.parse_args()
    spark = SparkSession.builder.getOrCreate()
    with arcflow.cli.cluster(spark, args) as cluster:
        values = cluster.run(where, args=args).values
    print("RESULT " + json.dumps({"values": values, "master": spark.sparkContext.master}))
    spark.stop()
"""
WHERE_IS_PYTHON = """
import sys
from pyspark.sql import SparkSession
context = SparkSession.builder.getOrCreate().sparkContext
print("PREFIX " + context.parallelize([0], 1).map(lambda _: __import__("sys").prefix).collect()[0])
context.stop()
"""


@pytest.fixture
def script(tmp_path):
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    return str(path)


def settings(**more: str) -> list[str]:
    found = {
        "spark.ui.enabled": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.memory": "512m",
        "spark.executor.memory": "512m",
        "spark.executorEnv.PYTHONPATH": spark_testing.SOURCE,
        f"spark.executorEnv.{spark_testing.MARK}": os.environ[spark_testing.MARK],
        "spark.log.level": "ERROR",
        "spark.ui.showConsoleProgress": "false",
        **more,
    }
    return [word for key, value in found.items() for word in ("--conf", f"{key}={value}")]


def submitted(*words: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "arcflow", "submit", *words],
        capture_output=True,
        text=True,
        timeout=280,
        env={**os.environ, **env},
        check=False,
    )


def test_what_stands_before_the_dashes_is_for_spark_and_after_for_the_script(script):
    request = submit.parse(
        [
            script,
            "--master",
            "local[2]",
            "--print",
            "--conf",
            "a=b",
            "--",
            "--epochs",
            "3",
            "--",
            "x",
        ]
    )
    assert request == submit.Request(
        script, ["--master", "local[2]", "--conf", "a=b"], ["--epochs", "3", "--", "x"], None, True
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], "the script comes first"),
        (["--master", "local", "x.py"], "the script comes first"),
        (["/nowhere/x.py"], "there is no script"),
    ],
)
def test_lines_without_a_script_are_refused(words, reason):
    with pytest.raises(errors.InvalidArgumentError, match=reason):
        submit.parse(words)
    done = submitted(*words)
    assert done.returncode == 2
    assert reason in done.stderr


def test_spark_submit_is_that_of_spark_home_else_that_of_pyspark(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/spark-submit").touch()
    assert submit.find_spark_submit({"SPARK_HOME": str(tmp_path)}) == str(
        tmp_path / "bin/spark-submit"
    )
    assert "pyspark/bin/spark-submit" in submit.find_spark_submit({})
    with pytest.raises(errors.FailedPreconditionError, match="has no bin/spark-submit"):
        submit.find_spark_submit({"SPARK_HOME": str(tmp_path / "none")})


def test_an_archive_becomes_the_python_of_executors_and_in_cluster_mode_of_the_driver(script):
    request = submit.parse([script, "--master", "yarn"])
    command, added = submit.line(request, "spark-submit", "/e.tar.gz", {})
    assert command[:5] == [
        "spark-submit",
        "--master",
        "yarn",
        "--archives",
        "/e.tar.gz#environment",
    ]
    assert "spark.pyspark.python=./environment/bin/python" in command
    assert f"spark.pyspark.driver.python={sys.executable}" in command
    assert added == {}
    request = submit.parse([script, "--master", "yarn", "--deploy-mode=cluster"])
    command, added = submit.line(request, "spark-submit", "/e.tar.gz", {})
    assert "spark.yarn.appMasterEnv.PYSPARK_PYTHON=./environment/bin/python" in command
    assert "spark.pyspark.driver.python=./environment/bin/python" in command
    assert added == {}
    request = submit.parse([script, "--archives", "mine.tar.gz"])
    with pytest.raises(errors.InvalidArgumentError, match=r"--archives mine\.tar\.gz"):
        submit.line(request, "spark-submit", "/e.tar.gz", {})


def test_a_python_that_the_user_chose_stays(script):
    _, added = submit.line(submit.parse([script]), "spark-submit", None, {"PYSPARK_PYTHON": "p3"})
    assert added == {"PYSPARK_DRIVER_PYTHON": sys.executable}


def test_packing_without_a_virtual_environment_or_venv_pack_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "venv_pack", None)
    with pytest.raises(errors.FailedPreconditionError, match="pip install venv-pack"):
        submit.pack(tmp_path / "e.tar.gz")
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    with pytest.raises(errors.FailedPreconditionError, match="python -m venv"):
        submit.pack(tmp_path / "e.tar.gz")


def test_help_and_print_run_nothing(script):
    assert "--pack" in submitted("--help").stdout
    done = submitted(script, "--master", "spark://nobody:1", "--print", "--", "--epochs", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"--master spark://nobody:1 {script} --epochs 2")


@pytest.mark.spark
@pytest.mark.usefixtures("leftovers")
def test_a_program_runs_on_a_standalone_cluster_with_its_flags(standalone, script):
    done = submitted(
        script, "--master", standalone, *settings(), "--",
        "--cluster_size", "2", "--epochs", "3", "--no_progress",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "spark-submit" in done.stdout.splitlines()[0]
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    result = json.loads(told.partition(" ")[2])
    assert result["master"] == standalone
    assert result["values"] == [
        {"role": role, "size": 2, "args": 3} for role in ("chief", "worker")
    ]


@pytest.mark.spark
def test_executors_run_the_packed_environment(standalone, tmp_path):
    venv_pack = pytest.importorskip("venv_pack")
    environment = tmp_path / "small"
    make = [sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(make, check=True, timeout=120)
    needed = [str(Path(venv_pack.__file__).parents[1]), spark_testing.SOURCE, *sys.path[1:]]
    script = tmp_path / "where.py"
    script.write_text(textwrap.dedent(WHERE_IS_PYTHON))
    archive = tmp_path / "packed.tar.gz"
    done = subprocess.run(
        [
            str(environment / "bin/python"), "-m", "arcflow", "submit", str(script),
            "--master", standalone, f"--pack={archive}",
            *settings(**{"spark.executorEnv.PYTHONPATH": ""}),
        ],
        capture_output=True, text=True, timeout=280, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(needed)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("PREFIX ")]
    assert told.endswith("/environment")
    with tarfile.open(archive) as packed:
        assert any(name.startswith("bin/python") for name in packed.getnames())
