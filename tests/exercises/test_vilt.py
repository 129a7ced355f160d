"""Right and wrong answers to the exercises of the ViLT chapter; ``test_answers`` tries them."""

import torch
import torch.nn.functional as F

import mmlab
from mmlab.analysis import count_parameters
from mmlab.models.vilt import VILT_B_32, ViLT
from mmlab.nn import padding_mask
from mmlab.objectives.transport import cosine_cost, ipot, word_patch_alignment_loss


def length(t, h, w, p, extra=3):
    return t + extra + len(range(0, h - p + 1, p)) * len(range(0, w - p + 1, p))


def hide_by_loops(words, chosen, special=False, first=False):
    hidden = torch.zeros(words.shape, dtype=torch.bool)
    for i, row in enumerate(words.tolist()):
        for j, word in enumerate(row):
            if word >= 0 or special:
                piece = j and row[j - 1] == word
                hidden[i, j] = chosen[i, max(word, 0)] and not (first and piece)
    return hidden


def mask(t, p, where=1):
    parts = [t, p]
    parts.insert(where, torch.ones(len(t), 1, dtype=torch.bool))
    return padding_mask(torch.cat(parts, 1))


def cost_by_loops(words, patches, valid, pad=0.0, unit=True):
    cost = torch.full((len(words), words.shape[1], patches.shape[1]), pad)
    for b, i, j in torch.cartesian_prod(*(torch.arange(n) for n in cost.shape)):
        x, y = words[b, i], patches[b, j]
        if valid[b, i]:
            cost[b, i, j] = 1 - x @ y / (x.norm() * y.norm() if unit else 1)
    return cost


def by_scales(cost, beta, iterations, proximal=True, sign=-1, forget=False):
    n, m = cost.shape
    kernel = (sign * cost / beta).exp()
    plan, rows = kernel.clone(), cost.new_full((n, 1), 1 / n)
    for k in range(iterations):
        if k and proximal:
            plan = kernel * plan
        elif k:
            plan = kernel
        rows = rows.new_full((n, 1), 1 / n) if forget else rows
        columns = 1 / (m * (rows * plan).sum(0))
        rows = 1 / (n * (plan * columns).sum(1, keepdim=True))
        plan = rows * plan * columns
    return plan


def signed(costs, plans, matched, sign=-1.0):
    total = 0.0
    for c, t, m in zip(costs, plans, matched, strict=True):
        total += (1.0 if m else sign) * (c * t).sum().item()
    return total / len(matched)


RIGHT = [
    ("vilt.1", length),
    ("vilt.2", 768 * (30522 + 40 + 2) + 2 * 768),
    ("vilt.2", torch.tensor([23_474_688])),
    ("vilt.3", hide_by_loops),
    ("vilt.3", lambda w, c: F.pad(c, (0, 1)).gather(1, w % (c.shape[1] + 1))),
    ("vilt.4", mask),
    ("vilt.4", lambda t, p: F.pad(torch.cat([t, p], 1), (0, 0)).new_tensor(mask(t, p).tolist())),
    ("vilt.5", cost_by_loops),
    ("vilt.5", lambda w, p, v: cosine_cost(w, p, v)),
    ("vilt.6", by_scales),
    ("vilt.6", lambda c, b, k: ipot(c[None], beta=b, iterations=k)[0]),
    ("vilt.7", signed),
    ("vilt.7", lambda c, t, m: ((2.0 * m - 1) * (c * t).flatten(1).sum(1)).mean()),
]

WRONG = [
    # The row
    ("vilt.1", lambda t, h, w, p: length(t, h, w, p, 0), "Three tokens are missing"),
    ("vilt.1", lambda t, h, w, p: length(t, h, w, p, 1), "Two tokens are missing"),
    ("vilt.1", lambda t, h, w, p: length(t, h, w, p, 2), "One token is missing"),
    ("vilt.1", lambda t, h, w, p: length(t, h, h, p), "for a square"),
    ("vilt.1", lambda t, h, w, p: t + 3 + h // p + w // p, "add rows and columns"),
    # The tables
    ("vilt.2", 30522 * 768, "table of words"),
    ("vilt.2", 768 * (30522 + 40), "segments and the norm"),
    ("vilt.2", 768 * (30522 + 40 + 2), "The norm is missing"),
    ("vilt.2", 768 * (30522 + 512 + 2 + 2), "512 places"),
    ("vilt.2", 768 * (30522 + 41 + 2 + 2), "One row too many"),
    ("vilt.2", 24, "too small"),
    # Whole words
    ("vilt.3", lambda w, c: hide_by_loops(w, c, special=True), "first word"),
    ("vilt.3", lambda w, c: hide_by_loops(w, c, first=True), "first piece"),
    ("vilt.3", lambda w, c: c.gather(1, w % c.shape[1]), "An index of -1"),
    ("vilt.3", lambda w, c: ~hide_by_loops(w, c) & (w != -1), "The other way round"),
    ("vilt.3", lambda w, c: F.pad(c, (0, w.shape[1] - c.shape[1])), "number of the *word*"),
    # The mask
    ("vilt.4", lambda t, p: padding_mask(torch.cat([t, p], 1)), "class token of the picture"),
    ("vilt.4", lambda t, p: mask(t, p, where=0), "stands before the patches"),
    ("vilt.4", lambda t, p: mask(t, p).logical_not(), "The other way round"),
    ("vilt.4", lambda t, p: mask(t, p).flatten(1), "two more axes"),
    ("vilt.4", lambda t, p: mask(t, p).transpose(2, 3), "hide queries"),
    # The cost
    ("vilt.5", lambda w, p, v: cost_by_loops(w, p, torch.ones_like(v)), "must cost 0"),
    ("vilt.5", lambda w, p, v: cost_by_loops(w, p, v, unit=False), "dot product"),
    ("vilt.5", lambda w, p, v: cost_by_loops(w, p, v, pad=1.0), "the *cosine* of padding"),
    ("vilt.5", lambda w, p, v: cost_by_loops(w, p, v).transpose(1, 2), "Words are rows"),
    ("vilt.5", lambda w, p, v: 1.0 * v[..., None] - cost_by_loops(w, p, v), "That is the cosine"),
    # The plan
    ("vilt.6", lambda c, b, k: by_scales(c, b, k, proximal=False), "That is Sinkhorn"),
    ("vilt.6", lambda c, b, k: by_scales(c.T, b, k).T, "rows first"),
    ("vilt.6", lambda c, b, k: by_scales(c, b, k, forget=True), "r is kept"),
    ("vilt.6", lambda c, b, k: by_scales(c, b, k, sign=1), "The sign"),
    ("vilt.6", lambda c, b, k: len(c) * by_scales(c, b, k), "rows sum to 1"),
    ("vilt.6", lambda c, b, k: by_scales(c, 1 / b, k), "Divide by it"),
    # The loss
    ("vilt.7", lambda c, t, m: signed(c, t, m, sign=1.0), "made small, those of mismatched"),
    ("vilt.7", lambda c, t, m: signed(c, t, m, sign=0.0), "are missing"),
    ("vilt.7", lambda c, t, m: -signed(c, t, m), "exchanged"),
    ("vilt.7", lambda c, t, m: signed(c, t, m) * 4, "number of pairs"),
    ("vilt.7", lambda c, t, m: signed(c, torch.ones_like(t), m), "no effect"),
]


def test_the_tables_are_those_of_the_model():
    with torch.device("meta"):
        model = ViLT(VILT_B_32)
    assert mmlab.check("vilt.2", count_parameters(model.text_embeddings)).passed


def test_cost_plan_and_loss_together_are_the_objective():
    torch.manual_seed(0)
    words, patches = torch.randn(3, 4, 5), torch.randn(3, 6, 5)
    matched = torch.tensor([True, False, True])
    cost, plan, loss = (mmlab.exercises.EXERCISES[f"vilt.{n}"].solution for n in (5, 6, 7))
    costs = cost(words, patches, torch.ones(3, 4, dtype=torch.bool))
    plans = torch.stack([plan(c, 0.5, 50) for c in costs])
    expected = word_patch_alignment_loss(words, patches, matched)
    torch.testing.assert_close(loss(costs, plans, matched), expected)
