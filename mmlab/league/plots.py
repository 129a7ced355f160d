"""The figures of a league: accuracies, binding, what hiding the picture costs, and retrieval."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure as MatplotlibFigure
from matplotlib.lines import Line2D

from mmlab.hub.files import atomic_path
from mmlab.league.intervals import Estimate, estimate
from mmlab.league.measures import accuracy, probe_binding, probe_recall, single
from mmlab.league.results import Cell, Measure, by_seed
from mmlab.league.standings import Table, make_table
from mmlab.widgets.figure import DARK, LIGHT, Figure, Theme

Draw = Callable[[MatplotlibFigure, Theme], None]
Points = Mapping[str, Estimate | None]
"""Name of an entry → where its point lies; None: not measured."""

ROW = 0.19
"""Inches that a line of names takes."""
WAYS = ("dual", "reranked", "fusion")
BINDING_CHANCE = 0.5


@dataclass(frozen=True)
class Mark:
    """How a series is drawn: a sign of its own, so that colour is never all that tells it apart."""

    sign: str
    color: str
    filled: bool = True
    offset: float = 0.0


class Retrieved(NamedTuple):
    """How well an entry finds, in one way, and after how many passes."""

    entry: str
    way: str
    passes: float
    recall: Estimate


def figures(league: Mapping[str, object]) -> dict[str, Figure]:
    """All figures by name, those left out of which nothing is measured."""
    table, cells = make_table(league), league["cells"]
    made = {
        "accuracy": _accuracy_figure(table),
        "binding": _binding_figure(table, cells),
        "hidden-picture": _hidden_figure(table, cells),
        "retrieval": _retrieval_figure(table, cells),
    }
    return {name: figure for name, figure in made.items() if figure is not None}


def write_plots(folder: Path, league: Mapping[str, object]) -> list[Path]:
    """Write each figure as SVG for light and for dark pages and as PNG into ``folder/plots``.

    Each file is written whole or not at all; CheckpointError if one cannot be written.
    """
    place, written = Path(folder) / "plots", []
    place.mkdir(parents=True, exist_ok=True)
    for name, figure in figures(league).items():
        for ending, theme in ((".svg", LIGHT), ("-dark.svg", DARK), (".png", LIGHT)):
            path = place / f"{name}{ending}"
            with atomic_path(path) as aside:
                aside.write_bytes(figure.render(theme, path.suffix[1:]))
            written.append(path)
    return written


# ---- Parts of a drawing


def draw_points(axes: Axes, points: Points, mark: Mark) -> None:
    """One row an entry, in percent: the mean as a sign, its interval as a bar."""
    for row, about in enumerate(points.values()):
        if about is None:
            continue
        height = row + mark.offset
        if about.has_interval:
            ends = [100 * about.low, 100 * about.high]
            axes.plot(ends, [height] * 2, lw=1.4, color=mark.color, solid_capstyle="butt")
        face = mark.color if mark.filled else "none"
        axes.plot(100 * about.mean, height, mark.sign, ms=5, mfc=face, mec=mark.color)


def name_rows(axes: Axes, names: Sequence[str], theme: Theme) -> None:
    """The names of the entries, from top to bottom."""
    axes.set_yticks(range(len(names)), list(names))
    axes.tick_params(axis="y", length=0, labelcolor=theme.ink)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="x", lw=0.6)
    axes.set_axisbelow(True)


def draw_line(axes: Axes, share: float | None, style: str, color: str) -> None:
    """An upright line at a share, or nothing if it is not measured."""
    if share is not None:
        axes.axvline(100 * share, ls=style, lw=1.2, color=color, zorder=1)


def keep_shares(axes: Axes) -> None:
    """No more than 0 to 100 %: two seeds can have an interval far beyond."""
    low, high = axes.get_xlim()
    axes.set_xlim(max(low, -2), min(high, 102))


def told_points(points: Points) -> str:
    """The same in words, for those who cannot see it."""
    known = [f"{name} {100 * p.mean:.0f} %" for name, p in points.items() if p is not None]
    return ", ".join(known) or "not measured"


def legend(figure: MatplotlibFigure, theme: Theme, signs: Iterable[tuple[str, dict]]) -> None:
    """One legend under all axes."""
    handles = [Line2D([], [], label=label, **look) for label, look in signs]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8)


def _sign(mark: Mark) -> dict[str, object]:
    face = mark.color if mark.filled else "none"
    return {"marker": mark.sign, "ls": "", "mec": mark.color, "mfc": face}


def _panels(
    figure: MatplotlibFigure, theme: Theme, names: Sequence[str], titles: Sequence[str]
) -> list[Axes]:
    """A panel for each title, at most four in a row; the names stand on the left."""
    across = min(4, len(titles))
    down = math.ceil(len(titles) / across)
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes in grid.flat[len(titles) :]:
        axes.set_visible(False)
    shown = list(grid.flat[: len(titles)])
    for index, (axes, title) in enumerate(zip(shown, titles, strict=True)):
        name_rows(axes, names, theme)
        axes.set_title(title)
        if index >= len(titles) - across:
            axes.set_xlabel("accuracy (%)")
    return shown


def _height(rows: int, panels: int) -> float:
    return 0.9 + math.ceil(panels / 4) * (0.55 + ROW * rows)


def _share(about: Estimate | None) -> float | None:
    return None if about is None else about.mean


# ---- Accuracy of each task


def _accuracy_figure(table: Table) -> Figure | None:
    tasks = [task for task in table.blind if any(table.mean(e, task) for e in table.systems)]
    if not tasks:
        return None
    points = {task: {e: table.mean(e, task) for e in table.systems} for task in tasks}

    def draw(figure: MatplotlibFigure, theme: Theme) -> None:
        mark = Mark("o", theme.accent)
        looks = _blind_looks(theme)
        for axes, task in zip(_panels(figure, theme, table.systems, tasks), tasks, strict=True):
            for share, (style, color) in zip(_guesses(table, task), looks.values(), strict=True):
                draw_line(axes, share, style, color)
            draw_points(axes, points[task], mark)
            keep_shares(axes)
        lines = [(name, {"ls": style, "color": color}) for name, (style, color) in looks.items()]
        legend(figure, theme, [("mean, 95 % interval", _sign(mark)), *lines])

    told = "; ".join(
        f"{task}: {told_points(points[task])}; {_told_guesses(table, task)}" for task in tasks
    )
    size = (7.2, _height(len(table.systems), len(tasks)))
    return Figure(draw, alt=f"Accuracy of each system on each task. {told}.", size=size)


def _blind_looks(theme: Theme) -> dict[str, tuple[str, str]]:
    return {
        "chance": (":", theme.muted),
        "text-only": ("--", theme.warm),
        "image-only": ("-.", theme.ink),
    }


def _guesses(table: Table, task: str) -> list[float | None]:
    blind = table.blind[task]
    return [blind.chance, _share(blind.text_only), _share(blind.image_only)]


def _told_guesses(table: Table, task: str) -> str:
    names = ("chance", "text-only", "image-only")
    told = zip(names, _guesses(table, task), strict=True)
    known = [f"{name} {100 * share:.0f} %" for name, share in told if share is not None]
    return ", ".join(known) or "no baseline measured"


# ---- Binding: dual against fusion


def _estimates(cells: Sequence[Cell], entries: Sequence[str], measure: Measure) -> Points:
    found = {entry: by_seed(cells, entry, measure) for entry in entries}
    return {
        entry: estimate([one.value for one in own.values()]) if own else None
        for entry, own in found.items()
    }


def _any(*series: Points) -> bool:
    return any(about is not None for points in series for about in points.values())


def _binding_figure(table: Table, cells: Sequence[Cell]) -> Figure | None:
    names = table.systems
    dual, fusion = (_estimates(cells, names, probe_binding(way)) for way in ("dual", "fusion"))
    tuned = _estimates(cells, names, accuracy("binding"))
    if not _any(dual, fusion, tuned):
        return None

    def draw(figure: MatplotlibFigure, theme: Theme) -> None:
        marks = {
            "dual head": Mark("o", theme.warm, offset=-0.14),
            "fusion head": Mark("s", theme.accent, offset=0.14),
            "fine-tuned on hard negatives": Mark("D", theme.ink, filled=False),
        }
        before, after = _panels(figure, theme, names, ["as pretrained", "fine-tuned"])
        for axes, points, name in zip(
            (before, before, after), (dual, fusion, tuned), marks, strict=True
        ):
            draw_points(axes, points, marks[name])
        for axes in (before, after):
            draw_line(axes, BINDING_CHANCE, ":", theme.muted)
            keep_shares(axes)
        chance = ("chance", {"ls": ":", "color": theme.muted})
        legend(figure, theme, [*((name, _sign(mark)) for name, mark in marks.items()), chance])

    alt = (
        "Which of two captions with the same words is true; chance is 50 %. Pretrained dual heads: "
        f"{told_points(dual)}. Pretrained fusion heads: {told_points(fusion)}. "
        f"Fine-tuned: {told_points(tuned)}."
    )
    return Figure(draw, alt=alt, size=(7.2, _height(len(names), 2)))


# ---- The picture hidden


HIDDEN = {"its own picture": "accuracy", "another picture": "other_image", "blank": "blank_image"}


def _hidden_figure(table: Table, cells: Sequence[Cell]) -> Figure | None:
    names = table.systems
    points = {
        task: {
            label: _estimates(cells, names, single(task, task, field))
            for label, field in HIDDEN.items()
        }
        for task in table.blind
    }
    tasks = [task for task, own in points.items() if _any(*list(own.values())[1:])]
    if not tasks:
        return None

    def draw(figure: MatplotlibFigure, theme: Theme) -> None:
        looks = (
            Mark("o", theme.accent),
            Mark("s", theme.warm, filled=False, offset=-0.18),
            Mark("x", theme.ink, offset=0.18),
        )
        for axes, task in zip(_panels(figure, theme, names, tasks), tasks, strict=True):
            draw_line(axes, _share(table.blind[task].text_only), "--", theme.warm)
            for own, mark in zip(points[task].values(), looks, strict=True):
                draw_points(axes, own, mark)
            keep_shares(axes)
        signs = [(label, _sign(mark)) for label, mark in zip(HIDDEN, looks, strict=True)]
        legend(figure, theme, [*signs, ("text-only", {"ls": "--", "color": theme.warm})])

    told = "; ".join(
        f"{task}: "
        + "; ".join(f"{label}: {told_points(own)}" for label, own in points[task].items())
        for task in tasks
    )
    alt = f"Accuracy with the picture, with another item's, and with none. {told}."
    return Figure(draw, alt=alt, size=(7.2, _height(len(names), len(tasks))))


# ---- Retrieval against passes


def _retrieval_figure(table: Table, cells: Sequence[Cell]) -> Figure | None:
    recalls = {way: _estimates(cells, table.systems, probe_recall(way)) for way in WAYS}
    passes = {
        way: _estimates(cells, table.systems, single(way, "probe", "ways", way, "passes"))
        for way in WAYS
    }
    known = [
        Retrieved(entry, way, passes[way][entry].mean, recalls[way][entry])
        for entry in table.systems
        for way in WAYS
        if recalls[way][entry] is not None and (passes[way][entry] or _NO_PASS).mean > 0
    ]
    if not known:
        return None

    def draw(figure: MatplotlibFigure, theme: Theme) -> None:
        axes = figure.subplots()
        marks = {
            "dual": Mark("o", theme.warm),
            "reranked": Mark("^", theme.ink, filled=False),
            "fusion": Mark("s", theme.accent),
        }
        drawn = side_by_side(known)
        for entry in table.systems:
            own = [(one.passes, 100 * one.recall.mean) for one in drawn if one.entry == entry]
            if len(own) > 1:
                axes.plot(*zip(*own, strict=True), lw=0.8, color=theme.line, zorder=1)
        for one in drawn:
            _upright(axes, one, marks[one.way])
        axes.set_xscale("log")
        axes.set_xlabel("passes through the network (logarithmic)")
        axes.set_ylabel("recall at rank 1 (%), both directions")
        axes.grid(lw=0.6)
        axes.set_axisbelow(True)
        axes.margins(x=0.22)
        _names_beside(axes, drawn, theme)
        legend(figure, theme, [(way, _sign(marks[way])) for way in WAYS])

    told = "; ".join(
        f"{one.entry} {one.way}: {100 * one.recall.mean:.0f} % for {one.passes:,.0f} passes"
        for one in known
    )
    alt = f"Recall at rank 1 against passes through the network. {told}."
    caption = "Systems with the same number of passes are drawn side by side."
    return Figure(draw, alt=alt, size=(7.2, 4.6), caption=caption)


_NO_PASS = Estimate(0.0, None, None, 0)
BESIDE = 1.045
"""The factor between points with the same number of passes."""


def side_by_side(known: Sequence[Retrieved]) -> list[Retrieved]:
    """The same with the points of each way moved apart, where their intervals would hide."""
    drawn = []
    for way in WAYS:
        own = [one for one in known if one.way == way]
        middle = (len(own) - 1) / 2
        drawn += [
            one._replace(passes=one.passes * BESIDE ** (i - middle)) for i, one in enumerate(own)
        ]
    return drawn


def _upright(axes: Axes, one: Retrieved, mark: Mark) -> None:
    about = one.recall
    if about.has_interval:
        ends = [100 * about.low, 100 * about.high]
        axes.plot([one.passes] * 2, ends, lw=1.2, alpha=0.6, color=mark.color)
    face = mark.color if mark.filled else "none"
    axes.plot(one.passes, 100 * about.mean, mark.sign, ms=5, mfc=face, mec=mark.color)


def _names_beside(axes: Axes, drawn: Sequence[Retrieved], theme: Theme) -> None:
    """Names left of the dual points and right of the fusion points, moved apart where they meet."""
    low, high = axes.get_ylim()
    for way, side, align in (("dual", 1 / 1.35, "right"), ("fusion", 1.35, "left")):
        own = sorted((one for one in drawn if one.way == way), key=lambda one: one.recall.mean)
        if not own:
            continue
        edge = (min if side < 1 else max)(one.passes for one in own) * side
        places = spread([100 * one.recall.mean for one in own], gap=(high - low) * 0.045)
        for place, one in zip(places, own, strict=True):
            axes.annotate(
                one.entry,
                (one.passes, 100 * one.recall.mean),
                (edge, place),
                ha=align,
                va="center",
                fontsize=8,
                color=theme.ink,
                arrowprops={"arrowstyle": "-", "lw": 0.5, "color": theme.muted, "shrinkB": 3},
            )


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Sorted heights moved apart until none is nearer than ``gap``, their middle kept if moved."""
    places: list[list[float]] = []
    for height in heights:
        places.append([height])
        while len(places) > 1 and _bottom(places[-1], gap) < _top(places[-2], gap) + gap:
            last = places.pop()
            places[-1] += last
    return [_bottom(group, gap) + gap * i for group in places for i in range(len(group))]


def _bottom(group: Sequence[float], gap: float) -> float:
    return sum(group) / len(group) - gap * (len(group) - 1) / 2


def _top(group: Sequence[float], gap: float) -> float:
    return _bottom(group, gap) + gap * (len(group) - 1)
