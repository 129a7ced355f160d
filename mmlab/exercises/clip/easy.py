"""CLIP, three easy exercises: the loss of guessing, the logits, the size of the text tower."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake, ValueExercise
from mmlab.exercises.seeded import SEED, random

# -------------------------------------------------------------------------- 1: the loss of guessing

_BATCH = 32_768

FIRST_LOSS = ValueExercise(
    title="The loss of a model that cannot tell",
    solution=math.log(_BATCH),
    mistakes=(
        (
            math.log2(_BATCH),
            "That is the logarithm to base 2, the loss in bits. The cross-entropy here takes the "
            "natural logarithm.",
        ),
        (
            math.log10(_BATCH),
            "That is the logarithm to base 10. The cross-entropy here takes the natural one.",
        ),
        (
            2 * math.log(_BATCH),
            "You add the two directions, or let one answer be chosen among all B² cells. Each "
            "image chooses among B captions and each caption among B images; the loss is the mean.",
        ),
        (
            math.log(_BATCH) / 2,
            "You halve once too often. Each direction costs the same, and the mean of two equal "
            "numbers is that number.",
        ),
        (
            1 / _BATCH,
            "That is the probability of the right caption. The loss is minus its logarithm.",
        ),
        (
            -math.log(_BATCH),
            "The sign: the loss is *minus* the logarithm of a probability below 1.",
        ),
        (
            math.log(_BATCH) * 0.07,
            "The temperature does not matter here: where all cosines are equal, so are all "
            "logits, whatever the factor.",
        ),
        (
            math.log(_BATCH) / 0.07,
            "The temperature does not matter here: where all cosines are equal, so are all "
            "logits, whatever the factor.",
        ),
    ),
    shown=(
        f"ln {_BATCH:,} = {math.log(_BATCH):.3f}: with all cosines equal each caption has the "
        "probability 1 / B, in both directions and at any temperature. A first loss far above this "
        "is a sign of a mistake."
    ),
)

# ------------------------------------------------------------------------------------ 2: the logits


def logits(image_features: Tensor, text_features: Tensor, logit_scale: Tensor) -> Tensor:
    """``exp(t)`` times the cosines, images in rows."""
    return logit_scale.exp() * _unit(image_features) @ _unit(text_features).T


def _unit(features: Tensor, dim: int = -1) -> Tensor:
    return F.normalize(features, dim=dim)


def _scaled(
    i: Tensor, t: Tensor, scale: Tensor | float, units: str = "both", dim: int = -1
) -> Tensor:
    """The product with only some features brought to length 1."""
    i = _unit(i, dim) if units in ("both", "images") else i
    t = _unit(t, dim) if units in ("both", "texts") else t
    return scale * i @ t.T


_ONE_SIDE = (
    "Only one side has length 1. A cosine divides by the lengths of both, so normalise images and "
    "texts."
)
LOGITS = FunctionExercise(
    title="Features to logits",
    solution=logits,
    cases=(
        Case(
            (random(2, 4), 2 * random(3, 4), torch.tensor(1.5)),
            f"logits(torch.randn(2, 4, {SEED}), 2 * torch.randn(3, 4, {SEED}),\n"
            "       torch.tensor(1.5))",
        ),
        Case(
            (random(5, 8), random(5, 8), torch.tensor(0.5)),
            f"logits(torch.randn(5, 8, {SEED}), torch.randn(5, 8, {SEED}),\n"
            "       torch.tensor(0.5))",
        ),
    ),
    mistakes=(
        Mistake(
            lambda i, t, s: _scaled(i, t, s.exp(), units="none"),
            "The features keep their lengths, so these are no cosines. Divide each row by its "
            "length first.",
        ),
        Mistake(lambda i, t, s: _scaled(i, t, s.exp(), units="images"), _ONE_SIDE),
        Mistake(lambda i, t, s: _scaled(i, t, s.exp(), units="texts"), _ONE_SIDE),
        Mistake(
            lambda i, t, s: _scaled(i, t, s.exp(), dim=0),
            "You normalise columns (`dim=0`), so each feature depends on the rest of the batch. "
            "Each *row* gets length 1: `dim=-1`.",
        ),
        Mistake(
            lambda i, t, s: _scaled(i, t, s),
            "You multiply by t itself. The parameter is the logarithm of the factor: exp(t).",
        ),
        Mistake(
            lambda i, t, s: _scaled(i, t, 1 / s.exp()),
            "You divide by exp(t). It is the inverse of the temperature, so it multiplies.",
        ),
        Mistake(
            lambda i, t, s: _scaled(i, t, 1 / s),
            "You divide by t as if it were the temperature. It is the logarithm of the factor: "
            "multiply by exp(t).",
        ),
        Mistake(
            lambda i, t, s: _scaled(i, t, 1.0),
            "These are the cosines. The factor exp(t) is missing.",
        ),
        Mistake(
            lambda i, t, s: logits(t, i, s),
            "Your rows are texts. Rows are images, columns are texts: transpose.",
        ),
        Mistake(
            lambda i, t, s: logits(i, t, s).softmax(-1),
            "These are probabilities. Logits come before the softmax.",
        ),
        Mistake(
            lambda i, t, s: s.exp() * (_unit(i) @ _unit(t).T).diagonal(),
            "You compare image k with text k alone. Every image meets every text.",
        ),
    ),
    shown=(
        "Cosines of every image with every text, times exp(t), however many there are of either "
        "and however long their features."
    ),
)

# ------------------------------------------------------------------------------ 3: the text encoder


def text_parameters(vocab_size: int, context_length: int, dim: int, depth: int) -> int:
    """Without the projection into the shared space."""
    return _text_parameters(vocab_size, context_length, dim, depth)


def _text_parameters(
    v: int, c: int, d: int, depth: int, block: int | None = None, last: int | None = None
) -> int:
    """The sum with another ``block`` or ``last`` norm."""
    block = 12 * d * d + 13 * d if block is None else block
    return v * d + c * d + depth * block + (2 * d if last is None else last)


TEXT_TOWER = FunctionExercise(
    title="How large is the text tower?",
    solution=text_parameters,
    cases=(Case((11, 5, 2, 1)), Case((49408, 77, 512, 12)), Case((49408, 77, 1024, 12))),
    mistakes=(
        Mistake(
            lambda v, c, d, n: _text_parameters(0, c, d, n),
            "The table of tokens is missing: a vector of width D for each entry of the vocabulary. "
            "It is the largest single part.",
        ),
        Mistake(
            lambda v, c, d, n: _text_parameters(v, 0, d, n),
            "The table of positions is missing: a vector of width D for each place.",
        ),
        Mistake(
            lambda v, c, d, n: _text_parameters(v, c, d, n, 12 * d * d),
            "You count the matrices of a block, 12D², and none of its vectors: 4D + 5D biases and "
            "two norms of 2D each.",
        ),
        Mistake(
            lambda v, c, d, n: _text_parameters(v, c, d, n, 12 * d * d + 9 * d),
            "A block has two LayerNorms, and each has a scale and an offset: 4D in all.",
        ),
        Mistake(
            lambda v, c, d, n: _text_parameters(v, c, d, n, 12 * d * d + 4 * d),
            "The biases of the linear layers are missing: 4D in attention, 4D + D in the MLP.",
        ),
        Mistake(
            lambda v, c, d, n: _text_parameters(v, c, d, n, last=0),
            "The norm after the last block is missing: 2D.",
        ),
        Mistake(
            lambda v, c, d, n: _text_parameters(v, c, d, n, last=d),
            "A LayerNorm has a scale *and* an offset: the last one has 2D parameters.",
        ),
        Mistake(
            lambda v, c, d, n: _text_parameters(v, c, d, n, 8 * d * d + 9 * d),
            "Attention is missing from your blocks: four matrices of D × D with their biases.",
        ),
        Mistake(
            lambda v, c, d, n: _text_parameters(v, c, d, n, 4 * d * d + 8 * d),
            "The MLP is missing from your blocks: D × 4D and 4D × D, with biases.",
        ),
        Mistake(
            lambda v, c, d, n: _text_parameters(v, c + 1, d, n),
            "You count one position too many. The text tower has no class token: the end token is "
            "one of the C tokens.",
        ),
    ),
    shown=(
        f"At width 512 these are {text_parameters(49408, 77, 512, 12):,}, of which "
        f"{49408 * 512 / text_parameters(49408, 77, 512, 12):.0%} are the table of tokens; at "
        f"width 1024, {text_parameters(49408, 77, 1024, 12):,}."
    ),
)
