# SPDX-License-Identifier: Apache-2.0
"""Fixtures: real YARN on loopback, and an environment to ship that holds Arcflow and what it needs."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import arcflow

ROOT = Path(__file__).resolve().parents[3]
sys.path.insert(0, str(ROOT / "tools" / "hadoop"))

import hdfs_cluster  # noqa: E402
import yarn_cluster  # noqa: E402

# What goes into the environment; TensorFlow would make it a gigabyte, and stays on the machine.
SHIPPED = ("numpy", "pyarrow", "cloudpickle", "tqdm", "venv-pack")


def link_others(installed: Path, folder: Path) -> Path:
    """Return a folder with everything that is installed on the machine, but not what is shipped."""
    folder.mkdir()
    shipped = ("arcflow", *(name.replace("-", "_") for name in SHIPPED))
    for path in installed.iterdir():
        if not path.name.startswith(shipped):
            (folder / path.name).symlink_to(path)
    return folder


@pytest.fixture(scope="session")
def yarn(tmp_path_factory):
    """NameNode, DataNode, ResourceManager and NodeManager, gone afterwards."""
    lacking = hdfs_cluster.missing()
    if lacking:
        pytest.skip(lacking)
    folder = tmp_path_factory.mktemp("yarn")
    with (
        hdfs_cluster.Hdfs(folder, ROOT / "build" / "hadoop", data_nodes=1, replication=1) as hdfs,
        yarn_cluster.Yarn(hdfs) as running,
    ):
        yield running


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """A virtual environment with Arcflow, numpy, pyarrow and venv-pack in it; its folder."""
    pytest.importorskip("venv_pack")
    folder = tmp_path_factory.mktemp("environment") / "small"
    make = [sys.executable, "-m", "venv", "--without-pip", str(folder)]
    subprocess.run(make, check=True, timeout=120)
    (site,) = (folder / "lib").glob("python3.*/site-packages")
    for name in SHIPPED:
        for file in importlib.metadata.files(name) or ():
            target = site / str(file)
            if ".." not in file.parts and "tests" not in file.parts:
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(str(file.locate()), target)
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(Path(arcflow.__file__).parent, site / "arcflow", ignore=ignore)
    found = importlib.util.find_spec("tensorflow")
    if found is None or found.origin is None:
        pytest.skip("no TensorFlow")
    rest = link_others(Path(found.origin).parents[1], folder.with_name("machine"))
    # Not as a plain path, which venv-pack takes for an editable installation.
    (site / "machine.pth").write_text(f"import sys; sys.path.append({str(rest)!r})\n")
    return folder
