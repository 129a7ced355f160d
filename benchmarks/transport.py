"""Optimal transport here against POT (in batches, one by one) and IPOT as UNITER writes it.

    python benchmarks/transport.py

64 problems of 32 x 49 tokens, 50 iterations. See ``pairs.py`` for how two are compared.
"""

import numpy as np
import ot
import ot.batch
import torch
from pairs import compare, headline

from mmlab.objectives import transport
from mmlab.objectives.transport import cosine_cost, ipot, sinkhorn

PROBLEMS, ROWS, COLUMNS, ITERATIONS, SCALE = 64, 32, 49, 50, 0.5


def ipot_as_published(cost, beta, iterations):
    """The method step by step, new tensors throughout, as the official code computes it."""
    batch, rows, columns = cost.shape
    row_scale = cost.new_full((batch, rows, 1), 1 / rows)
    plan = torch.ones_like(cost.mT)
    kernel = torch.exp(-cost.mT / beta)
    for _ in range(iterations):
        product = kernel * plan
        column_scale = 1 / (columns * (product @ row_scale).mT)
        row_scale = (1 / (rows * (column_scale @ product))).mT
        plan = column_scale.mT * product * row_scale.mT
    return plan.mT


def one_by_one(cost):
    a, b = np.full(ROWS, 1 / ROWS), np.full(COLUMNS, 1 / COLUMNS)
    return [
        ot.sinkhorn(a, b, part, SCALE, numItermax=ITERATIONS, stopThr=0, warn=False)
        for part in cost.numpy()
    ]


def in_logarithms(solve):
    """Run ``solve`` with the safe, slower way of small scales."""

    def run():
        limit, transport.LARGEST_EXPONENT = transport.LARGEST_EXPONENT, -1.0
        try:
            solve()
        finally:
            transport.LARGEST_EXPONENT = limit

    return run


@torch.no_grad()
def measure(rounds=15):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(PROBLEMS, ROWS, 64, generator=generator)
    y = torch.randn(PROBLEMS, COLUMNS, 64, generator=generator)
    cost = cosine_cost(x, y)
    settings = {"max_iter": ITERATIONS, "tol": 0.0}
    logits = -cost / SCALE
    solvers = {
        "POT in batches": lambda: ot.batch.bregman_projection_batch(logits.exp(), **settings),
        "POT in batches, logarithms": lambda: ot.batch.bregman_log_projection_batch(
            logits, **settings
        ),
        "POT one by one": lambda: one_by_one(cost),
        "IPOT as published": lambda: ipot_as_published(cost, SCALE, ITERATIONS),
    }
    own_sinkhorn = lambda: sinkhorn(cost, regularization=SCALE, iterations=ITERATIONS)  # noqa: E731
    own_ipot = lambda: ipot(cost, beta=SCALE, iterations=ITERATIONS)  # noqa: E731
    ours = {
        "POT in batches": own_sinkhorn,
        "POT in batches, logarithms": in_logarithms(own_sinkhorn),
        "POT one by one": own_sinkhorn,
        "IPOT as published": own_ipot,
    }
    headline(f"{PROBLEMS} problems of {ROWS} x {COLUMNS}")
    return {name: compare(name, solvers[name], ours[name], rounds) for name in solvers}


if __name__ == "__main__":
    measure()
