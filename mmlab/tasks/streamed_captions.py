"""Pictures with captions from tar shards, where no memory holds all; or one of the two alone."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Generator, Tensor

from mmlab.datasets.example import Example
from mmlab.datasets.shards import ShardError, ShardOptions, ShardStream
from mmlab.datasets.tokenizer import Tokenizer, train_wordpiece
from mmlab.datasets.transforms import normalize
from mmlab.tasks.preparation import Channels, random_square

CAPTIONS_TO_LEARN_FROM = 100_000


@dataclass(frozen=True)
class StreamedCaptions:
    """Makes batches of what comes out of ``shards``; ``statistics`` are the images' normalisation.

    With ``ends=False`` captions have no [SEP]; with ``whole_words`` a batch tells by ``"word_ids"``
    which pieces are of one word. ``wants`` as in ``ShardOptions``: a batch has no texts, or no
    images, where they are not wanted. Nothing here depends on how many processes read: each gets
    batches of shards of its own.
    """

    shards: tuple[str, ...]
    tokenizer: Tokenizer
    image_size: int
    context_length: int
    statistics: tuple[Channels, Channels]
    ends: bool = True
    whole_words: bool = False
    wants: str = "pairs"

    def collate(self, examples: Iterable[Example], draws: Generator) -> dict[str, Tensor]:
        """``{"images", "input_ids"}``: a random square of each picture, and the caption drawn.

        Texts are cut to the context, and filled up to the longest of the batch. One that the
        tokenizer knows nothing of, such as a lone control character, is an empty one.
        """
        images, texts = [], []
        for example in examples:
            if self.wants != "texts":
                images.append(random_square(example.image, self.image_size, draws))
            if self.wants != "images":
                texts.append(example.captions[0].text)
        made = {"images": normalize(torch.stack(images), *self.statistics)} if images else {}
        return made | (self._words(texts) if texts else {})

    def _words(self, texts: list[str]) -> dict[str, Tensor]:
        settings = {"allow_empty": True, "add_last": self.ends}
        words = self.tokenizer(texts, self.context_length, **settings)
        pieces = {"word_ids": words.word_ids} if self.whole_words else {}
        return {"input_ids": words.input_ids, **pieces}


def learn_tokenizer(
    shards: Sequence[str], vocab_size: int, seed: int = 0, wants: str = "pairs"
) -> Tokenizer:
    """Word pieces from a first pass over the captions of shards, no image decoded.

    It ends after ``CAPTIONS_TO_LEARN_FROM`` captions, of shards in a random order that ``seed``
    gives; ``wants`` says which samples count, as in ``ShardOptions``. ShardError if no caption can
    be read.
    """
    options = ShardOptions(seed=seed, epochs=1, wants=wants)
    captions = list(islice(ShardStream(shards, options).captions(), CAPTIONS_TO_LEARN_FROM))
    if not captions:
        raise ShardError(f"no caption in {len(shards)} shards, and no tokenizer is named")
    return train_wordpiece(captions, vocab_size)
