"""CLIP, three exercises in the middle: the loss, the end token, classes from sentences."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake
from mmlab.exercises.seeded import SEED, random

# ------------------------------------------------------------------------------------- 4: the loss


def contrastive_loss(logits: Tensor) -> Tensor:
    """The mean of the cross-entropies over rows and over columns."""
    return (_direction(logits) + _direction(logits.T)) / 2


def _direction(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, torch.arange(len(logits)))


def _own(logits: Tensor, dim: int) -> Tensor:
    return logits.softmax(dim).diagonal()


_ROWS = (
    "That is one half of it: each image looks for its caption, along the rows. The columns ask the "
    "other way round; take the mean of both."
)
_COLUMNS = (
    "That is one half of it: each caption looks for its image, along the columns. The rows ask the "
    "other way round; take the mean of both."
)
LOSS = FunctionExercise(
    title="Two directions",
    solution=contrastive_loss,
    cases=(
        Case((3 * random(3, 3),), f"contrastive_loss(3 * torch.randn(3, 3, {SEED}))"),
        Case((5 * random(16, 16),), f"contrastive_loss(5 * torch.randn(16, 16, {SEED}))"),
        Case((300 * random(4, 4),), f"contrastive_loss(300 * torch.randn(4, 4, {SEED}))"),
    ),
    mistakes=(
        Mistake(_direction, _ROWS),
        Mistake(lambda s: _direction(s.T), _COLUMNS),
        Mistake(
            lambda s: _direction(s) + _direction(s.T),
            "You add the two directions. The loss is their mean, so that guessing costs ln B.",
        ),
        Mistake(
            lambda s: contrastive_loss(s) * len(s),
            "You sum over the pairs of the batch. Take the mean.",
        ),
        Mistake(
            lambda s: contrastive_loss(s) / len(s),
            "You divide by B twice. `F.cross_entropy` already returns a mean.",
        ),
        Mistake(
            lambda s: -contrastive_loss(s),
            "The sign: the loss is minus the logarithm of the right answer's probability.",
        ),
        Mistake(
            lambda s: -(_own(s, 0) + _own(s, 1)).mean() / 2,
            "You average probabilities. Take their logarithms first.",
        ),
        Mistake(
            lambda s: contrastive_loss(s) + s.diagonal().mean(),
            "The right answers are missing: ln Σ exp(s) of each row and column, *minus* the logit "
            "on the diagonal.",
        ),
        Mistake(
            lambda s: -(s.flatten().softmax(0).view_as(s).diagonal().log()).mean(),
            "Your softmax runs over all B² cells at once. Each row is a question of its own, and "
            "so is each column.",
        ),
        Mistake(
            lambda s: F.binary_cross_entropy_with_logits(s, torch.eye(len(s))),
            "You ask of every cell on its own whether it is a pair. That is close to SigLIP's "
            "loss; CLIP's is a softmax along rows and along columns.",
        ),
        Mistake(
            lambda s: _direction(s.softmax(-1)),
            "You take the softmax twice: `F.cross_entropy` expects logits and takes one itself.",
        ),
        Mistake(
            lambda s: (
                -((s.exp() / s.exp().sum(1, True)).diagonal().log().mean()) / 2
                - ((s.exp() / s.exp().sum(0, True)).diagonal().log().mean()) / 2
            ),
            "Right for small logits. exp(s) overflows at large ones, and infinity divided by "
            "infinity is NaN: use `log_softmax`, `logsumexp` or `F.cross_entropy`.",
        ),
    ),
    shown="Rows and columns, the mean of both, and finite however large the logits are.",
)

# -------------------------------------------------------------------------------- 5: the end token


def read_out(tokens: Tensor, input_ids: Tensor, end_id: int) -> Tensor:
    """The vector of the first end token of each row."""
    ends = (input_ids == end_id).int().argmax(1)
    return tokens[torch.arange(len(tokens)), ends]


def _last_end(tokens: Tensor, ids: Tensor, end_id: int) -> Tensor:
    places = torch.arange(ids.shape[1]).expand_as(ids)
    return tokens[torch.arange(len(tokens)), places.masked_fill(ids != end_id, -1).amax(1)]


def _mean(tokens: Tensor, seen: Tensor) -> Tensor:
    return (tokens * seen[..., None]).sum(1) / seen.sum(1, keepdim=True)


def _up_to_end(ids: Tensor, end_id: int) -> Tensor:
    ends = (ids == end_id).int().argmax(1, keepdim=True)
    return torch.arange(ids.shape[1]) <= ends


def _shifted(tokens: Tensor, ids: Tensor, end_id: int, by: int) -> Tensor:
    ends = (ids == end_id).int().argmax(1) + by
    return tokens[torch.arange(len(tokens)), ends.clamp(0, ids.shape[1] - 1)]


_IDS = torch.tensor([[2, 7, 9, 3, 0, 0], [2, 9, 5, 8, 3, 0]])
# One row is filled up with end tokens, as Hugging Face's tokenizer does it.
_FILLED = torch.tensor([[2, 9, 3, 3, 3], [2, 7, 5, 8, 3], [2, 3, 0, 0, 0]])
READ_OUT = FunctionExercise(
    title="Read the caption out",
    solution=read_out,
    cases=(
        Case(
            (random(2, 6, 2), _IDS, 3),
            f"read_out(torch.randn(2, 6, 2, {SEED}),\n"
            "         torch.tensor([[2, 7, 9, 3, 0, 0], [2, 9, 5, 8, 3, 0]]), 3)",
        ),
        Case(
            (random(3, 5, 8), _FILLED, 3),
            f"read_out(torch.randn(3, 5, 8, {SEED}),\n"
            "         torch.tensor([[2, 9, 3, 3, 3], [2, 7, 5, 8, 3], [2, 3, 0, 0, 0]]), 3)",
        ),
    ),
    mistakes=(
        Mistake(
            lambda x, ids, end: x[:, -1],
            "You take the last place. Where a caption is shorter than the row, there is padding.",
        ),
        Mistake(
            lambda x, ids, end: x[:, 0],
            "You take the first place, as with BERT's class token. Under the causal mask it has "
            "seen nothing but itself.",
        ),
        Mistake(
            lambda x, ids, end: x[torch.arange(len(x)), ids.argmax(1)],
            "You take the largest id. In CLIP's own vocabulary that is the end token; here it is "
            "not: look for `end_id`.",
        ),
        Mistake(
            lambda x, ids, end: x.mean(1),
            "You average over all places, padding included. CLIP reads one token out, the end.",
        ),
        Mistake(
            lambda x, ids, end: _mean(x, _up_to_end(ids, end)),
            "You average over the caption. CLIP reads one token out, the end, which has seen all "
            "others.",
        ),
        Mistake(
            partial(_shifted, by=-1),
            "You read the token before the end. The end token is the one that training turned into "
            "the caption's vector.",
        ),
        Mistake(
            partial(_shifted, by=1),
            "You read the token after the end. Nothing that follows it belongs to the caption.",
        ),
        Mistake(
            lambda x, ids, end: x[ids == end],
            "Right where each row has one end token. Some tokenizers fill rows up with it; then a "
            "mask takes several a row. Take the first: `argmax` of a comparison.",
        ),
        Mistake(
            _last_end,
            "Right where each row has one end token. Some tokenizers fill rows up with it; then "
            "the caption ends at the *first*.",
        ),
        Mistake(
            lambda x, ids, end: read_out(x, ids, end)[:, None],
            "The vectors are right; one axis is left over. The shape is (batch, dim).",
        ),
    ),
    shown="One vector a caption, also where a row is filled up with end tokens.",
)

# ---------------------------------------------------------------------- 6: classes from sentences


def class_vectors(features: Tensor) -> Tensor:
    """Mean direction over the templates, the first axis."""
    return _unit(_unit(features).mean(0))


def _unit(features: Tensor, dim: int = -1) -> Tensor:
    return F.normalize(features, dim=dim)


CLASSES = FunctionExercise(
    title="Classes from sentences",
    solution=class_vectors,
    cases=(
        Case(
            (random(2, 3, 2) + 0.5,),
            f"class_vectors(torch.randn(2, 3, 2, {SEED}) + 0.5)",
        ),
        Case(
            (random(5, 7, 16),),
            f"class_vectors(torch.randn(5, 7, 16, {SEED}))",
        ),
    ),
    mistakes=(
        Mistake(
            lambda x: _unit(x.mean(0)),
            "You average before bringing the sentences to length 1, so a sentence with a long "
            "vector counts more than the others.",
        ),
        Mistake(
            lambda x: _unit(x).mean(0),
            "The mean of unit vectors is shorter than 1, the more the sentences disagree, and a "
            "class with a short vector gets low scores. Bring it to length 1 again.",
        ),
        Mistake(
            lambda x: x.mean(0),
            "Nothing has length 1 here: neither the sentences before the mean nor the class after "
            "it.",
        ),
        Mistake(
            lambda x: _unit(_unit(x).mean(1)),
            "You average over the classes. The templates are the first axis.",
        ),
        Mistake(
            lambda x: _unit(_unit(x, 0).mean(0)),
            "Your first normalisation runs over the templates (`dim=0`). A feature is a row of the "
            "last axis: `dim=-1`.",
        ),
        Mistake(
            lambda x: _unit(_unit(x).mean(0), 0),
            "Your second normalisation runs over the classes. Each class is a row: `dim=-1`.",
        ),
        Mistake(
            lambda x: _unit(x[0]),
            "That is the first template alone.",
        ),
        Mistake(
            lambda x: _unit(x),
            "One vector for each sentence: right so far. A class is the mean over its templates.",
        ),
        Mistake(
            lambda x: _unit(_unit(x).amax(0)),
            "You take the largest entry over the templates. It is the mean.",
        ),
        Mistake(
            lambda x: _unit(x).mean(0).softmax(-1),
            "There is a softmax in it. Class vectors are directions; a softmax comes when an image "
            "is compared with all classes.",
        ),
    ),
    shown=(
        "One unit vector a class. However many templates there were, classifying an image costs "
        "one product a class."
    ),
)
