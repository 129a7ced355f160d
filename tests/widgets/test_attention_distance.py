import itertools
import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mmlab.analysis import record_attention
from mmlab.datasets import Example
from mmlab.models.vit import VIT_MINI, ViT
from mmlab.widgets import AttentionDistance
from mmlab.widgets.attention_distance import MAX_MAP_BYTES
from tests.browser import needs_chromium
from tests.widgets.figure_page import boards, settle

CONFIG = replace(
    VIT_MINI, image_size=40, patch_size=8, dim=24, depth=3, num_heads=2, mlp_dim=32, stem="linear"
)
GRID, PATCH = 5, 8


def picture(seed=0, height=40, width=40):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def vit(seed=0, scale=3.0, **changes):
    """An untrained ViT whose heads look sharply at few places, as trained ones do."""
    torch.manual_seed(seed)
    model = ViT(replace(CONFIG, **changes))
    with torch.no_grad():
        for block in model.blocks:
            block.attention.q_proj.weight.mul_(scale)
            block.attention.k_proj.weight.mul_(scale)
    return model


def pair(**changes):
    return {"trained": vit(0, **changes), "untrained": vit(1, **changes)}


def figure(models=None, images=None, **options):
    images = images or {"one": picture(0), "two": picture(1)}
    return AttentionDistance(models or pair(), images, **options)


# ---- The reference, computed from the model and not from what the widget stores


def recorded(model, image):
    """(layers, heads, tokens, tokens), float64."""
    with record_attention(model) as maps, torch.no_grad():
        model.eval()((image[None] / 255 - 0.5) / 0.5)
    return torch.stack([m[0] for m in maps.values()]).double().numpy()


def apart():
    places = np.array([(i // GRID, i % GRID) for i in range(GRID**2)], dtype=float)
    return PATCH * np.sqrt(((places[:, None] - places[None]) ** 2).sum(-1))


def on_patches(maps, prefix=1):
    rows = maps[..., prefix:]
    return rows / rows.sum(-1, keepdims=True)


def head_distances(maps, prefix=1):
    return (on_patches(maps, prefix)[:, :, prefix:] * apart()).sum(-1).mean(-1)


def rollout(maps, layer):
    product = np.eye(maps.shape[-1])
    for attention in maps[: layer + 1].mean(1):
        product = (attention / 2 + np.eye(len(attention)) / 2) @ product
    return product


# ---- Python


def test_distances_agree_with_the_model():
    widget = figure()
    for model, image in itertools.product(range(2), range(2)):
        widget.model, widget.image = model, image
        expected = head_distances(recorded(vit(model), picture(image)))
        np.testing.assert_allclose(widget.distances(), expected, atol=1e-3)
    assert np.ptp(expected) > 1  # heads differ, so a mixed-up order would be seen


def test_distance_of_known_attention():
    """Attention on oneself is 0 far; uniform attention is the mean over all pairs."""
    model = vit(scale=0.0)
    assert figure({"flat": model}).distances() == pytest.approx(apart().mean())
    assert figure({"flat": model}).uniform_distance == pytest.approx(apart().mean(), rel=1e-6)


@pytest.mark.parametrize("levels", [65535, 255])
def test_stored_weights_are_within_the_promised_error(levels, monkeypatch):
    widget = figure({"sharp": vit(scale=8.0)}, {"one": picture()})
    if levels == 255:
        monkeypatch.setattr("mmlab.widgets.attention_distance.MAX_MAP_BYTES", len(widget.maps) - 1)
        widget = figure({"sharp": vit(scale=8.0)}, {"one": picture()})
    assert widget.levels == levels
    codes = np.frombuffer(widget.maps, "<u2" if levels == 65535 else "u1").astype(float)
    rows = recorded(vit(scale=8.0), picture())[..., 1:]
    codes = codes.reshape(rows.shape)
    assert (codes.max(-1) == levels).all()
    assert np.abs(codes / levels - rows / rows.max(-1, keepdims=True)).max() <= 0.501 / levels


def test_learned_tokens_that_take_nearly_all_spoil_no_digits():
    model = vit()
    with torch.no_grad():
        for block in model.blocks:
            # With these biases, every query likes the class token's key by far the most.
            model.class_token.fill_(0.0)
            model.class_token[0, 0, :4] = 60.0
            block.attention.k_proj.weight[:, :4] *= 4
    widget = figure({"sink": model}, {"one": picture()})
    maps = recorded(model, picture())
    assert maps[..., 0].max() > 0.99
    np.testing.assert_allclose(widget.distances(), head_distances(maps), atol=1e-3)


@pytest.mark.parametrize(
    ("changes", "prefix"), [({"pool": "average"}, 0), ({"distilled": True}, 2)]
)
def test_other_counts_of_learned_tokens(changes, prefix):
    model = vit(**changes)
    widget = figure({"model": model}, {"one": picture()})
    expected = head_distances(recorded(model, picture()), prefix)
    np.testing.assert_allclose(widget.distances(), expected, atol=1e-3)


def test_models_are_left_as_they_were():
    model = vit(drop_path=0.5, dropout=0.5)
    model.train()
    model.blocks[1].eval()
    modes = [module.training for module in model.modules()]
    one = figure({"model": model}).maps
    assert [module.training for module in model.modules()] == modes
    assert figure({"model": model}).maps == one  # no dropout while recording


def test_examples_are_taken_and_named():
    widget = figure(images=[Example(id="1", image=picture(), label="cat")])
    assert [image["name"] for image in widget.images] == ["cat"]


def test_sentence_tells_the_values():
    widget = figure(layer=2, head=1, model=1, image=1)
    distance = head_distances(recorded(vit(1), picture(1)))[2, 1]
    assert "untrained, two, layer 3 of 3, head 2 of 2" in widget.sentence()
    assert f"distance {distance:.1f} pixels" in widget.sentence()
    assert f"give {apart().mean():.1f} pixels" in widget.sentence()


def test_sentence_tells_of_the_rollout():
    sentence = figure(view="rollout", layer=1).sentence()
    assert "what reaches the class token through layers 1 to 2 of 3" in sentence


@pytest.mark.parametrize("changes", [{}, {"distilled": True}])
def test_rollout_agrees_with_the_model(changes):
    model = vit(**changes)
    for layer in range(3):
        widget = figure({"model": model}, {"one": picture()}, layer=layer)
        expected = rollout(recorded(model, picture()), layer)[0]
        np.testing.assert_allclose(widget.rollout(), expected, atol=1e-4)


def test_still_picture_shows_the_present_values():
    changes = [{}, {"head": 1}, {"query": 3}, {"view": "class"}, {"view": "rollout"}, {"model": 1}]
    stills = [figure(**change).to_png() for change in changes]
    assert all(still[:4] == b"\x89PNG" for still in stills)
    assert len(set(stills)) == len(stills)


def test_mini_model_stays_light():
    models = {"trained": ViT(VIT_MINI), "untrained": ViT(VIT_MINI)}
    images = {str(i): picture(i, 48, 48) for i in range(3)}
    assert len(AttentionDistance(models, images).to_html()) < 600_000


WRONG = {
    "no model": (lambda: AttentionDistance({}, {"a": picture()}), "models is empty"),
    "no image": (lambda: AttentionDistance(pair(), {}), "images is empty; AttentionDistance"),
    "no ViT": (
        lambda: figure({"a": nn.Linear(2, 2)}),
        r"models\['a'\] is Linear; allowed is a ViT",
    ),
    "two shapes": (
        lambda: figure({"a": vit(), "b": vit(depth=2)}),
        r"models\['b'\] has .*layers=2.*models\['a'\] has .*layers=3.*one shape",
    ),
    "float image": (
        lambda: figure(images={"a": torch.rand(3, 8, 8)}),
        r"images\['a'\] is torch.float32; allowed",
    ),
    "std": (lambda: figure(std=(0.5, 0.5, 0.0)), "allowed are three"),
    "view": (lambda: figure(view="x"), "view='x'; allowed are patch, class, rollout"),
    "no class token": (
        lambda: figure({"a": vit(pool="average")}, view="class"),
        "view='class'; allowed are patch, rollout",
    ),
    "layer": (lambda: figure(layer=3), "layer=3; allowed are 0 to 2"),
    "head": (lambda: figure(head=-1), "head=-1; allowed are 0 to 1"),
    "query": (lambda: figure(query=25), "query=25; allowed are 0 to 24"),
    "model": (lambda: figure(model=2), "model=2; allowed are 0 to 1"),
    "image": (lambda: figure(image=2), "image=2; allowed are 0 to 1"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_told_what_is_allowed(name):
    make, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_too_much_for_a_page_is_refused_before_the_model_runs():
    model = vit(image_size=320, patch_size=8, depth=3)  # 1600 patches
    model.forward = None
    with pytest.raises(ValueError, match=r"take 15\.4 MB in one byte.*allows 1\.5 MB.*fewer"):
        figure({"large": model}, {"one": picture()})
    assert MAX_MAP_BYTES == 1_500_000


def test_attention_that_is_nan_is_refused():
    model = vit()
    nn.init.constant_(model.blocks[1].attention.q_proj.weight, math.nan)
    with pytest.raises(ValueError, match=r"attention of models\['broken'\] holds NaN"):
        figure({"broken": model})


# ---- The browser


def numbers(page, name):
    text = page.locator(f"[data-name={name}]").text_content()
    return [float(value) for value in re.findall(r"\d+(?:\.\d+)?", text)]


def text(page, selector):
    return page.locator(selector).first.text_content()


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)
        settle(page)


def choose(page, name):
    page.locator(".segment", has_text=re.compile(f"^{name}$")).click()
    settle(page)


def centre_of(board, row, column):
    step = board.bounding_box()["width"] / GRID
    return {"x": (column + 0.5) * step, "y": (row + 0.5) * step}


def dot_of(page, distances, layer, head):
    """Where a head's dot is: the chart's margins, and the range that all the distances span."""
    box = boards(page)[0].bounding_box()
    width, height = box["width"], box["height"]
    values = [*np.ravel(distances), apart().mean()]
    low, high = min(values), max(values)
    margin = max((PATCH - (high - low)) / 2, 0.1 * (high - low))
    low, high = max(0, low - margin), high + margin
    column = (width - 44) / CONFIG.depth
    spread = min(14, 0.62 * column)
    value = np.array(distances[0])[layer, head]
    return {
        "x": 38 + (layer + 0.5) * column + (head - 0.5) * spread,
        "y": height - 40 - (value - low) / (high - low) * (height - 62),
    }


def all_distances():
    places = itertools.product(range(2), range(2))
    return [head_distances(recorded(vit(m), picture(i))) for m, i in places]


def picture_of(page, index):
    return boards(page)[index].evaluate("canvas => canvas.toDataURL()")


@pytest.mark.browser
@needs_chromium
class TestInBrowser:
    def test_table_holds_the_distances_of_the_model(self, show):
        page = show(figure())
        page.locator("summary").first.click()
        cells = [float(cell) for cell in page.locator("td").all_text_contents()]
        expected = head_distances(recorded(vit(0), picture(0))).ravel()
        np.testing.assert_allclose(cells, expected, atol=6e-3)
        assert f"uniform attention: {apart().mean():.1f} px" in page.locator("main").inner_text()

    def test_clicking_a_patch_tells_its_true_numbers(self, show):
        page = show(figure(layer=1, head=1))
        board = boards(page)[1]
        board.click(position=centre_of(board, 1, 4))
        settle(page)
        query = 1 * GRID + 4
        maps = recorded(vit(0), picture(0))
        row = on_patches(maps)[1, 1, 1 + query]
        assert "row 2, column 5" in text(page, ".readout")
        np.testing.assert_allclose(numbers(page, "weights"), row[:12], atol=6e-5)
        expected = [(row * apart()[query]).sum(), apart()[query].mean()]
        np.testing.assert_allclose(numbers(page, "query"), expected, atol=6e-3)
        top = int(row.argmax())
        most = f"row {top // GRID + 1}, column {top % GRID + 1}: {100 * row[top]:.1f} %"
        assert most in text(page, ".readout")
        assert f"share, {100 * maps[1, 1, 1 + query, 0]:.1f} %" in text(page, ".readout")

    def test_hovering_tries_out_and_leaving_goes_back(self, show):
        page = show(figure(query=0))
        before = picture_of(page, 1)
        boards(page)[1].hover(position=centre_of(boards(page)[1], 3, 2))
        settle(page)
        assert "row 4, column 3" in text(page, ".readout")
        page.locator("h1").hover()
        settle(page)
        assert "row 1, column 1" in text(page, ".readout")
        assert picture_of(page, 1) == before

    def test_hovering_and_clicking_a_head(self, show):
        page = show(figure())
        chart = boards(page)[0]
        chart.hover(position=dot_of(page, all_distances(), 2, 1))
        settle(page)
        assert "Layer 3, head 2" in text(page, ".headline")
        page.locator("h1").hover()
        settle(page)
        assert "Layer 1, head 1" in text(page, ".headline")
        chart.click(position=dot_of(page, all_distances(), 2, 1))
        page.locator("h1").hover()
        settle(page)
        assert "Layer 3, head 2" in text(page, ".headline")
        expected = head_distances(recorded(vit(0), picture(0)))[2, 1]
        assert numbers(page, "head")[0] == pytest.approx(expected, abs=6e-3)

    def test_keyboard_alone_is_enough(self, show):
        page = show(figure(query=0))
        distances = head_distances(recorded(vit(0), picture(0)))
        chart, board = boards(page)
        chart.focus()
        press(page, "ArrowRight", "ArrowRight", "ArrowRight", "ArrowLeft")
        assert "Layer 2, head 1" in text(page, ".headline")
        press(page, "ArrowUp", "ArrowUp")
        assert f"Layer 2, head {distances[1].argmax() + 1}:" in text(page, ".headline")
        press(page, "ArrowDown", "ArrowDown")
        assert f"Layer 2, head {distances[1].argmin() + 1}:" in text(page, ".headline")
        page.keyboard.press("Tab")
        assert board.evaluate("node => node === document.activeElement")
        press(page, "ArrowRight", "ArrowDown", "ArrowDown", "ArrowUp", "ArrowLeft", "ArrowLeft")
        assert "row 2, column 1" in text(page, ".readout")
        press(page, "End")
        assert "row 5, column 5" in text(page, ".readout")
        page.locator("input[value=patch]").focus()
        press(page, "ArrowRight")
        assert "The class token has no place" in text(page, ".readout")
        press(page, "ArrowRight")
        assert "Rollout" in text(page, ".headline")

    def test_other_weights_are_another_set_of_maps(self, show):
        page = show(figure(query=7))
        chart, heat = picture_of(page, 0), picture_of(page, 1)
        choose(page, "untrained")
        maps = recorded(vit(1), picture(0))
        expected = on_patches(maps)[0, 0, 8][:12]
        np.testing.assert_allclose(numbers(page, "weights"), expected, atol=6e-5)
        assert numbers(page, "head")[0] == pytest.approx(head_distances(maps)[0, 0], abs=6e-3)
        assert picture_of(page, 0) != chart
        assert picture_of(page, 1) != heat
        choose(page, "trained")
        assert (picture_of(page, 0), picture_of(page, 1)) == (chart, heat)

    def test_other_picture(self, show):
        page = show(figure(query=3))
        page.get_by_label("Picture", exact=True).select_option("two")
        settle(page)
        expected = on_patches(recorded(vit(0), picture(1)))[0, 0, 4][:12]
        np.testing.assert_allclose(numbers(page, "weights"), expected, atol=6e-5)

    def test_class_token_looks_too(self, show):
        page = show(figure(layer=2, head=1))
        choose(page, "class token")
        maps = recorded(vit(0), picture(0))
        expected = on_patches(maps)[2, 1, 0]
        np.testing.assert_allclose(numbers(page, "weights"), expected[:12], atol=6e-5)
        assert numbers(page, "query") == []
        assert f"share, {100 * maps[2, 1, 0, 0]:.1f} %" in text(page, ".readout")

    @pytest.mark.parametrize("layer", [0, 2])
    def test_rollout_is_the_product_of_the_layers(self, show, layer):
        page = show(figure(layer=layer, view="rollout"))
        maps = recorded(vit(0), picture(0))
        full = rollout(maps, layer)[0]
        assert numbers(page, "sum") == [1.0]
        expected = full[1:] / full[1:].sum()
        np.testing.assert_allclose(numbers(page, "weights"), expected[:12], atol=6e-5)
        assert f"share, {100 * full[0]:.1f} %" in text(page, ".readout")
        assert f"layers 1 to {layer + 1}" in text(page, ".headline")

    def test_without_class_token_rollout_starts_from_the_average(self, show):
        model = vit(pool="average")
        page = show(figure({"model": model}, view="rollout", layer=2))
        expected = rollout(recorded(model, picture(0)), 2).mean(0)
        np.testing.assert_allclose(numbers(page, "weights"), expected[:12], atol=6e-5)
        assert page.locator("input[value=class]").count() == 0
        assert "average of all patches" in text(page, ".headline")

    def test_distilled_model_leaves_both_tokens_out(self, show):
        model = vit(distilled=True)
        page = show(figure({"model": model}, query=6))
        maps = recorded(model, picture(0))
        expected = on_patches(maps, 2)[0, 0, 2 + 6][:12]
        np.testing.assert_allclose(numbers(page, "weights"), expected, atol=6e-5)
        share = 100 * maps[0, 0, 2 + 6, :2].sum()
        assert f"distillation tokens, {share:.1f} %" in text(page, ".readout")
        assert numbers(page, "sum") == [1.0]

    def test_one_byte_a_weight_reads_the_same_way(self, show, monkeypatch):
        monkeypatch.setattr("mmlab.widgets.attention_distance.MAX_MAP_BYTES", 15_000)
        widget = figure({"model": vit(0, scale=1.0)}, query=0)
        assert widget.levels == 255
        page = show(widget)
        expected = on_patches(recorded(vit(0, scale=1.0), picture(0)))[0, 0, 1]
        error = 1.1 * expected.max() / 255
        np.testing.assert_allclose(numbers(page, "weights"), expected[:12], atol=error)

    def test_a_finger_selects(self, show):
        page = show(figure(), viewport=(390, 800), has_touch=True)
        chart, board = boards(page)
        board.scroll_into_view_if_needed()
        board.tap(position=centre_of(board, 4, 1))
        settle(page)
        assert "row 5, column 2" in text(page, ".readout")
        chart.scroll_into_view_if_needed()
        chart.tap(position=dot_of(page, all_distances(), 1, 1))
        settle(page)
        assert "Layer 2, head 2" in text(page, ".headline")
        assert "row 5, column 2" in text(page, ".readout")
