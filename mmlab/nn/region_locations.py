"""Where a region is: the numbers that each paper puts beside its feature, and how boxes overlap.

Every encoding divides by the image's width and height, never by width - 1, so that an image and its
boxes may be scaled together and nothing changes. A box of zeros (padding) is encoded as zeros, but
by ``sinusoidal_locations``. VisualBERT has no location at all; its features for Flickr30k end with
the six numbers of ``corner_size_locations``.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

Boxes = Float[Tensor, "batch regions 4"]
"""``(x1, y1, x2, y2)`` in pixels, the origin at the top left."""

ImageSizes = Float[Tensor, "batch 2"]
"""``(width, height)`` in pixels: the order of x and y, which is not the order of an image tensor.

Boxes that are given in fractions of the image belong to an image of size (1, 1).
"""


def corner_locations(boxes: Boxes, image_sizes: ImageSizes) -> Float[Tensor, "batch regions 4"]:
    """``(x1/W, y1/H, x2/W, y2/H)``: LXMERT (section 2.1; ``src/tasks/vqa_data.py``)."""
    return boxes / image_sizes.repeat(1, 2)[:, None]


def corner_area_locations(
    boxes: Boxes, image_sizes: ImageSizes
) -> Float[Tensor, "batch regions 5"]:
    """The corners, then the share of the image's area: ViLBERT and Unicoder-VL.

    ViLBERT, section 2.2; ``vilbert/datasets/_image_features_reader.py``. The box of the whole image
    is (0, 0, 1, 1, 1), the location of ViLBERT's global image token.
    """
    corners, (width, height) = _corners_and_extents(boxes, image_sizes)
    return torch.cat([corners, width * height], dim=-1)


def corner_size_locations(
    boxes: Boxes, image_sizes: ImageSizes
) -> Float[Tensor, "batch regions 6"]:
    """The corners, then width and height in this order: OSCAR and VinVL.

    OSCAR, section 3, leaves open whether the sizes are among them, and their order, which is that
    of the code given for making features (issue 33 of ``microsoft/Oscar``). The model takes the
    feature and these six numbers as one vector, the location last.
    """
    corners, extents = _corners_and_extents(boxes, image_sizes)
    return torch.cat([corners, *extents], dim=-1)


def corner_size_area_locations(
    boxes: Boxes, image_sizes: ImageSizes
) -> Float[Tensor, "batch regions 7"]:
    """The corners, width, height, then their product: UNITER (section 3.1; ``data/data.py``)."""
    corners, (width, height) = _corners_and_extents(boxes, image_sizes)
    return torch.cat([corners, width, height, width * height], dim=-1)


def sinusoidal_locations(
    boxes: Boxes, image_sizes: ImageSizes, dim: int
) -> Float[Tensor, "batch regions dim"]:
    """Sines and cosines of center, width and height: VL-BERT (``common/utils/bbox.py``).

    Each of (x_center/W, y_center/H, w/W, h/H), times 100, is divided by 1000^(k / n) for
    k = 0 … n - 1 with n = ``dim`` / 8; the n sines of a number stand before its n cosines. VL-BERT
    has n = 256. Its code gives the whole image the box (0, 0, W - 1, H - 1) and divides by W and H.

    ValueError if 8 does not divide ``dim``.
    """
    if dim % 8:
        raise ValueError(f"dim must be a multiple of 8 for four sine-cosine numbers, got {dim}")
    corners, (width, height) = _corners_and_extents(boxes, image_sizes)
    center = (corners[..., :2] + corners[..., 2:]) / 2
    numbers = 100 * torch.cat([center, width, height], dim=-1)
    steps = torch.arange(dim // 8, dtype=boxes.dtype, device=boxes.device)
    angles = numbers[..., None] / 1000 ** (steps / (dim // 8))
    return torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(2)


def box_iou(
    boxes: Float[Tensor, "*batch boxes 4"],
    others: Float[Tensor, "*batch others 4"],
    pixel: float | int = 0,
) -> Float[Tensor, "*batch boxes others"]:
    """Intersection over union of every box with every other; 0 where neither has an area.

    ``pixel=1`` counts x2 and y2 as the last pixel inside the box and not as the first outside it,
    as Faster R-CNN does, and with it 12-in-1 (boxes in pixels only).
    """
    shared = shared_area(boxes, others, pixel)
    areas = _area(boxes, pixel)[..., :, None] + _area(others, pixel)[..., None, :]
    union = areas - shared
    return torch.where(union > 0, shared / union.clamp(min=torch.finfo(union.dtype).tiny), 0)


def shared_area(
    boxes: Float[Tensor, "*batch boxes 4"],
    others: Float[Tensor, "*batch others 4"],
    pixel: float | int = 0,
) -> Float[Tensor, "*batch boxes others"]:
    """The area that every box has in common with every other; ``pixel`` as in ``box_iou``."""
    corner = torch.maximum(boxes[..., :, None, :2], others[..., None, :, :2])
    opposite = torch.minimum(boxes[..., :, None, 2:], others[..., None, :, 2:])
    return (opposite - corner + pixel).clamp(min=0).prod(-1)


def _area(
    boxes: Float[Tensor, "*batch boxes 4"], pixel: float | int
) -> Float[Tensor, "*batch boxes"]:
    return (boxes[..., 2:] - boxes[..., :2] + pixel).prod(-1)


def _corners_and_extents(
    boxes: Boxes, image_sizes: ImageSizes
) -> tuple[Boxes, tuple[Float[Tensor, "batch regions 1"], ...]]:
    """The corners as shares of the image, then (width, height)."""
    corners = corner_locations(boxes, image_sizes)
    return corners, (corners[..., 2:] - corners[..., :2]).split(1, dim=-1)
