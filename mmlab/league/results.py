"""The cells of a league as they lie in its folder, and the one file that holds all of them."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from mmlab.league.place import CELLS, DONE, FAILED, PLAN, RESULT

LEAGUE = "league.json"

Cell = Mapping[str, object]
Part = tuple[str, tuple[str, ...]]
"""A task, and the names that lead to a number among its figures."""


@dataclass(frozen=True)
class Measure:
    """One number a seed: the mean of its parts, so of two directions or of several tasks."""

    name: str
    parts: tuple[Part, ...]


class Found(NamedTuple):
    """A number and the folders of the cells that it comes from."""

    value: float
    folders: tuple[str, ...]


def read_cells(folder: Path) -> list[Cell]:
    """Every cell of a run, by entry, seed and task; one that cannot be read counts as failed."""
    folder = Path(folder)
    found = folder.glob(f"{CELLS}/*/seed*/*/{RESULT}")
    cells = [_read_cell(path, path.parent.relative_to(folder)) for path in found]
    return sorted(cells, key=lambda cell: (cell["entry"], cell["seed"], cell["task"]))


def _read_cell(path: Path, place: Path) -> Cell:
    _, entry, seed, task = place.parts
    number = seed.removeprefix("seed")
    where = {"entry": entry, "seed": int(number) if number.isdigit() else -1, "task": task}
    try:
        cell = json.loads(path.read_text("utf-8"), parse_constant=lambda _: None)
        _check_cell(cell, where)
        cell["figures"] = cell.get("figures") or {}
    except (OSError, ValueError) as error:
        reason = f"{RESULT} is damaged: {error}"
        cell = {**where, "system": entry, "status": FAILED, "error": reason, "figures": {}}
    return {**cell, "folder": place.as_posix()}


def _check_cell(cell: object, where: Mapping[str, object]) -> None:
    if not isinstance(cell, dict):
        raise ValueError("it must hold an object")
    for name, value in where.items():
        if cell.get(name) != value:
            raise ValueError(f"{name} must be {value!r} as its folder says, got {cell.get(name)!r}")
    if cell.get("status") not in (DONE, FAILED):
        raise ValueError(f"status must be {DONE} or {FAILED}, got {cell.get('status')!r}")
    is_empty = cell.get("figures") is None and cell["status"] == FAILED
    if not (is_empty or isinstance(cell.get("figures"), dict)):
        raise ValueError("figures must be an object")


def league_json(plan: Mapping[str, object], folder: Path) -> dict[str, object]:
    """All of a league: its plan in plain values, the machine that runs this line, every cell."""
    return {"plan": dict(plan), "machine": machine(), "cells": read_cells(folder)}


def gather(folder: Path) -> dict[str, object]:
    """The same by the plan that the run folder keeps; ValueError if it keeps none."""
    path = Path(folder) / PLAN
    try:
        plan = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(folder)!r} holds no league: {error}") from None
    return league_json(plan, folder)


def read_league(path: Path) -> dict[str, object]:
    """What a ``league.json``, or a folder with one, holds; ValueError if it holds no league."""
    path = Path(path)
    path = path / LEAGUE if path.is_dir() else path
    try:
        league = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read: {error}") from None
    if not isinstance(league, dict) or not {"plan", "cells"} <= league.keys():
        raise ValueError(f"{str(path)!r} holds no league: it must have 'plan' and 'cells'")
    return league


def machine() -> dict[str, object]:
    """What this runs on; nothing that names one computer."""
    cuda = torch.cuda.is_available()
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.cuda.get_device_name() if cuda else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def done(cells: Iterable[Cell], entry: str, task: str) -> list[Cell]:
    """The finished cells of an entry and a task."""
    wanted = (entry, task, DONE)
    return [cell for cell in cells if (cell["entry"], cell["task"], cell["status"]) == wanted]


def by_seed(cells: Sequence[Cell], entry: str, measure: Measure) -> dict[int, Found]:
    """What a measure says of an entry, for each seed whose cells have all of its parts."""
    parts = [_part(cells, entry, part) for part in measure.parts]
    seeds = set.intersection(*(set(part) for part in parts)) if parts else set()
    return {seed: _joined([part[seed] for part in parts]) for seed in sorted(seeds)}


def _part(cells: Sequence[Cell], entry: str, part: Part) -> dict[int, Found]:
    task, names = part
    told = [(cell, number(cell["figures"], names)) for cell in done(cells, entry, task)]
    return {c["seed"]: Found(value, (c["folder"],)) for c, value in told if value is not None}


def _joined(found: Sequence[Found]) -> Found:
    folders = dict.fromkeys(folder for one in found for folder in one.folders)
    return Found(statistics.fmean(one.value for one in found), tuple(folders))


def number(figures: object, names: Sequence[str]) -> float | None:
    """The finite number that the names lead to, or None: not measured."""
    for name in names:
        figures = figures.get(name) if isinstance(figures, Mapping) else None
    is_number = isinstance(figures, int | float) and not isinstance(figures, bool)
    return float(figures) if is_number and math.isfinite(figures) else None
