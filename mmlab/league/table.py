"""The table of a league as text, and the files of a run that hold it."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from mmlab.league.intervals import Estimate
from mmlab.league.measures import BLIND_MARGIN, CIDER
from mmlab.league.results import LEAGUE, Measure, gather, league_json, read_cells, read_league
from mmlab.league.standings import COSTS, Blind, Figure, Table, make_table
from mmlab.training.checkpoints import write_text

__all__ = [
    "Blind",
    "Figure",
    "Table",
    "league_json",
    "make_table",
    "read_cells",
    "read_league",
    "summary_lines",
    "to_csv",
    "to_markdown",
    "write_table",
]


NOTHING = "No task is measured yet."


def shown_share(about: Estimate | None) -> str:
    """A share in percent with its interval: ``61.2 [59.9, 62.5]``; a dash if not measured."""
    if about is None:
        return "–"
    mean = f"{100 * about.mean:.1f}"
    if not about.has_interval:
        return mean
    return f"{mean} [{100 * about.low:.1f}, {100 * about.high:.1f}]"


def shown_number(about: Estimate | None) -> str:
    """A mean to three or four digits; a dash if not measured."""
    if about is None:
        return "–"
    small = abs(about.mean) < 1000
    large = abs(about.mean) >= 1e9
    form = ".3g" if small else ".3e" if large else ",.0f"
    return f"{about.mean:{form}}"


def to_markdown(table: Table) -> str:
    """The whole table for reading: figures, costs, what failed, and where each number is from."""
    parts = ["# The league", _about(table), "## Figures", _legend(), *_figure_tables(table)]
    parts += ["## Tasks that need no picture, or no text", _blind_table(table)]
    parts += ["## Costs", _cost_table(table), "## Cells that failed", _failed_list(table)]
    parts += ["## Where each number comes from", _traced(table)]
    return "\n\n".join(parts) + "\n"


def _about(table: Table) -> str:
    plan = table.plan
    seeds = ", ".join(map(str, plan.get("seeds", ())))
    return (
        f"Budget of each pretraining: {plan.get('budget', 0):.3g} FLOPs. Seeds: {seeds}. "
        f"Training scenes: {plan.get('num_images')}; test scenes: {plan.get('test_images')}."
    )


def _legend() -> str:
    return (
        "Means over seeds in percent (CIDEr as it is), with the 95 % interval of Student's t in "
        "brackets; one seed has no interval. `+`: above the better blind baseline, the 95 % "
        "interval (Welch) of the difference excludes zero. `(n of m)`: so many of the planned "
        "seeds. A dash: not measured."
    )


def _figure_tables(table: Table, width: int = 4) -> Iterator[str]:
    """A few columns at a time: twenty side by side cannot be read."""
    for start in range(0, len(table.columns), width):
        columns = table.columns[start : start + width]
        rows = [
            [entry, *(shown_figure(table, entry, column) for column in columns)]
            for entry in table.entries
        ]
        rows += [row for row in _guess_rows(table, columns) if any(cell != "–" for cell in row[1:])]
        yield _markdown_table(["entry", *(column.name for column in columns)], rows)


def _guess_rows(table: Table, columns: Sequence[Measure]) -> Iterator[list[str]]:
    for name in ("chance", "commonest"):
        row = [name]
        for column in columns:
            blind = table.blind.get(column.name)
            row.append(_percent(getattr(blind, name) if blind else None))
        yield row


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}"


def shown_figure(table: Table, entry: str, column: Measure) -> str:
    """One figure with its interval and what is to be said of it."""
    figure = table.figures[entry, column.name]
    show = shown_number if column.name == CIDER else shown_share
    told = [show(figure.estimate)]
    if figure.above_blind:
        told.append("+")
    planned = len(table.plan.get("seeds", ()))
    measured = figure.estimate.num_seeds if figure.estimate else 0
    if figure.failed or figure.missing or (measured and measured < planned):
        told.append(f"({measured} of {planned})")
    if figure.failed:
        told.append(f"{len(figure.failed)} failed")
    return " ".join(told)


def _blind_table(table: Table) -> str:
    header = ["task", "best system", "text-only", "image-only", "chance", "commonest", "blind?"]
    said = {None: "not measured", True: "blind", False: "no"}
    rows = [
        [
            blind.task,
            f"{blind.best or ''} {shown_share(table.mean(blind.best or '', blind.task))}".strip(),
            shown_share(blind.text_only),
            shown_share(blind.image_only),
            _percent(blind.chance),
            _percent(blind.commonest),
            said[blind.solved] + (f" ({blind.baseline})" if blind.solved else ""),
        ]
        for blind in table.blind.values()
    ]
    note = (
        "A task is blind where the text-only or the image-only baseline comes within the interval "
        f"of the best system, or above it; with one seed, within {100 * BLIND_MARGIN:.0f} points."
    )
    return f"{note}\n\n{_markdown_table(header, rows)}" if rows else note


def _cost_table(table: Table) -> str:
    rows = [
        [entry, *(shown_number(table.costs[entry, name].estimate) for name in COSTS)]
        for entry in table.entries
    ]
    return _markdown_table(["entry", *COSTS], rows)


def _failed_list(table: Table) -> str:
    lines = [f"- `{cell['folder']}`: {_one_line(cell.get('error'))}" for cell in table.failed]
    return "\n".join(lines) or "None."


def _one_line(text: object) -> str:
    return " ".join(str(text or "no reason given").split())


def _traced(table: Table) -> str:
    lines = [
        f"- {entry}, {column.name}: " + ", ".join(f"`{f}`" for f in figure.folders)
        for entry in table.entries
        for column in table.columns
        if (figure := table.figures[entry, column.name]).folders
    ]
    return "\n".join(lines) or NOTHING


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


CSV_HEADER = (
    "entry",
    "column",
    "mean",
    "low",
    "high",
    "seeds",
    "above_blind",
    "failed",
    "missing_seeds",
    "folders",
)


def to_csv(table: Table) -> str:
    """One line an entry and column, costs included, with the folders of its cells."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    names = [column.name for column in table.columns]
    for entry in table.entries:
        for name in names:
            writer.writerow([entry, name, *_csv_row(table.figures[entry, name])])
        for name in COSTS:
            writer.writerow([entry, name, *_csv_row(table.costs[entry, name])])
    return text.getvalue()


def _csv_row(figure: Figure) -> list[object]:
    about = figure.estimate
    numbers = [about.mean, about.low, about.high, about.num_seeds] if about else ["", "", "", 0]
    lists = (figure.failed, figure.missing, figure.folders)
    return [*numbers, figure.above_blind, *(" ".join(map(str, some)) for some in lists)]


def summary_lines(table: Table) -> list[str]:
    """The fine-tuned tasks for a terminal: aligned, in percent, then what failed."""
    columns = [column for column in table.columns if column.name in table.blind]
    failed = [f"failed: {c['folder']}: {_one_line(c.get('error'))}" for c in table.failed]
    if not columns:
        return [NOTHING, *failed]
    rows = [["", *(column.name for column in columns)]]
    rows += [[e, *(_short(table.figures[e, c.name]) for c in columns)] for e in table.entries]
    rows += list(_guess_rows(table, columns))
    solved = ["blind" if table.blind[c.name].solved else "" for c in columns]
    rows += [["", *solved]] if any(solved) else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [*(_aligned(row, widths) for row in rows), *failed]


def _short(figure: Figure) -> str:
    """``61.2±1.3+``: half of the interval, and a sign where it is above the blind."""
    about = figure.estimate
    if about is None:
        return "failed" if figure.failed else "–"
    half = f"±{100 * (about.high - about.mean):.1f}" if about.has_interval else ""
    return f"{100 * about.mean:.1f}{half}{'+' if figure.above_blind else ''}"


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first = row[0].ljust(widths[0])
    rest = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
    return "  ".join([first, *rest]).rstrip()


def write_table(folder: Path) -> Table:
    """Write ``league.json``, ``table.md`` and ``table.csv`` of a run, each whole or not at all.

    Cells that are not finished are missing in them, and told so. ValueError if the folder holds no
    plan; CheckpointError if a file cannot be written.
    """
    folder = Path(folder)
    league = gather(folder)
    table = make_table(league)
    text = json.dumps(league, indent=1, ensure_ascii=False, allow_nan=False)
    write_text(folder / LEAGUE, text + "\n")
    write_text(folder / "table.md", to_markdown(table))
    write_text(folder / "table.csv", to_csv(table))
    return table
