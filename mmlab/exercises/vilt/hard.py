"""ViLT, two hard exercises: the plan by IPOT, and the loss with its signs."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake
from mmlab.exercises.seeded import SEED, random

# ------------------------------------------------------------------------------------ 6: the plan


def plan(cost: Tensor, beta: float | int, iterations: int) -> Tensor:
    """IPOT with one inner step: multiply by the kernel, weigh the columns, then the rows."""
    return _plan(cost, beta, iterations)


def _plan(
    cost: Tensor,
    beta: float | int,
    iterations: int,
    proximal: bool = True,
    remember: bool = True,
    columns_too: bool = True,
    mass: float | int = 1,
) -> Tensor:
    n, m = cost.shape
    kernel = torch.exp(-cost / beta)
    result, r = torch.ones_like(cost), torch.full((n,), 1 / n)
    for _ in range(iterations):
        q = kernel * result if proximal else kernel
        r = r if remember else torch.full((n,), 1 / n)
        c = 1 / m / (r @ q) if columns_too else torch.ones(m)
        r = mass / n / (q @ c)
        result = r[:, None] * q * c
    return result


_COST = 1 - random(2, 3).tanh()
_LARGER = 1 - random(4, 6).tanh()
TRANSPORT = FunctionExercise(
    title="The plan",
    solution=plan,
    cases=(
        Case((_COST, 0.5, 1), f"plan(1 - torch.randn(2, 3, {SEED}).tanh(), 0.5, 1)"),
        Case((_COST, 0.5, 3), f"plan(1 - torch.randn(2, 3, {SEED}).tanh(), 0.5, 3)"),
        Case((_LARGER, 0.5, 50), f"plan(1 - torch.randn(4, 6, {SEED}).tanh(), 0.5, 50)"),
    ),
    mistakes=(
        Mistake(
            lambda c, b, k: _plan(c, b, k, proximal=False),
            "Right after one iteration. That is Sinkhorn: you multiply by the kernel once, and "
            "from then on only weigh. IPOT multiplies the *last plan* by the kernel each time.",
        ),
        Mistake(
            lambda c, b, k: _plan(c.T, b, k).T,
            "You weigh the rows first, then the columns. Here the columns come first, so that the "
            "rows are exact at the end.",
        ),
        Mistake(
            lambda c, b, k: _plan(c, b, k, remember=False),
            "Right after one iteration. Then you start again with r = 1 / rows; r is kept from one "
            "iteration to the next.",
        ),
        Mistake(
            lambda c, b, k: _plan(c, b, k, columns_too=False),
            "Only the rows are weighed, so a popular patch takes what it likes. Columns have to "
            "sum to 1 / columns as well.",
        ),
        Mistake(
            lambda c, b, k: _plan(-c, b, k),
            "The sign: the kernel is exp(-cost / beta), large where the journey is cheap.",
        ),
        Mistake(
            lambda c, b, k: _plan(c * b * b, b, k),
            "You multiply the cost by beta. Divide by it.",
        ),
        Mistake(
            lambda c, b, k: _plan(c, b, k, mass=len(c)),
            "Your rows sum to 1. Together the rows weigh 1, each of them 1 / rows.",
        ),
        Mistake(
            lambda c, b, k: torch.exp(-c / b) / torch.exp(-c / b).sum(),
            "That is the kernel, divided by its sum: no row and no column has the weight it must "
            "have.",
        ),
    ),
    shown=(
        "Rows sum to 1 / rows exactly, columns nearly to 1 / columns, and with more iterations the "
        "plan tends to the cheapest of all."
    ),
)

# ------------------------------------------------------------------------------------ 7: the loss


def alignment_loss(costs: Tensor, plans: Tensor, matched: Tensor) -> Tensor:
    """Distances of matched pairs minus those of mismatched ones, over the batch."""
    distance = (costs * plans).sum((1, 2))
    return torch.where(matched, distance, -distance).sum() / len(matched)


def _distance(costs: Tensor, plans: Tensor) -> Tensor:
    return (costs * plans).sum((1, 2))


_COSTS = 1 - random(4, 2, 3).tanh()
_PLANS = random(4, 2, 3).flatten(1).softmax(1).view(4, 2, 3)
_MATCHED = torch.tensor([True, True, False, True])
ALIGNMENT = FunctionExercise(
    title="Together, and apart",
    solution=alignment_loss,
    cases=(
        Case(
            (_COSTS, _PLANS, _MATCHED),
            f"x = torch.randn(4, 2, 3, {SEED})\n"
            "alignment_loss(1 - x.tanh(), x.flatten(1).softmax(1).view(4, 2, 3),\n"
            "               torch.tensor([True, True, False, True]))",
        ),
        Case(
            (_COSTS, _PLANS, ~_MATCHED),
            f"x = torch.randn(4, 2, 3, {SEED})\n"
            "alignment_loss(1 - x.tanh(), x.flatten(1).softmax(1).view(4, 2, 3),\n"
            "               torch.tensor([False, False, True, False]))",
        ),
    ),
    mistakes=(
        Mistake(
            lambda c, p, m: _distance(c, p).mean(),
            "All distances are made small, those of mismatched pairs as well. Then every caption "
            "moves towards every picture. Subtract the mismatched ones.",
        ),
        Mistake(
            lambda c, p, m: _distance(c, p)[m].sum() / len(m),
            "The mismatched pairs are missing. They count with a minus.",
        ),
        Mistake(
            lambda c, p, m: _distance(c, p)[m].mean() - _distance(c, p)[~m].mean(),
            "You average either kind by itself. In the code both sums are divided by the whole "
            "batch, so that the rarer kind does not count more.",
        ),
        Mistake(
            lambda c, p, m: -alignment_loss(c, p, m),
            "The signs are exchanged: a loss is made small, and it is the matched pairs that "
            "should be near.",
        ),
        Mistake(
            lambda c, p, m: len(m) * alignment_loss(c, p, m),
            "Divide by the number of pairs in the batch.",
        ),
        Mistake(
            lambda c, p, m: torch.where(m, c.sum((1, 2)), -c.sum((1, 2))).sum() / len(m),
            "The plans have no effect. A journey's cost counts as much as the plan carries on it.",
        ),
        Mistake(
            lambda c, p, m: (
                torch.where(m, _distance(c, p), -_distance(c, p)).sum() / len(m) / c[0].numel()
            ),
            "You take the mean over words and patches. A plan's mass is 1 already: sum.",
        ),
    ),
    shown="Matched pairs are drawn together, mismatched ones pushed apart; the plan is given.",
)
