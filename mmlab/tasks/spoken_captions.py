"""Pictures with captions in the tokens of a language model: what stage 2 of BLIP-2 trains on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Int64
from torch import Generator, Tensor

from mmlab import datasets
from mmlab.datasets import Scenes
from mmlab.datasets.example import Example
from mmlab.datasets.scenes.world import MAX_OBJECTS
from mmlab.datasets.transforms import normalize
from mmlab.tasks.language_models import LanguageModel
from mmlab.tasks.paired_scenes import CAPTION_KINDS
from mmlab.tasks.preparation import Channels, random_square


@dataclass(frozen=True)
class SpokenScenes:
    """Scenes, of which a batch takes one caption each.

    Caption ``v`` of image ``i`` is ``input_ids[i, v]``, of which the first ``lengths[i, v]`` are no
    padding. ``statistics`` are the mean and deviation that images are normalised with.
    """

    dataset: Scenes
    language: LanguageModel
    input_ids: Int64[Tensor, "num variants tokens"]
    lengths: Int64[Tensor, "num variants"]
    statistics: tuple[Channels, Channels]

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        """``{"images"}`` of ``rows[share]``, and texts as ``BLIP2Language.losses`` takes them.

        Captions are drawn for all ``rows``, and cut to the longest of them.
        """
        variant = torch.randint(self.lengths.shape[1], (len(rows),), generator=generator)
        ids, lengths = self.input_ids[rows, variant], self.lengths[rows, variant]
        ids = ids[:, : int(lengths.max())]
        images = normalize(self.dataset.images(rows[share]), *self.statistics)
        return {"images": images, **spoken(self.language, ids[share], lengths[share])}


def spoken_scenes(
    image_size: int,
    max_length: int,
    num_images: int,
    seed: int,
    language: LanguageModel,
    statistics: tuple[Channels, Channels],
    most_objects: int = MAX_OBJECTS,
) -> SpokenScenes:
    """Scenes of the split ``"train"`` with a short and a medium English caption each."""
    shown = (1, most_objects)
    dataset = datasets.scenes(num_images, "train", image_size, seed=seed, num_objects=shown)
    texts = [dataset.captions("en", kind) for kind in CAPTION_KINDS]
    tables = [language.encode(own, max_length) for own in texts]
    ids, lengths = (torch.stack(part, 1) for part in zip(*tables, strict=True))
    return SpokenScenes(dataset, language, ids, lengths, statistics)


@dataclass(frozen=True)
class SpokenShards:
    """Makes batches of what comes out of ``shards``."""

    shards: tuple[str, ...]
    language: LanguageModel
    image_size: int
    max_length: int
    statistics: tuple[Channels, Channels]
    wants: str = "pairs"

    def collate(self, examples: Iterable[Example], draws: Generator) -> dict[str, Tensor]:
        """A random square of each picture, and the caption drawn."""
        images, texts = [], []
        for example in examples:
            images.append(random_square(example.image, self.image_size, draws))
            texts.append(example.captions[0].text)
        ids, lengths = self.language.encode(texts, self.max_length)
        ids = ids[:, : int(lengths.max())]
        images = normalize(torch.stack(images), *self.statistics)
        return {"images": images, **spoken(self.language, ids, lengths)}


def spoken(
    language: LanguageModel, ids: Int64[Tensor, "batch tokens"], lengths: Int64[Tensor, " batch"]
) -> dict[str, Tensor]:
    """Texts as a language model learns them: told to a decoder but for their start, or written.

    An encoder-decoder reads nothing but the image, as LAVIS has it for captions.
    """
    valid = torch.arange(ids.shape[1]) < lengths[:, None]
    if language.is_encoder_decoder:
        start = len(language.start_ids)
        return {"output_ids": ids[:, start:], "output_mask": valid[:, start:]}
    given = torch.full_like(lengths, len(language.start_ids))
    return {"input_ids": ids, "attention_mask": valid, "prompt_lengths": given}
