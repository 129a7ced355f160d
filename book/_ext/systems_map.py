"""``{systems-map}`` and ``{systems-list}``: the systems of ``book/systems.yml``, drawn and listed.

The map is inline SVG in two layouts, one wide (time runs right, a row a family) and one tall for
phones (time runs down, arcs at the side); the style sheet shows the one that fits. Every system is
a real link, to its chapter or to its entry in the list.
"""

from __future__ import annotations

import calendar
from dataclasses import dataclass
from html import escape
from pathlib import Path

import yaml
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from furniture import _, tag, text

SOURCE = Path(__file__).parents[1] / "systems.yml"

# Wide layout, in units of the view box.
WIDTH, MARGIN, LANE, STRIP, CHIP = 1000, 34, 42, 26, 28
# Tall layout.
TALL_WIDTH, TALL_ROW, TALL_LEFT = 360, 46, 112


@dataclass(frozen=True)
class System:
    """One entry of ``systems.yml``; ``took`` pairs a system's name with what was taken from it."""

    name: str
    family: str
    title: str
    arxiv: str
    idea: str
    took: tuple[tuple[str, str], ...]
    chapter: str | None = None
    lane: int = 0
    neighbour: bool = False

    @property
    def key(self) -> str:
        """The id of its entry in the list."""
        return "system-" + self.name.lower()

    @property
    def year(self) -> int:
        """Year of the arXiv id."""
        return 2000 + int(self.arxiv[:2])

    @property
    def month(self) -> int:
        """Months since January 2000."""
        return 12 * (self.year - 2000) + int(self.arxiv[2:4]) - 1

    @property
    def date(self) -> str:
        """For readers: ``Jul 2021``."""
        return f"{calendar.month_abbr[self.month % 12 + 1]} {self.year}"

    @property
    def chip_width(self) -> float:
        """Width of its box in the map."""
        return 24 + 8.7 * len(self.name)


@dataclass(frozen=True)
class Systems:
    """The file as a whole: families in the order of the rows, systems in the order of time."""

    families: dict[str, dict]
    systems: tuple[System, ...]

    def named(self, name: str) -> System:
        """The system of that name."""
        return next(s for s in self.systems if s.name == name)

    def gave(self, system: System) -> list[tuple[str, str]]:
        """Who took what from ``system``."""
        return [
            (s.name, what) for s in self.systems for name, what in s.took if name == system.name
        ]


def ancestor(what: str, **rest: str) -> tuple[str, str]:
    """``{from: CLIP, what: the loss}`` as a pair; any other key is an error."""
    if set(rest) != {"from"}:
        raise ExtensionError(f"systems.yml: {what!r} needs the keys 'from' and 'what' only")
    return rest["from"], what


def load() -> Systems:
    """Read ``systems.yml``; an unknown family or ancestor is an error that names it."""
    data = yaml.safe_load(SOURCE.read_text(encoding="utf-8"))
    entries = []
    for entry in data["systems"]:
        took = tuple(ancestor(**t) for t in entry.pop("took"))
        entries.append(System(**entry, took=took))
    systems = Systems(data["families"], tuple(sorted(entries, key=lambda s: s.arxiv)))
    check(systems)
    return systems


def check(systems: Systems) -> None:
    """Raise when a system names a family or an ancestor that is not there."""
    names = {s.name for s in systems.systems}
    for s in systems.systems:
        if s.family not in systems.families:
            raise ExtensionError(f"systems.yml: {s.name} has the unknown family {s.family!r}")
        for name, _what in s.took:
            if name not in names:
                raise ExtensionError(f"systems.yml: {s.name} took from unknown {name!r}")


# ---- what both layouts share ---------------------------------------------------------------


def link(system: System, app: Sphinx, docname: str) -> str:
    """Where a click leads: the chapter when it is built, else the entry in the list."""
    if system.chapter in app.env.found_docs:
        return app.builder.get_relative_uri(docname, system.chapter)
    return "#" + system.key


def has_chapter(system: System, app: Sphinx) -> bool:
    """Whether its chapter is part of this build."""
    return system.chapter in app.env.found_docs


def note(systems: Systems, system: System) -> str:
    """One or two sentences about what it took and gave."""
    took = "; ".join(f"{what} ({name})" for name, what in system.took)
    gave = ", ".join(dict.fromkeys(name for name, _what in systems.gave(system)))
    sentences = [f"{system.name}, {system.date}."]
    if took:
        sentences.append(_("Took: ") + took + ".")
    if gave:
        sentences.append(_("Gave to: ") + gave + ".")
    return " ".join(sentences)


def chip(
    systems: Systems,
    system: System,
    app: Sphinx,
    docname: str,
    x: float,
    y: float,
) -> str:
    """A system as a linked box whose centre is (x, y)."""
    chapter = has_chapter(system, app)
    kind = "chapter" if chapter else "neighbour" if system.neighbour else "planned"
    goal = _("Opens its chapter.") if chapter else _("Goes to its entry below.")
    family = systems.families[system.family]["name"]
    said = note(systems, system)
    label = escape(f"{said} {family}. {goal}", quote=True)
    width = system.chip_width
    return (
        f'<a class="mmlab-node mmlab-node-{kind}" href="{link(system, app, docname)}" '
        f'data-name="{system.name}" data-note="{escape(said, quote=True)}" aria-label="{label}">'
        f'<rect x="{x - width / 2:.1f}" y="{y - CHIP / 2:.1f}" width="{width:.1f}" '
        f'height="{CHIP}" rx="{CHIP / 2}"/>'
        f'<text x="{x:.1f}" y="{y + 5:.1f}" text-anchor="middle">{system.name}</text></a>'
    )


def arrow(source: System, target: System, what: str, path: str, head: str) -> str:
    """One arrow, with its reason for whoever points at it."""
    reason = _("{target} took from {source}: {what}.").format(
        target=target.name, source=source.name, what=what
    )
    return (
        f'<g class="mmlab-edge" data-from="{source.name}" data-to="{target.name}" '
        f'data-note="{escape(reason, quote=True)}"><path class="mmlab-hit" d="{path}"/>'
        f'<path class="mmlab-line" d="{path}"/><path class="mmlab-head" d="{head}"/></g>'
    )


def svg(kind: str, size: tuple[float, float], label: str, parts: list[str]) -> str:
    """The frame of one layout, named for assistive technology."""
    name, described = f"mmlab-map-{kind}-title", f"mmlab-map-{kind}-desc"
    description = _(
        "Each system stands at the month of its arXiv number. An arrow runs from a system to a "
        "later one that took something from it; the list below says what."
    )
    return (
        f'<svg class="mmlab-map-{kind}" viewBox="0 0 {size[0]:.0f} {size[1]:.0f}" role="group" '
        f'aria-labelledby="{name}" aria-describedby="{described}">'
        f'<title id="{name}">{label}</title><desc id="{described}">{description}</desc>'
        f"{''.join(parts)}</svg>"
    )


# ---- wide: time runs right, a row a family -------------------------------------------------


@dataclass(frozen=True)
class Wide:
    """Places of the wide layout."""

    systems: Systems

    @property
    def months(self) -> tuple[int, int]:
        """First and last month on the axis."""
        return self.systems.systems[0].month - 1, self.systems.systems[-1].month + 2

    def x(self, month: float) -> float:
        """Where a month stands."""
        first, last = self.months
        return MARGIN + (WIDTH - 2 * MARGIN) * (month - first) / (last - first)

    def rows(self) -> dict[str, tuple[float, float]]:
        """Top and height of each family's row."""
        top, rows = 30.0, {}
        for name, family in self.systems.families.items():
            height = STRIP + LANE * family["lanes"]
            rows[name] = (top, height)
            top += height
        return rows

    def centre(self, system: System) -> tuple[float, float]:
        """Centre of a system's box, held inside the picture."""
        top, _height = self.rows()[system.family]
        half = system.chip_width / 2 + 2
        x = min(max(self.x(system.month + 0.5), half), WIDTH - half)
        return x, top + STRIP + LANE * system.lane + LANE / 2 - 6


def wide_axis(wide: Wide, height: float) -> list[str]:
    """Years and the grid line each starts with."""
    first, last = wide.months
    parts = []
    for month in range(-(-first // 12) * 12, last, 12):
        x = wide.x(month)
        parts.append(f'<path class="mmlab-grid" d="M{x:.1f} 24V{height:.0f}"/>')
        parts.append(f'<text class="mmlab-year" x="{x + 5:.1f}" y="16">{2000 + month // 12}</text>')
    return parts


def wide_rows(wide: Wide) -> list[str]:
    """A band and a name for each family."""
    parts = []
    for index, (name, (top, height)) in enumerate(wide.rows().items()):
        if index % 2 == 0:
            parts.append(
                f'<rect class="mmlab-band" x="0" y="{top}" width="{WIDTH}" height="{height}"/>'
            )
        label = wide.systems.families[name]["name"]
        parts.append(f'<text class="mmlab-family" x="10" y="{top + 18}">{escape(label)}</text>')
    return parts


def wide_arrow(wide: Wide, source: System, target: System, what: str) -> str:
    """A curve from the right edge of one box to the left edge of another, or down when steep."""
    (x0, y0), (x1, y1) = wide.centre(source), wide.centre(target)
    left, right = x0 + source.chip_width / 2, x1 - target.chip_width / 2
    if right - left > 18 and x1 - x0 > 0.45 * abs(y1 - y0):
        bend = min(max(28, (right - left) * 0.55), 130)
        end = right - 6
        path = f"M{left:.1f} {y0}C{left + bend:.1f} {y0} {end - bend:.1f} {y1} {end:.1f} {y1}"
        head = f"M{right:.1f} {y1}l-8 -4v8z"
    else:
        side = 1 if y1 > y0 else -1
        start, stop = y0 + side * CHIP / 2, y1 - side * CHIP / 2
        end, bend = (
            stop - side * 6,
            side * max(12, abs(stop - start) * 0.45),
        )
        path = f"M{x0:.1f} {start}C{x0:.1f} {start + bend} {x1:.1f} {end - bend} {x1:.1f} {end}"
        head = f"M{x1:.1f} {stop}l-4 {-8 * side}h8z"
    return arrow(source, target, what, path, head)


def draw_wide(systems: Systems, app: Sphinx, docname: str) -> str:
    """The wide layout."""
    wide = Wide(systems)
    height = sum(list(wide.rows().values())[-1])
    parts = wide_rows(wide) + wide_axis(wide, height)
    for system in systems.systems:
        for name, what in system.took:
            parts.append(wide_arrow(wide, systems.named(name), system, what))
    parts += [chip(systems, s, app, docname, *wide.centre(s)) for s in systems.systems]
    return svg(
        "wide",
        (WIDTH, height),
        _("Map of the systems by time and family"),
        parts,
    )


# ---- tall: time runs down, arcs at the side ------------------------------------------------


def tall_y(systems: Systems, system: System) -> float:
    """Middle of a system's row."""
    return TALL_ROW * (systems.systems.index(system) + 0.5)


def tall_arrow(systems: Systems, source: System, target: System, what: str) -> str:
    """An arc on the left, wider the further apart the two are."""
    y0, y1 = tall_y(systems, source), tall_y(systems, target)
    reach = TALL_LEFT - min(TALL_LEFT * 1.25, 16 + (y1 - y0) / TALL_ROW * 9)
    start, end = TALL_LEFT, TALL_LEFT - 6
    path = f"M{start} {y0 + 4}C{reach:.1f} {y0 + 4} {reach:.1f} {y1 - 4} {end} {y1 - 4}"
    return arrow(source, target, what, path, f"M{TALL_LEFT} {y1 - 4}l-8 -4v8z")


def tall_side(systems: Systems, system: System) -> str:
    """Date and family at the right of a system."""
    y = tall_y(systems, system)
    short = escape(systems.families[system.family]["short"])
    return (
        f'<text class="mmlab-year" x="240" y="{y - 2}">{system.date}</text>'
        f'<text class="mmlab-family" x="240" y="{y + 14}">{short}</text>'
    )


def draw_tall(systems: Systems, app: Sphinx, docname: str) -> str:
    """The tall layout."""
    parts = []
    for system in systems.systems:
        for name, what in system.took:
            parts.append(tall_arrow(systems, systems.named(name), system, what))
    for system in systems.systems:
        parts.append(tall_side(systems, system))
        x = TALL_LEFT + system.chip_width / 2
        parts.append(chip(systems, system, app, docname, x, tall_y(systems, system)))
    size = (TALL_WIDTH, TALL_ROW * len(systems.systems))
    return svg("tall", size, _("Map of the systems by time"), parts)


# ---- the directives ------------------------------------------------------------------------


class MapNode(nodes.General, nodes.Element):
    """Drawn when the page is written, since only then the chapters of the build are known."""


def visit_map(translator, node) -> None:
    """Write both layouts and the line that follows the reader's pointer."""
    app, docname = (
        translator.builder.app,
        translator.builder.current_docname,
    )
    systems = load()
    hint = _("Point at a system, or reach it with Tab, to read what it took and from whom.")
    legend = _("Filled: has a chapter. Outlined: chapter planned. Dashed: a neighbour.")
    translator.body.append(
        f'<figure class="mmlab-map">{draw_wide(systems, app, docname)}'
        f"{draw_tall(systems, app, docname)}"
        f'<p class="mmlab-map-note" aria-live="polite" data-hint="{escape(hint, quote=True)}">'
        f"{hint}</p><figcaption>{legend}</figcaption></figure>\n"
    )
    raise nodes.SkipNode


def skip(translator, node) -> None:
    """Other formats have the list only."""
    raise nodes.SkipNode


class SystemsMap(SphinxDirective):
    """The map."""

    def run(self):
        """Return the node that draws itself."""
        self.env.note_dependency(str(SOURCE))
        return [MapNode()]


def entry(systems: Systems, system: System, app: Sphinx) -> nodes.Element:
    """One system in the list."""
    box = tag("article", classes=["mmlab-system"], ids=[system.key])
    name = text("p", system.name, classes=["mmlab-system-name"])
    family = systems.families[system.family]["name"]
    facts = text(
        "p",
        f"{system.date} · {family} · ",
        classes=["mmlab-system-facts"],
    )
    paper = nodes.reference("", f"arXiv {system.arxiv}", internal=False)
    paper["refuri"] = f"https://arxiv.org/abs/{system.arxiv}"
    facts += paper
    box += [
        name,
        text("p", nodes.emphasis("", system.title)),
        facts,
        text("p", system.idea),
    ]
    if system.took:
        took = "; ".join(f"{what} ({source})" for source, what in system.took)
        box += text("p", nodes.strong("", _("Took: ")), took + ".")
    if not system.neighbour and not has_chapter(system, app):
        box += text("p", _("Chapter planned."), classes=["mmlab-system-state"])
    return box


class SystemsList(SphinxDirective):
    """Every system as an entry the map can point to."""

    def run(self):
        """Return the entries, in the order of time."""
        self.env.note_dependency(str(SOURCE))
        systems = load()
        grid = tag("div", classes=["mmlab-systems"])
        for system in systems.systems:
            box = entry(systems, system, self.env.app)
            if has_chapter(system, self.env.app):
                target = nodes.reference("", _("Read the chapter"), internal=True)
                target["refuri"] = link(system, self.env.app, self.env.docname)
                box += text("p", target, classes=["mmlab-system-state"])
            grid += box
        return [grid]


def add_files(app, pagename, templatename, context, doctree) -> None:
    """Only a page with a map loads the map's script, and is wider than a chapter."""
    if doctree is not None and next(doctree.findall(MapNode), None) is not None:
        # After mmlab.css, whose rules it replaces.
        app.add_css_file("map_page.css", priority=900)
        app.add_js_file("systems_map.js", loading_method="defer")


def setup(app: Sphinx) -> dict:
    """Called by Sphinx."""
    others = {name: (skip, None) for name in ("latex", "text", "man", "texinfo")}
    app.add_node(MapNode, html=(visit_map, None), **others)
    app.add_directive("systems-map", SystemsMap)
    app.add_directive("systems-list", SystemsList)
    app.connect("html-page-context", add_files)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
