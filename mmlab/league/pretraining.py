"""The first cell of a system and a seed: its pretraining, for the budget of the plan."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from mmlab.analysis.cost import count_parameters
from mmlab.league.budget import StepCost, step_cost, with_steps
from mmlab.league.place import Cell, Result, tokenizer_file
from mmlab.league.plan import PRETRAINING, Entry, Plan, Stage
from mmlab.training.checkpoints import WEIGHTS, write_text
from mmlab.training.recipe import Recipe
from mmlab.training.run import CONFIG, METRICS, read_metrics, run, training_data

COST = "cost.json"
SHARE = 0.05
"""How much of a run its first losses, and its last, are means over."""
NO_LOSS = ("step", "seconds", "lr", "gradient_norm")


def pretrain(plan: Plan, folder: Path, entry: Entry, seed: int) -> Result:
    """Run the stages of a system, or go on with them; what they cost and how the losses fell.

    ``figures`` of each stage: ``"first"`` and ``"last"``, the means of each loss over the first and
    the last twentieth of the steps that had it; ``"step_flops"`` and ``"step_error"`` as in
    ``StepCost``; ``"folder"``.
    """
    stages, flops, steps, whole, network = [], 0.0, 0, True, None
    for number, stage in enumerate(entry.stages):
        place = stage_folder(entry, seed, number)
        recipe, cost = _recipe(plan, folder, entry, seed, stage, number)
        begun = (folder / place / CONFIG).is_file()
        network, whole = run(recipe, folder / place, resume=begun), whole and not begun
        lines = read_metrics(folder / place / METRICS)
        flops, steps = flops + cost.flops * recipe.steps, steps + recipe.steps
        told = {"step_flops": cost.flops, "step_error": cost.error, "folder": str(place)}
        stages.append({**loss_figures(lines), **told, "steps": recipe.steps})
    return Result(
        entry.name,
        entry.system,
        seed,
        PRETRAINING,
        figures={**stages[-1], "stages": stages},
        flops=flops,
        steps=steps,
        num_parameters=count_parameters(network),
        # Of a run that was cut short nobody knows how long its first part took.
        seconds=0.0 if whole else None,
    )


def stage_folder(entry: Entry, seed: int, number: int) -> Path:
    """The run of one stage, from the run folder of the league."""
    return Cell(entry.name, seed, PRETRAINING).path / f"stage{number + 1}"


def pretrained(plan: Plan, folder: Path, entry: Entry, seed: int) -> tuple[Recipe, Path]:
    """The recipe and the weights of a system whose pretraining is done."""
    number = len(entry.stages) - 1
    recipe, _ = _recipe(plan, folder, entry, seed, entry.stages[-1], number)
    return recipe, folder / stage_folder(entry, seed, number) / WEIGHTS


def _recipe(
    plan: Plan, folder: Path, entry: Entry, seed: int, stage: Stage, number: int
) -> tuple[Recipe, StepCost]:
    """The stage's recipe with the steps that its share of the budget buys; counted once."""
    recipe = plan.recipe(
        stage, seed, checkpoint_every=200, **_given(plan, folder, entry, seed, number)
    )
    file = folder / stage_folder(entry, seed, number).parent / f"stage{number + 1}-{COST}"
    if file.is_file():
        cost = StepCost(**json.loads(file.read_text("utf-8")))
    else:
        cost = step_cost(recipe, training_data(recipe))
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asdict(cost)) + "\n")
    return with_steps(recipe, cost, plan.budget * stage.share), cost


def _given(plan: Plan, folder: Path, entry: Entry, seed: int, number: int) -> dict[str, str]:
    """The vocabulary, or the weights of the stage before, which bring theirs."""
    if number:
        return {"start": str(folder / stage_folder(entry, seed, number - 1) / WEIGHTS)}
    reads = entry.system != "vit"
    return {"tokenizer": str(tokenizer_file(plan, folder, seed))} if reads else {}


def loss_figures(lines: list[dict[str, float | int]]) -> dict[str, dict[str, float]]:
    """The mean of each loss over the first and the last twentieth of the steps that had it."""
    values: dict[str, list[float]] = {}
    for line in lines:
        for name in line.keys() - set(NO_LOSS):
            values.setdefault(name, []).append(line[name])
    ends: dict[str, dict[str, float]] = {"first": {}, "last": {}}
    for name, own in sorted(values.items()):
        count = max(1, round(SHARE * len(own)))
        ends["first"][name] = sum(own[:count]) / count
        ends["last"][name] = sum(own[-count:]) / count
    return ends
