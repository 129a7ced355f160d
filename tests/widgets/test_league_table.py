import re

import pytest
from axe_playwright_python.sync_playwright import Axe

from mmlab.widgets import LeagueTable
from mmlab.widgets.base import module_source
from mmlab.widgets.league_table import Cell, Column, Row
from mmlab.widgets.strings import STRINGS, strings_for
from tests.browser import needs_chromium
from tests.widgets.figure_page import settle

ROWS = [
    Row("blind", "baselines", baseline=True),
    Row("alpha", "patches"),
    Row("beta", "regions"),
    Row("gamma", "patches"),
    Row("delta", "regions"),
]
COLUMNS = [
    Column("answers", "tasks", floor=0.3, about="Questions answered rightly."),
    Column("pairs", "tasks"),
    Column("time", "costs", unit="s", scale=1.0, digits=0, better="less"),
    Column("size", "costs", unit="M", scale=1e-6, better=""),
]


def cell(mean, half=0.02, seeds=3, task="answers", **more):
    values = [mean + (k - (seeds - 1) / 2) * (half or 0) / 2 for k in range(seeds)]
    runs = [(k, value, f"cells/x/seed{k}/{task}") for k, value in enumerate(values)]
    return Cell(runs, mean, half, **more)


CELLS = {
    ("blind", "answers"): cell(0.3),
    ("alpha", "answers"): cell(0.5),
    ("beta", "answers"): cell(0.31, blind=True),
    ("delta", "answers"): cell(0.9),
    ("gamma", "answers"): Cell(note="Loss is not a number."),
    ("alpha", "pairs"): cell(-0.0001, half=None, seeds=1, task="pairs"),
    ("alpha", "time"): cell(1234.4, 100.0, task="time"),
    ("beta", "time"): cell(20.0, 1.0, task="time"),
    ("alpha", "size"): cell(1.5e6, 0.0, task="size"),
}


def table(cells=CELLS, **options):
    return LeagueTable(ROWS, COLUMNS, cells, **options)


def names(widget):
    return [ROWS[i].name for i in widget.order()]


# ---- Python


def test_rows_without_a_value_come_last_whichever_way_it_is_sorted():
    assert names(table()) == ["delta", "alpha", "beta", "blind", "gamma"]
    assert names(table(down=False)) == ["blind", "beta", "alpha", "delta", "gamma"]


def test_baselines_stay_on_top_where_they_are_pinned():
    assert names(table(pinned=True)) == ["blind", "delta", "alpha", "beta", "gamma"]
    assert names(table(pinned=True, sort=1)) == ["blind", "alpha", "beta", "gamma", "delta"]


def test_hidden_families_are_not_shown():
    assert names(table(hidden=["regions", "baselines"])) == ["alpha", "gamma"]
    assert names(table(hidden=["regions", "baselines", "patches"])) == []


def test_a_cost_is_sorted_with_the_smallest_first():
    widget = table(sort=2)
    assert not widget.down
    assert names(widget)[:2] == ["beta", "alpha"]


def test_sentence_tells_the_values_in_order():
    sentence = table().sentence()
    assert "tasks: 5 rows sorted by answers (%)" in sentence
    assert "delta 90.0; alpha 50.0; beta 31.0; blind 30.0." in sentence
    assert "beta 20; alpha 1,234." in table(sort=2).sentence()


def test_still_picture_shows_the_present_values():
    changes = [{}, {"sort": 2}, {"down": False}, {"hidden": ["regions"]}, {"pinned": True}]
    stills = [table(**change).to_png() for change in changes]
    assert all(still[:4] == b"\x89PNG" for still in stills)
    assert len(set(stills)) == len(stills)


NONE = float("nan")
WRONG = {
    "no row": (lambda: LeagueTable([], COLUMNS, {}), "rows is empty; LeagueTable needs"),
    "no column": (lambda: LeagueTable(ROWS, [], {}), "columns is empty; LeagueTable needs"),
    "twice": (lambda: LeagueTable(ROWS * 2, COLUMNS, {}), "rows has 'blind' twice"),
    "unknown": (lambda: table({("zeta", "answers"): cell(1)}), r"has \('zeta', 'answers'\), which"),
    "half a cell": (
        lambda: table({("alpha", "pairs"): Cell(mean=0.5, note="x")}),
        r"the cell \('alpha', 'pairs'\) must have runs and a mean, or neither",
    ),
    "not a number": (lambda: table({("alpha", "pairs"): cell(NONE)}), "allowed are finite"),
    "better": (lambda: Column("a", "b", better="most"), "better='most' of 'a'; allowed are 'more'"),
    "sort": (lambda: table(sort=4), "sort=4; allowed are 0 to 3"),
    "row": (lambda: table(row=-1), "row=-1; allowed are 0 to 4"),
    "hidden": (lambda: table(hidden=["x"]), "hidden=x|hidden='x'; allowed are baselines, patches"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_told_what_is_allowed(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_module_is_self_contained():
    source = module_source("league_table")
    assert not re.search(r"^\s*import\b|\bimport\(|\bfetch\(|XMLHttpRequest", source, re.M)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", source)


def test_no_word_is_left_over():
    source = module_source("league_table")
    for key in set(strings_for("league_table")) - {"locale", "sentence", "sentence_value"}:
        assert f'"{key}"' in source, key


@pytest.mark.parametrize("language", sorted(STRINGS))
def test_every_language_has_the_same_places(language):
    english, other = strings_for("league_table"), strings_for("league_table", language)
    assert english.keys() == other.keys()
    for key in english:
        assert set(re.findall(r"\{\w+\}", english[key])) == set(re.findall(r"\{\w+\}", other[key]))


# ---- The browser


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
        settle(page)


def shown_rows(page):
    return page.locator("tbody th .name").all_text_contents()


def head(page, name):
    return page.locator("thead th", has_text=name)


def readout(page):
    return page.locator(".readout").inner_text()


def line_of_chart(page, line, width=0.6):
    """Points at a line of the drawing, which is as high as the drawing over its lines."""
    chart = page.locator("canvas")
    chart.scroll_into_view_if_needed()
    box = chart.bounding_box()
    return chart, {"x": width * box["width"], "y": 22 * (line + 0.5)}


@pytest.mark.browser
@needs_chromium
class TestInBrowser:
    @pytest.mark.parametrize(
        "options",
        [{}, {"down": False}, {"pinned": True}, {"sort": 2}, {"hidden": ["patches"]}],
        ids=str,
    )
    def test_the_page_sorts_as_python_does(self, show, options):
        assert shown_rows(show(table(**options))) == names(table(**options))

    def test_a_press_on_a_head_sorts_and_another_turns_the_order(self, show):
        page = show(table(sort=1))
        button = head(page, "answers").locator("button")
        button.focus()
        press(page, "Enter")
        assert shown_rows(page) == ["delta", "alpha", "beta", "blind", "gamma"]
        assert head(page, "answers").get_attribute("aria-sort") == "descending"
        assert head(page, "pairs").get_attribute("aria-sort") == "none"
        press(page, "Space")
        assert shown_rows(page) == ["blind", "beta", "alpha", "delta", "gamma"]
        assert head(page, "answers").get_attribute("aria-sort") == "ascending"
        assert page.evaluate("document.activeElement.textContent").startswith("answers")

    def test_it_is_a_table_with_names_for_rows_and_columns(self, show):
        page = show(table())
        assert page.locator("table > caption").count() == 1
        assert page.locator("thead th[scope=col]").count() == 3
        assert page.locator("tbody th[scope=row]").count() == 5

    def test_another_group_shows_its_columns_with_the_best_first(self, show):
        page = show(table())
        page.get_by_role("radio", name="costs").check()
        settle(page)
        heads = page.locator("thead button > span:first-child").all_text_contents()
        assert heads == ["time", "size"]
        assert shown_rows(page)[:2] == ["beta", "alpha"]
        assert head(page, "time").get_attribute("aria-sort") == "ascending"
        assert "time, best first" in page.locator(".headline").inner_text()
        page.get_by_label("Sort by").select_option("size")
        settle(page)
        assert "size, largest first" in page.locator(".headline").inner_text()

    def test_a_cell_tells_mean_interval_seeds_and_whether_it_is_blind(self, show):
        page = show(table())
        cells = {
            name: page.locator("tr", has_text=name).locator("td").first.inner_text().split("\n")
            for name in ("alpha", "beta", "gamma")
        }
        assert cells["alpha"] == ["50.0 ± 2.0", "3 seeds"]
        assert cells["beta"] == ["31.0 ± 2.0", "3 seeds", "◌ not above blind"]
        assert cells["gamma"] == ["failed"]

    def test_arrow_keys_move_over_the_cells_and_list_every_run(self, show):
        page = show(table())
        page.locator("td[tabindex='0']").focus()
        settle(page)
        press(page, "Home", "ArrowUp", "ArrowUp", "ArrowUp", "ArrowUp")
        assert readout(page).startswith("delta, answers: 90.0")
        assert "88.0 to 92.0" in readout(page)
        for seed, value in enumerate(("89.0", "90.0", "91.0")):
            assert f"seed {seed}: {value} %, run cells/x/seed{seed}/answers" in readout(
                page
            ).replace("\u00a0", " ")
        press(page, "ArrowDown", "ArrowDown")
        assert "beta, answers" in readout(page)
        assert "not above what a blind model reaches" in readout(page)
        press(page, "End", "ArrowRight")
        assert readout(page) == "beta, pairs: not measured."
        press(page, "ArrowDown", "ArrowDown", "ArrowLeft")
        assert readout(page) == "gamma, answers: no value. Loss is not a number."
        assert page.locator("td[tabindex='0']").count() == 1

    def test_a_single_seed_has_no_interval_and_zero_no_sign(self, show):
        page = show(table())
        page.locator("tr", has_text="alpha").locator("td").nth(1).click()
        settle(page)
        assert readout(page).startswith("alpha, pairs: 0.0")
        assert "Too few seeds for an interval" in readout(page)

    def test_families_and_baselines(self, show):
        page = show(table())
        page.get_by_label("regions").press("Space")
        settle(page)
        assert shown_rows(page) == ["alpha", "blind", "gamma"]
        page.get_by_role("switch").press("Space")
        settle(page)
        assert shown_rows(page) == ["blind", "alpha", "gamma"]
        for name in ("patches", "baselines"):
            page.get_by_label(name, exact=True).press("Space")
        settle(page)
        assert shown_rows(page) == []
        assert readout(page) == "No family is chosen, so there is no row."

    def test_the_drawing_answers_mouse_and_keys(self, show):
        page = show(table())
        chart, place = line_of_chart(page, 1)
        chart.click(position=place)
        settle(page)
        assert readout(page).startswith("alpha, answers")
        chart.focus()
        press(page, "ArrowDown")
        assert readout(page).startswith("beta, answers")
        press(page, "Home", "ArrowUp")
        assert readout(page).startswith("delta, answers")
        assert "Chosen: delta" in chart.get_attribute("aria-label")

    def test_the_table_scrolls_in_its_own_box_and_keeps_the_names(self, show):
        wide = [Column(f"column number {k}", "tasks") for k in range(9)]
        page = show(LeagueTable(ROWS, wide, {}), viewport=(390, 800))
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        box = page.locator(".scroll")
        before = page.locator("tbody th").first.bounding_box()["x"]
        box.evaluate("box => box.scrollLeft = 200")
        assert box.evaluate("box => box.scrollLeft") == 200
        assert page.locator("tbody th").first.bounding_box()["x"] == pytest.approx(before, abs=1)

    def test_a_chosen_cell_is_told_only_once(self, show):
        page = show(table())
        page.evaluate(
            "window.told = 0; new MutationObserver(() => window.told++)"
            ".observe(document.querySelector('.readout'), { childList: true, subtree: true })"
        )
        page.get_by_role("button", name="Turn the order").click()
        settle(page)
        assert page.evaluate("window.told") == 0

    @pytest.mark.parametrize("theme", ["light", "dark"])
    @pytest.mark.parametrize("group", ["tasks", "costs"])
    def test_axe_finds_nothing(self, show, theme, group):
        page = show(table())
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        page.get_by_role("radio", name=group).check()
        page.locator("tr", has_text="beta").locator("td").first.click()
        settle(page)
        options = {"resultTypes": ["violations"], "preload": False}
        found = Axe().run(page, context=".mmlab-widget", options=options).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []
