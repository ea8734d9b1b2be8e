# SPDX-License-Identifier: Apache-2.0
"""The notebook of the examples, executed from its first cell to its last in a Jupyter kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "notebook" / "trips.ipynb"


@pytest.mark.spark
@pytest.mark.tf
@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("leftovers")
def test_the_notebook_goes_from_sql_to_a_model_and_back(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    monkeypatch.setenv("ARCFLOW_NOTEBOOK_FOLDER", str(tmp_path))
    monkeypatch.setenv("ARCFLOW_NOTEBOOK_NODES", "1")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    notebook.cells.insert(-1, nbformat.v4.new_code_cell("print('RESULT', losses[-1], worst)"))
    client = nbclient.NotebookClient(
        notebook,
        timeout=500,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    text = "".join(out.get("text", "") for out in outputs)
    (told,) = [line for line in text.splitlines() if line.startswith("RESULT ")]
    loss, worst = map(float, told.split()[1:])
    assert loss < 0.05
    assert worst < 15  # minutes
    links = [str(out.get("data", {}).get("text/html", "")) for out in outputs]
    assert any("TensorBoard: <a href=" in link for link in links)
    assert list((tmp_path / "logs").glob("*/chief-0/train/events*"))
