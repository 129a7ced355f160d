"""The machinery of a league, on systems that learn for a second."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmlab.league.place import DONE, FAILED, RESULT, Cell, read_result
from mmlab.league.plan import read_plan
from mmlab.league.pretraining import loss_figures
from mmlab.league.run import cells_of, run_league

# What a system of a second needs; the second vilt cannot be: patches of 20 do not divide 64.
PLAN = """
budget: 2e9
seeds: [0]
num_images: 60
test_images: 24
retrieved: 8
finetuning: {steps: 3, views: 8, num_items: 24, warmup: 1}
tasks: [probe, binding]
systems:
  text-only: {}
  vilt: &tiny
    batch_size: 4
    model: {patch_size: 32, dim: 32, depth: 1, num_heads: 2, mlp_dim: 64, context_length: 48}
  broken: {<<: *tiny, system: vilt, model: {patch_size: 20}}
"""


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("plan") / "plan.yaml"
    path.write_text(PLAN)
    return path


@pytest.fixture(scope="module")
def league(plan_file, tmp_path_factory):
    """The folder of a whole league and what was said of it."""
    folder, said = tmp_path_factory.mktemp("league") / "run", []
    plan = read_plan(plan_file)
    run_league(plan, folder, jobs=2, say=said.append)
    return plan, folder, said


def results(plan, folder):
    return {str(cell): read_result(folder, cell) for cell in cells_of(plan)}


def test_every_cell_has_a_result(league):
    plan, folder, said = league
    found = results(plan, folder)
    assert None not in found.values()
    for name in ("vilt seed 0 pretraining", "vilt seed 0 probe", "vilt seed 0 binding"):
        assert found[name].status == DONE, found[name].error
    assert found["text-only seed 0 binding"].status == DONE
    assert said[-1].startswith(f"[{len(found) - 2}/{len(found)}]") or len(said) >= len(found) - 2


def test_a_failed_cell_is_told_and_costs_only_what_stands_on_it(league):
    plan, folder, said = league
    found = results(plan, folder)
    assert found["broken seed 0 pretraining"].status == FAILED
    assert "patch_size" in found["broken seed 0 pretraining"].error
    assert found["broken seed 0 binding"].status == FAILED
    assert "its pretraining is not there" in found["broken seed 0 binding"].error
    assert any("broken seed 0 pretraining: failed" in line for line in said)
    assert (folder / Cell("broken", 0, "pretraining").path / "traceback.txt").is_file()


def test_a_cell_tells_its_costs(league):
    plan, folder, _ = league
    learned = results(plan, folder)["vilt seed 0 binding"]
    assert learned.flops > 0
    assert learned.seconds > 0.01
    assert learned.memory_mib > 50
    assert learned.num_parameters > 0
    assert learned.steps == 3
    assert learned.code


def test_pretraining_keeps_to_the_budget(league):
    plan, folder, _ = league
    own = results(plan, folder)["vilt seed 0 pretraining"]
    assert abs(own.flops / plan.budget - 1) < 0.05
    assert own.flops == pytest.approx(own.steps * own.figures["step_flops"])


def test_what_is_finished_is_not_run_again_and_what_failed_is(league):
    plan, folder, _ = league
    before = {path: path.stat().st_mtime_ns for path in folder.rglob(RESULT)}
    said = []
    run_league(plan, folder, say=said.append, only=lambda cell: cell.task != "probe")
    changed = {p.parts[-4] for p, time in before.items() if p.stat().st_mtime_ns != time}
    assert changed == {"broken"}
    assert len(said) == 1


def test_the_same_league_gives_the_same_figures(league, tmp_path):
    plan, folder, _ = league
    # With other threads sums are rounded otherwise.
    run_league(plan, tmp_path / "again", jobs=2, only=lambda cell: cell.entry == "vilt")
    for name in ("pretraining", "binding"):
        cell = Cell("vilt", 0, name)
        first, second = (read_result(place, cell).figures for place in (folder, tmp_path / "again"))
        first, second = (json.dumps(part) for part in (first, second))
        assert first == second


def test_a_folder_of_another_plan_is_refused(league, plan_file, tmp_path):
    _, folder, _ = league
    other = tmp_path / "other.yaml"
    other.write_text(PLAN.replace("budget: 2e9", "budget: 3e9"))
    with pytest.raises(ValueError, match="holds a league of another plan"):
        run_league(read_plan(other), folder)


def command(plan_file, folder, *more):
    line = [sys.executable, "-m", "mmlab.cli", "league", "--plan", str(plan_file)]
    return [*line, "--out", str(folder), *more]


def test_a_killed_cell_is_told(plan_file, tmp_path):
    slow = tmp_path / "slow.yaml"
    slow.write_text(PLAN.replace("budget: 2e9", "budget: 2e13"))
    only = ("--systems", "vilt", "--tasks", "binding")
    with subprocess.Popen(
        command(slow, tmp_path / "run", *only), stderr=subprocess.PIPE, text=True
    ) as running:
        metrics = tmp_path / "run" / Cell("vilt", 0, "pretraining").path / "stage1/metrics.jsonl"
        wait_for(lambda: metrics.is_file() and metrics.stat().st_size > 0)
        os.kill(worker_of(running.pid), signal.SIGKILL)
        said = running.communicate(timeout=120)[1]
    assert "vilt seed 0 pretraining: failed: its process was killed by signal 9" in said
    assert running.returncode == 0


def test_a_league_that_was_stopped_goes_on(plan_file, tmp_path):
    slow = tmp_path / "slow.yaml"
    slow.write_text(PLAN.replace("budget: 2e9", "budget: 8e9"))
    line = command(slow, tmp_path / "run", "--systems", "vilt", "--tasks", "binding")
    place = tmp_path / "run" / Cell("vilt", 0, "pretraining").path / "stage1"
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as running:
        wait_for(lambda: any(place.glob("checkpoints/*")))
        running.send_signal(signal.SIGINT)
        said = running.communicate(timeout=120)[1]
    assert running.returncode == 130
    assert "stopped; the same command goes on with it" in said
    done = len((place / "metrics.jsonl").read_text().splitlines())
    again = subprocess.run(line, capture_output=True, text=True, timeout=300)
    assert again.returncode == 0, again.stderr
    lines = [json.loads(text) for text in (place / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert len(lines) >= done


def heed():
    """Pytest in the background ignores Ctrl-C, and hands that down."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(ready, seconds=120):
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end
        time.sleep(0.05)


def worker_of(pid):
    """The process that trains: a child of the server that forks, itself a child of the command."""
    parents = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = status.read_text()
        except OSError:
            continue
        parents[int(status.parent.name)] = int(text.rsplit(")", 1)[1].split()[1])
    children = [child for child, parent in parents.items() if parent == pid]
    grandchildren = [child for child, parent in parents.items() if parent in children]
    assert len(grandchildren) == 1, grandchildren
    return grandchildren[0]


def test_losses_at_both_ends():
    lines = [{"step": i, "loss": 100 - i, "lr": 1, "seconds": i} for i in range(40)]
    lines[3]["rare"] = 7.0
    figures = loss_figures(lines)
    assert figures["first"] == {"loss": 99.5, "rare": 7.0}
    assert figures["last"] == {"loss": 61.5, "rare": 7.0}
