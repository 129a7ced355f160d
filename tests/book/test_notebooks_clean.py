"""Chapters are committed as their authors wrote them: no outputs, nothing of somebody's machine."""

import nbformat
import pytest

from tests.book.pages import ROOT

NOTEBOOKS = sorted(
    path for path in (ROOT / "book").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts
)


def names(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_notebook_holds_no_results(path):
    notebook = nbformat.read(path, as_version=4)
    for index, cell in enumerate(notebook.cells):
        if cell.cell_type == "code":
            assert cell.outputs == [], f"cell {index} has outputs; clear them before committing"
            assert cell.execution_count is None, f"cell {index} has an execution count"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_notebook_is_valid_and_runs_on_any_kernel_named_python3(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "widgets" not in notebook.metadata


def test_every_chapter_of_the_book_is_looked_at():
    in_folder = {path.name for path in (ROOT / "book").glob("*.ipynb")}
    assert in_folder == {path.name for path in NOTEBOOKS if path.parent.name == "book"}
