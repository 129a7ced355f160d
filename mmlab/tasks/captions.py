"""Pictures with captions: what dual encoders train on."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64, UInt8
from torch import Generator, Tensor

from mmlab import datasets
from mmlab.datasets import Emoji, Scenes
from mmlab.datasets.emoji import TRAINING_VENDORS
from mmlab.datasets.scenes.language import KINDS as SCENE_KINDS
from mmlab.datasets.scenes.world import MAX_OBJECTS
from mmlab.datasets.tokenizer import Tokenizer, train_wordpiece
from mmlab.datasets.transforms import CLIP_MEAN, CLIP_STD, normalize, to_float, to_uint8
from mmlab.datasets.transforms.images import Batch, PerImage
from mmlab.datasets.transforms.randaugment import adjust_saturation, affine
from mmlab.tasks.preparation import Channels

VOCAB_SIZE = 4000
LARGEST_BLEND = 0.5
"""Greatest share of another drawing of the same concept that is laid over a drawing."""
LARGEST_TURN, LARGEST_SLANT = 12, 0.12
"""Greatest turn of a drawing in degrees, and shift of a row by its distance from the centre."""
LARGEST_ZOOM, LARGEST_STRETCH = 1.2, 1.1
"""Greatest factor on both sides, and on the width while the height is divided by it."""
LARGEST_SHIFT = 0.06
"""Greatest shift, as a share of the side."""
LARGEST_GAMMA, LARGEST_SATURATION = 1.2, 0.3
"""Greatest exponent of a colour channel in 0-1, and greatest change of the saturation."""
EMOJI_TEXTS = {("en", "name"): 4, ("en", "keywords"): 1, ("zh", "name"): 2, ("zh", "keywords"): 1}
"""How often an emoji is trained on with each of its texts, in turns out of eight."""


@dataclass(frozen=True)
class CaptionedImages:
    """What may be drawn, each with several captions; a batch takes a drawing and a caption of each.

    ``drawings[i]`` are rows of ``dataset`` that show thing ``i``, ``input_ids[i, v]`` is caption
    ``v`` of it. So nothing comes up twice in a batch, where its caption would count as wrong for
    the other drawing. ``augment`` changes drawings (``augment_drawings``); none is mirrored,
    as captions speak of left and right. ``statistics`` are the mean and deviation that
    they are normalised with.
    """

    dataset: Emoji | Scenes
    drawings: Int64[Tensor, "num drawings"]
    input_ids: Int64[Tensor, "num variants tokens"]
    tokenizer: Tokenizer
    augment: bool = False
    statistics: tuple[Channels, Channels] = (CLIP_MEAN, CLIP_STD)

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        """``{"images", "input_ids"}`` of ``rows[share]``.

        Everything random is drawn for all ``rows``, whatever the share; captions are cut to the
        longest of them.
        """
        ids = _pick(self.input_ids, rows, generator)
        ids = ids[:, : int((ids != self.tokenizer.pad_id).any(0).sum())]
        images = self.dataset.images(_pick(self.drawings, rows, generator)[share])
        if self.augment:
            others = self.dataset.images(_pick(self.drawings, rows, generator)[share])
            images = augment_drawings(images, others, generator, len(rows), share)
        return {"images": normalize(images, *self.statistics), "input_ids": ids[share]}


def _pick(
    table: Int64[Tensor, "num choices *rest"], rows: Int64[Tensor, " batch"], generator: Generator
) -> Int64[Tensor, " batch *rest"]:
    """One of the choices of each row, at random."""
    return table[rows, torch.randint(table.shape[1], (len(rows),), generator=generator)]


def augment_drawings(
    images: UInt8[Tensor, "share 3 height width"],
    others: UInt8[Tensor, "share 3 height width"],
    generator: Generator,
    num_rows: int | None = None,
    share: slice = slice(None),
) -> UInt8[Tensor, "share 3 height width"]:
    """``images`` as another hand might have drawn them.

    Lays ``others``, drawings of the same things, faintly over them: a style between two, as mixup
    has it (Zhang et al. 2018), but within one concept, so that the caption stays true. Then turns,
    stretches, slants and shifts each on white, and changes its colours. ``images`` are the
    ``share`` of a batch of ``num_rows``, for all of which numbers are drawn.
    """
    num_rows = len(images) if num_rows is None else num_rows
    weight, *spread = torch.rand(11, num_rows, generator=generator)[:, share]
    weight = LARGEST_BLEND * weight[:, None, None, None]
    spread = [2 * numbers - 1 for numbers in spread]
    blended = torch.lerp(to_float(images), to_float(others), weight)
    placed = affine(blended, _placements(*spread[:6], side=images.shape[-1]), fill=1.0)
    return to_uint8(_recolour(placed, *spread[6:]))


def _placements(
    turn: PerImage,
    zoom: PerImage,
    stretch: PerImage,
    slant: PerImage,
    right: PerImage,
    down: PerImage,
    side: int,
) -> Float[Tensor, "batch 2 3"]:
    """From numbers in [-1, 1], where ``affine`` looks for each pixel."""
    cos, sin = (f(math.radians(LARGEST_TURN) * turn) for f in (torch.cos, torch.sin))
    across = LARGEST_ZOOM**zoom * LARGEST_STRETCH**stretch
    along = LARGEST_ZOOM**zoom / LARGEST_STRETCH**stretch
    first = [across * cos, across * (LARGEST_SLANT * slant - sin), LARGEST_SHIFT * side * right]
    second = [along * sin, along * cos, LARGEST_SHIFT * side * down]
    return torch.stack([torch.stack(first, 1), torch.stack(second, 1)], 1)


def _recolour(
    images: Batch, red: PerImage, green: PerImage, blue: PerImage, saturation: PerImage
) -> Batch:
    """A gamma of its own for each channel, then more or less colour, from numbers in [-1, 1]."""
    gamma = LARGEST_GAMMA ** torch.stack([red, green, blue], 1)[:, :, None, None]
    return adjust_saturation(images.clamp(0, 1) ** gamma, 1 + LARGEST_SATURATION * saturation)


def emoji_captions(
    image_size: int,
    context_length: int,
    vendors: str | Sequence[str] = TRAINING_VENDORS,
    tokenizer: Tokenizer | None = None,
    augment: bool = False,
) -> CaptionedImages:
    """The concepts to train on with their names and keywords in English and Chinese.

    Without a ``tokenizer``, one is made from these captions.
    """
    dataset = datasets.emoji("train", vendors, image_size=image_size)
    drawings = same_labels(dataset.labels)
    texts = []
    for text, turns in EMOJI_TEXTS.items():
        captions = dataset.captions(*text)
        texts += turns * [[captions[row] for row in drawings[:, 0].tolist()]]
    return _captioned(dataset, drawings, texts, context_length, tokenizer, augment)


def same_labels(labels: Int64[Tensor, " num"]) -> Int64[Tensor, "labels most"]:
    """For each label, in rising order, the rows that have it; those with fewer repeat theirs."""
    rows = [(labels == label).nonzero().flatten() for label in labels.unique()]
    most = max(map(len, rows))
    return torch.stack([own.repeat(most)[:most] for own in rows])


def scene_captions(
    image_size: int,
    context_length: int,
    num_images: int,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    most_objects: int = MAX_OBJECTS,
) -> CaptionedImages:
    """Scenes with an English caption of each level of detail; they are never augmented."""
    shown = (1, most_objects)
    dataset = datasets.scenes(num_images, "train", image_size, seed=seed, num_objects=shown)
    texts = [dataset.captions("en", kind) for kind in SCENE_KINDS]
    drawings = torch.arange(num_images)[:, None]
    return _captioned(dataset, drawings, texts, context_length, tokenizer)


def _captioned(
    dataset: Emoji | Scenes,
    drawings: Int64[Tensor, "num drawings"],
    texts: Sequence[Sequence[str]],
    context_length: int,
    tokenizer: Tokenizer | None,
    augment: bool = False,
) -> CaptionedImages:
    if tokenizer is None:
        # Once each: how often a text comes up should not depend on how many drew its picture.
        once = dict.fromkeys(text for variant in texts for text in variant)
        tokenizer = train_wordpiece(list(once), VOCAB_SIZE)
    rows = [tokenizer(variant, context_length, "max_length").input_ids for variant in texts]
    return CaptionedImages(dataset, drawings, torch.stack(rows, 1), tokenizer, augment)
