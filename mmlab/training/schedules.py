"""Learning rates as functions of the step: there is no schedule to save, only a step."""

from __future__ import annotations

import math

from torch.optim import Optimizer

_DECAYS = {
    "cosine": lambda progress, end: end + (1 - end) * 0.5 * (1 + math.cos(math.pi * progress)),
    "linear": lambda progress, end: end + (1 - end) * (1 - progress),
    "exponential": lambda progress, end: end**progress,
    "constant": lambda progress, end: 1.0,
}
"""Share of the full rate after a share of the way, from 1 to ``end``."""


def rate_factor(schedule: str, step: int, steps: int, warmup: int, end: float = 0.0) -> float:
    """Share of the full rate that step 0 … ``steps - 1`` takes.

    It rises in a line over ``warmup`` steps, the first of which moves a little already; then it
    falls by ``schedule`` and would be ``end`` at step ``steps``: along a cosine (Loshchilov &
    Hutter 2017, equation 5), in a line, or by the same factor each step (``"exponential"``, which
    needs an ``end`` above 0). ValueError for another schedule.
    """
    if schedule not in _DECAYS:
        raise ValueError(f"schedule must be one of {', '.join(_DECAYS)}, got {schedule!r}")
    if step < warmup:
        return (step + 1) / warmup
    return _DECAYS[schedule]((step - warmup) / max(1, steps - warmup), end)


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Give every group of the optimiser the same learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
