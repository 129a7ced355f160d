"""Augmentations of whole images, drawn anew for every image of a batch."""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Num
from torch import Generator, Tensor

from mmlab.datasets.transforms.cropping import sample_crop_boxes
from mmlab.datasets.transforms.images import (
    Batch,
    Images,
    Number,
    check_between,
    flatten_batch,
    random_integers,
    uniform,
)


def random_flip(
    images: Images, probability: Number = 0.5, generator: Generator | None = None
) -> Images:
    """Mirror each image left to right with ``probability``."""
    flat, _ = flatten_batch(images)
    check_between("probability", probability, 0, 1)
    chosen = (uniform((len(flat),), 0, 1, generator) < probability).to(flat.device)
    return torch.where(chosen[:, None, None, None], flat.flip(-1), flat).reshape(images.shape)


def random_erasing(
    images: Images,
    probability: Number = 0.5,
    scale: tuple[Number, Number] = (0.02, 0.33),
    ratio: tuple[Number, Number] = (0.3, 3.3),
    generator: Generator | None = None,
) -> Images:
    """Cover a random box of each image with grey, with ``probability`` (Zhong et al. 2020)."""
    flat, _ = flatten_batch(images)
    check_between("probability", probability, 0, 1)
    chosen = uniform((len(flat),), 0, 1, generator) < probability
    boxes = sample_crop_boxes(len(flat), *flat.shape[-2:], scale, ratio, generator)
    erased = (_inside(boxes, *flat.shape[-2:]) & chosen[:, None, None]).to(flat.device)
    grey = 128 if flat.dtype == torch.uint8 else 0.5
    return flat.masked_fill(erased[:, None], grey).reshape(images.shape)


def mixup(
    images: Batch,
    targets: Float[Tensor, "batch classes"],
    alpha: Number = 0.8,
    generator: Generator | None = None,
) -> tuple[Batch, Float[Tensor, "batch classes"]]:
    """Blend each image, and its target distribution, with a random other (Zhang et al. 2018).

    ``lam * own + (1 - lam) * other`` with ``lam ~ Beta(alpha, alpha)`` drawn for each image.
    """
    flat, _ = flatten_batch(images)
    _check_targets(images, targets)
    other, lam = _partners(len(flat), alpha, generator)
    other, lam = other.to(flat.device), lam.to(flat)
    mixed = images + (1 - lam)[:, None, None, None] * (images[other] - images)
    return mixed, targets + (1 - lam).to(targets)[:, None] * (targets[other] - targets)


def cutmix(
    images: Batch,
    targets: Float[Tensor, "batch classes"],
    alpha: Number = 1.0,
    generator: Generator | None = None,
) -> tuple[Batch, Float[Tensor, "batch classes"]]:
    """Paste a box of a random other image into each; targets mix by area (Yun et al. 2019).

    The box covers ``1 - lam`` of the image, ``lam ~ Beta(alpha, alpha)``, before it is clipped at
    the border; the targets use the area that is left.
    """
    flat, _ = flatten_batch(images)
    _check_targets(images, targets)
    height, width = flat.shape[-2:]
    other, lam = _partners(len(flat), alpha, generator)
    room = torch.tensor([width, height])
    half = (1 - lam).sqrt()[:, None] * room / 2
    center = uniform((len(flat), 2), 0, 1, generator).cpu() * room
    boxes = torch.cat([center - half, center + half], dim=1).round()
    pasted = _inside(boxes, height, width).to(flat.device)
    other, share = other.to(flat.device), pasted.float().mean(dim=(1, 2))
    mixed = torch.where(pasted[:, None], images[other], images)
    return mixed, targets + share.to(targets)[:, None] * (targets[other] - targets)


def _partners(
    count: int, alpha: Number, generator: Generator | None
) -> tuple[Int[Tensor, " count"], Float[Tensor, " count"]]:
    """For each image another one of the batch, and its own share ``lam ~ Beta(alpha, alpha)``."""
    if not (math.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be a positive number, got {alpha}")
    # torch's Beta takes no generator; numpy's is seeded by one draw from it.
    rng = np.random.default_rng(int(random_integers(1, 2**62, generator)))
    lam = torch.from_numpy(rng.beta(alpha, alpha, count))
    return torch.from_numpy(rng.permutation(count)), lam.float()


def _inside(boxes: Num[Tensor, "batch 4"], height: int, width: int) -> Bool[Tensor, "batch h w"]:
    """Which pixels lie in each ``(x0, y0, x1, y1)``."""
    x0, y0, x1, y1 = boxes[:, :, None].unbind(dim=1)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    columns, rows = (x0 <= x) & (x < x1), (y0 <= y) & (y < y1)
    return rows[:, :, None] & columns[:, None, :]


def _check_targets(images: Tensor, targets: Tensor) -> None:
    if images.ndim != 4 or not images.is_floating_point():
        raise ValueError(
            "mixing takes floating-point images of shape (batch, 3, height, width), "
            f"got {images.dtype} {tuple(images.shape)}"
        )
    if targets.ndim != 2 or len(targets) != len(images) or not targets.is_floating_point():
        raise ValueError(
            f"targets must be floating-point class shares of shape ({len(images)}, classes), "
            f"got {targets.dtype} {tuple(targets.shape)}"
        )
