# SPDX-License-Identifier: Apache-2.0
"""`arcflow submit --master yarn --pack`, client and cluster mode, on a real ResourceManager and NodeManager."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path

import pytest
import spark_testing

pytestmark = [
    pytest.mark.yarn, pytest.mark.spark, pytest.mark.tf, pytest.mark.slow, pytest.mark.timeout(900),
]  # fmt: skip
PROGRAM = Path(__file__).with_name("yarn_program.py")


def settings(pyspark: Path) -> list[str]:
    """Return what a cluster would have in spark-defaults.conf, for one machine on loopback."""
    found = {
        # Spark's jars are here already; without this they would be uploaded for every application.
        "spark.yarn.jars": f"local:{pyspark}/jars/*",
        "spark.yarn.am.memory": "512m",
        "spark.driver.memory": "512m",
        "spark.executor.memory": "512m",
        "spark.executor.memoryOverhead": "1400m",  # TensorFlow lives there
        "spark.executor.instances": "2",
        "spark.executor.cores": "1",
        "spark.ui.enabled": "false",
        "spark.log.level": "ERROR",
    }
    both = {
        "SPARK_LOCAL_IP": "127.0.0.1",
        spark_testing.MARK: os.environ[spark_testing.MARK],
        "JAVA_TOOL_OPTIONS": spark_testing.JAVA_OPTIONS,
        "CUDA_VISIBLE_DEVICES": "-1",
    }
    for name, value in both.items():
        found |= {f"spark.executorEnv.{name}": value, f"spark.yarn.appMasterEnv.{name}": value}
    return [word for key, value in found.items() for word in ("--conf", f"{key}={value}")]


def submitted(yarn, environment, archive, mode, *words):
    import pyspark

    home = Path(pyspark.__file__).parent
    # Spark hands a PYTHONPATH of ours on to containers, which must live from the archive alone.
    env = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONPATH", "PYSPARK_PYTHON")
    }
    env |= {
        "HADOOP_CONF_DIR": str(yarn.conf_dir),
        "SPARK_HOME": str(home),
        "SPARK_LOCAL_IP": "127.0.0.1",
    }
    return subprocess.run(
        [
            str(environment / "bin/python"), "-m", "arcflow", "submit", str(PROGRAM),
            "--master", "yarn", "--deploy-mode", mode, f"--pack={archive}", *settings(home), "--", *words,
        ],
        capture_output=True, text=True, timeout=800, check=False, env=env,
    )  # fmt: skip


@pytest.fixture(scope="module")
def archive(tmp_path_factory):
    """Where the environment is packed; the first submission does it."""
    return tmp_path_factory.mktemp("packed") / "environment.tar.gz"


@pytest.mark.usefixtures("leftovers")
@pytest.mark.parametrize("mode", ["client", "cluster"])
def test_a_program_trains_in_containers_from_the_packed_environment(
    yarn, environment, archive, mode
):
    before = {one["id"] for one in yarn.applications()}
    target = f"hdfs:///trained-{mode}"
    done = submitted(
        yarn, environment, archive, mode, "--cluster_size", "2", "--target", target,
        "--no_progress", "--start_timeout", "300",
    )  # fmt: skip
    (application,) = [one for one in yarn.applications() if one["id"] not in before]
    told = yarn.output(application["id"])
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:] + told[-6000:]
    assert application["finalStatus"] == "SUCCEEDED"
    # The line that ran is the line that was printed.
    assert f"--master yarn --deploy-mode {mode}" in done.stdout
    assert f"--archives '{archive}#environment'" in done.stdout
    with tarfile.open(archive) as packed:
        assert any(name.endswith("bin/arcflow-agent") for name in packed.getnames())

    (line,) = [
        one for one in (done.stdout if mode == "client" else told).splitlines()
        if one.startswith("RESULT ")
    ]  # fmt: skip
    result = json.loads(line.partition(" ")[2])
    containers = {value["container"] for value in result["values"]}
    assert len(containers) == 2
    assert all(one.startswith("container_") for one in containers)
    for value in result["values"]:
        assert value["size"] == 2
        # An archive is unpacked below the container's folder, and linked there by its name.
        assert all("environment" in path for path in value["from"].values()), value["from"]
        assert all("site-packages" in path for path in value["from"].values())
        assert value["losses"] == result["values"][0]["losses"]
        assert value["losses"][-1] < value["losses"][0]
    assert result["fed"] == 400
    # The driver is in a container in cluster mode only.
    assert bool(result["driver"]) == (mode == "cluster")
    # Nodes wrote to the cluster's hdfs:// without any configuration of theirs.
    assert result["files"] == ["rank-0", "rank-1"]
    spark_testing.wait_for(
        lambda: yarn.ask("metrics")["clusterMetrics"]["containersAllocated"] == 0,
        60,
        "end of all containers",
    )


@pytest.mark.usefixtures("leftovers")
def test_a_node_that_fails_in_a_container_is_named_and_the_application_fails(
    yarn, environment, archive
):
    done = submitted(
        yarn, environment, archive, "client", "--cluster_size", "2", "--fail", "1", "--no_progress",
        "--start_timeout", "300", "--target", "hdfs:///unused",
    )  # fmt: skip
    assert done.returncode == 1
    told = done.stdout + done.stderr  # spark-submit sends what a Python driver says to its stdout
    assert "NodeFailedError" in told
    assert "worker:0" in told
    assert "rows are bad on purpose" in told
