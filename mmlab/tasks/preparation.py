"""What a picture goes through before a dual encoder sees it."""

from __future__ import annotations

from jaxtyping import UInt8
from torch import Generator, Tensor

from mmlab.datasets.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    VIT_MEAN,
    VIT_STD,
    random_crop,
    resize,
)
from mmlab.models.blip2 import BLIP2Config
from mmlab.models.flip import FLIPConfig
from mmlab.models.vilt import ViLTConfig
from mmlab.models.vlmo import VLMoConfig

Channels = tuple[float, float, float]


def image_statistics(config: object) -> tuple[Channels, Channels]:
    """Mean and deviation that the images of a model are normalised with.

    CLIP's own, which CLIP and most of its heirs take; ImageNet's for FLIP, and halves for ViLT and
    VLMo, as in their codes. Of a BLIP-2 those of its image encoder: halves for a ViT of ours and
    for an EfficientNet-Lite0, whose code has 127 and 128 of 255.
    """
    if isinstance(config, BLIP2Config) and config.image_encoder in ("vit", "efficientnet"):
        return VIT_MEAN, VIT_STD
    if isinstance(config, ViLTConfig | VLMoConfig):
        return VIT_MEAN, VIT_STD
    if isinstance(config, FLIPConfig):
        return IMAGENET_MEAN, IMAGENET_STD
    return CLIP_MEAN, CLIP_STD


def random_square(
    image: UInt8[Tensor, "3 _ _"], size: int, generator: Generator
) -> UInt8[Tensor, "3 size size"]:
    """The largest square at a random place, resized: CLIP's only augmentation (section 2.3).

    The paper resizes before it cuts: the same up to a pixel, but a picture that is one pixel high
    would become thousands of times as wide as the model's.
    """
    square = random_crop(image, min(image.shape[-2:]), generator)
    return resize(square, (size, size), "bicubic")
