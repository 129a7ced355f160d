import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from PIL import Image

from mmlab.datasets import Example
from mmlab.widgets import PatchSplitter
from mmlab.widgets.patch_splitter import HEAD_DIM, ORDERS, reading_order
from tests.browser import needs_chromium
from tests.widgets.figure_page import boards, settle


def picture(height=40, width=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def splitter(**options):
    options = {"patch_size": 8, "image_size": 64, **options}
    images = options.pop("images", {"noise": picture(64, 64), "other": picture(90, 70, seed=1)})
    return PatchSplitter(images, **options)


# ---- Python


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("grid", [2, 5, 14])
def test_every_order_reads_every_patch_once(order, grid):
    assert sorted(reading_order(order, grid, seed=3)) == list(range(grid * grid))


def test_orders_are_what_their_names_say():
    assert reading_order("raster", 3) == [0, 1, 2, 3, 4, 5, 6, 7, 8]
    assert reading_order("column", 3) == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert reading_order("snake", 3) == [0, 1, 2, 5, 4, 3, 6, 7, 8]
    assert reading_order("shuffled", 6, 1) == reading_order("shuffled", 6, 1)
    assert reading_order("shuffled", 6, 1) != reading_order("shuffled", 6, 2)


def test_pixels_reach_the_page_without_loss():
    image = picture(64, 64)
    assert torch.equal(splitter(images={"noise": image}).pixels(), image)


def test_any_shape_becomes_the_middle_square():
    image = torch.zeros(3, 64, 192, dtype=torch.uint8)
    image[0, :, 64:128] = 200
    assert splitter(images={"wide": image}).pixels()[0].float().mean() == 200


@pytest.mark.parametrize("size", [(1, 1), (3, 400)])
def test_odd_pictures_are_taken(size):
    assert splitter(images={"odd": picture(*size)}).pixels().shape == (3, 64, 64)


def test_examples_are_named_by_label_and_by_id_where_labels_repeat():
    labels = {"1": "cat", "2": "dog", "3": "dog"}
    examples = [Example(id=i, image=picture(), label=label) for i, label in labels.items()]
    names = [image["name"] for image in splitter(images=examples).images]
    assert names == ["cat", "2", "3"]


def test_patch_sizes_divide_the_image():
    assert PatchSplitter({"a": picture()}).patch_sizes == [8, 14, 16, 28, 32]
    assert all(64 % p == 0 for p in splitter().patch_sizes)


def test_same_seed_same_weights():
    one, same, other = splitter(seed=1), splitter(seed=1), splitter(seed=2)
    assert one.page_state() == same.page_state()
    assert one.kernels != other.kernels
    assert one.head != other.head


WRONG = {
    "no image": ({"images": {}}, "images is empty"),
    "float image": (
        {"images": {"a": torch.rand(3, 8, 8)}},
        r"images\['a'\] is torch.float32; allowed",
    ),
    "grey": (
        {"images": {"a": picture()[:1]}},
        r"shape \(1, 40, 60\); allowed is \(3, height, width\)",
    ),
    "channels last": ({"images": {"a": picture().permute(1, 2, 0)}}, r"shape \(40, 60, 3\)"),
    "empty image": ({"images": {"a": picture()[:, :0]}}, r"shape \(3, 0, 60\)"),
    "uneven patch": (
        {"patch_size": 10},
        "patch_size=10 does not divide the image.*allowed are 4, 8",
    ),
    "patch of nothing": ({"patch_size": 0}, "patch_size=0"),
    "whole image": ({"patch_size": 64}, "patch_size=64 is not offered"),
    "large page": ({"image_size": 640}, "image_size=640; allowed are 8 to 224"),
    "order": ({"order": "spiral"}, "order='spiral'; allowed are raster, column, snake, shuffled"),
    "image index": ({"image": 2}, "image=2; allowed are 0 to 1"),
    "selected": ({"selected": -1}, "selected=-1; allowed are 0 and up"),
    "no kernel": ({"embedding": {}}, "embedding is empty"),
    "kernel shape": (
        {"embedding": {8: torch.rand(5, 3, 4, 4)}},
        r"embedding\[8\] has shape \(5, 3, 4, 4\)",
    ),
    "kernel rank": ({"embedding": {8: torch.rand(5)}}, r"embedding\[8\] has shape \(5,\)"),
    "kernel kind": ({"embedding": {8: torch.full((5, 3, 8, 8), torch.nan)}}, "not finite"),
    "heavy kernel": ({"embedding": {8: torch.rand(2000, 3, 8, 8)}}, "pass fewer rows"),
    "other patch": ({"embedding": {16: torch.rand(5, 3, 16, 16)}}, "allowed are 16"),
    "mean": ({"mean": (0.5,)}, r"mean=\(0.5,\) and std=.*; allowed are three"),
    "std": ({"std": (0.5, 0.5, 0.0)}, r"allowed are three"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_input_is_told_what_is_allowed(name):
    options, message = WRONG[name]
    with pytest.raises(ValueError, match=message):
        splitter(**options)


def test_wrong_values_later_are_refused_and_change_nothing():
    widget = splitter()
    with pytest.raises(ValueError, match="patch_size=10"):
        widget.patch_size = 10
    with pytest.raises(ValueError, match="order='x'"):
        widget.order = "x"
    assert (widget.patch_size, widget.order) == (8, "raster")


def test_sentence_tells_the_values():
    widget = splitter(order="snake")
    assert "noise, 64 × 64 pixels, cut into 8 × 8 = 64 patches of 8 × 8" in widget.sentence()
    assert "192 values" in widget.sentence() and "snake" in widget.sentence()


# ---- What the page must compute, computed another way


def flattened(widget):
    p = widget.patch_size
    return rearrange(widget.pixels(), "c (h p) (w q) -> (h w) (c p q)", p=p, q=p)


def kernel(widget):
    arrays = widget.kernels[str(widget.patch_size)]
    weight = torch.from_numpy(np.frombuffer(arrays["weight"], "<f4").copy())
    p = widget.patch_size
    return weight.view(widget.dim, 3, p, p), torch.from_numpy(
        np.frombuffer(arrays["bias"], "<f4").copy()
    )


def embeddings(widget):
    weight, bias = kernel(widget)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (widget.mean, widget.std))
    image = (widget.pixels() / 255 - mean) / std
    maps = F.conv2d(image[None].double(), weight.double(), bias.double(), stride=widget.patch_size)
    return maps[0].flatten(1).T


def class_output(widget, order, positions):
    packed = torch.from_numpy(np.frombuffer(widget.head, "<f4").copy()).double()
    class_token, maps = packed[: widget.dim], packed[widget.dim :].view(3, HEAD_DIM, widget.dim)
    tokens = torch.cat([class_token[None], embeddings(widget)[order]])
    if positions:
        table = torch.from_numpy(np.frombuffer(widget.position_table, "<f4").copy()).double()
        tokens = tokens + table.view(-1, widget.dim)[: len(tokens)]
    query, key, value = (F.layer_norm(tokens, (widget.dim,), eps=1e-6) @ m.T for m in maps)
    return F.scaled_dot_product_attention(query[None], key[None], value[None])[0, 0]


def change(widget, order, positions):
    raster = class_output(widget, list(range(widget.grid**2)), positions)
    return ((class_output(widget, order, positions) - raster).norm() / raster.norm()).item()


# ---- The browser


def number(page, name):
    return page.locator(f"[data-name={name}]").text_content()


def numbers(page, name):
    found = re.findall(r"[−-]?\d+(?:\.\d+)?(?:e[+-]\d+)?", number(page, name))
    return [float(text.replace("−", "-")) for text in found]


def meter(page):
    return [float(text) for text in page.locator(".meter .reading").all_text_contents()]


def centre_of(board, row, column, grid):
    box = board.bounding_box()
    step = (box["width"] - 4) / grid
    return {"x": 2 + (column + 0.5) * step, "y": 2 + (row + 0.5) * step}


def choose(page, value):
    page.locator(f".segment:has(input[value='{value}'])").click()
    settle(page)


def bag_of(page):
    return page.locator(".bag canvas").evaluate("canvas => canvas.toDataURL()")


@pytest.mark.browser
@needs_chromium
class TestInBrowser:
    def test_hovering_a_patch_tells_its_true_numbers(self, show):
        widget = splitter(order="column")
        page = show(widget)
        boards(page)[0].hover(position=centre_of(boards(page)[0], 2, 5, 8))
        settle(page)
        assert "Token 43 of 0–64: row 3, column 6" in page.locator(".readout").text_content()
        assert number(page, "box") == "x 40–47, y 16–23"
        assert numbers(page, "flattened") == flattened(widget)[2 * 8 + 5][:12].tolist()
        expected = embeddings(widget)[2 * 8 + 5].numpy()
        np.testing.assert_allclose(numbers(page, "embedding"), expected, atol=6e-5)

    def test_both_views_select_the_same_patch(self, show):
        page = show(splitter(order="column"))
        picture, sequence = boards(page)
        box = sequence.bounding_box()
        sequence.hover(position={"x": box["width"] / 2, "y": box["height"] / 2})
        settle(page)
        token, row, column = map(
            int,
            re.findall(
                r"Token (\d+) of.*row (\d+), column (\d+)", page.locator(".readout").text_content()
            )[0],
        )
        assert token == (column - 1) * 8 + row
        picture.hover(position=centre_of(picture, row - 1, column - 1, 8))
        settle(page)
        assert f"Token {token} " in page.locator(".readout").text_content()

    def test_keyboard_alone_is_enough(self, show):
        widget = splitter(selected=0)
        page = show(widget)
        picture, sequence = boards(page)
        picture.focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowUp", "ArrowUp", "ArrowLeft"):
            page.keyboard.press(key)
            settle(page)
        assert "row 1, column 2" in page.locator(".readout").text_content()
        page.keyboard.press("Tab")
        assert sequence.evaluate("node => node === document.activeElement")
        for key in ("End", "ArrowLeft", "ArrowRight", "ArrowRight", "ArrowLeft"):
            page.keyboard.press(key)
            settle(page)
        assert "Token 63 of" in page.locator(".readout").text_content()
        page.locator("input[type=radio][value=raster]").focus()
        page.keyboard.press("ArrowRight")
        settle(page)
        assert page.locator("input[value=column]").is_checked()
        page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        settle(page)
        assert page.locator("input[value=shuffled]").is_checked()
        page.get_by_role("switch").focus()
        page.keyboard.press("Space")
        settle(page)
        assert page.get_by_role("switch").is_checked()
        assert meter(page)[1] > 0.01

    @pytest.mark.parametrize("order", ORDERS)
    def test_class_output_moves_only_with_positions(self, show, order):
        widget = splitter(order=order, shuffle_seed=7)
        page = show(widget)
        assert numbers(page, "order") == widget.sequence[:12]
        without, with_positions = numbers(page, "change")
        assert without < 1e-12
        expected = change(widget, widget.sequence, positions=True)
        assert with_positions == pytest.approx(expected, rel=6e-3, abs=1e-12)
        assert meter(page) == [0.0, round(expected, 3)]
        if order == "shuffled":
            assert expected > 0.05

    def test_without_positions_the_bag_never_changes(self, show):
        page = show(splitter())
        without = bag_of(page)
        page.get_by_role("button", name="Shuffle").click()
        settle(page)
        assert bag_of(page) == without
        page.get_by_role("switch").check(force=True)
        settle(page)
        numbered = bag_of(page)
        assert numbered != without
        page.get_by_role("button", name="Shuffle").click()
        settle(page)
        assert bag_of(page) != numbered

    def test_patch_size_keeps_the_place_and_the_counts(self, show):
        page = show(splitter(selected=9))
        choose(page, 16)
        assert (
            "4 × 4 = 16 patches, with the class token 17 tokens"
            in page.locator(".headline").text_content()
        )
        assert "row 1, column 1" in page.locator(".readout").text_content()
        assert "768 values" in page.locator(".readout").text_content()

    def test_trained_kernel_is_applied_and_named(self, show):
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(40, 3, 8, 8, generator=generator)
        bias = torch.randn(40, generator=generator)
        widget = splitter(
            embedding={8: (weight, bias)}, mean=(0.48, 0.46, 0.41), std=(0.3, 0.2, 0.1), selected=11
        )
        page = show(widget)
        np.testing.assert_allclose(numbers(page, "embedding"), embeddings(widget)[11], atol=1e-4)
        assert "Trained weights" in page.locator(".mmlab-widget").inner_text()
        assert "Untrained" not in page.locator(".mmlab-widget").inner_text()

    def test_choosing_another_picture(self, show):
        widget = splitter(selected=0)
        page = show(widget)
        page.get_by_label("Picture", exact=True).select_option("other")
        widget.image = 1
        expected = ", ".join(map(str, flattened(widget)[0][:12].tolist()))
        page.wait_for_function(
            f"document.querySelector('[data-name=flattened]').textContent.startsWith('{expected}')"
        )

    def test_own_picture_is_read_in_the_page(self, show, tmp_path):
        page = show(splitter(selected=0))
        path = tmp_path / "<b>mine.png"
        Image.new("RGB", (300, 200), (10, 200, 30)).save(path)
        page.locator("input[type=file]").set_input_files(path)
        page.wait_for_function(
            "document.querySelector('[data-name=flattened]').textContent.startsWith('10, 10')"
        )
        select = page.get_by_label("Picture", exact=True)
        assert select.evaluate("s => s.selectedOptions[0].textContent") == "yours: <b>mine.png"
        select.select_option("noise")
        page.wait_for_function(
            "!document.querySelector('[data-name=flattened]').textContent.startsWith('10, 10')"
        )
        select.select_option("-1")
        page.wait_for_function(
            "document.querySelector('[data-name=flattened]').textContent.startsWith('10, 10')"
        )

    def test_a_file_that_is_no_picture_is_told_so(self, show, tmp_path):
        page = show(splitter())
        path = tmp_path / "notes.png"
        path.write_text("no picture")
        page.locator("input[type=file]").set_input_files(path)
        page.wait_for_function("document.querySelector('[role=status]').textContent")
        assert (
            page.locator("[role=status]").text_content()
            == "notes.png is not a picture that this browser can read."
        )
        assert "64 patches" in page.locator(".headline").text_content()

    def test_a_finger_selects(self, show):
        page = show(splitter(), viewport=(390, 800), has_touch=True)
        picture = boards(page)[0]
        picture.scroll_into_view_if_needed()
        picture.tap(position=centre_of(picture, 6, 1, 8))
        settle(page)
        assert "row 7, column 2" in page.locator(".readout").text_content()
