"""What the league that ships with the book must show, and the rules it is held to."""

import json
import statistics
from pathlib import Path

import pytest

from mmlab.league.plan import PRETRAINING, read_plan
from mmlab.league.results import done, number, read_league
from mmlab.league.run import cells_of, plan_figures
from mmlab.league.verdicts import CONTRAST_FIRST, DUAL, FUSION, REGIONS

FILE = Path(__file__).parents[2] / "data/results/league.json"
LEAGUE = read_league(FILE)
CELLS = LEAGUE["cells"]
PLAN = read_plan("full")

# What a system's design suits: the way to a figure, and by how much the mean over the seeds must be
# above what a guess, or the text-only baseline, has there.
SEARCH = ("probe", "ways", "dual", "retrieval", "image_to_text", "r@1")
MATCHING, QUESTIONS = ("matching", "accuracy"), ("vqa", "accuracy")
SUITED = {
    **dict.fromkeys(DUAL, (SEARCH,)),
    **dict.fromkeys(CONTRAST_FIRST, (SEARCH, MATCHING)),
    **dict.fromkeys(REGIONS, (MATCHING, QUESTIONS)),
}
MARGIN = {SEARCH: 0.1, MATCHING: 0.1, QUESTIONS: 0.05}
TOO_LITTLE = ("vilt",)
"""Systems for which the budget does not suffice: none of the above is learned yet."""


def mean(entry, names):
    task, *rest = names
    found = [number(cell["figures"], rest) for cell in done(CELLS, entry, task)]
    assert found, f"{entry} has no {task}"
    return statistics.fmean(found)


def test_it_is_the_full_plan():
    assert LEAGUE["plan"] == json.loads(json.dumps(plan_figures(PLAN)))


def test_every_cell_is_of_the_plan_and_none_failed():
    planned = {(cell.entry, cell.seed, cell.task) for cell in cells_of(PLAN)}
    assert {(cell["entry"], cell["seed"], cell["task"]) for cell in CELLS} <= planned
    failed = [f"{cell['folder']}: {cell['error']}" for cell in CELLS if cell["status"] != "done"]
    assert not failed, failed


def test_every_pretraining_spends_the_budget():
    pretrained = [cell for cell in CELLS if cell["task"] == PRETRAINING]
    assert {cell["entry"] for cell in pretrained} == {e.name for e in PLAN.entries if e.stages}
    for cell in pretrained:
        assert abs(cell["flops"] / PLAN.budget - 1) < 0.05, cell["folder"]
        # The cost of a step is a mean of several; it must be known well enough for that.
        assert cell["figures"]["step_error"] / cell["figures"]["step_flops"] < 0.02, cell["folder"]


def test_every_loss_falls():
    for cell in CELLS:
        if cell["task"] == PRETRAINING:
            first, last = (cell["figures"][end] for end in ("first", "last"))
            rising = {
                name: (first[name], last[name]) for name in first if last[name] >= first[name]
            }
            assert not rising, f"{cell['folder']}: {rising}"


def least(names):
    """What a figure must be above."""
    blind = {SEARCH: 1 / PLAN.retrieved, MATCHING: 1 / 4}
    if names in blind:
        return blind[names] + MARGIN[names]
    return mean("text-only", names) + MARGIN[names]


@pytest.mark.parametrize("entry", SUITED)
def test_each_system_is_above_the_blind_where_its_design_suits(entry):
    for names in SUITED[entry]:
        assert mean(entry, names) > least(names), (names, mean(entry, names), least(names))


@pytest.mark.parametrize("entry", TOO_LITTLE)
def test_the_page_is_right_to_call_the_budget_too_small(entry):
    for names in (MATCHING, QUESTIONS):
        assert mean(entry, names) < least(names), names


@pytest.mark.parametrize("task", ["matching", "vqa", "binding"])
def test_without_the_picture_fusion_falls_to_the_text_only_baseline(task):
    blind = mean("text-only", (task, "accuracy"))
    num_items = sum(cell["figures"]["num_items"] for cell in done(CELLS, "text-only", task))
    # Two shares of so many items differ by luck, and there are sixty comparisons.
    luck = 3 * (2 * blind * (1 - blind) / num_items) ** 0.5
    for entry in FUSION:
        for way in ("other_image", "blank_image"):
            left = mean(entry, (task, way))
            assert left < blind + 0.03 + luck, f"{entry} {way}: {left:.3f}, blind {blind:.3f}"
