"""CLIP, two hard exercises: the gradient without autograd, and one process's share of the loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake
from mmlab.exercises.seeded import SEED, random

# ---------------------------------------------------------------------------------- 7: the gradient


def loss_gradient(logits: Tensor) -> Tensor:
    """What autograd says of the symmetric loss, as an independent judge."""
    logits = logits.clone().requires_grad_()
    own = torch.arange(len(logits))
    loss = (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2
    return torch.autograd.grad(loss, logits)[0]


def _parts(s: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
    """Softmax over rows, over columns, the identity, and the number of pairs."""
    return s.softmax(1), s.softmax(0), torch.eye(len(s)), len(s)


def _from(formula):
    """A mistake written with the two softmaxes, the identity and the number of pairs."""
    return lambda s: formula(*_parts(s))


GRADIENT = FunctionExercise(
    title="The gradient by hand",
    solution=loss_gradient,
    cases=(
        Case((random(3, 3),), f"loss_gradient(torch.randn(3, 3, {SEED}))"),
        Case((10 * random(12, 12),), f"loss_gradient(10 * torch.randn(12, 12, {SEED}))"),
    ),
    mistakes=(
        Mistake(
            _from(lambda rows, columns, one, n: (rows + columns) / (2 * n)),
            "Right for the negatives. On the diagonal 1 / B is to be taken off: the logit of the "
            "right answer stands in the loss itself.",
        ),
        Mistake(
            _from(lambda rows, columns, one, n: (rows - one) / n),
            "That is the gradient of the rows' half. The columns have one too: take the mean.",
        ),
        Mistake(
            _from(lambda rows, columns, one, n: (columns - one) / n),
            "That is the gradient of the columns' half. The rows have one too: take the mean.",
        ),
        Mistake(
            _from(lambda rows, columns, one, n: (rows + columns - 2 * one) / n),
            "Twice too much: the loss is the *mean* of the two directions.",
        ),
        Mistake(
            _from(lambda rows, columns, one, n: (rows + columns - 2 * one) / 2),
            "B times too much: each direction is a mean over B questions.",
        ),
        Mistake(
            _from(lambda rows, columns, one, n: (rows + columns - one) / (2 * n)),
            "On the diagonal you take off half of what is due. Each of the two directions brings "
            "its own 1.",
        ),
        Mistake(
            _from(lambda rows, columns, one, n: (2 * one - rows - columns) / (2 * n)),
            "The sign: this is the direction in which the loss falls, the negative gradient.",
        ),
        Mistake(
            _from(lambda rows, columns, one, n: (rows * columns - one) / n),
            "You multiply the two softmaxes. The loss is a sum of two halves, so their gradients "
            "add up.",
        ),
        Mistake(
            _from(lambda rows, columns, one, n: (rows + columns.T - 2 * one) / (2 * n)),
            "You transpose the columns' softmax. `softmax(0)` already stands in the places of the "
            "logits.",
        ),
    ),
    shown=(
        "It agrees with autograd. A negative is pushed by its two softmax shares, and all entries "
        "together sum to zero: what is pulled is pushed elsewhere."
    ),
)

# -------------------------------------------------------------------- 8: one process's share


def process_loss(image_features: Tensor, text_features: Tensor, scale: float, rank: int, size: int):
    """The loss of rows ``rank * size …`` against the features of all processes."""
    own = _rows(rank, size)
    return _share(image_features, text_features, scale, own, own)


def _rows(rank: int, size: int) -> Tensor:
    return torch.arange(rank * size, (rank + 1) * size)


def _share(i: Tensor, t: Tensor, scale: float, rows: Tensor, labels: Tensor) -> Tensor:
    """Both directions for some rows, each against all features."""
    image_loss = F.cross_entropy(scale * i[rows] @ t.T, labels)
    text_loss = F.cross_entropy(scale * t[rows] @ i.T, labels)
    return (image_loss + text_loss) / 2


def _local(i: Tensor, t: Tensor, scale: float, rank: int, size: int) -> Tensor:
    own = _rows(rank, size)
    return _share(i[own], t[own], scale, torch.arange(size), torch.arange(size))


def _one_direction(queries: Tensor, keys: Tensor, scale: float, rank: int, size: int) -> Tensor:
    own = _rows(rank, size)
    return F.cross_entropy(scale * queries[own] @ keys.T, own)


def _transposed(i: Tensor, t: Tensor, scale: float, rank: int, size: int) -> Tensor:
    """The columns of this process's rows, which lack the images of the others."""
    own = _rows(rank, size)
    logits = scale * i[own] @ t.T
    columns = F.cross_entropy(logits[:, own].T, torch.arange(size))
    return (F.cross_entropy(logits, own) + columns) / 2


SHARE = FunctionExercise(
    title="One process's share",
    solution=process_loss,
    cases=(
        Case(
            (F.normalize(random(9, 4), dim=-1), F.normalize(random(10, 4)[1:], dim=-1), 5.0, 1, 3),
            "from torch.nn.functional import normalize\n"
            f"images = normalize(torch.randn(9, 4, {SEED}), dim=-1)\n"
            f"texts = normalize(torch.randn(10, 4, {SEED})[1:], dim=-1)\n"
            "process_loss(images, texts, 5.0, 1, 3)",
        ),
        Case(
            (F.normalize(random(8, 3), dim=-1), F.normalize(random(9, 3)[1:], dim=-1), 9.0, 0, 8),
            "from torch.nn.functional import normalize\n"
            f"images = normalize(torch.randn(8, 3, {SEED}), dim=-1)\n"
            f"texts = normalize(torch.randn(9, 3, {SEED})[1:], dim=-1)\n"
            "process_loss(images, texts, 9.0, 0, 8)",
        ),
    ),
    mistakes=(
        Mistake(
            lambda i, t, s, r, n: _share(i, t, s, _rows(r, n), torch.arange(n)),
            "The right answers are counted from 0. On process `rank` its first pair stands in "
            "column `rank * size` of the whole batch.",
        ),
        Mistake(
            _local,
            "You compare with this process's own features alone, so there are `size` - 1 negatives "
            "in place of all others. That is what the gathering is for.",
        ),
        Mistake(
            lambda i, t, s, r, n: _share(i, t, s, torch.arange(len(i)), torch.arange(len(i))),
            "That is the loss of the whole batch. Each process computes its own rows only; the "
            "mean over the processes is the whole.",
        ),
        Mistake(
            _one_direction,
            "The images look for their captions; the captions of this process do not look for "
            "their images. Take the mean of both directions.",
        ),
        Mistake(
            lambda i, t, s, r, n: _one_direction(t, i, s, r, n),
            "The captions look for their images; the images of this process do not look for their "
            "captions. Take the mean of both directions.",
        ),
        Mistake(
            _transposed,
            "Your second direction is taken from the transpose of this process's rows, which lacks "
            "the images of the others. Captions need a product of their own, with *all* images.",
        ),
        Mistake(
            lambda i, t, s, r, n: 2 * process_loss(i, t, s, r, n),
            "You add the two directions. Take their mean.",
        ),
        Mistake(
            lambda i, t, s, r, n: process_loss(i, t, s, r, n) * n / len(i),
            "You divide by the number of all pairs. This process averages over its own; the mean "
            "over the processes follows later.",
        ),
        Mistake(
            lambda i, t, s, r, n: process_loss(i, t, s, r, n) * n,
            "You sum over the pairs. Take their mean.",
        ),
        Mistake(
            lambda i, t, s, r, n: process_loss(i, t, 1.0, r, n),
            "The factor on the cosines has no effect.",
        ),
        Mistake(
            lambda i, t, s, r, n: process_loss(i, t, 1 / s, r, n),
            "You divide by `scale`. It is the inverse of the temperature, so it multiplies.",
        ),
    ),
    shown=(
        "Own rows against all columns, in both directions; the mean over the processes is the loss "
        "of the whole batch."
    ),
)
