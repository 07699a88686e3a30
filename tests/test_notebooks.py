"""The notebooks run from top to bottom on what `compare` leaves behind; their controls show what they promise."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from conftest import ROOT, clean

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def test_all_three_are_there():
    assert [file.stem for file in NOTEBOOKS] == ["01_explore_data", "02_adapter_explorer", "03_inspect_adapter"]


@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_the_notebook_runs(file: Path, compared_project: Path, monkeypatch):
    for name, value in clean(KEDRO_ENV="ci", PYTHONPATH=str(compared_project / "src")).items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(file, 4)
    folder = compared_project / "notebooks"
    folder.mkdir(exist_ok=True)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder)}}).execute()
    pictures, texts, wrong = shown(notebook)
    assert not wrong, wrong
    assert pictures >= {"01_explore_data": 3, "02_adapter_explorer": 2, "03_inspect_adapter": 3}[file.stem]
    told = {
        "01_explore_data": "is right for",
        "02_adapter_explorer": "frontier",
        "03_inspect_adapter": "test samples are not right",
    }
    assert told[file.stem] in texts


def test_no_notebook_is_committed_with_outputs():
    for file in NOTEBOOKS:
        cells = nbformat.read(file, 4).cells
        assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells), file.name


def shown(notebook) -> tuple[int, str, list[str]]:
    """Pictures, texts and errors of all cells as they stand in the file: nothing of it needs a browser's widgets."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    pages = [output.get("data", {}).get("text/html", "") for output in outputs]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    pictures += sum(page.count("<img src='data:image/png;base64,") for page in pages)
    texts = "".join([*(output.get("text", "") for output in outputs), *pages])
    return pictures, texts, [output["evalue"] for output in outputs if output["output_type"] == "error"]
