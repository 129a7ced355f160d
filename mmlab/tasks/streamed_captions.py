"""Pictures with captions from tar shards: what dual encoders train on where no memory holds all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Generator, Tensor

from mmlab.datasets.example import Example
from mmlab.datasets.shards import ShardOptions, ShardStream
from mmlab.datasets.tokenizer import Tokenizer, train_wordpiece
from mmlab.datasets.transforms import normalize
from mmlab.tasks.preparation import Channels, random_square

CAPTIONS_TO_LEARN_FROM = 100_000


@dataclass(frozen=True)
class StreamedCaptions:
    """Makes batches of what comes out of ``shards``; ``statistics`` are the images' normalisation.

    With ``ends=False`` captions have no [SEP]; with ``whole_words`` a batch tells by ``"word_ids"``
    which pieces are of one word. Nothing here depends on how many processes read:
    each gets batches of shards of its own.
    """

    shards: tuple[str, ...]
    tokenizer: Tokenizer
    image_size: int
    context_length: int
    statistics: tuple[Channels, Channels]
    ends: bool = True
    whole_words: bool = False

    def collate(self, examples: Iterable[Example], draws: Generator) -> dict[str, Tensor]:
        """``{"images", "input_ids"}``: a random square of each picture, and the caption drawn.

        Captions are cut to the context, and filled up to the longest of the batch. One that the
        tokenizer knows nothing of, such as a lone control character, is an empty one.
        """
        images, texts = [], []
        for example in examples:
            images.append(random_square(example.image, self.image_size, draws))
            texts.append(example.captions[0].text)
        settings = {"allow_empty": True, "add_last": self.ends}
        words = self.tokenizer(texts, self.context_length, **settings)
        made = {"images": normalize(torch.stack(images), *self.statistics)}
        made["input_ids"] = words.input_ids
        return made | ({"word_ids": words.word_ids} if self.whole_words else {})


def learn_tokenizer(shards: Sequence[str], vocab_size: int, seed: int = 0) -> Tokenizer:
    """Word pieces from a first pass over the captions of shards, no image decoded.

    It ends after ``CAPTIONS_TO_LEARN_FROM`` captions, of shards in a random order that ``seed``
    gives. ShardError if no caption can be read.
    """
    options = ShardOptions(seed=seed, epochs=1)
    captions = list(islice(ShardStream(shards, options).captions(), CAPTIONS_TO_LEARN_FROM))
    return train_wordpiece(captions, vocab_size)
