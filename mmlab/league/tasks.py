"""What a league measures: a function for each task, and which systems it is for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import nn

from mmlab.analysis.cost import count_parameters
from mmlab.datasets import Scenes
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.league.budget import step_cost, with_steps
from mmlab.league.emoji import emoji_figures
from mmlab.league.figures import cell_figures
from mmlab.league.finetuning import finetune, finetuning_flops
from mmlab.league.place import Cell, Result, test_scenes, tokenizer_file, training_scenes
from mmlab.league.plan import PRETRAINING, TEXT_ONLY, Entry, Plan
from mmlab.league.pretraining import pretrain, pretrained
from mmlab.league.probes import DUAL_ENCODERS, WITHOUT, binding_figures, load_scorer, probe
from mmlab.league.readers import load_reader, text_reader
from mmlab.league.retrieval import learned_retrieval
from mmlab.league.writing import ANSWERING, CAPTIONING, captioning_cell, vqa_written_cell
from mmlab.tasks.downstream.binding import binding_items
from mmlab.tasks.downstream.entailment import entailment_items
from mmlab.tasks.downstream.grounding import grounding_items
from mmlab.tasks.downstream.items import Items
from mmlab.tasks.downstream.matching import matching_items
from mmlab.tasks.downstream.nlvr2 import nlvr2_items
from mmlab.tasks.downstream.rationales import answer_items, rationale_items
from mmlab.tasks.downstream.reading import Reader
from mmlab.tasks.downstream.vqa import vqa_items
from mmlab.training.checkpoints import WEIGHTS
from mmlab.training.recipe import Recipe
from mmlab.training.run import CONFIG, device, run, training_data
from mmlab.training.system import image_size

Task = Callable[[Plan, Path, Entry, int], Result]
Asked = Callable[[Scenes, int, int], Items]
RICH_SCENES = 4
"""Objects at most in the scenes of a second binding probe: numbers can only be exchanged there."""
REGION_SCENES = 64
"""Pixels per side of scenes for a reader that sees none itself."""
CANDIDATES = 8
"""Those that are scored again of 100: a like share as the 128 of 1,000 pictures on Flickr30k."""

FINE_TUNED: dict[str, Asked] = {
    "matching": matching_items,
    "vqa": vqa_items,
    "nlvr2": nlvr2_items,
    "entailment": entailment_items,
    "answer": answer_items,
    "rationale": rationale_items,
    "grounding": grounding_items,
    "binding": binding_items,
}
"""Tasks that every system learns by the one recipe, blind ones too."""


def suits(task: str, entry: Entry) -> bool:
    """Whether a system can do a task at all."""
    system = entry.system
    wanted = {
        PRETRAINING: system != TEXT_ONLY,
        "probe": system not in (TEXT_ONLY, *WITHOUT),
        "captioning": system in CAPTIONING,
        "vqa_written": system in ANSWERING,
        "emoji": system in DUAL_ENCODERS,
    }
    return wanted.get(task, True)


# Tasks that are learned, alike for all.


def fine_tuned(plan: Plan, folder: Path, entry: Entry, seed: int, task: str) -> Result:
    """Learn a task from the training scenes and be asked about the test scenes."""
    reader = make_reader(plan, folder, entry, seed)
    train = training_scenes(plan, seed, reader.image_size)
    test = test_scenes(plan, reader.image_size)
    ask, settings = FINE_TUNED[task], plan.finetuning
    items, asked = ask(train, settings.num_items, seed), ask(test, plan.test_images, 0)
    model = finetune(reader, train, items, settings, seed)
    figures = cell_figures(model, test, asked, items)
    if task == "matching":
        figures["retrieval"] = learned_retrieval(model, test, plan.retrieved)
    flops = finetuning_flops(model, train, items, settings)
    return _result(entry, seed, task, figures, model, flops, settings.steps)


def make_reader(plan: Plan, folder: Path, entry: Entry, seed: int) -> Reader:
    """A pretrained system, or the fresh text-only baseline, ready to learn a task."""
    words = Tokenizer.load(tokenizer_file(plan, folder, seed))
    if entry.system == TEXT_ONLY:
        reader = text_reader(words, REGION_SCENES, seed)
    else:
        reader = load_reader(*pretrained(plan, folder, entry, seed), words)
    return reader.to(device())


def _result(
    entry: Entry,
    seed: int,
    task: str,
    figures: dict[str, object],
    model: nn.Module | None = None,
    flops: float = 0.0,
    steps: int = 0,
) -> Result:
    size = count_parameters(model) if model is not None else 0
    return Result(
        entry.name,
        entry.system,
        seed,
        task,
        figures=figures,
        flops=flops,
        steps=steps,
        num_parameters=size,
    )


# Tasks of some systems alone.


def probed(plan: Plan, folder: Path, entry: Entry, seed: int) -> Result:
    """Retrieval and binding by the heads that pretraining trained; nothing is learned."""
    recipe, weights = pretrained(plan, folder, entry, seed)
    test = test_scenes(plan)
    figures = probe(recipe, weights, test, test, plan.retrieved, k=CANDIDATES)
    if not figures["ways"]:
        return _result(entry, seed, "probe", figures)
    rich = test_scenes(plan, image_size(recipe), RICH_SCENES)
    pairs = rich.binding_pairs(len(rich), 0, kinds=("attribute", "relation", "count"))
    scorer = load_scorer(recipe, weights)
    for way, found in figures["ways"].items():
        found["rich_binding"] = binding_figures(scorer, way, rich, pairs)
    return _result(entry, seed, "probe", figures)


def captioned(plan: Plan, folder: Path, entry: Entry, seed: int) -> Result:
    """Captions, before and after they have been learned."""
    recipe, weights = pretrained(plan, folder, entry, seed)
    scenes = _scenes_of(plan, recipe, seed)
    figures = captioning_cell(recipe, weights, *scenes, plan.finetuning, seed)
    return _costed(entry, seed, "captioning", figures)


def answered(plan: Plan, folder: Path, entry: Entry, seed: int) -> Result:
    """Questions, answered by writing."""
    recipe, weights = pretrained(plan, folder, entry, seed)
    train, test = _scenes_of(plan, recipe, seed)
    items, learned = vqa_items(test, plan.test_images, 0), vqa_items(train, len(train), seed)
    place = folder / Cell(entry.name, seed, "vqa_written").path / "run"
    given = (recipe, weights, place, test, items, learned, plan.finetuning, seed)
    return _costed(entry, seed, "vqa_written", vqa_written_cell(*given))


def on_emoji(plan: Plan, folder: Path, entry: Entry, seed: int) -> Result:
    """A dual encoder, trained on emoji for the same budget, on a style that it has not seen."""
    own = plan.recipe(entry.stages[-1], seed, checkpoint_every=200)
    recipe = replace(own, data="emoji")
    cost = step_cost(recipe, training_data(recipe), num_steps=4)
    recipe = with_steps(recipe, cost, plan.budget)
    place = folder / Cell(entry.name, seed, "emoji").path / "run"
    network = run(recipe, place, resume=(place / CONFIG).is_file())
    figures = emoji_figures(recipe, place / WEIGHTS)
    flops = cost.flops * recipe.steps
    return _result(entry, seed, "emoji", figures, network, flops, recipe.steps)


def _scenes_of(plan: Plan, recipe: Recipe, seed: int) -> tuple[Scenes, Scenes]:
    """Training and test scenes in the size of a recipe's model."""
    size = image_size(recipe)
    return training_scenes(plan, seed, size), test_scenes(plan, size)


def _costed(entry: Entry, seed: int, task: str, figures: dict[str, object]) -> Result:
    """A result whose costs are among the figures."""
    rest = dict(figures)
    costs = {name: rest.pop(name) for name in ("flops", "steps", "num_parameters")}
    return Result(entry.name, entry.system, seed, task, figures=rest, **costs)


TASKS: dict[str, Task] = {
    PRETRAINING: pretrain,
    "probe": probed,
    **{task: partial(fine_tuned, task=task) for task in FINE_TUNED},
    "captioning": captioned,
    "vqa_written": answered,
    "emoji": on_emoji,
}
