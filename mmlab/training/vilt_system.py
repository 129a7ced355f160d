"""ViLT in the engine: scenes with texts for all of its heads."""

from __future__ import annotations

from torch import nn

from mmlab.datasets.tokenizer import read_tokenizer
from mmlab.hub import create_model, model_config, read_checkpoint
from mmlab.hub.load import saved_config
from mmlab.models.checks import check
from mmlab.models.vilt import HEADS, ViLT, start_from_vit
from mmlab.models.vilt_tasks import ViLTLessons, start_from_vilt
from mmlab.tasks.dual_encoder import TOKENIZER, other_settings
from mmlab.tasks.fusion import FusionModel, load_fusion
from mmlab.tasks.paired_scenes import PairedScenes, paired_scenes
from mmlab.training.pair_data import words_and_answers
from mmlab.training.recipe import Recipe
from mmlab.training.system import (
    System,
    config_of,
    overrides,
)


def heads_of(recipe: Recipe) -> tuple[str, ...]:
    """The heads that the recipe's ViLT has, and therefore what it learns."""
    usual = model_config(recipe.model_name).heads
    heads = recipe.model.get("heads", usual)
    check(set(heads) <= set(HEADS), "heads", heads, f"some of {', '.join(HEADS)}")
    return heads


def scenes_with_texts(recipe: Recipe) -> PairedScenes:
    """The scenes with captions and questions that a ViLT trains on.

    ValueError if the recipe names other data, or sets what only classifiers have. Where the recipe
    starts with a trained ViLT, words are numbered as that one numbers them.
    """
    allowed = "scenes: a vilt learns from their captions and questions"
    check(recipe.data == "scenes", "data", recipe.data, allowed)
    for name in ("target", "label_smoothing"):
        value = getattr(recipe, name)
        check(not value, name, value, "left out: the heads of a vilt say what it learns")
    config, started = config_of(recipe), _started(recipe)
    check(not (recipe.tokenizer and started), "tokenizer", recipe.tokenizer, "left out with start")
    tokenizer = started.tokenizer if started else None
    if recipe.tokenizer:
        tokenizer = read_tokenizer(recipe.tokenizer)
    return paired_scenes(
        config.image_size,
        config.context_length,
        recipe.num_images,
        heads_of(recipe),
        recipe.seed,
        tokenizer,
        most_objects=recipe.most_objects,
    )


def _started(recipe: Recipe) -> FusionModel | None:
    """The trained ViLT that a recipe starts with; None if it starts afresh or with a ViT."""
    if not recipe.start or TOKENIZER not in read_checkpoint(recipe.start).metadata:
        return None
    return load_fusion(recipe.model_name, recipe.start)


def _vilt(recipe: Recipe, data: PairedScenes) -> nn.Module:
    given = {"vocab_size": data.tokenizer.vocab_size, "heads": heads_of(recipe)}
    given["num_classes"] = len(data.answers) if "answer" in given["heads"] else 0
    settings = {**overrides(recipe, "vocab_size", "num_classes"), **given}
    network = create_model(recipe.model_name, **settings)
    if recipe.start:
        _start(network, recipe.start)
    return ViLTLessons(network, data.tokenizer.mask_id)


def _start(network: ViLT, file: str) -> None:
    """Give a fresh network the weights in a file of a ViLT or, for its trunk, of a ViT."""
    metadata = read_checkpoint(file).metadata
    is_vilt = TOKENIZER in metadata
    kind, start = ("vilt-mini", start_from_vilt) if is_vilt else ("vit-mini", start_from_vit)
    settings = other_settings(kind, saved_config(metadata))
    try:
        start(network, create_model(kind, pretrained=file, **settings))
    except ValueError as error:
        raise ValueError(f"cannot start with {file!r}: {error}") from None


VILT_SYSTEM = System(scenes_with_texts, _vilt, words_and_answers)
