import re
from dataclasses import replace

import pytest

from mmlab.analysis.cost import vit_macs
from mmlab.models.vit import VIT_B_16, VIT_H_14, VIT_TI_16
from mmlab.widgets import TokenCalculator
from mmlab.widgets.base import _STAND_IN
from mmlab.widgets.token_calculator import EXAMPLES, PRESETS, token_cost
from tests.browser import needs_chromium
from tests.widgets.figure_page import settle

COUNTS = {(224, 16): 196, (224, 14): 256, (256, 16): 256, (384, 16): 576, (384, 32): 144}

# Multiply-adds with a 1,000-class head D·C (specs of ViT; timm and fvcore count the same), in 1e9.
GMACS = {
    ("ViT-Ti", 224, 16): 1.2537,
    ("ViT-S", 224, 16): 4.5989,
    ("ViT-B", 224, 32): 4.4092,
    ("ViT-B", 224, 16): 17.5638,
    ("ViT-B", 224, 8): 78.148,
    ("ViT-B", 384, 16): 55.484,
    ("ViT-L", 224, 16): 61.5547,
    ("ViT-L", 384, 16): 191.066,
    ("ViT-H", 224, 14): 167.295,
}


@pytest.mark.parametrize("sizes", COUNTS)
def test_patch_counts(sizes):
    cost = token_cost(*sizes, 768, 12)
    assert (cost.patches, cost.tokens) == (COUNTS[sizes], COUNTS[sizes] + 1)


@pytest.mark.parametrize("key", GMACS)
def test_multiply_adds_of_the_published_sizes(key):
    name, image_size, patch_size = key
    dim, depth = PRESETS[name]
    total = token_cost(image_size, patch_size, dim, depth).total + 1000 * dim
    assert total / 1e9 == pytest.approx(GMACS[key], rel=5e-5)


def test_costs_agree_with_the_count_for_a_whole_model():
    for name, config in (("ViT-Ti", VIT_TI_16), ("ViT-B", VIT_B_16), ("ViT-H", VIT_H_14)):
        cost = token_cost(config.image_size, config.patch_size, *PRESETS[name])
        assert cost.total == vit_macs(replace(config, num_classes=0))


def test_attention_meets_the_linear_layers_at_six_times_the_width():
    dim = 24  # 6 D = 144 = 12² tokens less one: N = 143 is no square, so look on both sides
    before, after = token_cost(11 * 4, 4, dim, 3), token_cost(12 * 4, 4, dim, 3)
    assert before.tokens < 6 * dim < after.tokens
    assert before.attention < before.linear and after.attention > after.linear


WRONG = {
    "image_size": (4096, "image_size=4096; allowed are 32 to 1024"),
    "patch_size": (1, "patch_size=1; allowed are 2 to 64"),
    "dim": (0, "dim=0; allowed are 1 to 8192"),
    "depth": (-1, "depth=-1; allowed are 1 to 128"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_sizes_are_told_what_is_allowed(name):
    value, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        TokenCalculator(**{name: value})


def test_uneven_sizes_are_explained():
    calculator = TokenCalculator(230, 16)
    assert "6 pixels are left over" in calculator.sentence()
    assert len(calculator.to_png()) > 1000
    with pytest.raises(ValueError, match=r"patch_size=16 does not divide image_size=230.*240"):
        _ = calculator.cost


def facts(page):
    texts = page.locator(".mmlab-widget").first.locator(".fact b").all_text_contents()
    return [float(text.replace(",", "")) for text in texts]


@pytest.mark.browser
@needs_chromium
class TestInBrowser:
    def test_examples_give_the_published_counts(self, show):
        page = show(TokenCalculator())
        for size, patch in EXAMPLES:
            page.get_by_role("button", name=f"{size} / {patch}").click()
            settle(page)
            assert facts(page)[0] == COUNTS[size, patch] + 1
            assert (
                f"= {COUNTS[size, patch]} words of {patch} × {patch} pixels"
                in page.locator(".headline").text_content()
            )

    @pytest.mark.parametrize("name", PRESETS)
    def test_every_number_is_python_s(self, show, name):
        page = show(TokenCalculator())
        page.get_by_label("Model").select_option(",".join(map(str, PRESETS[name])))
        page.get_by_role("button", name="384 / 16").click()
        settle(page)
        cost = token_cost(384, 16, *PRESETS[name])
        assert facts(page) == [577, 768, 577**2, round(cost.total / 1e9, 2)]
        shares = [float(s) for s in re.findall(r"([\d.]+) %", page.locator(".legend").inner_text())]
        parts = (cost.projection, cost.linear, cost.attention)
        assert shares == [pytest.approx(100 * part / cost.total, abs=0.051) for part in parts]

    def test_slider_by_keyboard_and_sizes_that_do_not_fit(self, show):
        page = show(TokenCalculator())
        slider = page.get_by_role("slider", name="Image size")
        slider.focus()
        page.keyboard.press("ArrowRight")
        settle(page)
        assert slider.get_attribute("aria-valuetext") == "226 px"
        problem = page.locator("[role=status]")
        assert "14 fit in a row and 2 are left over" in problem.text_content()
        assert "Resize the image to 224 or 240" in problem.text_content()
        assert page.locator(".fact b").all_text_contents() == ["–"] * 4
        for _ in range(7):
            page.keyboard.press("ArrowRight")
        settle(page)
        assert not problem.is_visible()
        assert facts(page)[0] == 226

    def test_patch_size_by_mouse(self, show):
        page = show(TokenCalculator())
        page.locator(".segment:has(input[value='32'])").click()
        settle(page)
        assert facts(page)[:3] == [50, 3072, 2500]

    def test_a_size_of_one_s_own(self, show):
        page = show(TokenCalculator(96, 6, 100, 4))
        assert facts(page)[:2] == [257, 108]
        model = page.get_by_label("Model").first
        assert model.evaluate("s => s.selectedOptions[0].textContent") == "width 100, 4 layers"

    def test_the_title_s_words_are_explained(self, show):
        text = show(TokenCalculator()).locator(".mmlab-widget").inner_text()
        assert "is the size of one word, in pixels" in text

    def test_stand_in_tells_true_changes_only_and_gives_data_views(self, show):
        page = show(TokenCalculator())
        script = f"""(() => {{
          const data = {{ textContent: '{{"x":1,"list":[{{"$bytes":"AQI="}}]}}' }};
          {_STAND_IN}
          const calls = [], f = () => calls.push(model.get("x"));
          model.on("change:x", f);
          model.set("x", 1); model.set("x", 2); model.set("x", 2);
          model.off("change:x", f); model.set("x", 3);
          const view = model.get("list")[0];
          return [calls, view instanceof DataView, view.byteLength, view.getUint8(1)];
        }})()"""
        assert page.evaluate(script) == [[2], True, 2, 2]
