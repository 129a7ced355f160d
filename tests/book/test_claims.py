"""Every claim of the notes about ViT is answered once, and every link in the answers holds."""

import json
import re

import pytest

from tests.book.pages import ROOT

BOOK = ROOT / "book"
CLAIMS = [f"VIT-{number:02}" for number in range(1, 35)]
VERDICTS = ("true", "imprecise", "wrong")
# - **VIT-01** {verdict}`wrong` *What the notes say.*\
#   What is so, and where it is shown.
ANSWER = re.compile(r"^- \*\*(\w+-\d+)\*\* \{verdict\}`(.+?)` \*(.+)\*\\\n  (.+)$", re.MULTILINE)
ERRATUM = re.compile(
    r"^\((?P<label>erratum-vit-\d+)\)=\n:::\{erratum\} (?P<claim>VIT-\d+)\n"
    r":verdict: (?P<verdict>\w+)\n(?P<body>.*?)^:::$",
    re.MULTILINE | re.DOTALL,
)
LINK = re.compile(r"\]\(([\w./-]*)#([\w-]+)\)")
CITATION = re.compile(r"§|Table|Fig\.|App\.|eq|Abstract|Standard|https://")


def markdown(name: str) -> str:
    """The text of a page, of a notebook its Markdown cells."""
    text = (BOOK / name).read_text()
    if not name.endswith(".ipynb"):
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def anchors(name: str) -> set[str]:
    """What a link to a page can point at: its headings, as MyST names them, and its labels."""
    text = re.sub(r"^```.*?^```", "", markdown(name), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#{1,3} (.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, flags=re.MULTILINE))


def answers() -> list[tuple[str, str, str, str]]:
    """The items of the chapter's list: claim, verdict, what the notes say, what is so."""
    _, _, section = markdown("vit_lab.ipynb").partition("\n## What the notes say\n")
    return ANSWER.findall(section.partition("\n## ")[0])


def errata() -> dict[str, re.Match]:
    """Claim → its box on the page of errata."""
    return {match["claim"]: match for match in ERRATUM.finditer(markdown("errata.md"))}


def test_every_claim_is_answered_once():
    assert sorted(claim for claim, *_rest in answers()) == CLAIMS


def test_an_answer_has_a_verdict_and_a_place():
    for claim, verdict, said, answer in answers():
        assert verdict in VERDICTS, claim
        assert len(said.split()) > 2, claim
        shown = LINK.search(answer) or CITATION.search(answer)
        assert shown, f"{claim} shows nothing and cites nobody"


def test_what_is_not_true_is_among_the_errata():
    """With the same verdict, and a link back to the page that shows it."""
    not_true = {claim: verdict for claim, verdict, _, _ in answers() if verdict != "true"}
    assert {claim: box["verdict"] for claim, box in errata().items()} == not_true
    for claim, box in errata().items():
        assert box["label"] == f"erratum-{claim.lower()}"
        assert "](vit_lab.ipynb#" in box["body"], f"{claim} does not say where it is shown"


def test_the_counts_of_the_errata_are_those_of_the_list():
    words = [verdict for _, verdict, _, _ in answers()]
    counts = {word: words.count(word) for word in VERDICTS}
    assert counts == {"true": 23, "imprecise": 10, "wrong": 1}
    said = (
        "Of 34 statements about ViT and inductive bias, 23 are true, 10 imprecise and one is wrong."
    )
    assert said in markdown("errata.md")


@pytest.mark.parametrize("page", ["vit.ipynb", "vit_lab.ipynb", "errata.md"])
def test_every_anchor_exists(page):
    links = LINK.findall(markdown(page))
    missing = [
        f"{target or page}#{anchor}"
        for target, anchor in links
        if anchor not in anchors(target or page)
    ]
    assert missing == []


def test_there_are_links_to_check():
    assert len(LINK.findall(markdown("vit_lab.ipynb"))) > 30
    assert "step-1-cut" in anchors("vit.ipynb")
    assert "erratum-vit-01" in anchors("errata.md")
