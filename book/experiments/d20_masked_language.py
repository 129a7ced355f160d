"""D20: does masked language modelling look at the picture, and does masking whole words make it look more?

Question. ViLT hides 15 % of a caption's words and finds them again with the picture's help. Is the picture
used? And a word cut into pieces ("gi ##raf ##fe") can be guessed from the pieces that are left; ViLT therefore hides
whole words (section 3.3). Does that make a model look more?

Set-up. A small ViLT (32 pixels, patches of 8, 2 blocks of width 64) learns masked words and nothing else from 4,000
close-ups of one shape with captions such as "a red shape", 200 steps of 48 pairs. The vocabulary is so small that every
colour is cut into two or three pieces ("or ##an ##ge"). Two arms: single pieces masked, and whole words
masked, both at 15 %. Tests on 400 new close-ups with three kinds of picture: the true one, another one (the next of the test
set), and a grey one.

- *Colour word*: all its pieces are hidden, and all must be found. How many are hidden shows how many pieces the word has,
  so the prior is what one finds by always naming the commonest colour with that many pieces.
- *Pieces*: pieces hidden as in training of that arm (15 %, always by the mask token), mean over them.

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds, paired:

- *The picture is used* (VLT-14): colour word, whole-word arm, true minus other picture, and true minus grey. Confirmed
  above zero, refuted below.
- *Without it there is the prior* (VLT-14): colour word with a grey picture minus the prior. Confirmed if the whole interval lies
  below 5 points.
- *Pieces give words away* (VLT-05): pieces found with a grey picture, single pieces minus whole words. Confirmed that whole-word
  masking lowers what can be guessed blindly if above zero, refuted if below.
- *And so the picture is used more* (VLT-05): what the true picture adds to the grey one on pieces, whole words minus single
  pieces. And the colour word with the true picture, whole words minus single pieces. Confirmed above zero, refuted below.

What this scale cannot tell. Eight captions, all alike but for a word, so the rest of a word can be guessed from any piece. A natural language is less
regular, and of the words in ViLT's captions few are cut at all.
"""

from __future__ import annotations

import sys
from collections import Counter
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlab.datasets import Tokenizer, train_wordpiece
from mmlab.datasets.scenes import COLORS
from mmlab.datasets.tokenizer import TokenBatch
from mmlab.models.vilt import ViLTPretraining, inner_words
from mmlab.objectives.masked_language import IGNORED, mask_tokens
from mmlab.training.seeds import generator

from experiments import small_vilt as small
from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    above_zero,
    interval,
    main,
    points,
    verdict,
)
from experiments.training import Batch, prepare

STEPS = 200
CAPTIONS = tuple(f"a {color} shape" for color in COLORS)
PIECES = 60
ARMS = {"single pieces": False, "whole words": True}
PICTURES = TRUE, OTHER, GREY = ("true", "other", "grey")
ROUNDS = 8
PRIOR = "prior"
PRIOR_MARGIN = 0.05


@lru_cache(maxsize=1)
def tokenizer() -> Tokenizer:
    """Cuts every colour into pieces."""
    return train_wordpiece(CAPTIONS, PIECES, min_count=1)


def tokens(data: small.Pairs) -> TokenBatch:
    """Captions that name the colour and nothing else."""
    return tokenizer()(
        [f"a {color} shape" for color in data.colors], small.CONTEXT
    )


def train(condition: str, seed: int) -> ViLTPretraining:
    """The small ViLT after pre-training with this kind of masks."""
    data = small.pairs(small.NUM_PAIRS, "train", seed)
    module = small.new_module(seed, small.WordsAlone, tokenizer())
    whole_words = ARMS[condition]
    small.train(
        module, data.images, tokens(data), seed, STEPS, whole_words
    )
    return module


@lru_cache(maxsize=1)
def test_set(seed: int) -> tuple[TokenBatch, dict[str, Batch], float]:
    """Captions, the three kinds of picture for them, and the prior."""
    data = small.pairs(small.NUM_TEST, "test", seed)
    images = prepare(data.images)
    kinds = {
        TRUE: images,
        OTHER: images.roll(1, 0),
        GREY: torch.zeros_like(images),
    }
    texts = tokens(data)
    return texts, kinds, _prior(data.colors, texts)


def _prior(colors: list[str], texts: TokenBatch) -> float:
    """Share of colours found by naming the commonest of those with as many pieces."""
    pieces = (texts.word_ids == small.COLOR_WORD).sum(1).tolist()
    counts = Counter(zip(pieces, colors, strict=True))
    best = {
        number: max(n for (m, _), n in counts.items() if m == number)
        for number in set(pieces)
    }
    return sum(best.values()) / len(colors)


@torch.no_grad()
def found_pieces(
    module: ViLTPretraining,
    images: Batch,
    texts: TokenBatch,
    whole_words: bool,
) -> float:
    """Share of pieces found that are hidden as in training, over several draws of the masks."""
    network, draws = module.network, generator(0)
    right: list[Float[Tensor, " asked"]] = []
    for _ in range(ROUNDS):
        chosen = mask_tokens(
            texts.input_ids,
            inner_words(texts.attention_mask),
            module.mask_id,
            network.config.vocab_size,
            word_ids=texts.word_ids if whole_words else None,
            generator=draws,
        )
        asked = chosen.labels != IGNORED
        hidden = texts.input_ids.masked_fill(asked, module.mask_id)
        features = network(hidden, images, texts.attention_mask)
        said = network.word_logits(features).argmax(-1)
        right.append((said == texts.input_ids)[asked].float())
    return torch.cat(right).mean().item()


def run(condition: str, seed: int) -> dict[str, float]:
    """Colour words and pieces found with each kind of picture."""
    module = train(condition, seed)
    texts, kinds, prior = test_set(seed)
    figures = {PRIOR: prior}
    for kind, images in kinds.items():
        found = small.found_words(module, images, texts)
        figures[f"color, {kind}"] = found.float().mean().item()
        figures[f"pieces, {kind}"] = found_pieces(
            module, images, texts, ARMS[condition]
        )
    return figures


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    single, whole = (figures[arm] for arm in ARMS)

    def gap(a, b) -> list[float]:
        return [x - y for x, y in zip(a, b, strict=True)]

    gain = {
        arm: gap(f[f"pieces, {TRUE}"], f[f"pieces, {GREY}"])
        for arm, f in figures.items()
    }
    blind = interval(gap(whole[f"color, {GREY}"], whole[PRIOR]))
    return [
        above_zero(
            ("VLT-14",),
            "With the true picture more colour words are found than with another one.",
            gap(whole[f"color, {TRUE}"], whole[f"color, {OTHER}"]),
            "true minus other picture",
        ),
        above_zero(
            ("VLT-14",),
            "With the true picture more colour words are found than with a grey one.",
            gap(whole[f"color, {TRUE}"], whole[f"color, {GREY}"]),
            "true minus grey picture",
        ),
        Finding(
            ("VLT-14",),
            "Without a picture the colour is guessed no better than by naming the commonest.",
            "Confirmed: the interval of grey minus prior lies below 5 points. Refuted otherwise.",
            verdict(blind.high < PRIOR_MARGIN),
            f"grey picture minus prior: {points(blind)}.",
            blind,
        ),
        above_zero(
            ("VLT-05",),
            "Whole-word masking lowers what can be guessed without a picture.",
            gap(single[f"pieces, {GREY}"], whole[f"pieces, {GREY}"]),
            "pieces found with a grey picture, single pieces minus whole words",
        ),
        above_zero(
            ("VLT-05",),
            "With whole words masked the picture adds more.",
            gap(gain["whole words"], gain["single pieces"]),
            "what the true picture adds on pieces, whole words minus single pieces",
        ),
        above_zero(
            ("VLT-05",),
            "Trained on whole words, a model finds more colour words.",
            gap(whole[f"color, {TRUE}"], single[f"color, {TRUE}"]),
            "colour words found, whole words minus single pieces",
        ),
    ]


EXPERIMENT = Experiment(
    name="d20_masked_language",
    title="Masked words with the true, another and no picture; pieces or whole words",
    claims=("VLT-05", "VLT-14"),
    conditions=tuple(ARMS),
    run=run,
    judge=judge,
    config={
        "model": "ViLT: 32 px, patch 8, 2 blocks of width 64",
        "vocabulary": PIECES,
        "training pairs": small.NUM_PAIRS,
        "test pairs": small.NUM_TEST,
        "steps": STEPS,
        "batch size": small.BATCH_SIZE,
        "rate": small.LR,
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
