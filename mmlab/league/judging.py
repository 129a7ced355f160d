"""How cells decide a claim: which of them are compared, and what their difference says.

All intervals are 95 %, Student's t over seeds. Systems are compared seed by seed, for those of one
seed learn from the same scenes. A decision needs two seeds: one has no interval.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mmlab.league.intervals import Estimate, estimate
from mmlab.league.results import Cell, Found, Measure, by_seed

CONFIRMED, REFUTED, NO_DIFFERENCE, NOT_MEASURED = (
    "confirmed",
    "refuted",
    "no difference seen",
    "not measured",
)
OUTCOMES = (CONFIRMED, REFUTED, NO_DIFFERENCE, NOT_MEASURED)

AS_GOOD = 0.02
"""At most so much below counts as being as good."""


class Judged(NamedTuple):
    """An outcome, the numbers in words and as such, and the folders of the cells that were read."""

    outcome: str
    measured: str
    estimates: Mapping[str, Estimate] = {}
    folders: tuple[str, ...] = ()


Judge = Callable[[Sequence[Cell]], Judged]
Decide = Callable[[Estimate], str]
Values = Mapping[Hashable, Mapping[int, Found]]
"""One number a seed for each of the things that are compared."""


@dataclass(frozen=True)
class Group:
    """Systems and what is measured of each of them."""

    name: str
    entries: tuple[str, ...]
    measure: Measure


def common(values: Values) -> tuple[Values, tuple[int, ...]]:
    """Cut to where all have all seeds; returns what is left, and its seeds.

    A seed counts if more than half of those that were measured have it. Whatever lacks one of the
    seeds that count is left out.
    """
    measured = [own for own in values.values() if own]
    every = sorted({seed for own in measured for seed in own})
    seeds = tuple(s for s in every if 2 * sum(s in own for own in measured) > len(measured))
    whole = {key: own for key, own in values.items() if own and set(seeds) <= own.keys()}
    return {key: {seed: own[seed] for seed in seeds} for key, own in whole.items()}, seeds


def compare(first: Group, second: Group, decide: Decide) -> Judge:
    """A judge of the mean of the first group minus that of the second."""

    def judge(cells: Sequence[Cell]) -> Judged:
        groups = (first, second)
        found = {(g.name, e): by_seed(cells, e, g.measure) for g in groups for e in g.entries}
        values, seeds = common(found)
        sides = [[key for key in values if key[0] == group.name] for group in groups]
        for group, side in zip(groups, sides, strict=True):
            if not side:
                return not_measured(f"No whole figures of {group.name}")
        if len(seeds) < 2:
            return too_few(len(seeds))
        means = [seed_means(values, side, seeds) for side in sides]
        about = estimate([a - b for a, b in zip(*means, strict=True)])
        told = [
            f"{group.name} {percent(mean)} ({', '.join(entry for _, entry in side)})"
            for group, mean, side in zip(groups, means, sides, strict=True)
        ]
        text = f"{told[0]}, {told[1]}: {points(about)}, {len(seeds)} seeds"
        missing = [entry for key in found if key not in values for entry in key[1:]]
        estimates = {"difference": about}
        return Judged(decide(about), with_left_out(text, missing), estimates, folders(values))

    return judge


def compare_within(
    first: Measure, second: Measure, entries: tuple[str, ...], decide: Decide
) -> Judge:
    """A judge of two measures of the same systems: the first minus the second, their mean."""

    def judge(cells: Sequence[Cell]) -> Judged:
        found = {entry: difference(cells, entry, first, second) for entry in entries}
        values, seeds = common(found)
        if not values:
            return not_measured(f"No system has both, {first.name} and {second.name}")
        if len(seeds) < 2:
            return too_few(len(seeds))
        about = estimate(seed_means(values, list(values), seeds))
        sides = [f"{m.name} {percent(_all(cells, values, m, seeds))}" for m in (first, second)]
        text = f"{sides[0]}, {sides[1]} ({', '.join(values)}): {points(about)}, {len(seeds)} seeds"
        missing = [entry for entry in found if entry not in values]
        estimates = {"difference": about}
        return Judged(decide(about), with_left_out(text, missing), estimates, folders(values))

    return judge


def _all(
    cells: Sequence[Cell], entries: Iterable[str], measure: Measure, seeds: Sequence[int]
) -> list[float]:
    return [by_seed(cells, entry, measure)[seed].value for entry in entries for seed in seeds]


def difference(
    cells: Sequence[Cell], entry: str, first: Measure, second: Measure
) -> dict[int, Found]:
    """One measure minus another of one entry, for each seed that has both."""
    a, b = by_seed(cells, entry, first), by_seed(cells, entry, second)
    return {seed: subtracted(a[seed], b[seed]) for seed in a if seed in b}


def subtracted(first: Found, second: Found) -> Found:
    """The difference of two numbers, with the folders of both."""
    both = tuple(dict.fromkeys((*first.folders, *second.folders)))
    return Found(first.value - second.value, both)


def seed_means(values: Values, keys: Sequence[Hashable], seeds: Sequence[int]) -> list[float]:
    """The mean over the keys, for each seed."""
    return [statistics.fmean(values[key][seed].value for key in keys) for seed in seeds]


def folders(values: Values) -> tuple[str, ...]:
    """The cells behind some values, each once."""
    every = [one for own in values.values() for one in own.values()]
    return tuple(dict.fromkeys(folder for one in every for folder in one.folders))


# ---- What a number says


def direction(about: Estimate) -> str:
    """Confirmed if the interval lies above zero, refuted if below."""
    return CONFIRMED if about.above(0) else REFUTED if about.below(0) else NO_DIFFERENCE


def as_good(about: Estimate) -> str:
    """Confirmed if the interval lies above minus the margin; else refuted if it lies below zero."""
    return CONFIRMED if about.above(-AS_GOOD) else REFUTED if about.below(0) else NO_DIFFERENCE


def not_measured(why: str) -> Judged:
    """No outcome, and why."""
    return Judged(NOT_MEASURED, f"{why}.")


def too_few(num_seeds: int) -> Judged:
    """No outcome for want of seeds."""
    return not_measured(f"{num_seeds or 'no'} seed in common; an interval needs two".capitalize())


def points(about: Estimate) -> str:
    """A difference of shares in percentage points, with its interval."""
    mean = f"{100 * about.mean:+.1f} points"
    if not about.has_interval:
        return mean
    return f"{mean} [{100 * about.low:+.1f}, {100 * about.high:+.1f}]"


def percent(values: Sequence[float]) -> str:
    """The mean of some shares."""
    return f"{100 * statistics.fmean(values):.1f} %"


def with_left_out(text: str, entries: Iterable[str]) -> str:
    """A sentence, and one on the systems that had no part in it for want of whole figures."""
    names = ", ".join(dict.fromkeys(entries))
    return f"{text}. Left out, not measured with every seed: {names}." if names else f"{text}."
