"""The built site in a real browser that can reach nothing but the site."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

from tests.book.pages import toc_pages
from tests.browser import open_page

pytestmark = pytest.mark.browser

PAGES = [f"{page}.html" for page in toc_pages()]
EVERY_PAGE = ["index.html", *PAGES, "search.html", "genindex.html"]
PHONE, DESKTOP = (390, 844), (1280, 900)
MEGABYTE = 2**20

# Pictures a screen reader would meet without a name. Hidden ones and icons of named buttons are
# not met; a figure's own text stands for the picture in it.
UNNAMED = """() => [...document.querySelectorAll("img, svg, canvas")].filter((e) => {
  // What no one sees or hears, such as a figure's empty board, needs no name.
  if (e.closest('[aria-hidden="true"], .hidden')) return false;
  const labels = (e.getAttribute("aria-labelledby") || "").split(" ");
  const owner = e.closest("a, button, summary");
  return !(
    e.getAttribute("alt") || e.getAttribute("aria-label") || e.querySelector(":scope > title") ||
    labels.some((id) => id && document.getElementById(id)?.textContent.trim()) ||
    owner?.textContent.trim() || owner?.getAttribute("aria-label") || owner?.title ||
    owner?.dataset.tooltip
  );
}).map((e) => e.outerHTML.slice(0, 160))"""

# Formulas that still show as TeX once MathJax has said that it is done.
RAW_FORMULAS = """async () => {
  await window.MathJax?.startup?.promise;
  const formulas = [...document.querySelectorAll(".math")];
  return formulas.filter((e) => !e.querySelector("mjx-container")).map((e) => e.innerText);
}"""

# Everything a reader can see change, apart from the control that was moved.
SEEN = """(widget) => {
  const canvases = [...widget.querySelectorAll("canvas")].map((c) => c.toDataURL());
  const drawings = [...widget.querySelectorAll("svg, img")].map((e) => e.outerHTML);
  const data = JSON.stringify(widget.dataset);
  return [...canvases, ...drawings, data, widget.innerText].join("\\n");
}"""


@dataclass
class Visit:
    """What was found on one page in one setting."""

    external: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    files: set[str] = field(default_factory=set)
    unnamed: list[str] = field(default_factory=list)
    raw_formulas: list[str] = field(default_factory=list)
    axe: list[str] = field(default_factory=list)
    width: int = 0
    theme: str = ""


def serious(results) -> list[str]:
    """The serious and critical findings of axe, with the first elements they are about."""
    found = []
    for violation in results.response["violations"]:
        if violation["impact"] in ("serious", "critical"):
            where = [node["html"][:120] for node in violation["nodes"][:3]]
            found.append(f"{violation['id']}: {violation['help']} {where}")
    return found


def inspect(page, log, address: str) -> Visit:
    """Open one page and write down everything the tests ask about."""
    log.external.clear()
    log.errors.clear()
    visit = Visit()
    page.goto(address, wait_until="load")
    page.wait_for_load_state("networkidle")
    visit.files = set(
        page.evaluate("performance.getEntriesByType('resource').map((e) => e.name)")
    ) | {page.url}
    visit.unnamed = page.evaluate(UNNAMED)
    visit.raw_formulas = page.evaluate(RAW_FORMULAS)
    visit.width = page.evaluate("document.documentElement.scrollWidth")
    visit.theme = page.evaluate("document.documentElement.dataset.theme")
    visit.external, visit.errors = list(log.external), list(log.errors)
    # Preloading would fetch style sheets from addresses that axe guesses.
    visit.axe = serious(Axe().run(page, options={"resultTypes": ["violations"], "preload": False}))
    return visit


def tour(site: Path, viewport, scheme: str) -> dict[str, Visit]:
    """Visit every page in one setting; one browser does it all."""
    with open_page(site, viewport=viewport, color_scheme=scheme) as (page, log):
        return {address: inspect(page, log, address) for address in EVERY_PAGE}


@pytest.fixture(scope="module")
def light(site) -> dict[str, Visit]:
    return tour(site, DESKTOP, "light")


@pytest.fixture(scope="module")
def dark(site) -> dict[str, Visit]:
    return tour(site, DESKTOP, "dark")


@pytest.fixture(scope="module")
def phone(site) -> dict[str, Visit]:
    return tour(site, PHONE, "light")


@pytest.mark.parametrize("address", EVERY_PAGE)
def test_page_asks_no_other_machine_for_anything(light, dark, phone, address):
    for visits in (light, dark, phone):
        assert visits[address].external == []


@pytest.mark.parametrize("address", EVERY_PAGE)
def test_page_logs_no_error(light, dark, phone, address):
    for visits in (light, dark, phone):
        assert visits[address].errors == []


@pytest.mark.parametrize("address", EVERY_PAGE)
def test_every_picture_has_a_name(light, address):
    assert light[address].unnamed == []


@pytest.mark.parametrize("address", PAGES)
def test_every_formula_is_typeset(light, address):
    assert light[address].raw_formulas == []


@pytest.mark.parametrize("address", EVERY_PAGE)
def test_nothing_sticks_out_on_a_phone(phone, address):
    assert phone[address].width <= PHONE[0]


@pytest.mark.parametrize("address", EVERY_PAGE)
def test_page_is_accessible(light, dark, phone, address):
    assert (light[address].theme, dark[address].theme) == ("light", "dark")
    for visits in (light, dark, phone):
        assert visits[address].axe == []


@pytest.mark.parametrize("address", PAGES)
def test_page_weighs_at_most_four_megabytes(site, light, address):
    paths = [unquote(urlsplit(name).path).lstrip("/") for name in light[address].files]
    sizes = {path: (site / path).stat().st_size for path in paths if (site / path).is_file()}
    assert sum(sizes.values()) <= 4 * MEGABYTE, sorted(sizes.items(), key=lambda s: -s[1])[:5]


# ---- widgets ---------------------------------------------------------------------------------


def react(page, widget, act) -> bool:
    """Whether what the reader sees changes within a second of ``act``."""
    before = widget.evaluate(SEEN)
    act()
    for _ in range(10):
        page.wait_for_timeout(100)
        if widget.evaluate(SEEN) != before:
            return True
    return False


def controls(widget):
    """Its visible native controls."""
    kinds = "input[type=range], input[type=number], select, input[type=checkbox], input[type=radio]"
    return [c for c in widget.query_selector_all(kinds) if c.is_visible() and c.is_enabled()]


def press(page, control) -> None:
    """Change a control from the keyboard, whatever kind it is and wherever its value stands."""
    control.focus()
    kind = control.get_attribute("type")
    keys = ["Space"] if kind == "checkbox" else ["ArrowRight", "ArrowDown", "ArrowDown"]
    for key in keys:
        page.keyboard.press(key)


def point(page, widget) -> None:
    """Move over the drawing and click in it, then drag its first slider."""
    drawing = widget.query_selector("canvas, svg, img")
    slider = widget.query_selector("input[type=range]")
    for element, share in ((drawing, 0.3), (slider, 0.85)):
        if element is not None:
            box = element.bounding_box()
            page.mouse.move(box["x"] + share * box["width"], box["y"] + 0.5 * box["height"])
            page.mouse.down()
            page.mouse.up()


@pytest.mark.parametrize("address", PAGES)
def test_widgets_answer_keyboard_and_mouse(site, address):
    if "mmlab-widget" not in (site / address).read_text(encoding="utf-8"):
        return
    with open_page(site) as (page, _log):
        page.goto(address, wait_until="load")
        page.wait_for_load_state("networkidle")
        assert page.query_selector_all(".mmlab-widget"), f"the widgets of {address} do not start"
        for index, widget in enumerate(page.query_selector_all(".mmlab-widget")):
            name = f"widget {index} of {address}"
            widget.scroll_into_view_if_needed()
            assert controls(widget), f"{name} has no control"
            keyboard = (react(page, widget, lambda c=c: press(page, c)) for c in controls(widget))
            assert any(keyboard), f"{name}: keyboard"
            assert react(page, widget, lambda w=widget: point(page, w)), f"{name}: mouse"


def test_map_answers_keyboard_and_mouse(site):
    with open_page(site) as (page, _log):
        page.goto("book/index.html")
        note = page.locator(".mmlab-map-note")
        page.focus(".mmlab-map-wide [data-name=ALBEF]")
        assert "momentum encoder and the queue (MoCo)" in note.inner_text()
        page.keyboard.press("Tab")
        assert "ALBEF," not in note.inner_text()
        page.hover(".mmlab-map-wide [data-name=FLIP]")
        assert note.inner_text().startswith("FLIP, Dec 2022")


@pytest.mark.parametrize(("viewport", "layout"), [(DESKTOP, "wide"), (PHONE, "tall")])
def test_systems_of_the_map_are_links(site, viewport, layout):
    with open_page(site, viewport=viewport) as (page, _log):
        page.goto("book/index.html")
        assert page.locator(f".mmlab-map-{layout} a.mmlab-node").count() >= 14
        page.focus(f".mmlab-map-{layout} [data-name=CLIP]")
        page.keyboard.press("Enter")
        assert "2103.00020" in page.locator("article.mmlab-system:target").inner_text()
        page.click(f".mmlab-map-{layout} [data-name=ViT]")
        page.wait_for_url("**/book/vit.html")


def test_quiz_works_by_keyboard_without_script(site):
    with open_page(site, java_script_enabled=False) as (page, _log):
        page.goto("book/how_to_use.html")
        question = page.locator(".mmlab-question").first
        first = question.locator("input").first

        def said() -> str:
            return question.locator("details").inner_text()

        question.locator("summary").press("Enter")
        assert "Choose an answer first." in said()
        first.press("Space")
        assert "Not this one." in said() and "Right." not in said()
        first.press("ArrowDown")
        assert "Right." in said() and "Not this one." not in said()


def test_pages_work_from_a_folder(site):
    with open_page(site) as (page, log):
        for address in ("book/index.html", "book/vit.html"):
            page.goto((site / address).as_uri(), wait_until="load")
            page.wait_for_timeout(500)
            assert page.locator("article h1").is_visible()
        assert (log.external, log.errors) == ([], [])


# ---- links -----------------------------------------------------------------------------------


class Anchors(HTMLParser):
    """The ids of a page and what it links to."""

    def __init__(self, path: Path):
        super().__init__()
        self.ids: set[str] = set()
        self.links: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids |= {attrs[key] for key in ("id", "name") if attrs.get(key)}
        self.links |= {attrs[key] for key in ("href", "src") if attrs.get(key)}


def dead_links(site: Path) -> list[str]:
    """Links inside the site whose file or anchor is not there."""
    pages = {
        path.resolve(): Anchors(path)
        for path in site.rglob("*.html")
        if "_static" not in path.parts
    }
    dead = []
    for page, anchors in pages.items():
        for link in anchors.links:
            address, fragment = urldefrag(link)
            if urlsplit(link).scheme or link.startswith("//"):
                continue
            target = (page.parent / unquote(urlsplit(address).path)).resolve() if address else page
            known = pages[target].ids if target in pages else None
            if not target.is_file() or (known is not None and fragment and fragment not in known):
                dead.append(f"{page.relative_to(site)} -> {link}")
    return sorted(dead)


def test_no_link_is_dead(site):
    assert dead_links(site.resolve()) == []


def test_link_checker_sees_a_dead_link(tmp_path):
    (tmp_path / "a.html").write_text('<p id="here"><a href="#here">1</a><a href="#gone">2</a>')
    (tmp_path / "b.html").write_text('<a href="a.html#here">3</a><a href="c.html">4</a>')
    assert dead_links(tmp_path.resolve()) == ["a.html -> #gone", "b.html -> c.html"]
