"""Optimal transport between two sets of tokens: words and regions, words and patches.

How cheaply can the mass of one set be carried to the other, where moving a unit from ``i`` to
``j`` costs ``C_ij``? The cheapest plan ``T`` aligns the two sets softly. UNITER (Chen et al. 2020,
section 3.2) and ViLT (Kim et al. 2021, section 3.2) train with its price, for which they solve the
problem approximately by IPOT (Xie et al. 2018). Sinkhorn's algorithm (Cuturi 2013) solves a
smoothed one.

Every set weighs 1, spread evenly over its valid tokens; padding carries nothing.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

Cost = Float[Tensor, "batch rows columns"]
RowMask = Bool[Tensor, "batch rows"]
ColumnMask = Bool[Tensor, "batch columns"]

# exp(-60) is about 1e-26, far from where float32 ends (1e-38); beyond it, logarithms are used.
LARGEST_EXPONENT = 60.0
_NORM_EPS = 1e-5


def cosine_cost(
    x: Float[Tensor, "batch rows dim"],
    y: Float[Tensor, "batch columns dim"],
    row_valid: RowMask | None = None,
    column_valid: ColumnMask | None = None,
) -> Cost:
    """``C_ij = 1 - cos(x_i, y_j)``, at least in float32; 0 where either token is padding.

    UNITER's ``model/ot.py``; norms are clamped at 1e-5 as there.
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    x, y = (F.normalize(z.to(dtype), dim=-1, eps=_NORM_EPS) for z in (x, y))
    cost = 1 - x @ y.mT
    pair_valid = _pairs(cost, row_valid, column_valid)
    return cost if pair_valid is None else cost.masked_fill(~pair_valid, 0.0)


@torch.no_grad()
def ipot(
    cost: Cost,
    row_valid: RowMask | None = None,
    column_valid: ColumnMask | None = None,
    beta: float = 0.5,
    iterations: int = 50,
) -> Cost:
    """The plan of the inexact proximal point method (Xie et al. 2018, algorithm 1 with L = 1).

    Each iteration multiplies the last plan by ``exp(-C / beta)`` and scales its columns, then its
    rows, once: Sinkhorn's step, but started from the last plan. So, unlike Sinkhorn's, the plan
    tends to an exact one at any ``beta``; a smaller ``beta`` gets there in fewer iterations.

    Row sums are exact after every iteration, column sums only in the limit. The plan carries no
    gradient: UNITER and ViLT let it flow through the cost alone. ``row_valid`` and ``column_valid``
    are False on padding, where the plan is exactly 0. ValueError for a wrong ``beta`` or number of
    iterations, or for a set without a valid token.
    """
    _check_positive(beta=beta, iterations=iterations)
    rows, columns = _weights(cost, row_valid, column_valid)
    solve = _ipot_plain if _exponents_fit(cost, beta) else _ipot_log
    return solve(cost, rows, columns, beta, iterations)


def sinkhorn(
    cost: Cost,
    row_valid: RowMask | None = None,
    column_valid: ColumnMask | None = None,
    regularization: float = 0.1,
    iterations: int = 50,
) -> Cost:
    """The plan that minimises ``sum(T * C) - regularization * entropy(T)`` (Cuturi 2013).

    Gradients flow through the iterations. Each scales the columns, then the rows: row sums are
    exact, column sums in the limit, which a smaller ``regularization`` reaches more slowly. The
    smoothing stays however many iterations there are, so the price is above the exact one's. Masks
    and errors as in ``ipot``.
    """
    _check_positive(regularization=regularization, iterations=iterations)
    rows, columns = _weights(cost, row_valid, column_valid)
    solve = _sinkhorn_plain if _exponents_fit(cost, regularization) else _sinkhorn_log
    return solve(cost, rows, columns, regularization, iterations)


def transport_distance(plan: Cost, cost: Cost) -> Float[Tensor, " batch"]:
    """What the plan costs: ``sum_ij T_ij C_ij`` for each pair of sets."""
    return (plan * cost).sum((-2, -1))


def word_patch_alignment_loss(
    words: Float[Tensor, "batch words dim"],
    patches: Float[Tensor, "batch patches dim"],
    matched: Bool[Tensor, " batch"],
    word_valid: Bool[Tensor, "batch words"] | None = None,
    patch_valid: Bool[Tensor, "batch patches"] | None = None,
    beta: float = 0.5,
    iterations: int = 50,
) -> Float[Tensor, ""]:
    """Carry words to patches cheaply in true pairs, dearly in false ones (UNITER, ViLT).

    ``(sum of the distances of matched pairs - sum of those of mismatched ones) / batch``; the sign
    of the second sum stands in both systems' code and not in the papers. Both weigh it by 0.1.
    ``words`` may just as well be matched with regions.
    """
    cost = cosine_cost(words, patches, word_valid, patch_valid)
    plan = ipot(cost.detach(), word_valid, patch_valid, beta, iterations)
    distance = transport_distance(plan, cost)
    return torch.where(matched, distance, -distance).sum() / len(matched)


def _ipot_plain(cost: Cost, rows: Tensor, columns: Tensor, beta: float, iterations: int) -> Cost:
    """``rows`` and ``columns`` are the weights of the tokens, 0 on padding."""
    kernel = torch.exp(-cost / beta) * ((rows > 0)[:, :, None] & (columns > 0)[:, None])
    plan = kernel.clone()
    row_scale = rows[:, :, None]
    for iteration in range(iterations):
        if iteration:
            plan *= kernel
        column_scale = _divide(columns[:, None], row_scale.mT @ plan)
        row_scale = _divide(rows[:, :, None], plan @ column_scale.mT)
        plan *= row_scale
        plan *= column_scale
    return plan


def _ipot_log(cost: Cost, rows: Tensor, columns: Tensor, beta: float, iterations: int) -> Cost:
    """The same in logarithms: the plan is ``exp(row + column potentials - t C / beta)``."""
    log_rows, log_columns = rows.log(), columns.log()
    exponent, row_scale = torch.zeros_like(cost), log_rows
    for _ in range(iterations):
        exponent = exponent - cost / beta
        column_scale = log_columns - _log_sum(exponent + row_scale[:, :, None], dim=1)
        row_scale = log_rows - _log_sum(exponent + column_scale[:, None], dim=2)
        exponent = exponent + row_scale[:, :, None] + column_scale[:, None]
    return exponent.exp()


def _sinkhorn_plain(
    cost: Cost, rows: Tensor, columns: Tensor, regularization: float, iterations: int
) -> Cost:
    kernel = torch.exp(-cost / regularization)
    kernel = kernel * ((rows > 0)[:, :, None] & (columns > 0)[:, None])
    row_scale = rows[:, :, None]
    for _ in range(iterations):
        column_scale = _divide(columns[:, None], row_scale.mT @ kernel)
        row_scale = _divide(rows[:, :, None], kernel @ column_scale.mT)
    return row_scale * kernel * column_scale


def _sinkhorn_log(
    cost: Cost, rows: Tensor, columns: Tensor, regularization: float, iterations: int
) -> Cost:
    exponent = -cost / regularization
    log_rows, log_columns = rows.log(), columns.log()
    row_scale = log_rows
    for _ in range(iterations):
        column_scale = log_columns - _log_sum(exponent + row_scale[:, :, None], dim=1)
        row_scale = log_rows - _log_sum(exponent + column_scale[:, None], dim=2)
    return (exponent + row_scale[:, :, None] + column_scale[:, None]).exp()


def _log_sum(exponent: Cost, dim: int) -> Float[Tensor, "batch tokens"]:
    """``log(sum(exp))``; 0 where all are -inf, so that padding gives no NaN."""
    total = exponent.logsumexp(dim)
    return total.masked_fill(total == -torch.inf, 0.0)


def _divide(weight: Tensor, total: Tensor) -> Tensor:
    """``weight / total``, 0 for padding, whose weight is 0."""
    return weight / total.clamp_min(torch.finfo(total.dtype).tiny)


def _exponents_fit(cost: Cost, scale: float) -> bool:
    return cost.detach().abs().max().item() / scale <= LARGEST_EXPONENT


def _pairs(
    cost: Cost, row_valid: RowMask | None, column_valid: ColumnMask | None
) -> Bool[Tensor, "#batch #rows #columns"] | None:
    """True where both tokens are valid; None without masks."""
    if row_valid is None and column_valid is None:
        return None
    rows = cost.new_ones(1, 1, dtype=torch.bool) if row_valid is None else row_valid
    columns = cost.new_ones(1, 1, dtype=torch.bool) if column_valid is None else column_valid
    return rows[:, :, None] & columns[:, None]


def _weights(
    cost: Cost, row_valid: RowMask | None, column_valid: ColumnMask | None
) -> tuple[Float[Tensor, "batch rows"], Float[Tensor, "batch columns"]]:
    """Equal weights of the valid tokens, 1 together, 0 on padding."""
    weights = []
    for name, valid, size in (
        ("row_valid", row_valid, cost.shape[1]),
        ("column_valid", column_valid, cost.shape[2]),
    ):
        if valid is None:
            weights.append(cost.new_full((cost.shape[0], size), 1 / size))
            continue
        count = valid.sum(1, keepdim=True)
        if not count.all():
            raise ValueError(f"{name} must have a valid token in every set, one has none")
        weights.append(valid / count.to(cost.dtype))
    return weights[0], weights[1]


def _check_positive(**values: float | int) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive, got {value!r}")
