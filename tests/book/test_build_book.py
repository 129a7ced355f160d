"""When the book is built again, and what is kept."""

import importlib.util

import pytest

from tests.book.pages import ROOT


@pytest.fixture
def book(tmp_path, monkeypatch):
    """scripts/build_book.py over a small repository, with the build itself replaced."""
    spec = importlib.util.spec_from_file_location("build_book", ROOT / "scripts/build_book.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("mmlab/nn.py", "data/card.md", "constraints.txt", "book/vit.md", "_config.yml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("1")
    build = tmp_path / "_build"
    places = {"BUILD": build, "SITE": build / "html", "STAMP": build / "book.json"}
    places["CODE_STAMP"] = build / "code.sha256"
    for name, value in {"ROOT": tmp_path, "LOG": build / "book.log", **places}.items():
        monkeypatch.setattr(module, name, value)

    def pretend():
        module.runs += 1
        (module.SITE / "book").mkdir(parents=True)
        (module.SITE / "book" / "index.html").write_text("page")
        (build / ".jupyter_cache").mkdir(exist_ok=True)
        (build / "book.log").write_text("ERROR: no\n")
        return module.status

    module.runs, module.status = 0, 0
    monkeypatch.setattr(module, "run_jupyter_book", pretend)
    return module


def test_nothing_changed_nothing_done(book, capsys):
    assert (book.build(), book.build(), book.runs) == (0, 0, 1)
    assert "Nothing has changed" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["mmlab/nn.py", "data/card.md", "constraints.txt"])
def test_a_change_in_the_code_clears_the_results(book, name):
    book.build()
    (book.BUILD / ".jupyter_cache" / "old").touch()
    (book.ROOT / name).write_text("2")
    book.build()
    assert book.runs == 2
    assert not (book.BUILD / ".jupyter_cache" / "old").exists()


@pytest.mark.parametrize("name", ["book/vit.md", "_config.yml", "book/new.md"])
def test_a_change_in_a_page_keeps_the_results(book, name):
    book.build()
    (book.BUILD / ".jupyter_cache" / "old").touch()
    (book.ROOT / name).write_text("2")
    book.build()
    assert book.runs == 2
    assert (book.BUILD / ".jupyter_cache" / "old").exists()


def test_what_python_writes_beside_the_code_is_no_change(book):
    book.build()
    (book.ROOT / "mmlab/__pycache__").mkdir()
    (book.ROOT / "mmlab/__pycache__/nn.pyc").write_text("x")
    book.build()
    assert book.runs == 1


def test_a_page_that_was_dropped_leaves_no_file(book):
    book.build()
    (book.SITE / "book" / "old.html").touch()
    (book.ROOT / "book/vit.md").write_text("2")
    book.build()
    assert not (book.SITE / "book" / "old.html").exists()


def test_a_failed_build_is_tried_again(book, capsys):
    book.status = 1
    assert (book.build(), book.build(), book.runs) == (1, 1, 2)
    assert "The book was not built" in capsys.readouterr().err


def test_a_failed_build_keeps_the_chapters_that_ran(book):
    book.status = 1
    book.build()
    (book.BUILD / ".jupyter_cache" / "old").touch()
    book.build()
    assert (book.BUILD / ".jupyter_cache" / "old").exists()


def test_fresh_runs_everything_again(book):
    book.build()
    (book.BUILD / ".jupyter_cache" / "old").touch()
    assert (book.build(fresh=True), book.runs) == (0, 2)
    assert not (book.BUILD / ".jupyter_cache" / "old").exists()
