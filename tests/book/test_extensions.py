"""The book's own directives, in a page of their own."""

import io
import re

import pytest
import systems_map
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace

from tests.book.pages import ROOT

QUESTION = """:::{{question}} How many?
{answers}
+++
Because of *that*.
:::
"""


def build(folder, source: str) -> tuple[str, str]:
    """HTML and warnings of one Markdown page."""
    (folder / "index.md").write_text("# Page\n\n" + source)
    warnings = io.StringIO()
    settings = {
        "extensions": ["myst_parser", "furniture", "systems_map"],
        "myst_enable_extensions": ["colon_fence", "dollarmath"],
        "root_doc": "index",
    }
    places = [str(folder), None, str(folder / "out"), str(folder / "trees"), "html"]
    with docutils_namespace():
        Sphinx(*places, settings, status=None, warning=warnings).build()
    return (folder / "out/index.html").read_text(), warnings.getvalue()


def test_question_keeps_each_answer_with_its_own_feedback(tmp_path):
    answers = "- [ ] one\n  Too *few*.\n- [x] two"
    html, warnings = build(tmp_path, QUESTION.format(answers=answers))
    assert warnings == ""
    first = re.search(r"mmlab-feedback-1.*?mmlab-feedback-2", html, re.S)[0]
    assert "Not this one." in first and "Too <em>few</em>." in first
    assert html.count('type="radio"') == html.count("<label") == 2
    ids = set(re.findall(r'<input[^>]* id="([^"]+)"', html))
    assert ids == set(re.findall(r'<label[^>]* for="([^"]+)"', html))
    assert "</input>" not in html


@pytest.mark.parametrize(
    "answers",
    ["- [ ] one\n- [ ] two", "- [x] one\n- [x] two", "- [x] one", "one\n- [x] two"],
    ids=["none right", "two right", "one answer", "no box"],
)
def test_question_that_cannot_be_answered_is_an_error(tmp_path, answers):
    _html, warnings = build(tmp_path, QUESTION.format(answers=answers))
    assert "index.md" in warnings and "answer" in warnings


def test_two_questions_do_not_share_their_buttons(tmp_path):
    question = QUESTION.format(answers="- [ ] one\n- [x] two")
    html, _warnings = build(tmp_path, question + "\n" + question)
    assert len(set(re.findall(r'name="(mmlab-question[^"]+)"', html))) == 2


def test_prediction_folds_what_follows_the_line(tmp_path):
    html, _warnings = build(tmp_path, ":::{predict} What?\nBefore\n+++\nAfter\n:::\n")
    shown, folded = html.split("<details", 1)
    assert "Before" in shown and "After" not in shown
    assert "After" in folded


def test_prediction_without_an_answer_is_an_error(tmp_path):
    _html, warnings = build(tmp_path, ":::{predict} What?\nBefore\n:::\n")
    assert "needs a line '+++'" in warnings


def test_verdicts_carry_word_and_sign(tmp_path):
    html, warnings = build(tmp_path, "{verdict}`wrong` {verdict}`no difference seen`")
    assert warnings == ""
    assert "✕</span> wrong" in html and "=</span> no difference seen" in html


def test_unknown_verdict_is_an_error_that_lists_the_known(tmp_path):
    _html, warnings = build(tmp_path, "{verdict}`maybe`")
    assert "'maybe' is not one of: true, imprecise, wrong" in warnings


def test_text_with_markup_reaches_the_page_as_text(tmp_path):
    html, _warnings = build(tmp_path, QUESTION.format(answers="- [ ] `<b>`\n- [x] a < b"))
    assert "&lt;b&gt;" in html and "a &lt; b" in html


# ---- the map ---------------------------------------------------------------------------------

SYSTEMS = (
    "ViT, MAE, ViLT, CLIP, FLIP, ALBEF, BLIP, BLIP-2, VLMo, "
    "LXMERT, ViLBERT, OSCAR, UNITER, VisualBERT"
)


def test_map_has_every_system_of_the_book():
    names = {s.name for s in systems_map.load().systems if not s.neighbour}
    assert names == set(SYSTEMS.split(", "))


def test_systems_only_take_from_earlier_ones():
    systems = systems_map.load()
    for system in systems.systems:
        for name, _what in system.took:
            assert systems.named(name).arxiv < system.arxiv


def test_systems_and_references_agree_on_numbers_and_titles():
    entries = re.split(r"\n@", (ROOT / "book/references.bib").read_text())
    titles = {}
    for entry in entries:
        number = re.search(r"eprint = \{(.+?)\}", entry)[1]
        titles[number] = re.sub(r"[{}\\]", "", re.search(r"title = \{(.+)\},", entry)[1])
    for system in systems_map.load().systems:
        assert titles[system.arxiv] == system.title


def test_no_two_boxes_of_the_wide_map_overlap():
    systems = systems_map.load()
    wide = systems_map.Wide(systems)
    for a in systems.systems:
        for b in systems.systems:
            (xa, ya), (xb, yb) = wide.centre(a), wide.centre(b)
            if a.name < b.name and abs(ya - yb) < systems_map.CHIP:
                assert abs(xa - xb) > (a.chip_width + b.chip_width) / 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [("family: fusion", "unknown family 'nowhere'"), ("from: MoCo", "unknown 'nowhere'")],
)
def test_a_slip_in_the_file_is_named(tmp_path, monkeypatch, wrong, message):
    key = wrong.split(":")[0]
    text = systems_map.SOURCE.read_text().replace(wrong, f"{key}: nowhere")
    (tmp_path / "systems.yml").write_text(text)
    monkeypatch.setattr(systems_map, "SOURCE", tmp_path / "systems.yml")
    with pytest.raises(systems_map.ExtensionError, match=message):
        systems_map.load()


def test_map_without_chapters_links_to_the_list(tmp_path):
    html, warnings = build(tmp_path, "```{systems-map}\n```\n\n```{systems-list}\n```\n")
    assert warnings == ""
    for layout in ("wide", "tall"):
        picture = re.search(rf'<svg class="mmlab-map-{layout}".*?</svg>', html, re.S)[0]
        assert set(re.findall(r'href="#([^"]+)"', picture)) == set(
            re.findall(r'<article[^>]* id="([^"]+)"', html)
        )
