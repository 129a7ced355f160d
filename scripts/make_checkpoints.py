"""Train the mini checkpoints of data/checkpoints/ from the recipes of recipes/.

    python scripts/make_checkpoints.py             # all of them
    python scripts/make_checkpoints.py vit-mini    # some

``recipes/<name>.yaml`` makes ``data/checkpoints/<name>.safetensors``: weights in half precision,
and in the metadata the recipe, the seed, what was measured, the names of the classes and the model
card, which is ``recipes/<name>.md``. A file that was made from the same recipe and the same data
stays as it is. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

import mmlab
from mmlab import datasets
from mmlab.datasets.emoji import TRAINING_VENDORS, emoji
from mmlab.datasets.resources import read_data
from mmlab.hub import CheckpointError, read_checkpoint, save
from mmlab.tasks.classification import accuracy, emoji_images
from mmlab.tasks.describing import describe_well
from mmlab.tasks.dual_encoder import DualEncoder, dataset_retrieval
from mmlab.tasks.fusion import FusionModel, load_fusion
from mmlab.tasks.query_captions import Describer
from mmlab.tasks.questions import answer_questions
from mmlab.tasks.reranking import Reranker, load_reranker, scene_figures
from mmlab.training.blip2_system import load_trained
from mmlab.training.evaluation import dual_figures, joint_figures
from mmlab.training.loop import Figures, TrainingError
from mmlab.training.recipe import Recipe, check_known, parse_recipe, read_recipe, recipe_text
from mmlab.training.run import (
    CONFIG,
    METRICS,
    RECIPE,
    load_encoder,
    load_network,
    read_metrics,
    run,
    training_data,
)
from mmlab.training.systems import SYSTEMS, image_size

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "recipes"
CHECKPOINTS = ROOT / "data" / "checkpoints"
UNFINISHED = ROOT / "_build" / "checkpoints"
LARGEST = 5_000_000

THREADS = 1
"""Sums that several threads share are rounded in another order, and a long run drifts apart."""

TESTS = {
    "training_styles": ("train", TRAINING_VENDORS),
    "noto_v1": ("train", "noto-v1"),
    "fluent": ("train", "fluent"),
    "fluent_held_out": ("held_out", "fluent"),
}
"""What an emoji classifier is tried on: split and vendors. Settings are chosen on ``noto_v1``."""

PAIR_TESTS = {
    "noto_v1": ("train", "noto-v1", "en"),
    "fluent": ("train", "fluent", "en"),
    "fluent_chinese": ("train", "fluent", "zh"),
    "fluent_held_out": ("held_out", "fluent", "en"),
    "openmoji": ("train", "openmoji", "en"),
}
"""What a dual encoder is tried on: split, vendors and the language of the names."""

SCENE_TESTS = ("test", "held_out")
"""The splits of scenes that a model of pairs is tried on."""
NUM_ASKED, NUM_PAIRED = 1000, 100
"""How many scenes of each are asked about or compared by their features, and how many are paired,
each with each, or described."""

Metadata = dict[str, str]
Metrics = dict[str, dict[str, object]]


def make(name: str) -> str:
    """Bring the checkpoint ``name`` up to date; returns what was done.

    ValueError if the recipe, its card or the weights cannot be used; TrainingError if the loss was
    no number.
    """
    recipe, card = read_recipe(RECIPES / f"{name}.yaml"), read_card(name)
    check_known("system to measure", recipe.system, tuple(MEASURES))
    target = CHECKPOINTS / f"{name}.safetensors"
    made = read_metadata(target)
    if not is_made_from(recipe, made):
        network, seconds = train(name, recipe)
        metadata = describe(recipe, network, seconds)
    elif made["mmlab.card"] != card:
        network = load(recipe, target, made)
        metadata = made
    else:
        return f"{name} is up to date"
    write(network, target, metadata | {"mmlab.card": card})
    shutil.rmtree(UNFINISHED / name, ignore_errors=True)
    return f"{name} is made: {told(json.loads(metadata['mmlab.metrics']))}"


def load(recipe: Recipe, file: Path, made: Metadata) -> nn.Module:
    """The network in a checkpoint of ours."""
    if recipe.system == "vit":
        return load_network(recipe, file, len(json.loads(made["mmlab.classes"])))
    if recipe.system in ("vilt", "vlmo"):
        return load_fusion(recipe.model_name, file).network
    if recipe.system in ("albef", "blip"):
        return load_reranker(recipe.model_name, file).network
    if recipe.system == "blip2":
        return load_trained(recipe, file)
    return load_encoder(recipe, file).network


def is_made_from(recipe: Recipe, made: Metadata) -> bool:
    """Whether a checkpoint tells of this recipe and of the data as they are."""
    if RECIPE not in made or made.get("mmlab.data_sha256") != data_sha256(recipe):
        return False
    try:
        return parse_recipe(made[RECIPE], "of the checkpoint") == recipe
    except ValueError:
        return False


def data_sha256(recipe: Recipe) -> str:
    """The emoji as their manifest has them; scenes depend on the recipe alone."""
    data = read_data("emoji", "manifest.json") if recipe.data == "emoji" else b""
    return hashlib.sha256(data).hexdigest()


def read_card(name: str) -> str:
    """What the model is, what for, and its limits; ValueError if nobody has written it."""
    path = RECIPES / f"{name}.md"
    if not path.is_file():
        raise ValueError(f"the recipe {name!r} has no model card {path.name!r} beside it")
    return path.read_text("utf-8")


def read_metadata(path: Path) -> Metadata:
    """The metadata of a checkpoint; empty if there is none, or none that can be read."""
    try:
        return read_checkpoint(path).metadata
    except CheckpointError:
        return {}


def train(name: str, recipe: Recipe) -> tuple[nn.Module, float]:
    """The trained network with its weights rounded to half precision, and the seconds it took.

    A run that was stopped is gone on with, unless it is one of another recipe.
    """
    folder = UNFINISHED / name
    resume = (folder / CONFIG).is_file() and read_recipe(folder / CONFIG) == recipe
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    every = max(1, recipe.steps // 20)

    def report(figures: Figures) -> None:
        if figures["step"] % every == 0:
            print(f"{name}: step {figures['step']}/{recipe.steps}", end="  ")
            print(f"loss {figures['loss']:.3f}  {figures['seconds']:.0f} s", flush=True)

    network = run(recipe, folder, resume, report)
    seconds = read_metrics(folder / METRICS)[-1]["seconds"]
    return network.half().float(), seconds


def describe(recipe: Recipe, network: nn.Module, seconds: float) -> Metadata:
    """All that the file tells of its weights; the card comes on top."""
    metrics = MEASURES[recipe.system](recipe, network)
    data = training_data(recipe)
    classes = {"mmlab.classes": json.dumps(data.classes)} if recipe.system == "vit" else {}
    made_with = {
        "seconds": round(seconds),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__.split("+")[0],
        "mmlab": mmlab.__version__,
        "machine": platform.machine(),
    }
    return {
        RECIPE: recipe_text(recipe),
        "mmlab.data_sha256": data_sha256(recipe),
        "mmlab.seed": str(recipe.seed),
        "mmlab.metrics": json.dumps(metrics),
        **classes,
        **SYSTEMS[recipe.system].metadata(data),
        "mmlab.data_card": f"data/{recipe.data}.md",
        "mmlab.made_with": json.dumps(made_with),
    }


def measure_classes(recipe: Recipe, network: nn.Module) -> Metrics:
    """The accuracy on each of ``TESTS``, beside that of always naming the commonest class."""
    size = image_size(recipe)
    return {
        name: asdict(accuracy(network, emoji_images(size, recipe.target, split, vendors)))
        for name, (split, vendors) in TESTS.items()
    }


def measure_retrieval(recipe: Recipe, network: nn.Module) -> Metrics:
    """Image to text and back on each of ``PAIR_TESTS``, by the names of the emoji."""
    encoder = DualEncoder(network.eval(), training_data(recipe).tokenizer)
    size = image_size(recipe)
    return {
        name: dataset_retrieval(encoder, emoji(split, vendors, image_size=size), language).figures()
        for name, (split, vendors, language) in PAIR_TESTS.items()
    }


def measure_pairs(recipe: Recipe, network: nn.Module) -> Metrics:
    """Answers and joint retrieval on each of ``SCENE_TESTS``, where there are heads for it."""
    data, size = training_data(recipe), image_size(recipe)
    answers = data.answers if "answer" in network.heads else ()
    model, metrics = FusionModel(network.eval(), data.tokenizer, answers), {}
    for split in SCENE_TESTS:
        if answers:
            images = datasets.scenes(NUM_ASKED, split, size)
            metrics[f"questions_{split}"] = asdict(answer_questions(model, images))
        if {"match", "rank"} & set(network.heads):
            images = datasets.scenes(NUM_PAIRED, split, size)
            metrics[f"pairs_{split}"] = joint_figures(model, images)
    return metrics


def measure_features(recipe: Recipe, network: nn.Module) -> Metrics:
    """Answers, or retrieval by features with what the matching head says of them, on each split."""
    data, size, metrics = training_data(recipe), image_size(recipe), {}
    answers = data.answers if {"answer", "answers"} & set(network.config.heads) else ()
    reranks = recipe.system in ("albef", "blip")
    kind, figures_of = (Reranker, scene_figures) if reranks else (FusionModel, dual_figures)
    model = kind(network.eval(), data.tokenizer, answers)
    for split in SCENE_TESTS:
        images = datasets.scenes(NUM_ASKED, split, size)
        if answers:
            metrics[f"questions_{split}"] = asdict(answer_questions(model, images))
        else:
            metrics[f"pairs_{split}"] = figures_of(model, images)
    return metrics


def measure_queries(recipe: Recipe, network: nn.Module) -> Metrics:
    """Captions on each of ``SCENE_TESTS`` and, of stage 1, retrieval."""
    data, size, metrics = training_data(recipe), image_size(recipe), {}
    speaks = recipe.pretraining.get("language_model")
    writer = Describer(network.eval(), data.language if speaks else data.tokenizer)
    for split in SCENE_TESTS:
        images = datasets.scenes(NUM_PAIRED, split, size)
        if not speaks:
            metrics[f"pairs_{split}"] = scene_figures(Reranker(network, data.tokenizer), images)
        metrics[f"captions_{split}"] = asdict(describe_well(writer.describe(images), images))
    return metrics


MEASURES: dict[str, Callable[[Recipe, nn.Module], Metrics]] = {
    "vit": measure_classes,
    "clip": measure_retrieval,
    "flip": measure_retrieval,
    "vilt": measure_pairs,
    "albef": measure_features,
    "blip": measure_features,
    "vlmo": measure_features,
    "blip2": measure_queries,
}
"""How to measure what a system has learned."""


def told(metrics: Metrics) -> str:
    """The accuracies, the shares found at once, or of what is shown named, in one line."""
    return ", ".join(f"{name} {_share(figures):.1%}" for name, figures in metrics.items())


def _share(figures: dict[str, object]) -> float:
    for name in ("accuracy", "named"):
        if name in figures:
            return figures[name]
    return figures["image_to_text"]["r@1"]


def write(network: nn.Module, target: Path, metadata: Metadata) -> None:
    """Write half-precision weights, whole or not at all; ValueError if they are unfit to ship."""
    halved = deepcopy(network).half()
    tensors = halved.state_dict()
    num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if num_bytes > LARGEST:
        raise ValueError(f"{target.name} would have {num_bytes:,} bytes; allowed are {LARGEST:,}")
    broken = [key for key, tensor in tensors.items() if not tensor.isfinite().all()]
    if broken:
        raise ValueError(f"{target.name}: {broken[0]!r} is too large for half precision")
    target.parent.mkdir(parents=True, exist_ok=True)
    save(halved, target, metadata=metadata)
    # safetensors lets the owner alone read its files; these travel.
    target.chmod(0o644)


def known_recipes() -> list[str]:
    """The names of all recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.yaml"))


def main(arguments: list[str] | None = None) -> int:
    """Make the checkpoints that are named, or all; returns an exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help="vit-mini …; without it, all")
    names = parser.parse_args(arguments).names or known_recipes()
    torch.set_num_threads(THREADS)
    try:
        for name in names:
            check_known("recipe", name, tuple(known_recipes()))
        for name in names:
            print(make(name), flush=True)
    except KeyboardInterrupt:
        print("Stopped; the same command goes on from here.", file=sys.stderr)
        return 130
    except (ValueError, OSError, TrainingError) as error:
        print(f"make_checkpoints: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
