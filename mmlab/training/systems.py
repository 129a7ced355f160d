"""All systems of the engine: their data, their modules in training, what their weights need.

A system more is a row more in ``SYSTEMS``; the loop does not change. Classifiers and dual encoders
are here, systems that read text and image together in files of their own.
"""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from mmlab.datasets.shards import list_shards
from mmlab.datasets.tokenizer import read_tokenizer
from mmlab.hub import create_model
from mmlab.models.checks import check
from mmlab.models.clip import CLIPPretraining
from mmlab.models.flip import FLIPPretraining
from mmlab.models.vit import ViTClassification
from mmlab.tasks.captions import CaptionedImages, emoji_captions, scene_captions
from mmlab.tasks.classification import LabelledImages, emoji_images, scene_images
from mmlab.tasks.dual_encoder import TOKENIZER
from mmlab.tasks.preparation import image_statistics
from mmlab.tasks.streamed_captions import StreamedCaptions
from mmlab.training.blip2_system import BLIP2_SYSTEM
from mmlab.training.momentum_systems import ALBEF_SYSTEM, BLIP_SYSTEM
from mmlab.training.recipe import Recipe
from mmlab.training.region_systems import REGION_SYSTEMS
from mmlab.training.system import (
    System,
    check_no_start,
    config_of,
    image_size,
    learned_tokenizer,
    overrides,
)
from mmlab.training.vilt_system import VILT_SYSTEM
from mmlab.training.vlmo_system import VLMO_SYSTEM

# Classification.


def labelled_images(recipe: Recipe) -> LabelledImages:
    """The labelled images that a classifier trains on.

    ValueError if the recipe sets what only dual encoders have.
    """
    check(not recipe.shards, "data", recipe.data, "emoji or scenes: shards hold no classes")
    check(not recipe.tokenizer, "tokenizer", recipe.tokenizer, "left out: a vit reads no captions")
    check_no_start(recipe)
    size = image_size(recipe)
    if recipe.data == "emoji":
        return emoji_images(size, recipe.target, augment=True)
    shown = (recipe.num_images, recipe.seed, recipe.most_objects)
    return scene_images(size, recipe.target, "train", *shown)


def _classifier(recipe: Recipe, data: LabelledImages) -> nn.Module:
    settings = {**overrides(recipe, "num_classes"), "num_classes": len(data.classes)}
    return ViTClassification(create_model(recipe.model_name, **settings), recipe.label_smoothing)


# Contrast.


Captioned = CaptionedImages | StreamedCaptions


def captioned_images(recipe: Recipe) -> Captioned:
    """The pictures with captions that a dual encoder trains on.

    ValueError if the recipe sets what only classifiers have.
    """
    for name in ("target", "label_smoothing"):
        value = getattr(recipe, name)
        check(not value, name, value, f"left out: {recipe.system} learns from captions")
    check_no_start(recipe)
    config = config_of(recipe)
    sizes = (config.image_size, config.context_length)
    tokenizer = read_tokenizer(recipe.tokenizer) if recipe.tokenizer else None
    if recipe.data == "shards":
        shards = tuple(list_shards(recipe.shards))
        tokenizer = tokenizer or learned_tokenizer(shards, config.vocab_size, recipe.seed)
        return StreamedCaptions(shards, tokenizer, *sizes, image_statistics(config))
    if recipe.data == "emoji":
        images = emoji_captions(*sizes, tokenizer=tokenizer, augment=True)
    else:
        shown = (recipe.num_images, recipe.seed, tokenizer, recipe.most_objects)
        images = scene_captions(*sizes, *shown)
    return replace(images, statistics=image_statistics(config))


def _clip(recipe: Recipe, data: Captioned) -> nn.Module:
    words = {"vocab_size": data.tokenizer.vocab_size, "end_id": data.tokenizer.sep_id}
    settings = {**overrides(recipe, *words), **words}
    return CLIPPretraining(create_model(recipe.model_name, **settings))


def _flip(recipe: Recipe, data: Captioned) -> nn.Module:
    words = {"vocab_size": data.tokenizer.vocab_size, "pad_id": data.tokenizer.pad_id}
    settings = {**overrides(recipe, *words), **words}
    return FLIPPretraining(create_model(recipe.model_name, **settings))


def _tokenizer(data: Captioned) -> dict[str, str]:
    return {TOKENIZER: data.tokenizer.to_json()}


SYSTEMS: dict[str, System] = {
    "vit": System(labelled_images, _classifier),
    "clip": System(captioned_images, _clip, _tokenizer),
    "flip": System(captioned_images, _flip, _tokenizer),
    "vilt": VILT_SYSTEM,
    "albef": ALBEF_SYSTEM,
    "blip": BLIP_SYSTEM,
    "vlmo": VLMO_SYSTEM,
    "blip2": BLIP2_SYSTEM,
    **REGION_SYSTEMS,
}
