"""D13: which start helps ViLT, and do modality rows, the image's class token and masked patches matter?

Question. ViLT starts its trunk from a ViT trained on labels, and its word vectors from nothing (section 3.1); a start
from BERT "did not work" (footnote 4). It adds a learned row for each modality, feeds a class token of the
image that no head reads, and tried a loss on masked patches that did not help (section 4.5). What does each do in small?

Set-up. A small ViLT (32 pixels, patches of 8, 2 blocks of width 64) learns from 4,000 close-ups of one shape
with captions such as "a red ring": 80 steps of 48 pairs, all of ViLT's losses. The arms:

- *from scratch*: everything random; the base.
- *from a ViT*: the trunk from a ViT of the same shape that learned to name the colour of other close-ups, 100 steps.
- *from captions*: the blocks and the words from a ViLT that learned masked words on the same captions with
  grey pictures, 100 steps.
- *no modality rows*: both rows zero and fixed.  *no class token*: nobody sees that of the image.
- *masked patches*: one more loss, the mean colours of hidden patches.

The score is the mean of two shares on 400 new close-ups: colour words found when hidden, and pairs told to match or not (half and half).
A seed draws pictures and batches, the same for all arms, so differences are taken seed by seed.

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds, paired; each is
confirmed if the interval of the difference in score lies above zero, refuted if below:

- *Start* (VLT-25, VLT-31): from a ViT minus from scratch; from captions minus from scratch; from a ViT minus from captions.
- *Modality rows help* (VLT-12): from scratch minus no modality rows.
- *The class token of the image helps* (VLT-11): from scratch minus no class token. It cannot be shown that it does
  nothing; "no difference seen" is what the design suggests.
- *Masked patches help* (VLT-17): with them minus from scratch.

What this scale cannot tell. The ViT was taught the very thing that is asked, colours; ImageNet's classes and captions have less in common.
Our captions have hardly any grammar, so a model of text alone has little to learn from them. 80 steps
measure how fast a model starts, not where it ends.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlab.datasets.scenes import COLORS
from mmlab.models.vilt import (
    ViLT,
    ViLTPretraining,
    start_from_vit,
)
from mmlab.models.vit import ViT, ViTConfig

from experiments import small_vilt as small
from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    above_zero,
    main,
)
from experiments.training import fit, prepare

STEPS, START_STEPS = 80, 100
OTHER = 1000
"""Added to the seed of the pictures that the ViT sees."""
GREY = 128
SCRATCH, FROM_VIT, FROM_CAPTIONS = (
    "from scratch",
    "from a ViT",
    "from captions",
)
SCORE, COLOR, MATCHING = "score", "color words", "matching"


@lru_cache(maxsize=1)
def trained_vit(seed: int) -> ViT:
    """A ViT with the shape of the trunk that names the colour of close-ups of its own."""
    config = small.config(small.tokenizer())
    torch.manual_seed(seed)
    vit = ViT(
        ViTConfig(
            image_size=config.image_size,
            patch_size=config.patch_size,
            dim=config.dim,
            depth=config.depth,
            num_heads=config.num_heads,
            mlp_dim=config.mlp_dim,
            num_classes=len(COLORS),
        )
    )
    data = small.pairs(small.NUM_PAIRS, "train", seed + OTHER)
    labels = [COLORS.index(color) for color in data.colors]
    return fit(
        vit,
        data.images,
        torch.tensor(labels),
        START_STEPS,
        small.LR,
        seed,
        small.BATCH_SIZE,
    )


@lru_cache(maxsize=1)
def trained_on_captions(seed: int) -> ViLT:
    """A ViLT that never saw anything but grey."""
    data = small.pairs(small.NUM_PAIRS, "train", seed)
    grey = torch.full_like(data.images, GREY)
    module = small.new_module(seed, small.WordsAlone)
    texts = small.tokens(data.captions)
    return small.train(module, grey, texts, seed, START_STEPS)


class HiddenClassToken(ViLT):
    """A ViLT in which no token sees the image's class token."""

    def _mask(
        self, input_ids: Tensor, *valid: Tensor
    ) -> Bool[Tensor, "batch 1 1 keys"]:
        mask = super()._mask(input_ids, *valid).clone()
        mask[..., input_ids.shape[1]] = False
        return mask


def scratch(seed: int) -> ViLTPretraining:
    return small.new_module(seed)


def from_vit(seed: int) -> ViLTPretraining:
    module = small.new_module(seed)
    start_from_vit(module.network, trained_vit(seed))
    return module


def from_captions(seed: int) -> ViLTPretraining:
    module = small.new_module(seed)
    taught = trained_on_captions(seed).state_dict()
    parts = ("blocks.", "norm.", "text_embeddings.")
    taken = {k: v for k, v in taught.items() if k.startswith(parts)}
    own = module.network.state_dict()
    module.network.load_state_dict(own | taken)
    return module


def no_modality_rows(seed: int) -> ViLTPretraining:
    module = small.new_module(seed)
    rows = module.network.modality_embedding.weight
    torch.nn.init.zeros_(rows)
    rows.requires_grad_(False)
    return module


def no_class_token(seed: int) -> ViLTPretraining:
    module = small.new_module(seed)
    network = HiddenClassToken(module.network.config)
    network.load_state_dict(module.network.state_dict())
    return ViLTPretraining(network, module.mask_id)


def masked_patches(seed: int) -> ViLTPretraining:
    return small.new_module(seed, heads=("words", "match", "patches"))


ARMS: dict[str, Callable[[int], ViLTPretraining]] = {
    SCRATCH: scratch,
    FROM_VIT: from_vit,
    FROM_CAPTIONS: from_captions,
    "no modality rows": no_modality_rows,
    "no class token": no_class_token,
    "masked patches": masked_patches,
}


def train(
    condition: str, seed: int, steps: int = STEPS
) -> ViLTPretraining:
    """The small ViLT of one arm."""
    module = ARMS[condition](seed)
    data = small.pairs(small.NUM_PAIRS, "train", seed)
    texts = small.tokens(data.captions)
    small.train(module, data.images, texts, seed, steps)
    return module


def measure(module: ViLTPretraining, seed: int) -> dict[str, float]:
    """Colour words found, pairs told, and their mean, on new close-ups."""
    data = small.pairs(small.NUM_TEST, "test", seed)
    images, texts = prepare(data.images), small.tokens(data.captions)
    color = small.found_words(module, images, texts).float().mean()
    matching = small.matching_accuracy(module.network, images, texts)
    return {
        SCORE: (color.item() + matching) / 2,
        COLOR: color.item(),
        MATCHING: matching,
    }


def run(condition: str, seed: int) -> dict[str, float]:
    """Train one arm and measure it."""
    return measure(train(condition, seed), seed)


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    statements = (
        (
            ("VLT-25", "VLT-31"),
            "A start from a ViT beats one from scratch.",
            FROM_VIT,
            SCRATCH,
        ),
        (
            ("VLT-25",),
            "A start from captions alone beats one from scratch.",
            FROM_CAPTIONS,
            SCRATCH,
        ),
        (
            ("VLT-25", "VLT-31"),
            "A start from a ViT beats one from captions alone.",
            FROM_VIT,
            FROM_CAPTIONS,
        ),
        (
            ("VLT-12",),
            "Modality rows help.",
            SCRATCH,
            "no modality rows",
        ),
        (
            ("VLT-11",),
            "The image's class token helps.",
            SCRATCH,
            "no class token",
        ),
        (
            ("VLT-17",),
            "A loss on masked patches helps.",
            "masked patches",
            SCRATCH,
        ),
    )
    return [
        above_zero(
            claims,
            statement,
            [
                a - b
                for a, b in zip(
                    figures[first][SCORE],
                    figures[second][SCORE],
                    strict=True,
                )
            ],
            f"{first} minus {second}",
        )
        for claims, statement, first, second in statements
    ]


EXPERIMENT = Experiment(
    name="d13_vilt_ablations",
    title="ViLT: where it starts, modality rows, class token, masked patches",
    claims=("VLT-11", "VLT-12", "VLT-17", "VLT-25", "VLT-31"),
    conditions=tuple(ARMS),
    run=run,
    judge=judge,
    config={
        "model": "ViLT: 32 px, patch 8, 2 blocks of width 64",
        "training pairs": small.NUM_PAIRS,
        "test pairs": small.NUM_TEST,
        "steps": STEPS,
        "steps of the starts": START_STEPS,
        "batch size": small.BATCH_SIZE,
        "rate": small.LR,
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
