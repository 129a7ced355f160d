"""A ViLT small enough to train in seconds, and its world: a close-up of one shape, three words.

Pictures and words are as few as that because a single-stream network from scratch learns slowly: in
a pilot with whole scenes it had learned nothing in 200 steps, while with close-ups it had found the colour word
by then. The shape word it finds in neither, so the experiments ask for colours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, partial

import torch
from jaxtyping import Bool, Float
from mmlab.datasets import Tokenizer, train_wordpiece
from mmlab.datasets.scenes import COLORS, SHAPES
from mmlab.datasets.tokenizer import TokenBatch
from mmlab.models.vilt import ViLT, ViLTConfig, ViLTPretraining
from torch import Tensor, nn

from experiments import d16_zero_shot as d16
from experiments.training import Batch, Labels, Pictures, fit

IMAGE_SIZE, PATCH_SIZE, CONTEXT = 32, 8, 12
GRID = IMAGE_SIZE // PATCH_SIZE
NUM_PAIRS, NUM_TEST = 4000, 400
BATCH_SIZE, LR = 48, 3e-3
COLOR_WORD = 1
"""The number of the word that names the colour: "a red ring"."""

CAPTIONS = [f"a {color} {shape}" for color in COLORS for shape in SHAPES]


@dataclass(frozen=True)
class Pairs:
    """Close-ups with the names of the shape's colour and kind."""

    images: Pictures
    colors: list[str]
    shapes: list[str]

    @property
    def captions(self) -> list[str]:
        """Sentences such as "a red ring"."""
        named = zip(self.colors, self.shapes, strict=True)
        return [f"a {color} {shape}" for color, shape in named]


@lru_cache(maxsize=4)
def pairs(num: int, split: str, seed: int) -> Pairs:
    """``num`` close-ups; kept once drawn, as the conditions of one seed share them."""
    data = d16.one_shape(num, split, seed)
    things = [scene.objects[0] for scene in data.scenes]
    return Pairs(
        d16.close_ups(data, seed),
        [thing.color for thing in things],
        [thing.shape for thing in things],
    )


def covered(
    num: int, split: str, seed: int
) -> Bool[Tensor, "num patches"]:
    """The patches of these close-ups of which the shape fills a quarter or more."""
    data = d16.one_shape(num, split, seed)
    masks = torch.stack([data.masks(i) for i in range(len(data))])
    windows = d16._windows(masks, d16._corners(data, seed))
    shares = nn.functional.avg_pool2d(windows.float(), PATCH_SIZE)
    return shares.flatten(1) >= 1 / 4


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """Every word of the captions is one token."""
    return train_wordpiece(CAPTIONS, 200)


def tokens(captions: list[str]) -> TokenBatch:
    """Captions as rows, no longer than the longest."""
    return tokenizer()(captions, CONTEXT)


def config(words: Tokenizer, **changes) -> ViLTConfig:
    """The small ViLT; ``changes`` as for ``ViLTConfig``."""
    sizes = {
        "image_size": IMAGE_SIZE,
        "patch_size": PATCH_SIZE,
        "dim": 64,
        "depth": 2,
        "num_heads": 4,
        "mlp_dim": 128,
        "vocab_size": words.vocab_size,
        "context_length": CONTEXT,
        "dropout": 0.0,
    }
    return ViLTConfig(**{**sizes, **changes})


def loss_of_rows(
    texts: TokenBatch,
    whole_words: bool,
    module: ViLTPretraining,
    images: Batch,
    rows: Labels,
) -> Float[Tensor, ""]:
    """The sum of the losses on the pairs ``rows``."""
    batch = {
        "images": images,
        "input_ids": texts.input_ids[rows],
        "attention_mask": texts.attention_mask[rows],
    }
    if whole_words:
        batch["word_ids"] = texts.word_ids[rows]
    return torch.stack(list(module.losses(batch).values())).sum()


def train(
    module: ViLTPretraining,
    images: Pictures,
    texts: TokenBatch,
    seed: int,
    steps: int,
    whole_words: bool = True,
) -> ViLT:
    """Pre-train on pairs; everything random is drawn from ``seed``."""
    torch.manual_seed(seed)
    fit(
        module,
        images,
        torch.arange(len(images)),
        steps,
        LR,
        seed,
        BATCH_SIZE,
        loss=partial(loss_of_rows, texts, whole_words),
    )
    return module.network


class WordsAlone(ViLTPretraining):
    """Masked words and no other loss."""

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The first of ``ViLTPretraining.losses``, at half of its price."""
        words = self._masked_words(batch, batch["images"], None)
        return {"masked_words": words}


def new_module(
    seed: int,
    kind: type[ViLTPretraining] = ViLTPretraining,
    words: Tokenizer | None = None,
    **changes,
) -> ViLTPretraining:
    """Fresh weights drawn from ``seed``, ready for pre-training; ``words`` cut the captions."""
    words = words or tokenizer()
    torch.manual_seed(seed)
    return kind(ViLT(config(words, **changes)), mask_id=words.mask_id)


@torch.no_grad()
def found_words(
    module: ViLTPretraining,
    images: Batch,
    texts: TokenBatch,
    word: int = COLOR_WORD,
) -> Bool[Tensor, " num"]:
    """Whether each caption's word number ``word``, all of it masked, is found with all its pieces."""
    network, asked = module.network, texts.word_ids == word
    masked = texts.input_ids.masked_fill(asked, module.mask_id)
    features = network(masked, images, texts.attention_mask)
    right = network.word_logits(features).argmax(-1) == texts.input_ids
    return (right | ~asked).all(1)


@torch.no_grad()
def matching_accuracy(
    network: ViLT, images: Batch, texts: TokenBatch
) -> float:
    """Share of pairs that are told to match or not: true ones, and as many with the next picture."""
    captions, right = list(texts.texts), []
    for shift in (0, 1):
        features = network(
            texts.input_ids, images.roll(shift, 0), texts.attention_mask
        )
        said = network.matching_logits(features).argmax(-1).bool()
        # The next picture may have the same caption by chance.
        truth = [
            captions[i] == captions[i - shift]
            for i in range(len(captions))
        ]
        right.append(said == torch.tensor(truth))
    return torch.cat(right).float().mean().item()
