"""Measuring a trained model on the tasks of its system."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from mmlab import datasets
from mmlab.datasets import Emoji, Scenes
from mmlab.datasets.emoji import LANGUAGES
from mmlab.tasks.classification import accuracy, emoji_images, scene_images
from mmlab.tasks.describing import describe_well
from mmlab.tasks.dual_encoder import dataset_retrieval, dataset_zero_shot
from mmlab.tasks.fusion import (
    FusionModel,
    feature_retrieval,
    fusion_retrieval,
    load_fusion,
    matching_accuracy,
)
from mmlab.tasks.query_captions import Describer
from mmlab.tasks.questions import answer_questions
from mmlab.tasks.region_fusion import RegionModel, second_caption_figures
from mmlab.tasks.reranking import Reranker, load_reranker, scene_figures
from mmlab.tasks.zero_shot import TEMPLATES
from mmlab.training.blip2_system import load_speaker, load_trained, saved_tokenizer
from mmlab.training.recipe import Recipe, check_known
from mmlab.training.region_systems import MANNERS, load_trained_regions
from mmlab.training.run import device, load_encoder, load_network
from mmlab.training.system import image_size
from mmlab.training.vlmo_system import stage_of

Choice = dict[str, object]
Figures = dict[str, object]
Model = FusionModel | Reranker | Describer
RERANKED = ("albef", "blip")
"""Systems whose matching head ranks what their features have found."""

HELD_OUT = "held_out"
"""The split of scenes with combinations of color and shape that no training scene shows."""

CHOICES: dict[str, Choice] = {
    "emoji": {"vendor": "fluent", "split": "train"},
    "scenes": {"split": "test", "num_images": 1000, "seed": 0},
}
"""What can be chosen of the images of each data set, with the usual choice."""


FEWER: dict[tuple[str, str], Choice] = {
    ("vilt", "retrieval"): {"num_images": 100},
    ("blip2", "retrieval"): {"num_images": 100},
    ("blip2", "captioning"): {"num_images": 100},
    **{(name, "retrieval"): {"num_images": 100} for name in MANNERS},
}
"""The usual choice for a system and a task where it is another: there each pair, or each word that
is written, is a forward pass."""


def choose(data: str, chosen: Choice, system: str = "", task: str = "") -> Choice:
    """The usual choice with ``chosen`` in its place; ValueError for an option of other data."""
    check_known("data to measure on", data, tuple(CHOICES))
    usual = CHOICES[data] | FEWER.get((system, task), {})
    for name in chosen:
        if name not in usual:
            options = ", ".join(f"--{other.replace('_', '-')}" for other in usual)
            option = name.replace("_", "-")
            raise ValueError(f"--{option} means nothing for {data}, which take {options}")
    return {**usual, **chosen}


def tasks_of(system: str) -> tuple[str, ...]:
    """The tasks that a system is measured by, the usual one first."""
    return tuple(_TASKS[system])


def usual_task(recipe: Recipe) -> str:
    """What the model of a recipe is measured by, as its heads tell; empty if there is nothing yet.

    Stage 2 of a BLIP-2 only writes; a VLMo of images or texts alone has not seen both together.
    """
    if recipe.pretraining.get("language_model"):
        return "captioning"
    heads, tasks = set(recipe.model.get("heads", ())), tasks_of(recipe.system)
    if heads and heads <= {"answer", "answers"} and "vqa" in tasks:
        return "vqa"
    alone = recipe.system == "vlmo" and stage_of(recipe) in ("vision", "language")
    return "" if alone else tasks[0]


def measure(recipe: Recipe, weights: Path, task: str, where: Choice, language: str) -> Figures:
    """The figures of a task for the model of ``recipe`` with these weights.

    ValueError for an unknown task; CheckpointError if the weights are of another model.
    """
    if not task:
        seen = f"a {recipe.system} of the stage {stage_of(recipe)!r}"
        raise ValueError(f"{seen} has learned nothing yet that a task measures")
    check_known("task", task, tasks_of(recipe.system))
    if task == "classification" and language != "en":
        raise ValueError("--language means nothing for classification, which reads no captions")
    if task in ("retrieval", "vqa") and recipe.target:
        raise ValueError(f"--target means nothing for {task}, which reads the captions")
    if recipe.system not in _MANY_LANGUAGES and language != "en":
        who = f"a {recipe.system}, which learns from English texts"
        raise ValueError(f"--language must be en for {who}")
    return _TASKS[recipe.system][task](recipe, weights, where, language)


def _classification(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    size, target = image_size(recipe), recipe.target
    if recipe.data == "emoji":
        images = emoji_images(size, target, where["split"], where["vendor"])
    else:
        shown = (where["split"], where["num_images"], where["seed"], recipe.most_objects)
        images = scene_images(size, target, *shown)
    network = load_network(recipe, weights, len(images.classes)).to(device())
    return asdict(accuracy(network, images))


def _retrieval(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    encoder = load_encoder(recipe, weights)
    encoder.network.to(device())
    return dataset_retrieval(encoder, _images(recipe, where), language).figures()


def _zero_shot(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    encoder = load_encoder(recipe, weights)
    encoder.network.to(device())
    images = _images(recipe, where, language)
    check_known("language", language, LANGUAGES)
    templates = TEMPLATES[language]
    return asdict(dataset_zero_shot(encoder, images, templates, recipe.target))


def _questions(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    def figures(model: Model, images: Scenes) -> Figures:
        return asdict(answer_questions(model, images, language))

    return _beside_held_out(recipe, weights, where, figures)


def _joint_retrieval(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    def figures(model: FusionModel, images: Scenes) -> Figures:
        return joint_figures(model, images, language)

    return _beside_held_out(recipe, weights, where, figures)


def joint_figures(model: FusionModel, images: Scenes, language: str = "en") -> Figures:
    """Both directions of retrieval, and the accuracy of the matching head where there is one."""
    figures = fusion_retrieval(model, images, language).figures()
    if "match" in model.network.heads:
        figures["matching_accuracy"] = matching_accuracy(model, images, language)
    return figures


def _second_captions(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    def figures(model: RegionModel, images: Scenes) -> Figures:
        return second_caption_figures(model, images, language)

    return _beside_held_out(recipe, weights, where, figures)


def _dual_retrieval(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    def figures(model: FusionModel, images: Scenes) -> Figures:
        return dual_figures(model, images, language)

    return _beside_held_out(recipe, weights, where, figures)


def dual_figures(model: FusionModel, images: Scenes, language: str = "en") -> Figures:
    """Both directions of retrieval by features alone, and the accuracy of the matching head."""
    found = feature_retrieval(model, images, language).figures()
    return {**found, "matching_accuracy": matching_accuracy(model, images, language)}


def _reranked_retrieval(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    def figures(model: Reranker, images: Scenes) -> Figures:
        return scene_figures(model, images, language)

    return _beside_held_out(recipe, weights, where, figures)


def _query_retrieval(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    def load(name: str, file: Path) -> Reranker:
        network = load_trained(recipe, file)
        network.head("contrast")
        return Reranker(network, saved_tokenizer(file))

    return _beside_held_out(recipe, weights, where, scene_figures, load)


def _captioning(recipe: Recipe, weights: Path, where: Choice, language: str) -> Figures:
    def load(name: str, file: Path) -> Describer:
        words = load_speaker(recipe, file) or saved_tokenizer(file)
        return Describer(load_trained(recipe, file), words)

    def figures(model: Describer, images: Scenes) -> Figures:
        return asdict(describe_well(model.describe(images), images))

    return _beside_held_out(recipe, weights, where, figures, load)


def _beside_held_out(
    recipe: Recipe,
    weights: Path,
    where: Choice,
    figures: Callable[[Model, Scenes], Figures],
    load: Callable[[str, Path], Model] | None = None,
) -> Figures:
    """The figures of the images asked for, and beside them those of combinations never seen."""
    check_known("data to measure on", recipe.data, ("scenes",))
    model = (load or _loader(recipe))(recipe.model_name, weights)
    model.network.to(device())
    found = figures(model, _images(recipe, where))
    if where["split"] == HELD_OUT:
        return found
    return {**found, HELD_OUT: figures(model, _images(recipe, {**where, "split": HELD_OUT}))}


def _loader(recipe: Recipe) -> Callable[[str, Path], Model]:
    if recipe.system in MANNERS:
        return lambda name, file: load_trained_regions(recipe, file)
    return load_reranker if recipe.system in RERANKED else load_fusion


def _images(recipe: Recipe, where: Choice, language: str = "en") -> Emoji | Scenes:
    size = image_size(recipe)
    if recipe.data == "emoji":
        return datasets.emoji(where["split"], where["vendor"], language, size)
    split, seed, shown = where["split"], where["seed"], (1, recipe.most_objects)
    return datasets.scenes(where["num_images"], split, size, seed=seed, num_objects=shown)


_MANY_LANGUAGES = ("vit", "clip", "flip")
_Task = Callable[[Recipe, Path, Choice, str], Figures]
_CONTRAST: dict[str, _Task] = {"retrieval": _retrieval, "zero-shot": _zero_shot}
_RERANKED: dict[str, _Task] = {"retrieval": _reranked_retrieval, "vqa": _questions}
_TASKS: dict[str, dict[str, _Task]] = {
    "vit": {"classification": _classification},
    "clip": _CONTRAST,
    "flip": _CONTRAST,
    "vilt": {"retrieval": _joint_retrieval, "vqa": _questions},
    "albef": _RERANKED,
    "blip": _RERANKED,
    "vlmo": {"retrieval": _dual_retrieval, "vqa": _questions},
    "blip2": {"retrieval": _query_retrieval, "captioning": _captioning},
    **{name: {"retrieval": _joint_retrieval, "vqa": _questions} for name in MANNERS},
    "vlbert": {"vqa": _questions},
    # Its matching head compares two captions, beside an image; there is none for one caption.
    "visualbert": {"matching": _second_captions, "vqa": _questions},
}
