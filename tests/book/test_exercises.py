"""The exercise pages: each exercise has its starter, hints and a solution that still solves it."""

import ast

import nbformat
import pytest

from mmlab.exercises import EXERCISES
from tests.book.pages import ROOT

PAGES = sorted((ROOT / "book").glob("*_exercises.ipynb"))
CHAPTERS = {name.partition(".")[0] for name in EXERCISES}


def cells(path, tag=None):
    found = nbformat.read(path, as_version=4).cells
    return [c for c in found if tag is None or tag in c.metadata.get("tags", [])]


def last_value(source: str, names: dict):
    """Run a cell as a notebook does, and give the value of its last line."""
    *statements, last = ast.parse(source).body
    exec(compile(ast.Module(statements, []), "<cell>", "exec"), names)
    return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)


def results(path, tag):
    """The exercise and the state that each cell with ``tag`` ends in, cells before it not run."""
    setup = next(c for c in cells(path) if c.cell_type == "code")
    found = []
    for cell in cells(path, tag):
        names = {}
        exec(setup.source, names)
        found.append(last_value(cell.source, names))
    return found


def exercises_of(path):
    chapter = path.stem.removesuffix("_exercises")
    return [name for name in EXERCISES if name.startswith(f"{chapter}.")]


def test_every_chapter_with_exercises_has_their_page():
    assert {path.stem.removesuffix("_exercises") for path in PAGES} == CHAPTERS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_solution_solves_its_exercise(path):
    solved = results(path, "solution")
    assert [r.exercise for r in solved] == exercises_of(path)
    assert [str(r) for r in solved if not r.passed] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_every_starter_is_not_answered_yet(path):
    started = results(path, "exercise")
    assert [r.exercise for r in started] == exercises_of(path)
    assert {r.state for r in started} == {"unanswered"}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_solutions_are_folded_on_the_page_and_in_the_notebook(path):
    for cell in cells(path, "solution"):
        assert "hide-cell" in cell.metadata.tags
        assert cell.metadata.jupyter.source_hidden and cell.metadata.jupyter.outputs_hidden
        assert "solution" in cell.metadata.mystnb.code_prompt_show


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_each_exercise_has_one_or_two_hints_before_its_solution(path):
    hints = 0
    for cell in cells(path):
        hints += cell.source.count("{dropdown} Hint") if cell.cell_type == "markdown" else 0
        if "solution" in cell.metadata.get("tags", []):
            assert 1 <= hints <= 2, cell.source
            hints = 0


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_three_tiers_and_five_questions(path):
    text = "\n".join(cell.source for cell in cells(path) if cell.cell_type == "markdown")
    assert [line for line in text.splitlines() if line.startswith("## ")][:4] == [
        "## Easy",
        "## In the middle",
        "## Hard",
        "## Quiz",
    ]
    assert text.count(":::{question}") == 5
