import re

import pytest
import torch

from mmlab.analysis.cost import (
    block_activations,
    flip_image_macs,
    flip_text_macs,
    mae_decoder_macs,
    mae_encoder_macs,
)
from mmlab.datasets import Caption, Example
from mmlab.models.flip import FLIP_B_16, FLIP_L_16, FLIP_MINI
from mmlab.models.mae import MAE_B_16, MAE_L_16, MAE_MINI
from mmlab.nn import random_masking
from mmlab.widgets import Masking
from mmlab.widgets.base import module_source
from mmlab.widgets.masking import WAYS, masking_noise
from mmlab.widgets.strings import strings_for
from tests.browser import needs_chromium
from tests.widgets.figure_page import HOSTILE, boards, settle

CAPTION = "two small blue stars above a pink heart"
RATIOS = (0, 1, 15, 33, 50, 70, 75, 90)


def picture(size=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, size, size + 9), dtype=torch.uint8, generator=generator)


def figure(caption=CAPTION, **options):
    return Masking(picture(), caption, MAE_MINI, FLIP_MINI, **options)


def large(**options):
    return Masking(picture(), CAPTION, **options)


# ---- Python


@pytest.mark.parametrize(("percent", "kept"), [(0, 196), (50, 98), (75, 49), (90, 19), (70, 58)])
def test_the_encoders_see_what_the_papers_say(percent, kept):
    widget = large(percent=percent)
    assert (widget.num_patches, widget.num_kept) == (196, kept)
    assert len(widget.hidden_patches()) == 196 - kept


def test_flip_s_share_of_the_multiply_adds_is_the_paper_s():
    # FLIP, table 1: 0.52 and 0.28 for ViT-L/16 with its text tower.
    assert [round(large(percent=p).share(), 2) for p in (0, 50, 75)] == [1.0, 0.52, 0.28]


def test_the_text_tower_is_small():
    image, text, _ = large(percent=0).macs()["flip"]
    assert text / image == pytest.approx(0.044, abs=1e-3)


def test_bert_s_way_saves_nothing():
    assert large(percent=90).macs()["bert"] == large(percent=0).macs()["bert"]
    memory = [large(percent=percent).activation_bytes()["bert"] for percent in (0, 90)]
    assert memory[0] == memory[1]


@pytest.mark.parametrize("percent", RATIOS)
def test_the_noise_hides_the_same_patches_in_a_model(percent):
    widget = figure(percent=percent, seed=3)
    mask = random_masking(masking_noise(64, 3), percent / 100)
    assert mask.removed[0].nonzero().flatten().tolist() == widget.hidden_patches()


def test_masks_grow_with_the_ratio_and_change_with_the_seed():
    few, many = (set(figure(percent=p).hidden_patches()) for p in (30, 60))
    assert few < many
    assert set(figure(percent=60, seed=1).hidden_patches()) != many
    assert figure(percent=0).hidden_words() == []


def test_an_example_brings_its_caption():
    example = Example("e", picture(), "ring", captions=(Caption("a green ring"),))
    assert Masking(example, mae=MAE_MINI, flip=FLIP_MINI).words == ["a", "green", "ring"]
    assert figure(["一个", "红色的", "圆"]).words == ["一个", "红色的", "圆"]


def test_sentence_and_still_say_what_is_there():
    widget = large(percent=50)
    assert "50 % of 196 patches hidden" in widget.sentence()
    assert "MAE and FLIP 98; FLIP then takes 51.8 %" in widget.sentence()
    assert len({figure(**change).to_png() for change in ({}, {"percent": 20}, {"seed": 4})}) == 3


def test_the_page_stays_light():
    assert len(large().to_html()) < 400_000


WRONG = {
    "no caption": (lambda: Masking(picture()), "caption is None; an image that is a tensor"),
    "empty": (lambda: figure("  "), "caption has 0 words; allowed are 1 to 32"),
    "long": (lambda: figure("word " * 10_000), "caption has 10,000 words; allowed are 1 to 32"),
    "float": (lambda: Masking(picture() / 255, "a"), "torch.float32; allowed is a uint8"),
    "two sizes": (
        lambda: Masking(picture(), "a", MAE_B_16, FLIP_L_16),
        "mae has dim=768 and flip 1024; allowed are two with the same image encoder",
    ),
    "percent": (lambda: figure(percent=95), "percent=95; allowed are 0 to 90"),
    "seed": (lambda: figure(seed=-1), "seed=-1; allowed are 0 to"),
    "token": (lambda: figure(token=72), "token=72; allowed are 0 to 71"),
    "measure": (lambda: figure(measure="time"), "measure='time'; allowed are compute, memory"),
    "ratio": (
        lambda: figure(reconstructions={0.75: picture()}),
        "reconstructions has the key 0.75; allowed are percentages as whole numbers from 1 to 90",
    ),
    "shape": (
        lambda: figure(reconstructions={75: picture()}),
        r"reconstructions\[75\] has shape \(3, 60, 69\); allowed is \(3, 48, 48\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_told_what_is_allowed(case):
    make, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_no_word_is_left_over():
    source = module_source("masking")
    made_of = ("way_", "idea_", "stage_", "text_", "path_", "measure_", "caption_", "column_")
    made_of += ("unit_", "note_", "chart_", "key_")
    for key in set(strings_for("masking")) - {"locale", "sentence", "encoded"}:
        assert f'"{key}"' in source or key.startswith(made_of), key


# ---- The browser


def value(page, name):
    return float(page.locator(f"td[data-name='{name}']").get_attribute("data-value"))


def set_percent(page, percent):
    page.locator("input[type=range]").evaluate(
        "(node, v) => { node.value = v; node.dispatchEvent(new Event('input')); }", percent
    )
    settle(page)


def dataset(page, name):
    given = page.locator(".headline").get_attribute(f"data-{name}")
    return [int(number) for number in given.split(",")] if given else []


def costs(page, way):
    return tuple(value(page, f"{way} {part}") for part in ("image", "text", "decoder"))


def states(page):
    return [node.get_attribute("data-state") for node in page.locator(".readout").all()]


# Read from a copy: of a canvas that is drawn on, Chromium complains when it is read often.
PIXEL = """canvas => {
  const probe = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  probe.drawImage(canvas, 0, 0);
  return [...probe.getImageData(3, 3, 1, 1).data];
}"""


def board(page, way, stage):
    return page.locator(f"canvas[data-board='{way} {stage}']")


@pytest.mark.browser
@needs_chromium
class TestInBrowser:
    @pytest.mark.parametrize(
        ("mae", "flip"), [(MAE_MINI, FLIP_MINI), (MAE_B_16, FLIP_B_16), (MAE_L_16, FLIP_L_16)]
    )
    def test_multiply_adds_are_those_of_the_models(self, show, mae, flip):
        page = show(Masking(picture(), CAPTION, mae, flip))
        whole = flip_image_macs(flip) + flip_text_macs(flip)
        for percent in RATIOS:
            set_percent(page, percent)
            ratio, words = percent / 100, flip_text_macs(flip)
            assert costs(page, "bert") == (mae_encoder_macs(mae, 0.0), words, 0)
            expected = (mae_encoder_macs(mae, ratio), 0, mae_decoder_macs(mae, ratio))
            assert costs(page, "mae") == expected
            assert costs(page, "flip") == (flip_image_macs(flip, ratio), words, 0)
            total = flip_image_macs(flip, ratio) + words
            assert value(page, "flip total") == total
            assert value(page, "flip share") == pytest.approx(total / whole, rel=1e-12)

    def test_memory_is_that_of_the_blocks(self, show):
        page = show(large(measure="memory"))
        for percent in RATIOS:
            set_percent(page, percent)
            widget = large(percent=percent, measure="memory")
            for way in WAYS:
                assert costs(page, way) == widget.activation_bytes()[way]
        tokens = 2 * 24 * block_activations(20, 1024, 16, 4096)
        assert value(page, "flip image") == tokens

    @pytest.mark.parametrize("seed", [0, 5])
    def test_the_page_hides_what_python_hides(self, show, seed):
        page = show(figure(seed=seed))
        for percent in RATIOS:
            set_percent(page, percent)
            widget = figure(seed=seed, percent=percent)
            assert dataset(page, "hidden") == widget.hidden_patches()
            assert dataset(page, "words") == widget.hidden_words()
            assert value(page, "mae encoded") == value(page, "flip encoded") == widget.num_kept
            assert value(page, "bert encoded") == 64
            masks = page.locator(".caption .masked")
            assert masks.count() == len(widget.hidden_words())

    def test_a_new_mask_is_the_next_seed_s(self, show):
        page = show(figure(seed=7))
        page.get_by_role("button", name="Draw a new mask").click()
        settle(page)
        assert dataset(page, "hidden") == figure(seed=8).hidden_patches()
        assert "seed 8" in page.locator(".mmlab-widget").inner_text()

    def test_the_usual_shares_are_one_press_away(self, show):
        page = show(large())
        for name, percent, kept in (("BERT", 15, 166), ("FLIP", 50, 98), ("MAE", 75, 49)):
            chip = page.get_by_role("button", name=f"{name}: {percent} %")
            chip.click()
            settle(page)
            assert value(page, "flip encoded") == kept
            assert chip.get_attribute("aria-pressed") == "true"

    def test_a_patch_shows_its_path(self, show):
        widget = figure()
        hidden = widget.hidden_patches()
        seen = next(patch for patch in range(64) if patch not in hidden)
        page = show(widget)
        canvas = board(page, "mae", "input")
        step = canvas.bounding_box()["width"] / 8
        for patch, state in ((hidden[5], "hidden"), (seen, "seen")):
            canvas.hover(position={"x": (patch % 8 + 0.5) * step, "y": (patch // 8 + 0.5) * step})
            settle(page)
            assert states(page) == [state] * 3
            place = f"patch in row {patch // 8 + 1}, column {patch % 8 + 1}"
            assert place in canvas.get_attribute("aria-label")

    def test_the_encoder_s_places_are_those_of_the_kept(self, show):
        widget = figure()
        kept = [patch for patch in range(64) if patch not in widget.hidden_patches()]
        page = show(widget)
        canvas = board(page, "flip", "encoder")
        step = canvas.bounding_box()["width"] / 8
        canvas.hover(position={"x": 1.5 * step, "y": 1.5 * step})
        settle(page)
        row, column = kept[9] // 8 + 1, kept[9] % 8 + 1
        assert f"row {row}, column {column}" in page.locator(".readout").first.text_content()
        # Where nothing is encoded, nothing can be chosen.
        canvas.hover(position={"x": 7.5 * step, "y": 7.5 * step})
        settle(page)
        assert f"row {row}, column {column}" in page.locator(".readout").first.text_content()

    def test_words_take_their_own_paths(self, show):
        widget = figure(percent=50)
        page = show(widget)
        for word in range(len(widget.words)):
            page.locator(".words .segment").nth(word).click()
            settle(page)
            bert = "hidden" if word in widget.hidden_words() else "seen"
            assert states(page) == [bert, "none", "all"]

    def test_only_mae_has_a_decoder(self, show):
        page = show(figure())
        visible = [board(page, way, "decoder").is_visible() for way in WAYS]
        assert visible == [False, True, False]

    def test_a_reconstruction_stands_where_it_was_made(self, show):
        made = torch.full((3, 48, 48), 200, dtype=torch.uint8)
        made[0] = 10
        page = show(figure(reconstructions={75: made, 50: made}, seed=2, percent=30))
        canvas = board(page, "mae", "output")
        assert canvas.evaluate(PIXEL) != [10, 200, 200, 255]
        page.get_by_role("button", name="50 %", exact=True).click()
        settle(page)
        assert canvas.evaluate(PIXEL) == [10, 200, 200, 255]
        assert "by a trained model" in canvas.get_attribute("aria-label")
        page.get_by_role("button", name="Draw a new mask").click()
        settle(page)
        assert canvas.evaluate(PIXEL) != [10, 200, 200, 255]
        page.get_by_role("button", name="75 %", exact=True).click()
        settle(page)
        assert canvas.evaluate(PIXEL) == [10, 200, 200, 255]
        assert dataset(page, "hidden") == figure(seed=2).hidden_patches()

    def test_keyboard_alone_is_enough(self, show):
        page = show(figure())
        slider = page.get_by_role("slider", name="Hidden share")
        slider.focus()
        page.keyboard.press("Home")
        settle(page)
        assert slider.get_attribute("aria-valuetext") == "0 %"
        assert value(page, "flip share") == 1
        page.keyboard.press("ArrowRight")
        canvas = boards(page)[0]
        canvas.focus()
        for key in ("ArrowUp", "ArrowUp", "ArrowLeft"):
            page.keyboard.press(key)
        settle(page)
        assert "patch in row 3, column 4" in canvas.get_attribute("aria-label")
        page.locator("input[value=compute]").focus()
        page.keyboard.press("ArrowRight")
        settle(page)
        assert value(page, "bert text") == figure().activation_bytes()["bert"][1]

    def test_a_finger_chooses_a_patch(self, show):
        page = show(figure(), viewport=(390, 800), has_touch=True)
        canvas = board(page, "bert", "input")
        canvas.scroll_into_view_if_needed()
        step = canvas.bounding_box()["width"] / 8
        canvas.tap(position={"x": 0.5 * step, "y": 2.5 * step})
        settle(page)
        assert "row 3, column 1" in page.locator(".readout").first.text_content()

    def test_hostile_words_stay_text(self, show):
        page = show(figure([HOSTILE, "*", "{token}"], percent=0))
        for word, text in ((0, HOSTILE), (1, "word 2, “*”"), (2, "word 3, “{token}”")):
            page.locator(".words .segment").nth(word).click()
            settle(page)
            assert text in page.locator(".readout").first.text_content()
        assert page.evaluate("window.hacked") is None
        assert page.locator("img").count() == 0

    def test_every_move_is_drawn(self, show):
        page = show(large())
        drawing = board(page, "flip", "encoder").evaluate("c => c.toDataURL()")
        shown = {drawing}
        for percent in (0, 25, 50, 90):
            set_percent(page, percent)
            shown.add(board(page, "flip", "encoder").evaluate("c => c.toDataURL()"))
        assert len(shown) == 5

    def test_the_table_reads_as_it_counts(self, show):
        page = show(large())
        text = page.locator("td[data-name='flip total']").text_content()
        assert re.fullmatch(r"18\.11 GMAC", text)
        assert page.locator("td[data-name='mae text']").text_content() == "–"
