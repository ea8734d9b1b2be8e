# SPDX-License-Identifier: Apache-2.0
"""Finding the op library, and what importing arcflow.tf does not do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from arcflow import errors
from arcflow.tf import ops


def libraries(folder: Path, *minors: str) -> Path:
    for minor in minors:
        (folder / f"libarcflow_ops_tf{minor}.so").touch()
    return folder


def test_the_library_of_the_same_minor_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_FOLDER", libraries(tmp_path, "2.20", "2.21"))
    assert ops.library_for("2.21.3").name == "libarcflow_ops_tf2.21.so"


def test_another_minor_is_refused_with_what_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_FOLDER", libraries(tmp_path, "2.20", "2.21"))
    with pytest.raises(errors.UnimplementedError, match=r"2\.9\.0, only for 2\.20, 2\.21"):
        ops.library_for("2.9.0")


def test_an_installation_without_ops_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ops, "_FOLDER", tmp_path / "tfops")
    with pytest.raises(errors.UnimplementedError, match="built without TensorFlow ops"):
        ops.library_for("2.21.0")


def test_importing_the_package_does_not_import_tensorflow() -> None:
    code = "import arcflow.tf, sys; assert not {'tensorflow', 'keras'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
