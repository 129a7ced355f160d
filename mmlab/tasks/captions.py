"""Pictures with captions: what dual encoders train on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int64, UInt8
from torch import Generator, Tensor

from mmlab import datasets
from mmlab.datasets import Emoji, Scenes
from mmlab.datasets.emoji import KINDS as EMOJI_KINDS
from mmlab.datasets.emoji import LANGUAGES, TRAINING_VENDORS
from mmlab.datasets.scenes.language import KINDS as SCENE_KINDS
from mmlab.datasets.tokenizer import Tokenizer, train_wordpiece
from mmlab.datasets.transforms import (
    CLIP_MEAN,
    CLIP_STD,
    crop_and_resize,
    normalize,
    rand_augment,
    sample_crop_boxes,
)

VOCAB_SIZE = 4000
CROP_SCALE = (0.5, 1.0)
"""Least and greatest share of an image's area that a random crop shows."""
NUM_OPERATIONS, MAGNITUDE = 2, 7
"""RandAugment's: how many operations an image gets, and how strong they are, from 0 to 10."""


@dataclass(frozen=True)
class CaptionedImages:
    """Images of a data set, each with several captions, of which a batch takes one at random.

    ``input_ids[i, v]`` is caption ``v`` of image ``i``. ``augment`` crops images and changes their
    colours in training; they are never flipped, as captions speak of left and right.
    """

    dataset: Emoji | Scenes
    input_ids: Int64[Tensor, "num variants tokens"]
    tokenizer: Tokenizer
    augment: bool = False

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        """``{"images", "input_ids"}`` of ``rows[share]``, with CLIP's mean and deviation.

        Everything random is drawn for all ``rows``, whatever the share; captions are cut to the
        longest of them.
        """
        variants = torch.randint(self.input_ids.shape[1], (len(rows),), generator=generator)
        ids = self.input_ids[rows, variants]
        ids = ids[:, : int((ids != self.tokenizer.pad_id).any(0).sum())]
        images = self.dataset.images(rows)
        if self.augment:
            images = augment_drawings(images, generator)
        return {
            "images": normalize(images[share], CLIP_MEAN, CLIP_STD),
            "input_ids": ids[share],
        }


def augment_drawings(
    images: UInt8[Tensor, "batch 3 height width"], generator: Generator
) -> UInt8[Tensor, "batch 3 height width"]:
    """A random crop, and RandAugment: what stays the same is the shape, not the style."""
    height, width = images.shape[-2:]
    boxes = sample_crop_boxes(len(images), height, width, CROP_SCALE, generator=generator)
    cropped = crop_and_resize(images, boxes, (height, width))
    return rand_augment(cropped, NUM_OPERATIONS, MAGNITUDE, generator=generator)


def emoji_captions(
    image_size: int,
    context_length: int,
    vendors: str | Sequence[str] = TRAINING_VENDORS,
    tokenizer: Tokenizer | None = None,
    augment: bool = False,
) -> CaptionedImages:
    """The emoji to train on with their names and keywords in English and Chinese.

    Without a ``tokenizer``, one is made from these captions.
    """
    dataset = datasets.emoji("train", vendors, image_size=image_size)
    texts = [dataset.captions(lang, kind) for lang in LANGUAGES for kind in EMOJI_KINDS]
    return _captioned(dataset, texts, context_length, tokenizer, augment)


def scene_captions(
    image_size: int,
    context_length: int,
    num_images: int,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
) -> CaptionedImages:
    """Scenes with an English caption of each level of detail; they are never augmented."""
    dataset = datasets.scenes(num_images, "train", image_size, seed=seed)
    texts = [dataset.captions("en", kind) for kind in SCENE_KINDS]
    return _captioned(dataset, texts, context_length, tokenizer, augment=False)


def _captioned(
    dataset: Emoji | Scenes,
    texts: Sequence[Sequence[str]],
    context_length: int,
    tokenizer: Tokenizer | None,
    augment: bool,
) -> CaptionedImages:
    if tokenizer is None:
        # Once each: how often a text comes up should not depend on how many drew its picture.
        once = [text for variant in texts for text in dict.fromkeys(variant)]
        tokenizer = train_wordpiece(once, VOCAB_SIZE)
    rows = [tokenizer(variant, context_length, "max_length").input_ids for variant in texts]
    return CaptionedImages(dataset, torch.stack(rows, 1), tokenizer, augment)
