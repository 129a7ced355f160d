"""The figures of a league, of whole leagues and of ones with holes."""

import io
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest
from matplotlib.figure import Figure
from PIL import Image

from mmlab.league.plots import figures, side_by_side, spread, write_plots
from mmlab.league.standings import make_table
from mmlab.widgets.figure import DARK, LIGHT
from tests.league.made_up import SYSTEMS, cell, league, probe, seeds, whole

NAMES = ["accuracy", "binding", "hidden-picture", "retrieval"]


@pytest.fixture(scope="module")
def drawn():
    """Every figure of a whole league, drawn on a canvas that can be asked."""
    made = {}
    for name, figure in figures(whole()).items():
        made[name] = Figure(figsize=figure.size, layout="constrained")
        figure.draw(made[name], LIGHT)
    return made


def visible(figure):
    return [axes for axes in figure.axes if axes.get_visible()]


def test_a_whole_league_has_all_figures(drawn):
    assert list(drawn) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_axes_say_what_they_show(drawn, name):
    axes = visible(drawn[name])
    lowest = axes[-min(4, len(axes)) :]
    assert all("%" in one.get_xlabel() or "passes" in one.get_xlabel() for one in lowest)
    if name == "retrieval":
        assert "%" in axes[0].get_ylabel() and axes[0].get_xscale() == "log"
    else:
        assert all(one.get_title() for one in axes)
        assert [label.get_text() for label in axes[0].get_yticklabels()] == list(SYSTEMS)


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_legend_and_words_for_it(drawn, name):
    (legend,) = drawn[name].legends
    assert len(legend.get_texts()) >= 3
    assert "%" in figures(whole())[name].alt


def test_points_and_bars_are_the_estimates(drawn):
    about = make_table(whole()).mean(SYSTEMS[0], "matching")
    axes = drawn["accuracy"].axes[0]
    assert axes.get_title() == "matching"
    bar, point = axes.lines[3:5]
    assert list(bar.get_xdata()) == [100 * about.low, 100 * about.high]
    assert list(point.get_xdata()) == [100 * about.mean]
    lines = [line.get_xdata()[0] for line in axes.lines[:3]]
    assert lines == pytest.approx([25, 30, 30])


def test_series_differ_by_more_than_colour(drawn):
    for name in NAMES[1:]:
        looks = [h.get_marker() for h in drawn[name].legends[0].legend_handles]
        looks = [look for look in looks if look not in ("None", "")]
        assert len(set(looks)) == len(looks) == 3


def test_systems_stand_in_the_figure_of_retrieval(drawn):
    assert {text.get_text() for text in drawn["retrieval"].axes[0].texts} == set(SYSTEMS)


def few(made, *left_out):
    """Three systems and two tasks of a league: drawing takes long."""
    entries = {"clip", "albef", "uniter", "vit", "text-only"} - set(left_out)
    some = [c for c in made["cells"] if c["entry"] in entries and c["task"] in ("probe", "binding")]
    return league(some, systems={name: [] for name in sorted(entries)})


HOLES = {
    "one seed": few(whole(num_seeds=1)),
    "no baselines": few(whole(), "vit", "text-only"),
    "one cell": league(seeds("uniter", "vqa", [0.5])),
    "one of two ways": few(league([probe("albef", 0, dual=(0.4, 0.6, 200))])),
    "no passes": few(league([probe("albef", 0, dual=(0.4, 0.6, 0), fusion=(0.5, 0.6, 100))])),
    "a failed system": league(
        [
            cell("uniter", 0, "vqa", status="failed", error="no room"),
            *seeds("lxmert", "vqa", [0.5, 0.6], other_image=0.3),
        ],
        systems={},
    ),
}


@pytest.mark.parametrize("made", HOLES.values(), ids=HOLES)
def test_a_league_with_holes_is_drawn(made):
    shown = figures(made)
    assert shown
    for figure in shown.values():
        image = Image.open(io.BytesIO(figure.render(DARK, "png")))
        assert image.getextrema()[3] == (0, 255)


def test_of_nothing_there_is_no_figure(tmp_path):
    assert figures(league([])) == {}
    assert figures(league([cell("uniter", 0, "vqa", status="failed", error="no room")])) == {}
    assert write_plots(tmp_path, league([])) == []


def test_files_are_written_in_both_formats(tmp_path):
    paths = write_plots(tmp_path, few(league(seeds("uniter", "binding", [0.5, 0.6]))))
    kinds = (".svg", "-dark.svg", ".png")
    assert [path.name for path in paths] == [
        f"{name}{kind}" for name in ("accuracy", "binding") for kind in kinds
    ]
    assert sorted((tmp_path / "plots").iterdir()) == sorted(paths)
    light, dark = (path.read_text() for path in paths[:2])
    assert ElementTree.fromstring(light).tag.endswith("svg")
    assert LIGHT.accent in light and DARK.accent in dark
    assert Image.open(paths[2]).size[0] > 800


def test_names_are_moved_apart_and_no_further():
    assert spread([0.0, 10.0], 1.0) == [0.0, 10.0]
    assert spread([1.0, 1.0, 1.0], 1.0) == [0.0, 1.0, 2.0]
    places = spread([0.0, 0.1, 0.9, 5.0, 5.2], 1.0)
    assert places == sorted(places)
    assert all(b - a >= 1 - 1e-9 for a, b in pairwise(places))


def test_equal_passes_are_drawn_side_by_side():
    made = league([probe(e, 0, fusion=(0.5, 0.6, 100)) for e in ("vilt", "uniter", "oscar")])
    figure = figures(made)["retrieval"]
    drawn = Figure(layout="constrained")
    figure.draw(drawn, LIGHT)
    places = [line.get_xdata()[0] for line in drawn.axes[0].lines]
    assert len(set(places)) == 3 and sorted(places)[1] == 100
    assert side_by_side([]) == []
