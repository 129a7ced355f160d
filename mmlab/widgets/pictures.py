"""Pictures on their way to the page: named, checked, squared, and packed without loss."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from mmlab.datasets.example import Example


def named_images(
    images: Mapping[str, Tensor] | Sequence[Example], figure: str
) -> dict[str, Tensor]:
    """Name → image; examples are named by label, and by id where a label comes twice.

    ValueError, in the name of ``figure``, if there is none or one is not RGB in uint8.
    """
    if isinstance(images, Mapping):
        named = dict(images)
    else:
        labels = [example.label for example in images]
        named = {e.label if labels.count(e.label) == 1 else e.id: e.image for e in images}
    if not named:
        raise ValueError(f"images is empty; {figure} needs at least one picture")
    for name, image in named.items():
        _check_image(name, image)
    return named


def middle_square(image: UInt8[Tensor, "3 height width"], size: int) -> Image.Image:
    """The middle square, resized."""
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    return ImageOps.fit(picture, (size, size), Image.Resampling.BICUBIC)


def webp_bytes(picture: Image.Image) -> bytes:
    """The picture, lossless, so that the page computes with the very pixels that Python has."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, quality=75)
    return buffer.getvalue()


def float32_bytes(*tensors: Tensor) -> bytes:
    """All entries one after another, as the page reads them."""
    arrays = [t.detach().to("cpu", torch.float32).flatten().numpy() for t in tensors]
    return np.concatenate(arrays).astype("<f4").tobytes()


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """ValueError unless pixels can be normalised with these."""
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise ValueError(f"mean={mean} and std={std}; allowed are three numbers each, std above 0")


def unit_pixels(picture: Image.Image) -> Float[Tensor, "3 size size"]:
    """Values in [0, 1], of the very pixels that the page shows."""
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def _check_image(name: str, image: Tensor) -> None:
    if not isinstance(image, Tensor) or image.dtype != torch.uint8:
        given = getattr(image, "dtype", type(image).__name__)
        raise ValueError(f"images[{name!r}] is {given}; allowed is a uint8 tensor (0-255)")
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ValueError(
            f"images[{name!r}] has shape {tuple(image.shape)}; allowed is (3, height, width), RGB"
        )
