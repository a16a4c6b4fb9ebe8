# Copyright 2026 The MDM Authors.
# SPDX-License-Identifier: Apache-2.0
"""The notebooks run from the first cell to the last, and are stored without output."""

import os
import signal
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
# of Jupyter's own processes, not of ours
QUIET = "ignore"


def read(path):
    return pytest.importorskip("nbformat").read(path, as_version=4)


def test_the_index_names_every_notebook():
    index = (ROOT / "docs" / "tutorials" / "index.md").read_text(encoding="utf-8")
    assert len(TUTORIALS) == 3
    assert all(f"`{path.name}`" in index for path in TUTORIALS)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_without_output(path):
    cells = [cell for cell in read(path).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)
    assert cells[0].source.startswith("# Copyright")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings(QUIET)
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    notebook = read(path)
    where = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=where)
    interrupt = signal.getsignal(signal.SIGINT)  # a run in the background ignores it
    try:
        client.execute()
    finally:
        signal.signal(signal.SIGINT, interrupt)
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 3
