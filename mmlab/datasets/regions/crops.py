"""Region features from pixels alone: what a convolutional detector would see, in small.

The features of bottom-up attention come from a network trained on photographs. These stand in for
them: a thumbnail of the crop (color, shape), the strength of its edges in four directions (texture,
outline), and a fixed random layer that mixes both into a non-negative vector. They know neither the
truth about a region nor where it lies; its size shows only in how coarse the crop looks.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

_CROP = 32  # Pixels a side after resizing.
_THUMBNAIL, _CELLS = 8, 4
_EDGE_GAIN = 8.0  # Edges are weak beside the thumbnail's values; without this, textures drown.
_NUM_DESCRIPTORS = 3 * _THUMBNAIL**2 + 4 * _CELLS**2
_FEATURE_SEED = 20_190_806


def region_features(
    images: UInt8[Tensor, "batch 3 height width"],
    boxes: Float[Tensor, "boxes 4"],
    rows: Int64[Tensor, " boxes"],
    dim: int,
) -> Float[Tensor, "boxes dim"]:
    """A vector of ``dim`` numbers for each box of ``images[rows]``; boxes in pixels.

    The random layer is the same for everyone who asks for the same ``dim``.
    """
    crops = _crop(images.float() / 255, boxes, rows)
    descriptors = torch.cat([_thumbnail(crops), _EDGE_GAIN * _edges(crops)], dim=1)
    return F.relu(descriptors @ _random_layer(dim))


def _crop(
    images: Float[Tensor, "batch 3 height width"],
    boxes: Float[Tensor, "boxes 4"],
    rows: Int64[Tensor, " boxes"],
) -> Float[Tensor, "boxes 3 crop crop"]:
    """Each box stretched to a square, with linear interpolation."""
    height, width = images.shape[2:]
    steps = (torch.arange(_CROP) + 0.5) / _CROP
    across = boxes[:, 0, None] + steps * (boxes[:, 2] - boxes[:, 0])[:, None]
    down = boxes[:, 1, None] + steps * (boxes[:, 3] - boxes[:, 1])[:, None]
    x = (2 * across / width - 1)[:, None, :].expand(-1, _CROP, -1)
    y = (2 * down / height - 1)[:, :, None].expand(-1, -1, _CROP)
    grid = torch.stack([x, y], dim=-1)
    return F.grid_sample(images[rows], grid, padding_mode="border", align_corners=False)


def _thumbnail(crops: Float[Tensor, "boxes 3 crop crop"]) -> Float[Tensor, "boxes numbers"]:
    return F.adaptive_avg_pool2d(crops, _THUMBNAIL).flatten(1) - 0.5


def _edges(crops: Float[Tensor, "boxes 3 crop crop"]) -> Float[Tensor, "boxes numbers"]:
    """Mean contrast along x, y and both diagonals in each of 4 x 4 cells."""
    x = crops[..., :-1, 1:] - crops[..., :-1, :-1]
    y = crops[..., 1:, :-1] - crops[..., :-1, :-1]
    directions = torch.stack([x, y, (x + y) / math.sqrt(2), (x - y) / math.sqrt(2)], dim=1)
    contrast = directions.abs().mean(2)
    return F.adaptive_avg_pool2d(contrast, _CELLS).flatten(1)


@functools.cache
def _random_layer(dim: int) -> Float[Tensor, "descriptors dim"]:
    generator = Generator().manual_seed(_FEATURE_SEED)
    return torch.randn(_NUM_DESCRIPTORS, dim, generator=generator) / math.sqrt(8)
