"""What an image tensor is: its kinds, ranges and channel statistics; checks that all share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, UInt8
from torch import Generator, Tensor

Images = UInt8[Tensor, "*batch 3 height width"] | Float[Tensor, "*batch 3 height width"]
ResizedImages = (
    UInt8[Tensor, "*batch 3 new_height new_width"] | Float[Tensor, "*batch 3 new_height new_width"]
)
FloatImages = Float[Tensor, "*batch 3 height width"]
Batch = Float[Tensor, "batch 3 height width"]
PerImage = Float[Tensor, " batch"]
Size = int | tuple[int, int]
Interpolation = Literal["bilinear", "bicubic"]
Number = float | int

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Channel means of ImageNet in 0-1: the convention of torchvision's models, DeiT and timm."""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Channel deviations that go with ``IMAGENET_MEAN``."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Means of CLIP's preprocessing (openai/CLIP, ``clip/clip.py``); ALBEF and BLIP use them too."""
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Channel deviations that go with ``CLIP_MEAN``."""
VIT_MEAN = (0.5, 0.5, 0.5)
"""The original ViT maps pixels to [-1, 1] (google-research/vision_transformer); so does ViLT."""
VIT_STD = (0.5, 0.5, 0.5)
"""Channel deviations that go with ``VIT_MEAN``."""


def to_float(images: Images) -> FloatImages:
    """Map uint8 0-255 to float32 0-1; floating-point images pass through unchanged."""
    check_images(images)
    return images.float() / 255 if images.dtype == torch.uint8 else images


def to_uint8(images: Images) -> UInt8[Tensor, "*batch 3 height width"]:
    """Map 0-1 to the nearest uint8, clamping what lies outside; uint8 passes through unchanged."""
    check_images(images)
    if images.dtype == torch.uint8:
        return images
    return (images.float() * 255).round().clamp(0, 255).to(torch.uint8)


def normalize(
    images: Images,
    mean: Sequence[Number] = IMAGENET_MEAN,
    std: Sequence[Number] = IMAGENET_STD,
) -> FloatImages:
    """``(images - mean) / std`` by channel; uint8 images are first mapped to 0-1."""
    images = to_float(images)
    mean, std = _channel_statistics(mean, std, images)
    return (images - mean) / std


def denormalize(
    images: FloatImages,
    mean: Sequence[Number] = IMAGENET_MEAN,
    std: Sequence[Number] = IMAGENET_STD,
) -> FloatImages:
    """Undo ``normalize``: the floating-point 0-1 images it was given."""
    check_images(images)
    if images.dtype == torch.uint8:
        raise ValueError("denormalize takes the floating-point result of normalize, got uint8")
    mean, std = _channel_statistics(mean, std, images)
    return images * std + mean


def _channel_statistics(
    mean: Sequence[Number], std: Sequence[Number], images: Tensor
) -> tuple[Tensor, Tensor]:
    """Both as tensors that broadcast over ``images``."""
    if len(mean) != 3 or len(std) != 3 or not all(s > 0 for s in std):
        raise ValueError(
            f"mean and std must be three numbers each, std above 0, got {mean} and {std}"
        )
    return images.new_tensor(mean)[:, None, None], images.new_tensor(std)[:, None, None]


def flatten_batch(images: object) -> tuple[Tensor, torch.Size]:
    """All leading dimensions as one, and what they were."""
    check_images(images)
    return images.reshape(-1, *images.shape[-3:]), images.shape[:-3]


def restore_kind(result: Tensor, images: Tensor) -> Tensor:
    """The result as the kind of tensor that the caller gave."""
    if images.dtype == torch.uint8:
        return to_uint8(result)
    return result.to(images.dtype)


def uniform(
    shape: tuple[int, ...], low: Number, high: Number, generator: Generator | None
) -> Tensor:
    """Even draws from [low, high), on the generator's device."""
    device = "cpu" if generator is None else generator.device
    draws = torch.rand(shape, generator=generator, device=device)
    return low + (high - low) * draws


def check_images(images: object) -> None:
    """Refuse what is not a filled ``uint8`` or floating-point RGB batch."""
    if not isinstance(images, Tensor):
        raise ValueError(f"images must be a tensor, got {type(images).__name__}")
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(
            f"images must be uint8 (0-255) or floating point (0-1), got {images.dtype}"
        )
    shape = tuple(images.shape)
    if images.ndim < 3 or shape[-3] != 3:
        grey = "; repeat a grey image three times" if images.ndim > 2 and shape[-3] == 1 else ""
        raise ValueError(f"images must have shape (..., 3, height, width), got {shape}{grey}")
    if images.numel() == 0:
        raise ValueError(f"images must not be empty, got shape {shape}")


def check_between(name: str, value: Number, low: Number, high: Number) -> None:
    """Refuse numbers outside [low, high], NaN among them."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, got {value}")


def check_choice(name: str, value: object, allowed: Sequence[str] | dict) -> None:
    """Refuse what is not among the names allowed."""
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}")


def random_integers(count: int, highest: int, generator: Generator | None) -> Tensor:
    """Even draws from 0 … ``highest``, both included."""
    device = "cpu" if generator is None else generator.device
    return torch.randint(highest + 1, (count,), generator=generator, device=device)


def check_range(name: str, value: tuple[Number, Number], upper: Number = math.inf) -> None:
    """Refuse pairs other than ``0 < low <= high <= upper``, all finite."""
    low, high = value
    if not 0 < low <= high <= upper or math.isinf(high):
        limit = f" <= {upper}" if math.isfinite(upper) else ""
        raise ValueError(f"{name} must be (low, high) with 0 < low <= high{limit}, got {value}")
