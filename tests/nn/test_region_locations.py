"""Locations of regions: worked by hand, the papers' own traps, and what must not change them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmlab.nn.region_locations import (
    box_iou,
    corner_area_locations,
    corner_locations,
    corner_size_area_locations,
    corner_size_locations,
    sinusoidal_locations,
)

# An image of 200 x 100 pixels with a box of 100 x 20, and one of 400 x 50 with a box of 40 x 50.
BOXES = torch.tensor([[[20.0, 30.0, 120.0, 50.0]], [[360.0, 0.0, 400.0, 50.0]]])
SIZES = torch.tensor([[200.0, 100.0], [400.0, 50.0]])
CORNERS = [[0.1, 0.3, 0.6, 0.5], [0.9, 0.0, 1.0, 1.0]]

BY_HAND = {
    corner_locations: CORNERS,
    corner_area_locations: [[*CORNERS[0], 0.1], [*CORNERS[1], 0.1]],
    corner_size_locations: [[*CORNERS[0], 0.5, 0.2], [*CORNERS[1], 0.1, 1.0]],
    corner_size_area_locations: [[*CORNERS[0], 0.5, 0.2, 0.1], [*CORNERS[1], 0.1, 1.0, 0.1]],
}
ENCODINGS = [*BY_HAND, lambda boxes, sizes: sinusoidal_locations(boxes, sizes, 16)]


def random_boxes(batch=3, regions=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    sizes = 50 + 500 * torch.rand(batch, 2, generator=generator)
    corners = torch.rand(batch, regions, 2, 2, generator=generator).sort(dim=2).values
    return (corners * sizes[:, None, None]).flatten(2), sizes


@pytest.mark.parametrize("encode", BY_HAND, ids=lambda f: f.__name__)
def test_by_hand(encode):
    torch.testing.assert_close(encode(BOXES, SIZES)[:, 0], torch.tensor(BY_HAND[encode]))


def test_width_comes_before_height_and_x_before_y():
    """A wide image: with (height, width) every number would differ."""
    wide = corner_size_locations(torch.tensor([[[0.0, 0, 300, 10]]]), torch.tensor([[300.0, 100]]))
    torch.testing.assert_close(wide, torch.tensor([[[0, 0, 1.0, 0.1, 1.0, 0.1]]]))


def test_the_whole_image_is_the_global_token_of_vilbert():
    """Sheet of ViLBERT: location (0, 0, 1, 1, 1). Division by width - 1 would give more than 1."""
    whole = torch.cat([torch.zeros(2, 2), SIZES], dim=1)[:, None]
    torch.testing.assert_close(
        corner_area_locations(whole, SIZES), torch.tensor([0.0, 0, 1, 1, 1]).expand(2, 1, 5)
    )


@pytest.mark.parametrize("encode", ENCODINGS)
@given(scale=st.floats(0.01, 100))
def test_scaling_image_and_boxes_changes_nothing(encode, scale):
    boxes, sizes = random_boxes()
    torch.testing.assert_close(
        encode(boxes * scale, sizes * scale), encode(boxes, sizes), atol=2e-4, rtol=1e-4
    )


@pytest.mark.parametrize("encode", ENCODINGS)
def test_fractions_with_a_size_of_one_are_pixels_with_their_size(encode):
    boxes, sizes = random_boxes()
    fractions = boxes / sizes.repeat(1, 2)[:, None]
    torch.testing.assert_close(
        encode(fractions, torch.ones(3, 2)), encode(boxes, sizes), atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("encode", ENCODINGS)
def test_images_and_regions_do_not_mix(encode):
    boxes, sizes = random_boxes()
    alone = torch.cat([encode(boxes[i : i + 1, 2:3], sizes[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(encode(boxes, sizes)[:, 2:3], alone)


@pytest.mark.parametrize("encode", BY_HAND, ids=lambda f: f.__name__)
def test_padding_stays_zero(encode):
    boxes, sizes = random_boxes()
    boxes[:, 3:] = 0
    assert not encode(boxes, sizes)[:, 3:].any()


def test_longer_encodings_begin_with_the_shorter_ones():
    boxes, sizes = random_boxes()
    seven = corner_size_area_locations(boxes, sizes)
    torch.testing.assert_close(seven[..., :6], corner_size_locations(boxes, sizes))
    torch.testing.assert_close(seven[..., [0, 1, 2, 3, 6]], corner_area_locations(boxes, sizes))
    torch.testing.assert_close(seven[..., 4:6], seven[..., 2:4] - seven[..., :2])


def test_sinusoidal_locations_by_a_loop():
    boxes, sizes = random_boxes()
    told = sinusoidal_locations(boxes, sizes, 32)
    width, height = sizes[1].tolist()
    x1, y1, x2, y2 = boxes[1, 2].tolist()
    expected = []
    for number in (
        (x1 + x2) / 2 / width,
        (y1 + y2) / 2 / height,
        (x2 - x1) / width,
        (y2 - y1) / height,
    ):
        angles = [torch.tensor(100 * number / 1000 ** (k / 4)) for k in range(4)]
        expected += [a.sin() for a in angles] + [a.cos() for a in angles]
    torch.testing.assert_close(told[1, 2], torch.stack(expected), atol=1e-5, rtol=1e-4)


def test_sinusoidal_locations_refuse_an_odd_width():
    with pytest.raises(ValueError, match=r"dim must be a multiple of 8.*got 12"):
        sinusoidal_locations(BOXES, SIZES, 12)


# ------------------------------------------------------------------------------------------ overlap


def test_overlap_by_hand():
    boxes = torch.tensor([[0.0, 0, 4, 4]])
    others = torch.tensor([[0.0, 0, 4, 4], [2, 2, 6, 6], [4, 0, 8, 4], [1, 1, 3, 3]])
    torch.testing.assert_close(box_iou(boxes, others), torch.tensor([[1, 4 / 28, 0, 4 / 16]]))


def test_overlap_with_the_last_pixel_inside():
    """Pixels 0 … 4 and 4 … 8 share a column of five out of 25 + 25 - 5."""
    boxes, others = torch.tensor([[0.0, 0, 4, 4]]), torch.tensor([[4.0, 0, 8, 4]])
    torch.testing.assert_close(box_iou(boxes, others, pixel=1), torch.tensor([[5 / 45]]))
    assert box_iou(boxes, others).item() == 0


def test_overlap_counts_pixels():
    generator = torch.Generator().manual_seed(1)
    corners = torch.randint(0, 12, (2, 6, 2, 2), generator=generator).sort(dim=2).values
    boxes = corners.flatten(2).float()
    y, x = torch.meshgrid(torch.arange(13), torch.arange(13), indexing="ij")
    inside = (
        (x >= boxes[..., 0, None, None])
        & (x <= boxes[..., 2, None, None])
        & (y >= boxes[..., 1, None, None])
        & (y <= boxes[..., 3, None, None])
    )
    both = (inside[0][:, None] & inside[1][None]).sum((-1, -2))
    either = (inside[0][:, None] | inside[1][None]).sum((-1, -2))
    torch.testing.assert_close(box_iou(boxes[0], boxes[1], pixel=1), both / either)


def test_boxes_without_area_overlap_with_nothing():
    empty = torch.zeros(2, 1, 4)
    assert box_iou(empty, empty).tolist() == [[[0.0]], [[0.0]]]
