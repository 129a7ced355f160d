"""Where every entry of a league stands: means with intervals, costs, and the blind beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from mmlab.league.intervals import Estimate, estimate, welch
from mmlab.league.measures import BASELINES, BLIND_MARGIN, COLUMNS, FINETUNED, accuracy
from mmlab.league.plan import PRETRAINING
from mmlab.league.results import DONE, FAILED, Cell, Found, Measure, by_seed, number

PARAMETERS, FLOPS, PRETRAINING_SECONDS, SECONDS, MEMORY = COSTS = (
    "parameters",
    "pretraining FLOPs",
    "pretraining seconds",
    "seconds of all cells",
    "peak memory (MiB)",
)


@dataclass(frozen=True)
class Figure:
    """What the cells of an entry say in one column.

    - ``estimate``: None if no seed has it.
    - ``folders``: the cells that it comes from; ``failed``: those that failed.
    - ``missing``: seeds of the plan without a cell, where other seeds have one.
    - ``above_blind``: whether the interval of its mean minus the best blind baseline's lies above
      zero; None where that cannot be said.
    """

    estimate: Estimate | None
    folders: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    missing: tuple[int, ...] = ()
    above_blind: bool | None = None


@dataclass(frozen=True)
class Blind:
    """What stands beside a task: guessing, and the baselines that see one half.

    ``chance`` and ``commonest`` are means over all cells of the task. ``baseline`` is the better
    of the two; ``solved`` says whether it reaches ``best``, the best system, and is None where one
    of them was not measured.
    """

    task: str
    text_only: Estimate | None
    image_only: Estimate | None
    chance: float | None
    commonest: float | None
    best: str | None
    baseline: str | None
    solved: bool | None


@dataclass(frozen=True)
class Table:
    """Entries down, columns across; ``figures`` and ``costs`` by (entry, column)."""

    plan: Mapping[str, object]
    entries: tuple[str, ...]
    columns: tuple[Measure, ...]
    figures: Mapping[tuple[str, str], Figure]
    costs: Mapping[tuple[str, str], Figure]
    blind: Mapping[str, Blind]
    failed: tuple[Cell, ...]

    @property
    def systems(self) -> tuple[str, ...]:
        """The entries that see both, picture and text."""
        return tuple(entry for entry in self.entries if entry not in BASELINES)

    def mean(self, entry: str, column: str) -> Estimate | None:
        """The estimate of one figure, None where there is none."""
        figure = self.figures.get((entry, column))
        return figure and figure.estimate


def make_table(league: Mapping[str, object]) -> Table:
    """The table of what ``league.json`` holds; cells may be missing or failed."""
    plan, cells = league["plan"], league["cells"]
    entries = _entries(plan, cells)
    shown = tuple(c for c in COLUMNS if any(cell["task"] == c.parts[0][0] for cell in cells))
    seeds = tuple(plan.get("seeds", ()))
    figures = {(e, c.name): _figure(cells, e, c, seeds) for e in entries for c in shown}
    tasks = [column.name for column in shown if column.name in FINETUNED]
    blind = {task: _blind(cells, figures, entries, task) for task in tasks}
    for entry in entries:
        for task in tasks:
            above = _above_blind(cells, entry, blind[task])
            figures[entry, task] = replace(figures[entry, task], above_blind=above)
    costs = {key: value for entry in entries for key, value in _costs(cells, entry)}
    failed = tuple(cell for cell in cells if cell["status"] == FAILED)
    return Table(plan, entries, shown, figures, costs, blind, failed)


def _entries(plan: Mapping[str, object], cells: Sequence[Cell]) -> tuple[str, ...]:
    """Systems in the order of the plan, then others that have cells, the blind at the end."""
    names = dict.fromkeys([*plan.get("systems", {}), *(cell["entry"] for cell in cells)])
    return (*(n for n in names if n not in BASELINES), *(n for n in BASELINES if n in names))


def _figure(cells: Sequence[Cell], entry: str, column: Measure, seeds: Sequence[int]) -> Figure:
    found = by_seed(cells, entry, column)
    tasks = {task for task, _ in column.parts}
    own = [cell for cell in cells if cell["entry"] == entry and cell["task"] in tasks]
    failed = tuple(cell["folder"] for cell in own if cell["status"] == FAILED)
    there = {cell["seed"] for cell in own}
    missing = tuple(seed for seed in seeds if seed not in there) if own else ()
    return Figure(_estimate(found), _folders(found), failed, missing)


def _estimate(found: Mapping[int, Found]) -> Estimate | None:
    return estimate([one.value for one in found.values()]) if found else None


def _folders(found: Mapping[int, Found]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(folder for one in found.values() for folder in one.folders))


def _blind(
    cells: Sequence[Cell],
    figures: Mapping[tuple[str, str], Figure],
    entries: Sequence[str],
    task: str,
) -> Blind:
    means = {entry: figures[entry, task].estimate for entry in entries}
    known = {entry: about for entry, about in means.items() if about is not None}
    best = _highest({e: a for e, a in known.items() if e not in BASELINES})
    baseline = _highest({e: a for e, a in known.items() if e in BASELINES})
    solved = None
    if best and baseline:
        bound = known[best].low if known[best].has_interval else known[best].mean - BLIND_MARGIN
        solved = known[baseline].mean >= bound
    guesses = [_mean_of(cells, task, name) for name in ("chance", "commonest")]
    halves = [means.get(name) for name in BASELINES]
    return Blind(task, *halves, *guesses, best, baseline, solved)


def _highest(means: Mapping[str, Estimate]) -> str | None:
    return max(means, key=lambda entry: means[entry].mean) if means else None


def _mean_of(cells: Sequence[Cell], task: str, name: str) -> float | None:
    own = [cell for cell in cells if (cell["task"], cell["status"]) == (task, DONE)]
    told = [number(cell["figures"], (name,)) for cell in own]
    known = [value for value in told if value is not None]
    return statistics.fmean(known) if known else None


def _above_blind(cells: Sequence[Cell], entry: str, blind: Blind) -> bool | None:
    if entry in BASELINES or blind.baseline is None:
        return None
    sides = [by_seed(cells, name, accuracy(blind.task)) for name in (entry, blind.baseline)]
    if not all(sides):
        return None
    apart = welch(*([one.value for one in side.values()] for side in sides))
    return apart.above(0) if apart.has_interval else None


def _costs(cells: Sequence[Cell], entry: str) -> Iterator[tuple[tuple[str, str], Figure]]:
    own = [cell for cell in cells if cell["entry"] == entry and cell["status"] != FAILED]
    first = [cell for cell in own if cell["task"] == PRETRAINING]
    told = {
        PARAMETERS: (first or own, "num_parameters", statistics.fmean),
        FLOPS: (first, "flops", statistics.fmean),
        PRETRAINING_SECONDS: (first, "seconds", statistics.fmean),
        SECONDS: (own, "seconds", sum),
        MEMORY: (own, "memory_mib", max),
    }
    for name, (some, field, join) in told.items():
        yield (entry, name), _cost(some, field, join)


def _cost(cells: Sequence[Cell], field: str, join: Callable[[Sequence[float]], float]) -> Figure:
    """One number a seed, joined from that seed's cells."""
    known = [(cell, number(cell, (field,))) for cell in cells]
    seeds: dict[int, list[tuple[str, float]]] = {}
    for cell, value in known:
        if value is not None:
            seeds.setdefault(cell["seed"], []).append((cell["folder"], value))
    found = {
        seed: Found(join([value for _, value in some]), tuple(folder for folder, _ in some))
        for seed, some in sorted(seeds.items())
    }
    return Figure(_estimate(found), _folders(found))
