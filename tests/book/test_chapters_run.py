"""Every chapter and every solution runs from top to bottom.

The build of the site runs them, each in a kernel of its own, and stops at a cell that fails; the
results it keeps are looked at here, so that nothing runs twice. By hand, one chapter alone:
``pytest --nbval-lax --nbval-current-env book/vit.ipynb`` (with nbval installed).
"""

import nbformat
import pytest
from jupyter_cache import get_cache

from tests.book.pages import ROOT, toc_pages

NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


def test_every_notebook_is_a_page():
    assert {path.stem for path in NOTEBOOKS} <= {page.removeprefix("book/") for page in toc_pages()}


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_ran_in_order_and_none_failed(built, path):
    kept = get_cache(built / ".jupyter_cache")
    record = kept.match_cache_file(str(path))  # an error if other cells than these have run
    ran = kept.get_cache_bundle(record.pk).nb
    cells = [cell for cell in ran.cells if cell.cell_type == "code" and cell.source.strip()]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert [cell.source for cell in cells] == code_of(path)
    failed = [cell.source for cell in cells if any(o.output_type == "error" for o in cell.outputs)]
    assert not failed


def code_of(path):
    cells = nbformat.read(path, as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "code" and cell.source.strip()]
