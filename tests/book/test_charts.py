"""What the pages draw and say of a result is what the result says."""

import importlib
import sys

import pytest
from matplotlib.figure import Figure

from mmlab.widgets.figure import LIGHT
from tests.book.pages import ROOT

sys.path.insert(0, str(ROOT / "book"))
charts = importlib.import_module("experiments.charts")
protocol = importlib.import_module("experiments.protocol")

VALUES = {"first": [1.0, 2.0, 3.0], "second": [4.0, 4.5, 8.0]}
RESULT = {
    "name": "d00_demo",
    "seeds": [0, 1, 2],
    "findings": [
        {
            "verdict": "refuted",
            "statement": "A is above B.",
            "measured": "difference -2 [-3, -1].",
            "claims": ["VIT-01", "VIT-02"],
        }
    ],
}


def test_a_row_shows_every_seed_and_its_interval():
    axes = Figure().subplots()
    charts.rows(axes, LIGHT, VALUES)
    points, bar, mean = axes.lines[3:6]
    assert list(points.get_xdata()) == VALUES["second"]
    about = protocol.interval(VALUES["second"])
    assert list(bar.get_xdata()) == [about.low, about.high]
    assert list(mean.get_xdata()) == [about.mean]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(VALUES)


def test_a_line_goes_through_the_means():
    axes = Figure().subplots()
    charts.line(axes, LIGHT, [1, 10], list(VALUES.values()), LIGHT.accent)
    assert list(axes.lines[-1].get_ydata()) == [2.0, 5.5]
    assert list(axes.lines[0].get_ydata()) == VALUES["first"]


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_that_would_meet_are_moved_apart(scale):
    axes = Figure().subplots()
    axes.set_yscale(scale)
    axes.set_ylim(0.1, 1)
    ends = [(0.51, "upper", "black"), (0.5, "lower", "black"), (0.9, "far", "black")]
    charts.end_labels(axes, 1.0, ends)
    heights = {text.get_text(): text.xy[1] for text in axes.texts}
    assert heights["lower"] == pytest.approx(0.5) and heights["far"] == pytest.approx(0.9)
    assert heights["upper"] - heights["lower"] > 0.05


def test_the_words_hold_the_figures():
    assert charts.told(VALUES, ".1f") == (
        "first: mean 2.0, seeds from 1.0 to 3.0; second: mean 5.5, seeds from 4.0 to 8.0"
    )


def test_a_finding_is_told_with_its_verdict_and_its_sources():
    told = charts.findings(RESULT)
    assert (
        "{verdict}`refuted` A is above B. *Measured:* difference -2 [-3, -1]. (VIT-01, VIT-02)"
        in told
    )
    assert "3 seeds. The script" in told
    assert "(experiments/d00_demo.py)" in told and "(../data/results/d00_demo.json)" in told


@pytest.mark.parametrize(("number", "text"), [(500, "500"), (1500, "1.5k"), (32000, "32k")])
def test_a_count_is_short(number, text):
    assert charts.short(number) == text
