"""A table of what several systems reached: sorted by any column, every figure with its runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import traitlets
from matplotlib.figure import Figure

from mmlab.widgets.base import Widget, listed, module_source, within

BETTER = ("more", "less", "")


class Row(NamedTuple):
    """A system or a baseline. Rows of one ``family`` can be hidden together."""

    name: str
    family: str
    baseline: bool = False


@dataclass(frozen=True)
class Column:
    """What was measured. Columns of one ``group`` are shown together.

    Values are multiplied by ``scale`` and written with ``digits`` and ``unit``. ``better`` is one
    of ``BETTER``: whether more or less of it is better, or neither. ``floor`` is what a blind model
    reaches, or None; ``about`` says in a sentence what the column holds.
    """

    name: str
    group: str
    unit: str = "%"
    scale: float | int = 100
    digits: int = 1
    better: str = "more"
    floor: float | int | None = None
    about: str = ""

    def __post_init__(self) -> None:
        if self.better not in BETTER:
            allowed = ", ".join(repr(word) for word in BETTER)
            raise ValueError(f"better={self.better!r} of {self.name!r}; allowed are {allowed}")


@dataclass(frozen=True)
class Cell:
    """One figure: its mean, half of its 95 % interval (None with a single seed), and its runs.

    ``runs`` are (seed, value, where the run lies). ``blind``: not above what a blind model reaches.
    A cell without runs has no value; ``note`` may say why.
    """

    runs: Sequence[tuple[int, float | int, str]] = ()
    mean: float | int | None = None
    half: float | int | None = None
    blind: bool = False
    note: str = ""


def _state(cell: Cell | None, where: tuple[str, str]) -> dict[str, Any] | None:
    """What the page is told of a cell; ValueError if its parts do not fit together."""
    if cell is None or not (cell.runs or cell.note):
        return None
    if bool(cell.runs) != (cell.mean is not None):
        raise ValueError(f"the cell {where} must have runs and a mean, or neither")
    for value in (cell.mean, cell.half, *(run[1] for run in cell.runs)):
        if value is not None and not math.isfinite(value):
            raise ValueError(f"the cell {where} holds {value}; allowed are finite numbers")
    return asdict(cell) | {"runs": [list(run) for run in cell.runs]}


def _check_names(kind: str, names: Sequence[str]) -> None:
    if not names:
        raise ValueError(f"{kind} is empty; LeagueTable needs at least one")
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"{kind} has {name!r} twice; every name may stand once")


class LeagueTable(Widget):
    """A sortable table of systems against what was measured of them.

    ``cells`` maps (name of a row, name of a column) to a ``Cell``; one that is not there is shown
    as not measured. ``sort`` is the index of the column that sorts, ``down`` whether the largest
    value comes first; the table shows the columns of its group. ``pinned`` keeps the baselines on
    top, ``hidden`` are families not shown. ``row`` and ``column`` are indices of the cell whose
    runs are listed. ValueError on names that stand twice, unknown names, or values out of range.
    """

    _esm = module_source("league_table")
    _strings = "league_table"

    rows = traitlets.List(help="name, family, baseline").tag(sync=True)
    columns = traitlets.List(help="the fields of Column").tag(sync=True)
    cells = traitlets.List(help="for each row, for each column: the fields of Cell").tag(sync=True)
    sort = traitlets.Int(0, help="index into columns").tag(sync=True)
    down = traitlets.Bool(True).tag(sync=True)
    pinned = traitlets.Bool(False).tag(sync=True)
    hidden = traitlets.List(help="names of families").tag(sync=True)
    row = traitlets.Int(0, help="index into rows").tag(sync=True)
    column = traitlets.Int(0, help="index into columns").tag(sync=True)

    def __init__(
        self,
        rows: Iterable[Row],
        columns: Iterable[Column],
        cells: Mapping[tuple[str, str], Cell],
        *,
        language: str = "en",
        **traits: Any,
    ):
        rows, columns = [Row(*row) for row in rows], list(columns)
        names = [row.name for row in rows], [column.name for column in columns]
        _check_names("rows", names[0])
        _check_names("columns", names[1])
        for row, column in cells:
            if row not in names[0] or column not in names[1]:
                raise ValueError(f"cells has ({row!r}, {column!r}), which is no row and column")
        table = [[_state(cells.get((r, c)), (r, c)) for c in names[1]] for r in names[0]]
        first = columns[traits.get("sort", 0)] if traits.get("sort", 0) < len(columns) else None
        state = {
            "rows": [row._asdict() for row in rows],
            "columns": [asdict(column) for column in columns],
            "cells": table,
            "down": first is None or first.better != "less",
        }
        super().__init__(language=language, **(state | traits))

    @traitlets.validate("sort", "column")
    def _column_is_there(self, proposal):
        return within(proposal, 0, len(self.columns) - 1)

    @traitlets.validate("row")
    def _row_is_there(self, proposal):
        return within(proposal, 0, len(self.rows) - 1)

    @traitlets.validate("hidden")
    def _families_are_known(self, proposal):
        known = {row["family"] for row in self.rows}
        for name in proposal["value"]:
            listed({"trait": proposal["trait"], "value": name}, sorted(known))
        return proposal["value"]

    def order(self) -> list[int]:
        """Rows as they are shown: baselines first if pinned, those without a value last."""

        def key(index: int) -> tuple[bool, bool, float]:
            cell = self.cells[index][self.sort]
            missing = cell is None or cell["mean"] is None
            value = 0.0 if missing else cell["mean"]
            later = self.pinned and not self.rows[index]["baseline"]
            return later, missing, -value if self.down else value

        shown = [i for i, row in enumerate(self.rows) if row["family"] not in self.hidden]
        return sorted(shown, key=key)

    def _values(self) -> list[tuple[str, dict[str, Any]]]:
        """Name and cell of the shown rows that have a value in the sorted column."""
        cells = [(self.rows[i]["name"], self.cells[i][self.sort]) for i in self.order()]
        return [(name, cell) for name, cell in cells if cell and cell["mean"] is not None]

    def sentence(self) -> str:
        """What the figure shows with its present values, in one line."""
        column = self.columns[self.sort]
        said = [
            self.strings["sentence_value"].format(name=name, value=_written(column, cell["mean"]))
            for name, cell in self._values()
        ]
        return self.strings["sentence"].format(
            group=column["group"],
            column=column["name"],
            unit=column["unit"],
            rows=len(self.order()),
            values="; ".join(said) or self.strings["missing"],
        )

    def still(self) -> Figure:
        """The sorted column: a point for each mean with its interval."""
        values = self._values()
        column = self.columns[self.sort]
        figure = Figure(figsize=(7.2, 1 + 0.24 * max(len(values), 3)), layout="constrained")
        axes = figure.subplots()
        for at, (_, cell) in enumerate(values):
            mean, half = (column["scale"] * (cell[part] or 0.0) for part in ("mean", "half"))
            colour = "#b4530a" if cell["blind"] else "#0b6e75"
            axes.errorbar([mean], [at], xerr=[half], fmt="o", color=colour, capsize=3)
        if column["floor"] is not None:
            axes.axvline(column["scale"] * column["floor"], color="#50606c", ls="--", lw=1)
        axes.set_yticks(range(len(values)), [name for name, _ in values], fontsize=8)
        axes.invert_yaxis()
        axes.set_xlabel(f"{column['name']}, {column['unit']}" if column["unit"] else column["name"])
        axes.spines[["top", "right"]].set_visible(False)
        return figure


def _written(column: Mapping[str, Any], value: float | int) -> str:
    return f"{column['scale'] * value:,.{column['digits']}f}"
