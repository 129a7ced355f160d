"""The page on the five families answers every claim of the notes about them."""

import json
import re
from functools import cache

import nbformat
import pytest

from tests.book.pages import ROOT

# The claims of the notes about families of architectures, with their verdicts.
TRUE = {2, 3, 5, 7, 9, 11, 12, 19, 22, 26, 27}
WRONG = {8, 21}
VERDICTS = {
    f"FND-{number:02}": "true" if number in TRUE else "wrong" if number in WRONG else "imprecise"
    for number in range(1, 28)
}
BADGE = re.compile(r"\*\*(FND-\d\d)\*\* \{verdict\}`([a-z ]+)`")
BOX = re.compile(r":::\{erratum\} (FND-\d\d)\n:verdict: ([a-z ]+)\n:notes: (.+)\n\n(\S[\s\S]*?):::")


@cache
def prose() -> list[str]:
    cells = nbformat.read(ROOT / "book" / "foundations.ipynb", as_version=4).cells
    return [cell.source for cell in cells if cell.cell_type == "markdown"]


def answered() -> dict[str, str]:
    """Claim → verdict, from the section that goes through all of them."""
    (section,) = (text for text in prose() if text.startswith("## What the notes say"))
    return dict(BADGE.findall(section))


def answers() -> dict[str, str]:
    """Claim → the paragraph that answers it."""
    (section,) = (text for text in prose() if text.startswith("## What the notes say"))
    found = [line for line in section.splitlines() if BADGE.match(line.removeprefix("- "))]
    return {claim: line for line in found for claim, _ in BADGE.findall(line)}


def test_the_counts_are_the_ledger_s():
    kinds = list(VERDICTS.values())
    assert [kinds.count(k) for k in ("true", "imprecise", "wrong")] == [11, 14, 2]


def test_every_claim_has_its_verdict():
    assert answered() == VERDICTS


@pytest.mark.parametrize("claim", VERDICTS)
def test_every_answer_names_a_cell_or_a_source(claim):
    answer = answers()[claim]
    section = re.search(r"\*(Famil|Cost|Encoder|Five)", answer)
    assert section or "](" in answer or "FLIP and BLIP-2" in answer or "cite no" in answer


def test_answers_that_wait_for_training_name_their_demonstration():
    for answer in answers().values():
        if "later" in answer.lower():
            assert re.search(r"\(D\d\d\)", answer), answer


def test_sections_that_answers_name_exist():
    headings = "\n".join(re.findall(r"^##+ .+$", "\n".join(prose()), re.M))
    named = set(re.findall(r"\*(Family \d|Cost|Encoder or decoder\?)\*", "\n".join(prose())))
    assert len(named) > 5
    assert [name for name in named if name not in headings] == []


def boxes(text: str) -> dict[str, str]:
    return {claim: verdict for claim, verdict, notes, body in BOX.findall(text) if notes and body}


def test_boxes_on_the_page_say_the_same():
    shown = boxes("\n\n".join(prose()))
    assert {"FND-08", "FND-21"} <= shown.keys()
    assert shown.items() <= VERDICTS.items()


def test_errata_list_what_is_not_true():
    errata = (ROOT / "book" / "errata.md").read_text("utf-8")
    expected = {claim: v for claim, v in VERDICTS.items() if v != "true"}
    assert boxes(errata) == expected
    table = dict(re.findall(r"^\| \[(FND-\d\d)\].+\{verdict\}`(\w+)` \|$", errata, re.M))
    assert table == expected
    for claim in expected:
        assert f"(erratum-{claim.lower()})=\n:::{{erratum}} {claim}" in errata


def test_claims_of_the_experiment_are_answered_here():
    result = json.loads((ROOT / "data" / "results" / "d01_blocks.json").read_text("utf-8"))
    claims = {claim for finding in result["findings"] for claim in finding["claims"]}
    assert claims <= VERDICTS.keys()
    assert all("D01" in answers()[claim] for claim in claims)
