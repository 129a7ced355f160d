"""RandAugment: its operations, batched with one strength per image, and their random choice.

The operations take ``Float[Tensor, "batch 3 height width"]`` in 0-1 and keep that range.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Generator, Tensor

from mmlab.datasets.transforms.images import (
    Batch,
    Images,
    Number,
    PerImage,
    check_between,
    flatten_batch,
    restore_kind,
    to_float,
    uniform,
)


def affine(
    images: Batch, matrix: Float[Tensor, "batch 2 3"], fill: Number = 0.5
) -> Float[Tensor, "batch 3 height width"]:
    """Pull each pixel from ``matrix @ (x, y, 1)``: pixels, from the image's centre, y downwards.

    Bilinear; what comes from outside the image is ``fill``.
    """
    height, width = images.shape[-2:]
    unit = [[1, height / width, 2 / width], [width / height, 1, 2 / height]]
    theta = matrix.to(images) * images.new_tensor(unit)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - fill, grid, padding_mode="zeros", align_corners=False) + fill


def rotate(images: Batch, degrees: PerImage) -> Batch:
    """Rotate about the centre, counter-clockwise."""
    cos, sin = torch.cos(torch.deg2rad(degrees)), torch.sin(torch.deg2rad(degrees))
    return affine(images, _matrix([cos, -sin, 0, sin, cos, 0]))


def shear_x(images: Batch, slope: PerImage) -> Batch:
    """Shift each row by ``slope`` times its distance from the centre."""
    return affine(images, _matrix([1, slope, 0, 0, 1, 0]))


def shear_y(images: Batch, slope: PerImage) -> Batch:
    """Shift each column by ``slope`` times its distance from the centre."""
    return affine(images, _matrix([1, 0, 0, slope, 1, 0]))


def translate_x(images: Batch, pixels: PerImage) -> Batch:
    """Move the content ``pixels`` to the right."""
    return affine(images, _matrix([1, 0, -pixels, 0, 1, 0]))


def translate_y(images: Batch, pixels: PerImage) -> Batch:
    """Move the content ``pixels`` down."""
    return affine(images, _matrix([1, 0, 0, 0, 1, -pixels]))


def adjust_brightness(images: Batch, factor: PerImage) -> Batch:
    """Blend with black: 0 is black, 1 the image, 2 twice as bright."""
    return _blend(torch.zeros_like(images), images, factor)


def adjust_contrast(images: Batch, factor: PerImage) -> Batch:
    """Blend with the mean grey of the image: 0 is flat, 1 the image."""
    mean = _grey(images).mean(dim=(1, 2, 3), keepdim=True)
    return _blend(mean.expand_as(images), images, factor)


def adjust_saturation(images: Batch, factor: PerImage) -> Batch:
    """Blend with the grey version: 0 is grey, 1 the image (RandAugment's "color")."""
    return _blend(_grey(images).expand_as(images), images, factor)


def adjust_sharpness(images: Batch, factor: PerImage) -> Batch:
    """Blend with a 3x3 smoothed version: 0 is smoothed, 1 the image; the border row stays."""
    if min(images.shape[-2:]) < 3:
        return images
    smooth = images.clone()
    # Pillow's kernel, eight ones around a 5; the mean filter is faster than a convolution.
    smooth[..., 1:-1, 1:-1] = (9 * F.avg_pool2d(images, 3, 1) + 4 * images[..., 1:-1, 1:-1]) / 13
    return _blend(smooth, images, factor)


def posterize(images: Batch, bits: Int64[Tensor, " batch"]) -> Batch:
    """Keep the highest ``bits`` (0 to 8) of each 8-bit value."""
    step = (2.0 ** (8 - bits))[:, None, None, None].to(images)
    return ((images * 255).round() / step).floor() * step / 255


def solarize(images: Batch, threshold: PerImage) -> Batch:
    """Invert the values at or above ``threshold`` (0-1)."""
    return torch.where(images >= threshold[:, None, None, None], 1 - images, images)


def autocontrast(images: Batch) -> Batch:
    """Stretch each channel of each image to 0-1; a constant channel stays as it is."""
    low, high = images.amin(dim=(2, 3), keepdim=True), images.amax(dim=(2, 3), keepdim=True)
    spread = high - low
    # Less than half an 8-bit level is rounding noise of an earlier operation.
    varies = spread > 0.5 / 255
    return torch.where(varies, (images - low) / torch.where(varies, spread, 1), images)


def equalize(images: Batch) -> Batch:
    """Flatten the 8-bit histogram of each channel of each image, with Pillow's integer rule."""
    levels = (images * 255).round().clamp(0, 255).long().flatten(2)
    histogram = levels.new_zeros(*levels.shape[:2], 256)
    histogram.scatter_add_(2, levels, torch.ones_like(levels))
    brightest = histogram.gather(2, levels.amax(dim=2, keepdim=True))
    step = (levels.shape[2] - brightest) // 255
    darker = histogram.cumsum(dim=2) - histogram
    table = ((step // 2 + darker) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step > 0, table, torch.arange(256, device=levels.device))
    return (table.gather(2, levels).to(images) / 255).reshape(images.shape)


_Operation = Callable[[Tensor, Tensor], Tensor]

RAND_AUGMENT: dict[str, _Operation] = {
    "identity": lambda images, m: images,
    "autocontrast": lambda images, m: autocontrast(images),
    "equalize": lambda images, m: equalize(images),
    "rotate": lambda images, m: rotate(images, 30 * m),
    "solarize": lambda images, m: solarize(images, 256 / 255 * (1 - m.abs())),
    "saturation": lambda images, m: adjust_saturation(images, 1 + 0.9 * m),
    "posterize": lambda images, m: posterize(images, 8 - (4 * m.abs()).round().long()),
    "contrast": lambda images, m: adjust_contrast(images, 1 + 0.9 * m),
    "brightness": lambda images, m: adjust_brightness(images, 1 + 0.9 * m),
    "sharpness": lambda images, m: adjust_sharpness(images, 1 + 0.9 * m),
    "shear_x": lambda images, m: shear_x(images, 0.3 * m),
    "shear_y": lambda images, m: shear_y(images, 0.3 * m),
    "translate_x": lambda images, m: translate_x(images, 150 / 331 * images.shape[-1] * m),
    "translate_y": lambda images, m: translate_y(images, 150 / 331 * images.shape[-2] * m),
}
"""The 14 operations of RandAugment: ``(images, m) -> images`` with one ``m`` in [-1, 1] an image.

At ``|m| = 1`` stand the ends of AutoAugment's ranges (Cubuk et al. 2018, the table of operations
in the appendix), where a translation of 150 is for images 331 pixels wide; at ``m = 0`` nothing
changes, except through ``autocontrast`` and ``equalize``, which have no strength.
"""

ALBEF_OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "brightness",
    "sharpness",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
    "rotate",
)
"""Those that ALBEF uses, with ``num_ops=2, magnitude=7`` (salesforce/ALBEF, ``dataset``)."""


def rand_augment(
    images: Images,
    num_ops: int = 2,
    magnitude: Number = 9,
    operations: Sequence[str] = tuple(RAND_AUGMENT),
    generator: Generator | None = None,
) -> Images:
    """RandAugment (Cubuk et al. 2019): ``num_ops`` random operations on every image, one by one.

    Each image draws its own operations and the sign of their strength; ``magnitude`` runs from 0
    to 10 as in the paper (torchvision spreads the same ranges over 0-30: its 9 is 3 here).
    ``operations`` picks from ``RAND_AUGMENT``. Images that drew the same operation are computed
    together.
    """
    flat, _ = flatten_batch(images)
    check_between("magnitude", magnitude, 0, 10)
    _check_operations(num_ops, operations)
    draws = (num_ops, len(flat))
    picks = uniform(draws, 0, len(operations), generator).long().cpu()
    signs = 1 - 2 * uniform(draws, 0, 2, generator).long().cpu()
    strengths = signs * (magnitude / 10)
    work = to_float(flat).float().clone()
    for pick, strength in zip(picks, strengths, strict=True):
        for index in pick.unique().tolist():
            chosen = (pick == index).nonzero().flatten()
            operation, rows = RAND_AUGMENT[operations[index]], chosen.to(work.device)
            work[rows] = operation(work[rows], strength[chosen].to(work))
    return restore_kind(work, images).reshape(images.shape)


def _matrix(entries: Sequence[Tensor | int]) -> Float[Tensor, "batch 2 3"]:
    """Six entries, row by row; numbers are the same for every image."""
    like = next(entry for entry in entries if isinstance(entry, Tensor))
    columns = [like.new_full(like.shape, e) if isinstance(e, int) else e for e in entries]
    return torch.stack(columns, dim=1).reshape(-1, 2, 3)


def _blend(zero: Tensor, one: Tensor, factor: Tensor) -> Tensor:
    """``zero`` at factor 0, ``one`` at 1, further out beyond; clamped to 0-1."""
    return (zero + factor[:, None, None, None] * (one - zero)).clamp(0, 1)


def _grey(images: Tensor) -> Tensor:
    """Luma of ITU-R BT.601, which Pillow uses too."""
    weights = images.new_tensor([0.299, 0.587, 0.114])[:, None, None]
    return (images * weights).sum(dim=1, keepdim=True)


def _check_operations(num_ops: int, operations: Sequence[str]) -> None:
    if num_ops < 0:
        raise ValueError(f"num_ops must be 0 or more, got {num_ops}")
    unknown = [name for name in operations if name not in RAND_AUGMENT]
    if unknown or not operations:
        known = ", ".join(RAND_AUGMENT)
        raise ValueError(f"operations must be some of {known}; got {list(operations)}")
