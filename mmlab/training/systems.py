"""What the engine has to know of a system: its data, its module in training, what its weights need.

A system more is a row more in ``SYSTEMS``; the loop does not change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from mmlab.datasets.shards import list_shards
from mmlab.datasets.tokenizer import Tokenizer, read_tokenizer
from mmlab.hub import create_model, model_config
from mmlab.models.checks import check
from mmlab.models.clip import CLIPPretraining
from mmlab.models.flip import FLIPPretraining
from mmlab.models.vit import ViTClassification
from mmlab.tasks.captions import CaptionedImages, emoji_captions, scene_captions
from mmlab.tasks.classification import LabelledImages, emoji_images, scene_images
from mmlab.tasks.dual_encoder import TOKENIZER
from mmlab.tasks.preparation import image_statistics
from mmlab.tasks.streamed_captions import StreamedCaptions, learn_tokenizer
from mmlab.training.batches import StreamedData, TrainingData
from mmlab.training.recipe import Recipe


@dataclass(frozen=True)
class System:
    """How to make the data and the module of a recipe.

    ``metadata`` is what finished weights need beside themselves, for their file.
    """

    data: Callable[[Recipe], TrainingData | StreamedData]
    module: Callable[[Recipe, TrainingData | StreamedData], nn.Module]
    metadata: Callable[[TrainingData | StreamedData], dict[str, str]] = lambda data: {}


def overrides(recipe: Recipe, *given: str) -> dict[str, object]:
    """The fields of the model that the recipe replaces; ``given`` are set by its data.

    ValueError if the recipe sets one of those, or asks for pictures that are not in colour.
    """
    for name in given:
        if name in recipe.model:
            raise ValueError(f"model must not set {name}: the data give it")
    channels = recipe.model.get("num_channels", 3)
    check(channels == 3, "num_channels", channels, f"3, as the {recipe.data} are in colour")
    return dict(recipe.model)


def config_of(recipe: Recipe) -> object:
    """The configuration of the recipe's model, as far as the recipe alone tells it."""
    config = model_config(recipe.model_name)
    # What is no field is told when the model is made.
    names = {field.name for field in fields(config)} & recipe.model.keys()
    return replace(config, **{name: recipe.model[name] for name in names})


def image_size(recipe: Recipe) -> int:
    """Pixels per side of the images that the recipe's model takes."""
    return config_of(recipe).image_size


# Classification.


def labelled_images(recipe: Recipe) -> LabelledImages:
    """The labelled images that a classifier trains on.

    ValueError if the recipe sets what only dual encoders have.
    """
    check(not recipe.shards, "data", recipe.data, "emoji or scenes: shards hold no classes")
    check(not recipe.tokenizer, "tokenizer", recipe.tokenizer, "left out: a vit reads no captions")
    size = image_size(recipe)
    if recipe.data == "emoji":
        return emoji_images(size, recipe.target, augment=True)
    return scene_images(size, recipe.target, "train", recipe.num_images, recipe.seed)


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
    config = config_of(recipe)
    sizes = (config.image_size, config.context_length)
    tokenizer = read_tokenizer(recipe.tokenizer) if recipe.tokenizer else None
    if recipe.data == "shards":
        shards = tuple(list_shards(recipe.shards))
        tokenizer = tokenizer or _learned_tokenizer(shards, config.vocab_size, recipe.seed)
        return StreamedCaptions(shards, tokenizer, *sizes, image_statistics(config))
    if recipe.data == "emoji":
        images = emoji_captions(*sizes, tokenizer=tokenizer, augment=True)
    else:
        images = scene_captions(*sizes, recipe.num_images, recipe.seed, tokenizer)
    return replace(images, statistics=image_statistics(config))


def _learned_tokenizer(shards: tuple[str, ...], vocab_size: int, seed: int) -> Tokenizer:
    """At most as many words as the published model has; the main process's, on all processes."""
    is_main = PartialState().is_main_process
    learned = [learn_tokenizer(shards, vocab_size, seed).to_json() if is_main else None]
    return Tokenizer.from_json(broadcast_object_list(learned)[0])


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
}
