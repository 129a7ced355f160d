from dataclasses import replace

import pytest

from mmlab.league.plan import PLANS, PRETRAINING, TASK_NAMES, read_plan
from mmlab.league.run import cells_of, chosen_cells
from mmlab.league.tasks import TASKS
from mmlab.training.recipe import SYSTEMS
from mmlab.training.system import config_of

TINY = """
budget: 1e9
seeds: [3]
tasks: [probe, vqa]
systems:
  text-only: {}
  uniter: {batch_size: 8, steps_: 1}
"""


def write(tmp_path, text):
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", PLANS)
def test_the_plans_that_come_with_mmlab_can_be_read(name):
    plan = read_plan(name)
    assert plan.budget > 0
    assert cells_of(plan)


def test_every_task_has_a_function():
    assert set(TASKS) == {*TASK_NAMES, PRETRAINING}


def test_the_full_plan_has_every_system_and_three_seeds():
    plan = read_plan("full")
    systems = {entry.system for entry in plan.entries}
    # Unicoder-VL and VL-BERT stand on UNITER's trunk and are no part of the league.
    assert systems == {*SYSTEMS, "text-only"} - {"unicoder-vl", "vlbert"}
    assert len(plan.seeds) >= 3


def test_all_systems_see_the_same_scenes():
    plan = read_plan("full")
    recipes = [plan.recipe(stage, 7) for entry in plan.entries for stage in entry.stages]
    seen = {(r.data, r.num_images, r.most_objects, r.seed) for r in recipes}
    assert seen == {("scenes", plan.num_images, plan.most_objects, 7)}


def test_every_system_reads_the_longest_text():
    plan = read_plan("full")
    recipes = [plan.recipe(e.stages[-1], 0) for e in plan.entries if e.stages and e.name != "vit"]
    lengths = {recipe.system: config_of(recipe).context_length for recipe in recipes}
    # That of a rationale has 42 word pieces.
    assert min(lengths.values()) >= 42, lengths


@pytest.mark.parametrize(
    "old, new, expected",
    [
        ("budget: 1e9", "budget: -1", "budget must be a positive number of FLOPs, got -1"),
        ("budget: 1e9", "budgets: 1e9", "unknown plan key 'budgets'; did you mean 'budget'"),
        ("budget: 1e9", "", "budget must be told"),
        ("seeds: [3]", "seeds: []", "seeds must be at least one"),
        ("steps_: 1", "steps: 1", "must not set steps: the plan sets it"),
        ("steps_: 1", "batch: 1", "unknown recipe key 'batch'; did you mean 'batch_size'"),
        ("uniter:", "unitre:", "unknown system 'unitre'; did you mean 'uniter'"),
        ("text-only: {}", "text-only: {lr: 1}", "text-only must be left empty"),
        ("probe, vqa", "probe, vqq", "unknown task 'vqq'; did you mean 'vqa'"),
        ("seeds: [3]", "finetuning: {step: 3}", "unknown fine-tuning setting 'step'"),
        ("seeds: [3]", "finetuning: {steps: 0}", "steps must be"),
        ("seeds: [3]", "retrieved: 2000", "retrieved must be at most test_images=1000"),
        ("systems:", "systems: [1]\nx:", "it must hold 'systems:'"),
    ],
)
def test_a_wrong_plan_is_told_in_one_sentence(old, new, expected, tmp_path):
    text = TINY if "steps_" in old else TINY.replace(", steps_: 1", "")
    with pytest.raises(ValueError, match=r"plan .*plan\.yaml") as error:
        read_plan(write(tmp_path, text.replace(old, new)))
    assert expected in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_that_is_not_there_names_those_that_are():
    with pytest.raises(ValueError, match="there is no plan 'none'; mmlab comes with full, small"):
        read_plan("none")


def test_a_plan_that_is_no_yaml_is_told(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_plan(write(tmp_path, "a: [1"))


def test_shares_of_stages_make_a_whole():
    plan = read_plan("full")
    vlmo = plan.entry("vlmo")
    half = replace(vlmo, stages=(replace(vlmo.stages[0], share=0.4), vlmo.stages[0]))
    with pytest.raises(ValueError, match=r"the shares of vlmo must be 1 together, got 1\.4"):
        replace(plan, entries=(half,))


def test_cells_come_seed_by_seed_and_pretraining_first():
    cells = cells_of(read_plan("full"))
    assert [cell.seed for cell in cells] == sorted(cell.seed for cell in cells)
    for seed in (0, 1, 2):
        own = [cell.task == "pretraining" for cell in cells if cell.seed == seed]
        assert own == sorted(own, reverse=True)
    assert len(set(cells)) == len(cells)


def test_what_is_not_asked_for_is_left_out():
    plan = read_plan("full")
    only = chosen_cells(plan, "clip, vilt", "vqa", "1")
    chosen = {str(cell) for cell in cells_of(plan) if only(cell)}
    assert chosen == {
        *("clip seed 1 pretraining", "clip seed 1 vqa"),
        *("vilt seed 1 pretraining", "vilt seed 1 vqa"),
    }
    with pytest.raises(
        ValueError, match="unknown system of this league 'vil'; did you mean 'vilt'"
    ):
        chosen_cells(plan, "vil", None, None)


def test_a_baseline_that_never_sees_has_nothing_to_pretrain_or_to_probe():
    own = {cell.task for cell in cells_of(read_plan("full")) if cell.entry == "text-only"}
    assert "pretraining" not in own
    assert not own & {"probe", "captioning", "vqa_written"}
    assert "vqa" in own
