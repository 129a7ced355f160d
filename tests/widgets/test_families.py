import itertools
import re

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

from mmlab.analysis.families import (
    FAMILIES,
    attention_by_layer,
    block_mass,
    embed_patches,
    embed_words,
    layer_costs,
    make_toy,
    pair_costs,
    reach,
    retrieval_macs,
)
from mmlab.datasets import Caption, Example
from mmlab.widgets import Families
from mmlab.widgets.base import module_source
from mmlab.widgets.families import LEVELS, MAX_WORDS, SEARCHES, VIEWS
from mmlab.widgets.strings import STRINGS, strings_for
from tests.browser import needs_chromium
from tests.widgets.figure_page import (
    ALL_TEXT,
    CONTRASTS,
    HOSTILE,
    boards,
    latin_words,
    marked,
    settle,
    write_page,
)

CAPTIONS = ("a red ring", "two small blue stars above a pink heart")
GRID = 3


def picture(seed=0, size=24):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size), dtype=torch.uint8, generator=generator)


def figure(pairs=None, **options):
    pairs = pairs or {"one": (picture(0), CAPTIONS[0]), "two": (picture(1), CAPTIONS[1])}
    return Families(pairs, patch_size=8, image_size=24, **options)


# ---- The reference, from the toys and not from what the widget stores


def recorded(family, pair=0):
    words = embed_words(CAPTIONS[pair].split())
    patches = embed_patches(picture(pair), 8)
    return attention_by_layer(make_toy(family), words, patches)


def base_cost(family, words=10, patches=196):
    return sum(c.words + c.patches for c in pair_costs(family, words, patches))


def attention_cost(family, words=10, patches=196, dim=768):
    size = {"words": words, "patches": patches, "both": words + patches}
    looks = [pair for layer in layer_costs(family) for pair in layer.looks]
    return sum(2 * size[q] * size[k] * dim for q, k in looks)


# ---- Python


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pair", [0, 1])
def test_the_page_has_the_toys_attention(family, pair):
    widget = figure(family=family, pair=pair)
    expected = recorded(family, pair)
    assert torch.allclose(widget.attention(), expected, atol=0.51 / LEVELS)
    assert torch.equal(widget.attention() > 0, expected > 0)
    assert torch.equal(widget.reach(), reach(expected))


def test_a_weight_is_never_rounded_to_nothing():
    from mmlab.widgets.families import _codes

    maps = torch.tensor([[[1e-9, 0.0], [0.5, 1.0]]])
    codes = np.frombuffer(_codes(maps), "<u2").tolist()
    assert codes == [1, 0, round(LEVELS / 2), LEVELS]


def test_examples_are_taken():
    example = Example("e1", picture(), "ring", captions=(Caption("a green ring"),))
    widget = figure([example])
    assert [pair["name"] for pair in widget.pairs] == ["e1"]
    assert widget.words == ["a", "green", "ring"]


def test_a_caption_can_come_in_words():
    assert figure({"zh": (picture(), ["一个", "红色的", "圆"])}).words == ["一个", "红色的", "圆"]


def test_sentence_tells_the_values():
    sentence = figure(family="dual_stream", layer=2).sentence()
    known = int(reach(recorded("dual_stream"))[2].sum())
    assert "dual-stream, layer 3 of 6" in sentence
    assert "9 patches and its caption of 3 words, “a red ring”" in sentence
    assert f"By then {known} of 144 pairs" in sentence


def test_a_layer_beyond_the_last_is_the_last():
    assert "layer 4 of 4" in figure(family="single_stream", layer=99).sentence()


def test_still_picture_shows_the_present_values():
    changes = [{}, {"family": "fusion"}, {"pair": 1}, {"layer": 2}, {"view": "reach"}]
    stills = [figure(**({"family": "dual_stream"} | change)).to_png() for change in changes]
    assert all(still[:4] == b"\x89PNG" for still in stills)
    assert len(set(stills)) == len(stills)


def test_flickr_has_the_published_numbers():
    name, images, captions, k = SEARCHES[0]
    assert (name, images + captions, images * captions) == ("Flickr30k", 6_000, 5_000_000)
    assert k * (images + captions) == 768_000


WRONG = {
    "no pair": (lambda: Families({}), "pairs is empty; Families needs at least one"),
    "no words": (lambda: figure({"a": (picture(), "  ")}), "caption of 0 words; allowed are 1 to"),
    "long": (
        lambda: figure({"a": (picture(), "word " * 10_000)}),
        rf"caption of 10,000 words; allowed are 1 to {MAX_WORDS}",
    ),
    "float": (lambda: figure({"a": (picture() / 255, "a")}), r"images\['a'\] is torch.float32"),
    "patches": (lambda: Families({"a": (picture(), "a")}, 7), "patch_size=7 does not cut"),
    "many": (lambda: Families({"a": (picture(), "a")}, 2, 64), "into 2 to 8 patches a side"),
    "family": (lambda: figure(family="trio"), "family='trio'; allowed are single_stream, dual_"),
    "view": (lambda: figure(view="x"), "view='x'; allowed are looks, reach"),
    "layer": (lambda: figure(layer=-1), "layer=-1; allowed are 0 and up"),
    "token": (lambda: figure(token=-1), "token=-1; allowed are 0 and up"),
    "pair": (lambda: figure(pair=2), "pair=2; allowed are 0 to 1"),
    "num_words": (lambda: figure(num_words=65), "num_words=65; allowed are 1 to 64"),
    "patch_grid": (lambda: figure(patch_grid=1), "patch_grid=1; allowed are 2 to 24"),
    "top_k": (lambda: figure(top_k=0), "top_k=0; allowed are 1 to 1000000"),
    "heavy": (
        lambda: Families({str(i): (picture(i), "word " * 32) for i in range(3)}, 8, 64),
        r"3 pairs with 64 patches each take 1\.\d MB of attention; a page allows 1\.0 MB",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_told_what_is_allowed(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_module_is_self_contained():
    source = module_source("families")
    assert not re.search(r"^\s*import\b|\bimport\(|\bfetch\(|XMLHttpRequest", source, re.M)
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(", source)


def test_no_word_is_left_over():
    source = module_source("families")
    made_of = ("family_", "about_", "view_", "lead_", "matrix_", "unit_", "readout_")
    for key in set(strings_for("families")) - {"locale", "sentence", "layer_number"}:
        assert f'"{key}"' in source or key.startswith(made_of), key


@pytest.mark.parametrize("language", sorted(STRINGS))
def test_every_language_has_the_same_places(language):
    english, other = strings_for("families"), strings_for("families", language)
    assert english.keys() == other.keys()
    for key in english:
        assert set(re.findall(r"\{\w+\}", english[key])) == set(re.findall(r"\{\w+\}", other[key]))


# ---- The browser


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
        settle(page)


def choose(page, name):
    page.locator(".segment", has_text=re.compile(f"^{name}$")).first.click()
    settle(page)


def text(page, selector):
    return page.locator(selector).first.text_content()


def value(page, name):
    return float(page.locator(f"td[data-name='{name}']").get_attribute("data-value"))


def picture_of(page, index):
    return boards(page)[index].evaluate("canvas => canvas.toDataURL()")


def shares(page):
    """The share of each word of the caption, in per cent; None where the word is not seen."""
    texts = page.locator(".words .share").all_text_contents()
    return [float(t.rstrip(" %")) if t.strip() else None for t in texts]


@pytest.mark.browser
@needs_chromium
class TestInBrowser:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_layer_divides_attention_as_the_toy_does(self, show, family):
        page = show(figure(family=family))
        attention = recorded(family)
        for layer, mass in enumerate(block_mass(attention, 3)):
            page.locator(".segments").nth(2).locator(".segment").nth(layer).click()
            settle(page)
            assert f"Layer {layer + 1} of {len(attention)}" in text(page, ".headline")
            for (i, q), (j, k) in itertools.product(
                enumerate(("words", "patches")), enumerate(("words", "patches"))
            ):
                assert value(page, f"mass {q} {k}") == pytest.approx(mass[i, j].item(), abs=2e-4)

    @pytest.mark.parametrize("family", FAMILIES)
    def test_reach_after_every_layer_is_python_s(self, show, family):
        page = show(figure(family=family, view="reach", token=1))
        for layer, known in enumerate(reach(recorded(family))):
            page.locator(".segments").nth(2).locator(".segment").nth(layer).click()
            settle(page)
            shown = re.search(r"([\d.]+) % of all pairs", text(page, ".headline"))
            share = 100 * known.float().mean().item()
            assert float(shown[1]) == pytest.approx(share, abs=0.051)
            row, column = known[1], known[:, 1]
            counts = [int(part.sum()) for part in (row[:3], row[3:], column[:3], column[3:])]
            found = re.search(
                r"by (\d+) of 3 words and (\d+) of 9 patches.*influenced (\d+) words and (\d+) ",
                text(page, ".readout"),
            )
            assert [int(number) for number in found.groups()] == counts

    def test_a_chosen_word_shows_its_true_weights(self, show):
        page = show(figure())
        page.locator(".words .segment").nth(2).click()
        settle(page)
        row = 100 * recorded("single_stream")[0, 2]
        assert shares(page) == pytest.approx(row[:3].tolist(), abs=0.06)
        assert "word 3, “ring”" in text(page, ".readout")
        assert f"{row[:3].sum():.1f} % of its attention to words" in text(page, ".readout")
        assert f"Most, {row.max():.1f} %" in text(page, ".readout")

    def test_a_chosen_patch_shows_its_true_weights(self, show):
        page = show(figure())
        board = boards(page)[0]
        step = board.bounding_box()["width"] / GRID
        board.click(position={"x": 2.5 * step, "y": 1.5 * step})
        settle(page)
        row = 100 * recorded("single_stream")[0, 3 + 5]
        assert "patch in row 2, column 3" in text(page, ".readout")
        assert shares(page) == pytest.approx(row[:3].tolist(), abs=0.06)

    def test_a_token_that_waits_says_so(self, show):
        page = show(figure(family="fusion", layer=3, token=5))
        assert "does not look around in this layer" in text(page, ".readout")
        assert shares(page) == [None] * 3
        assert page.locator("td[data-name='mass patches words']").text_content() == "–"

    @pytest.mark.parametrize("sizes", [(10, 14), (1, 2), (64, 24)])
    def test_costs_are_those_of_the_toys(self, show, sizes):
        words, grid = sizes
        page = show(figure(num_words=words, patch_grid=grid))
        for family in FAMILIES:
            parameters = sum(layer.parameters for layer in layer_costs(family))
            total = base_cost(family, words, grid**2)
            assert value(page, f"{family} cost_parameters") == parameters
            assert value(page, f"{family} cost_attention") == attention_cost(family, words, grid**2)
            assert value(page, f"{family} cost_total") == total
            cell = page.locator(f"td[data-name='{family} cost_total']").text_content()
            assert cell == f"{total / 1e9:,.2f} GMAC"

    @pytest.mark.parametrize("sizes", [(1000, 5000, 128), (7, 3, 2), (1, 1, 9)])
    def test_a_search_costs_what_python_says(self, show, sizes):
        images, captions, k = sizes
        page = show(figure(num_images=images, num_captions=captions, top_k=k))
        for family in FAMILIES:
            expected = retrieval_macs(family, images, captions, 10, 196)
            assert value(page, f"{family} search_total") == pytest.approx(expected, rel=1e-12)
        pairs = images * captions
        assert value(page, "dual_encoder search_alone") == images + captions
        assert value(page, "dual_encoder search_pairs") == 0
        assert value(page, "single_stream search_alone") == 0
        assert value(page, "single_stream search_pairs") == pairs
        assert value(page, "fusion search_alone") == images + captions
        assert value(page, "fusion search_pairs") == pairs
        reranked = images * min(k, captions) + captions * min(k, images)
        assert value(page, "rerank search_pairs") == reranked
        alone = retrieval_macs("fusion", images, captions, 10, 196)
        each = (retrieval_macs("fusion", images, 2 * captions, 10, 196) - alone) / captions
        meeting = pair_costs("fusion", 10, 196)[:3]
        each = (each - sum(c.words for c in meeting)) / images
        expected = alone - each * (pairs - reranked)
        assert value(page, "rerank search_total") == pytest.approx(expected, rel=1e-9)

    def test_the_published_example_is_told(self, show):
        page = show(figure(num_images=3))
        page.get_by_role("button", name="Flickr30k").click()
        settle(page)
        widget = page.locator(".mmlab-widget").inner_text()
        assert "5,000,000 pairs" in widget
        cells = ["dual_encoder search_alone", "single_stream search_pairs", "rerank search_pairs"]
        shown = [page.locator(f"td[data-name='{cell}']").text_content() for cell in cells]
        assert shown == ["6,000", "5,000,000", "768,000"]

    def test_numbers_out_of_range_are_refused_with_a_line(self, show):
        page = show(figure())
        field = page.get_by_label("Pictures", exact=True)
        for wrong in ("0", "2.5", "", "1000001", "-3"):
            field.fill(wrong)
            settle(page)
            assert field.get_attribute("aria-invalid") == "true"
            assert (
                "whole numbers from 1 to 1,000,000" in page.locator(".problem").first.inner_text()
            )
            assert value(page, "single_stream search_pairs") == 5_000_000
        field.fill("20")
        settle(page)
        assert field.get_attribute("aria-invalid") == "false"
        assert value(page, "single_stream search_pairs") == 100_000

    def test_keyboard_alone_is_enough(self, show):
        page = show(figure())
        page.locator("input[value=single_stream]").focus()
        press(page, "ArrowRight")
        assert "Each kind first has layers of its own" in page.locator("main").inner_text()
        press(page, "Tab", "ArrowRight")
        assert "can have influenced each other" in text(page, ".headline")
        press(page, "ArrowLeft", "Tab", "ArrowRight", "ArrowRight")
        assert "Layer 3 of 6: words look at patches, patches at words" in text(page, ".headline")
        press(page, "Tab", "ArrowRight", "ArrowRight")
        assert "word 3" in text(page, ".readout")
        press(page, "Tab", "ArrowDown")
        assert "row 1, column 1" in text(page, ".readout")
        press(page, "ArrowDown", "ArrowRight", "ArrowRight", "ArrowRight", "ArrowUp", "ArrowLeft")
        assert "row 1, column 2" in text(page, ".readout")
        press(page, "Tab", "ArrowDown", "ArrowDown")
        assert "row 2, column 1" in text(page, ".readout")
        press(page, "Home", "ArrowUp")
        assert "word 1," in text(page, ".readout")
        press(page, "End")
        assert "row 3, column 3" in text(page, ".readout")
        slider = page.get_by_role("slider", name="Words")
        slider.focus()
        press(page, "ArrowRight")
        assert value(page, "single_stream cost_total") == base_cost("single_stream", 11)

    def test_the_focus_stays_on_the_layer(self, show):
        page = show(figure(family="dual_stream"))
        page.locator(".segments").nth(2).locator("input").first.focus()
        press(page, "ArrowRight", "ArrowRight", "ArrowRight")
        assert "Layer 4 of 6" in text(page, ".headline")

    def test_keys_stay_inside_the_figure(self, show):
        page = show(figure())
        page.evaluate(
            "window.heard = 0; document.addEventListener('keydown', () => window.heard++)"
        )
        boards(page)[1].focus()
        press(page, "ArrowDown", "a")
        assert page.evaluate("window.heard") == 0

    def test_pointing_at_a_row_of_the_matrix_chooses_its_token(self, show):
        page = show(figure())
        board = boards(page)[1]
        side = board.bounding_box()["width"]
        cell = (side - 28) / 12
        board.hover(position={"x": side / 2, "y": 22 + 1.5 * cell})
        settle(page)
        assert "word 2, “red”" in text(page, ".readout")
        board.hover(position={"x": side / 2, "y": 28 + 3.5 * cell})
        settle(page)
        assert "patch in row 1, column 1" in text(page, ".readout")

    def test_other_pair_other_family(self, show):
        page = show(figure(token=8, layer=5))
        page.get_by_label("Picture and caption").select_option("two")
        choose(page, "fusion")
        assert page.locator(".words .segment").count() == 8
        assert "Layer 6 of 6" in text(page, ".headline")
        before = [picture_of(page, i) for i in range(2)]
        choose(page, "dual encoder")
        assert "Layer 4 of 4" in text(page, ".headline")
        assert all(picture_of(page, i) != before[i] for i in range(2))

    def test_answers_within_a_frame(self, show):
        page = show(figure())
        spent = page.evaluate("""() => {
          const times = [];
          const inputs = [...document.querySelectorAll(".segment input")];
          return new Promise((resolve) => {
            const next = () => {
              const input = inputs.shift();
              if (!input) return resolve(times);
              const request = window.requestAnimationFrame;
              window.requestAnimationFrame = (draw) => request(() => {
                const start = performance.now();
                draw();
                times.push(performance.now() - start);
              });
              input.click();
              window.requestAnimationFrame = request;
              request(() => request(next));
            };
            next();
          });
        }""")
        assert len(spent) > 5

    def test_hostile_captions_stay_text(self, show):
        page = show(figure({HOSTILE: (picture(), [HOSTILE, "*", "{word}"])}))
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0
        assert text(page, "option") == HOSTILE
        assert HOSTILE in text(page, ".words .segment")
        page.locator(".words .segment").nth(1).click()
        settle(page)
        assert "word 2, “*” gives" in text(page, ".readout")
        page.locator(".words .segment").nth(2).click()
        settle(page)
        assert "word 3, “{word}” gives" in text(page, ".readout")

    def test_two_figures_do_not_disturb_each_other(self, show):
        page = show(figure(), figure())
        page.wait_for_function("document.querySelectorAll('.headline').length === 4")
        figures = page.locator(".mmlab-widget").all()
        figures[0].locator(".segment", has_text="fusion").first.click()
        settle(page)
        leads = [f.locator(".headline").first.text_content() for f in figures]
        assert ["of 6" in lead for lead in leads] == [True, False]

    def test_works_from_the_disk(self, show):
        page = show(figure(), url=lambda path: path.as_uri())
        choose(page, "fusion")
        assert "Layer 1 of 6" in text(page, ".headline")

    @pytest.mark.parametrize("width", [320, 390, 1280])
    def test_fits_the_screen_and_the_finger(self, show, width):
        long = {"long": (picture(), ["x" * 300, *["word"] * 20])}
        page = show(figure(), figure(long), viewport=(width, 800), has_touch=True)
        page.wait_for_function("document.querySelectorAll('.words .segment').length > 20")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        sizes = page.evaluate(
            "[...document.querySelectorAll('select, button, .segment, summary')]"
            ".map((node) => node.getBoundingClientRect())"
            ".map(({ width, height }) => Math.min(width, height))"
        )
        assert min(sizes) >= 24
        board = boards(page)[0]
        board.scroll_into_view_if_needed()
        step = board.bounding_box()["width"] / GRID
        board.tap(position={"x": 0.5 * step, "y": 2.5 * step})
        settle(page)
        assert "row 3, column 1" in text(page, ".readout")

    def test_theme_changes_are_seen_at_once(self, show):
        page = show(figure())
        drawings = [picture_of(page, i) for i in range(2)]
        assert min(page.evaluate(CONTRASTS).values()) >= 4.5
        page.evaluate("document.documentElement.dataset.theme = 'dark'")
        settle(page)
        assert all(picture_of(page, i) != drawings[i] for i in range(2))
        assert min(page.evaluate(CONTRASTS).values()) >= 4.5

    @pytest.mark.parametrize("view", VIEWS)
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_axe_finds_nothing(self, show, view, theme):
        page = show(figure(view=view, family="fusion", layer=3))
        page.evaluate(f"document.documentElement.dataset.theme = '{theme}'")
        page.locator("details").evaluate_all("all => all.forEach((node) => node.open = true)")
        page.get_by_label("Pictures", exact=True).fill("0")
        settle(page)
        options = {"resultTypes": ["violations"], "preload": False}
        found = Axe().run(page, context=".mmlab-widget", options=options).response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []

    @pytest.mark.parametrize("view", VIEWS)
    @pytest.mark.parametrize("family", FAMILIES)
    def test_every_word_can_be_translated(self, show, view, family):
        pairs = {"1": (picture(), ["2", "3"])}
        widget = figure(pairs, view=view, family=family, layer=3, token=1)
        widget.strings = marked(widget.strings)
        page = show(widget)
        page.locator("input[type=number]").first.fill("0")
        settle(page)
        names = {name for name, *_ in SEARCHES}
        texts = [re.sub("|".join(names), "", t) for t in page.evaluate(ALL_TEXT)]
        assert latin_words(texts) == []

    def test_without_scripts_the_sentence_stands(self, chromium, site):
        widget = figure()
        path = write_page(site / "plain.html", widget)
        page, _ = chromium(java_script_enabled=False)
        page.goto(path.name)
        assert widget.sentence() in page.locator("main").inner_text()
        page.context.close()
