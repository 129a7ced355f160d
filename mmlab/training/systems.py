"""What the engine has to know of a system: its data, its module in training, what its weights need.

A system more is a row more in ``SYSTEMS``; the loop does not change.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from mmlab.datasets.shards import list_shards
from mmlab.datasets.tokenizer import Tokenizer, read_tokenizer
from mmlab.hub import create_model, model_config, read_checkpoint
from mmlab.hub.load import saved_config
from mmlab.models.checks import check
from mmlab.models.clip import CLIPPretraining
from mmlab.models.flip import FLIPPretraining
from mmlab.models.vilt import HEADS, ViLT, start_from_vit
from mmlab.models.vilt_tasks import ViLTLessons, start_from_vilt
from mmlab.models.vit import ViTClassification
from mmlab.tasks.captions import CaptionedImages, emoji_captions, scene_captions
from mmlab.tasks.classification import LabelledImages, emoji_images, scene_images
from mmlab.tasks.dual_encoder import TOKENIZER, other_settings
from mmlab.tasks.fusion import ANSWERS, FusionModel, load_fusion
from mmlab.tasks.paired_scenes import PairedScenes, paired_scenes
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
    # What is no field is told when the model is made; of heads and classes the data have a say.
    known = {field.name for field in fields(config)} - {"heads", "num_classes"}
    names = known & recipe.model.keys()
    return replace(config, **{name: recipe.model[name] for name in names})


def image_size(recipe: Recipe) -> int:
    """Pixels per side of the images that the recipe's model takes."""
    return config_of(recipe).image_size


def _check_no_start(recipe: Recipe) -> None:
    check(not recipe.start, "start", recipe.start, f"left out: a {recipe.system} begins afresh")


# Classification.


def labelled_images(recipe: Recipe) -> LabelledImages:
    """The labelled images that a classifier trains on.

    ValueError if the recipe sets what only dual encoders have.
    """
    check(not recipe.shards, "data", recipe.data, "emoji or scenes: shards hold no classes")
    check(not recipe.tokenizer, "tokenizer", recipe.tokenizer, "left out: a vit reads no captions")
    _check_no_start(recipe)
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
    _check_no_start(recipe)
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


# Text and image read together.


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


def _words_and_answers(data: PairedScenes) -> dict[str, str]:
    answers = data.answers if "answer" in data.heads else ()
    return {TOKENIZER: data.tokenizer.to_json(), ANSWERS: json.dumps(answers)}


SYSTEMS: dict[str, System] = {
    "vit": System(labelled_images, _classifier),
    "clip": System(captioned_images, _clip, _tokenizer),
    "flip": System(captioned_images, _flip, _tokenizer),
    "vilt": System(scenes_with_texts, _vilt, _words_and_answers),
}
