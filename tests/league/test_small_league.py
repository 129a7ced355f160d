"""The small plan that comes with mmlab, whole, by the command line."""

import json
import os
import subprocess
import sys
from statistics import fmean

import pytest

from mmlab.league.place import read_result
from mmlab.league.plan import PRETRAINING, read_plan
from mmlab.league.results import LEAGUE, read_league
from mmlab.league.run import cells_of
from mmlab.league.standings import make_table
from mmlab.training.run import METRICS, read_metrics


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The finished command and its run folder."""
    folder = tmp_path_factory.mktemp("small") / "run"
    line = ("-m", "mmlab.cli", "league", "--plan", "small", "--out", str(folder), "--jobs", "2")
    settings = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *line], capture_output=True, text=True, env=settings)
    assert done.returncode == 0, done.stderr
    return done, folder


def test_every_cell_is_done(ran):
    _, folder = ran
    plan = read_plan("small")
    for cell in cells_of(plan):
        result = read_result(folder, cell)
        assert result.status == "done", f"{cell}: {result.error}"


def test_pretraining_spends_the_same_everywhere(ran):
    _, folder = ran
    plan = read_plan("small")
    for cell in cells_of(plan):
        if cell.task == PRETRAINING:
            assert abs(read_result(folder, cell).flops / plan.budget - 1) < 0.05, str(cell)


def test_every_loss_falls(ran):
    _, folder = ran
    for cell in cells_of(read_plan("small")):
        # So few steps teach a ViT nothing yet.
        if cell.task != PRETRAINING or cell.entry == "vit":
            continue
        lines = read_metrics(folder / cell.path / "stage1" / METRICS)
        # UNITER's tasks take turns, so that its whole loss is that of another task each step.
        name = "masked_words" if cell.entry == "uniter" else "loss"
        values = [line[name] for line in lines if name in line]
        quarter = max(1, len(values) // 4)
        assert fmean(values[-quarter:]) < fmean(values[:quarter]), str(cell)


def test_the_files_of_the_run_are_whole(ran):
    _, folder = ran
    league = read_league(folder / LEAGUE)
    assert len(league["cells"]) == len(cells_of(read_plan("small")))
    for name in ("table.md", "table.csv", "verdicts.md", "verdicts.json", "plots/accuracy.svg"):
        assert (folder / name).stat().st_size > 100, name
    json.loads((folder / "verdicts.json").read_text())


def test_the_terminal_shows_the_table(ran):
    done, folder = ran
    table = make_table(read_league(folder / LEAGUE))
    for entry in table.entries:
        assert any(line.startswith(entry) for line in done.stdout.splitlines()), entry
    assert "text-only" in done.stdout


def test_a_blind_baseline_is_blind(ran):
    _, folder = ran
    for cell in cells_of(read_plan("small")):
        if cell.entry == "text-only":
            figures = read_result(folder, cell).figures
            shown = {figures[name] for name in ("accuracy", "other_image", "blank_image")}
            assert len(shown) == 1, str(cell)
