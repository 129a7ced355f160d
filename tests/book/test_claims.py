"""Every claim of the notes about a system is answered once, and every link in the answers holds."""

import json
import re

import pytest

from tests.book.pages import ROOT

BOOK = ROOT / "book"
VERDICTS = ("true", "imprecise", "wrong")


def numbered(topic: str, last: int) -> list[str]:
    return [f"{topic}-{number:02}" for number in range(1, last + 1)]


# The page that answers → the claims of the ledger that it answers.
CLAIMS = {
    "vit_lab.ipynb": numbered("VIT", 34),
    "clip_lab.ipynb": [*numbered("CLP", 21), "DST-18", "DST-19", "VMO-03", "VMO-06"],
    "flip_lab.ipynb": numbered("FLP", 21),
    "vilt_lab.ipynb": ["ALB-03", "REG-15", *numbered("VLT", 31)],
}
# The page → how many are true, imprecise and wrong, and how the errata say it.
COUNTS = {
    "vit_lab.ipynb": (
        (23, 10, 1),
        "Of 34 statements about ViT and inductive bias, 23 are true, "
        "10 imprecise and one is wrong.",
    ),
    "clip_lab.ipynb": (
        (21, 4, 0),
        "Of 25 statements about CLIP and retrieval, 21 are true and four imprecise.",
    ),
    "flip_lab.ipynb": (
        (14, 4, 3),
        "Of 21 statements about FLIP and MAE, 14 are true, four imprecise and three wrong.",
    ),
    "vilt_lab.ipynb": (
        (15, 15, 3),
        "Of 33 statements about ViLT and alignment, 15 are true, 15 imprecise and three wrong.",
    ),
}
# - **VIT-01** {verdict}`wrong` *What the notes say.*\
#   What is so, and where it is shown.
ANSWER = re.compile(r"^- \*\*(\w+-\d+)\*\* \{verdict\}`(.+?)` \*(.+)\*\\\n  (.+)$", re.MULTILINE)
ERRATUM = re.compile(
    r"^\((?P<label>erratum-[a-z]+-\d+)\)=\n:::\{erratum\} (?P<claim>[A-Z]+-\d+)\n"
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


def answers(page: str) -> list[tuple[str, str, str, str]]:
    """The items of a page's list: claim, verdict, what the notes say, what is so."""
    _, _, section = markdown(page).partition("\n## What the notes say\n")
    return ANSWER.findall(section.partition("\n## ")[0])


def errata(claims: list[str]) -> dict[str, re.Match]:
    """Claim → its box on the page of errata, of those among ``claims``."""
    boxes = ERRATUM.finditer(markdown("errata.md"))
    return {match["claim"]: match for match in boxes if match["claim"] in claims}


@pytest.mark.parametrize("page", CLAIMS)
def test_every_claim_is_answered_once(page):
    assert sorted(claim for claim, *_rest in answers(page)) == CLAIMS[page]


@pytest.mark.parametrize("page", CLAIMS)
def test_an_answer_has_a_verdict_and_a_place(page):
    for claim, verdict, said, answer in answers(page):
        assert verdict in VERDICTS, claim
        assert len(said.split()) > 2, claim
        shown = LINK.search(answer) or CITATION.search(answer)
        assert shown, f"{claim} shows nothing and cites nobody"


@pytest.mark.parametrize("page", CLAIMS)
def test_what_is_not_true_is_among_the_errata(page):
    """With the same verdict, and a link back to the page that shows it."""
    not_true = {claim: verdict for claim, verdict, _, _ in answers(page) if verdict != "true"}
    boxes = errata(CLAIMS[page])
    assert {claim: box["verdict"] for claim, box in boxes.items()} == not_true
    for claim, box in boxes.items():
        assert box["label"] == f"erratum-{claim.lower()}"
        assert f"]({page}#" in box["body"], f"{claim} does not say where it is shown"


@pytest.mark.parametrize("page", CLAIMS)
def test_the_counts_of_the_errata_are_those_of_the_list(page):
    words = [verdict for _, verdict, _, _ in answers(page)]
    counts, said = COUNTS[page]
    assert tuple(words.count(word) for word in VERDICTS) == counts
    assert said in markdown("errata.md")


@pytest.mark.parametrize("page", ["vit.ipynb", "vilt.ipynb", "clip.ipynb", *CLAIMS, "errata.md"])
def test_every_anchor_exists(page):
    links = LINK.findall(markdown(page))
    missing = [
        f"{target or page}#{anchor}"
        for target, anchor in links
        if anchor not in anchors(target or page)
    ]
    assert missing == []


def test_there_are_links_to_check():
    for page in CLAIMS:
        assert len(LINK.findall(markdown(page))) > 20
    assert "step-1-cut" in anchors("vit.ipynb")
    assert "erratum-vit-01" in anchors("errata.md")
    assert errata(CLAIMS["clip_lab.ipynb"])
