"""What a few seeds tell of a figure: its mean, with a 95 % interval from two seeds on."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

CONFIDENCE = 0.95
ROUNDING = 1e-9
"""Sums of equal numbers differ by so little, and no measure of ours by less."""
# Nodes of the quadrature: the integrand is a power of a cosine, smooth where it is taken.
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(96)


@dataclass(frozen=True)
class Estimate:
    """A mean over ``num_seeds`` with its interval; ``low`` and ``high`` are None for one seed."""

    mean: float
    low: float | None
    high: float | None
    num_seeds: int

    @property
    def has_interval(self) -> bool:
        """Whether there were seeds enough for one."""
        return self.low is not None

    def above(self, bound: float | int) -> bool:
        """Whether the whole interval lies above ``bound``; False without an interval."""
        return self.low is not None and self.low > bound + ROUNDING

    def below(self, bound: float | int) -> bool:
        """Whether the whole interval lies below ``bound``; False without an interval."""
        return self.high is not None and self.high < bound - ROUNDING


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of one value a seed, and Student's interval; ValueError if there is none."""
    if not values:
        raise ValueError("values must hold one a seed, got none")
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(mean, None, None, 1)
    half = student_t(count - 1) * statistics.stdev(values) / math.sqrt(count)
    return Estimate(mean, mean - half, mean + half, count)


def welch(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """The mean of ``first`` minus that of ``second``, with Welch's interval for unequal spreads.

    ``num_seeds`` is that of the shorter; where it is one, there is no interval. ValueError if one
    of the two is empty. Source: B. L. Welch, Biometrika 34 (1947), with his degrees of freedom.
    """
    apart = estimate(first).mean - estimate(second).mean
    count = min(len(first), len(second))
    if count == 1:
        return Estimate(apart, None, None, 1)
    parts = [statistics.variance(values) / len(values) for values in (first, second)]
    if not sum(parts):
        return Estimate(apart, apart, apart, count)
    pairs = zip(parts, (first, second), strict=True)
    degrees = sum(parts) ** 2 / sum(part**2 / (len(values) - 1) for part, values in pairs)
    half = student_t(degrees) * math.sqrt(sum(parts))
    return Estimate(apart, apart - half, apart + half, count)


@cache
def student_t(degrees: float | int) -> float:
    """How many standard errors a 95 % interval reaches to either side, by bisection.

    ``degrees`` of freedom need not be whole (Welch's are not), but are at least one.
    """
    low, high = 0.0, 16.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < CONFIDENCE else (low, middle)
    return low


def _within(t: float, degrees: float | int) -> float:
    """The probability that Student's variable lies between -t and t.

    With t = √degrees · tan(angle) its density becomes a power of the cosine.
    """
    end = math.atan(t / math.sqrt(degrees))
    angles = end * (_NODES + 1) / 2
    area = end / 2 * float(_WEIGHTS @ np.cos(angles) ** (degrees - 1))
    ratio = math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)
    return 2 * math.exp(ratio) / math.sqrt(math.pi) * area
