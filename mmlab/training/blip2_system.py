"""BLIP-2 in the engine, in both of its stages.

A recipe that names a ``language_model`` is of stage 2: the Q-Former learns to tell that frozen
model what it sees. Any other is of stage 1: contrast, matching and writing with the Q-Former alone.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from mmlab.datasets.shards import list_shards
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.hub import CheckpointError, create_model, list_mini_checkpoints, read_checkpoint
from mmlab.hub.frozen_parts import EFFICIENTNET_LITE0, load_efficientnet
from mmlab.hub.load import saved_config
from mmlab.models.blip2 import (
    BLIP2,
    BLIP2Config,
    BLIP2Pretraining,
    start_from_blip2,
    start_from_vit,
)
from mmlab.models.blip2_language import BLIP2Language
from mmlab.models.checks import check
from mmlab.tasks.dual_encoder import TOKENIZER, other_settings, read_saved_tokenizer
from mmlab.tasks.language_models import LanguageModel, load_language_model
from mmlab.tasks.preparation import image_statistics
from mmlab.tasks.spoken_captions import SpokenScenes, SpokenShards, spoken_scenes
from mmlab.training.pair_data import Pairs, captioned_pairs
from mmlab.training.recipe import Recipe, check_known
from mmlab.training.starting import PARTS, start_with_parts
from mmlab.training.system import System, config_of, overrides, pretraining_settings

SETTINGS = {"language_model": "", "frozen_precision": "no"}
"""What ``Recipe.pretraining`` may set.

``language_model`` is a folder of ``transformers``, a name on the Hub, or ``"smollm2"`` (see
``mmlab.tasks.language_models``); with it the recipe is of stage 2. ``frozen_precision`` is that of
what does not learn: ``"no"`` (float32), ``"bf16"`` or ``"fp16"``.
"""
LANGUAGE = "mmlab.language_model"
"""The key of the language model, its source and fingerprint, in the metadata of weights."""
DECODER_TOKEN = "[DEC]"
LONGEST_TEXT = 32
"""Tokens of a text at most (LAVIS, ``max_txt_len``)."""

_PRECISIONS = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
Spoken = SpokenScenes | SpokenShards


def _settings(recipe: Recipe) -> dict[str, str]:
    settings = pretraining_settings(recipe, SETTINGS)
    check_known("frozen_precision", settings["frozen_precision"], tuple(_PRECISIONS))
    return settings


def _data(recipe: Recipe) -> Pairs | Spoken:
    """Captions in word pieces for stage 1, in the language model's tokens for stage 2.

    ValueError if the recipe names other data, or sets what only classifiers have.
    """
    source = _settings(recipe)["language_model"]
    if not (recipe.start or recipe.start_image):
        _usual_start(config_of(recipe))  # what cannot begin is told before anything slow
    if source:
        return _spoken(recipe, source)
    wants_prefix = "prefix" in config_of(replace(recipe, model={})).heads
    check(not wants_prefix, "language_model", "", "told in pretraining: it is what speaks")
    length = min(config_of(recipe).context_length, LONGEST_TEXT)
    given = replace(recipe, model={**recipe.model, "context_length": length})
    if not _starts_with_blip2(recipe):
        given = replace(given, start="")
    return captioned_pairs(given, ("captions",), extra_tokens=(DECODER_TOKEN,))


def _spoken(recipe: Recipe, source: str) -> Spoken:
    allowed = "scenes or shards: blip2 learns from captions"
    check(recipe.data in ("scenes", "shards"), "data", recipe.data, allowed)
    stage1 = "left out: stage 2 starts with the Q-Former of stage 1"
    check(not recipe.start_text, "start_text", recipe.start_text, stage1)
    for name in ("target", "label_smoothing", "tokenizer"):
        value = getattr(recipe, name)
        check(not value, name, value, "left out: the language model brings its words")
    config, language = config_of(recipe), load_language_model(source)
    size, statistics = config.image_size, image_statistics(config)
    if recipe.data == "shards":
        shards = tuple(list_shards(recipe.shards))
        return SpokenShards(shards, language, size, LONGEST_TEXT, statistics)
    given = (recipe.num_images, recipe.seed, language, statistics, recipe.most_objects)
    return spoken_scenes(size, LONGEST_TEXT, *given)


def _module(recipe: Recipe, data: Pairs | Spoken) -> nn.Module:
    precision = _PRECISIONS[_settings(recipe)["frozen_precision"]]
    if isinstance(data, Spoken):
        given = {"heads": ("prefix",), "prefix_dim": data.language.dim}
    else:
        given = {"vocab_size": data.tokenizer.vocab_size}
    network = create_model(recipe.model_name, **{**overrides(recipe, *given), **given})
    _start(network, recipe)
    if network.config.freeze_images:
        network.image_encoder.to(precision)
    if isinstance(data, Spoken):
        return BLIP2Language(network, data.language.network.to(precision))
    return BLIP2Pretraining(network)


# What a run begins with.

PLACES = (("qformer.", ""), ("heads.words.", "words."))
"""Where the Q-Former has the parts of a BERT."""


def _starts_with_blip2(recipe: Recipe) -> bool:
    """Whether the recipe starts with a trained BLIP-2 of ours, and not with its image encoder."""
    if not recipe.start:
        return False
    return "num_queries" in saved_config(read_checkpoint(recipe.start).metadata)


def _start(network: BLIP2, recipe: Recipe) -> None:
    """The weights of a trained BLIP-2, or of a trained ViT for the image encoder.

    Without either an EfficientNet has its own (see ``mmlab.hub.frozen_parts``), a ViT those of
    "vit-mini". ValueError if there are none, and the image encoder is not to learn.
    """
    start_with_parts(network, recipe, PLACES, num_added=1)
    file = recipe.start or (None if recipe.start_image else _usual_start(network.config))
    if file is None:
        return
    try:
        if not recipe.start and network.config.image_encoder == "efficientnet":
            trained = load_efficientnet(file, network.config.patch_size, num_classes=0)
            network.image_encoder.load_state_dict(trained.state_dict())
        elif _is_vit(network, file):
            settings = other_settings("vit-mini", saved_config(read_checkpoint(file).metadata))
            start_from_vit(network, create_model("vit-mini", pretrained=file, **settings))
        else:
            start_from_blip2(network, _trained(recipe, file))
    except ValueError as error:
        raise ValueError(f"cannot start with {str(file)!r}: {error}") from None


def _is_vit(network: BLIP2, file: str | Path) -> bool:
    saved = saved_config(read_checkpoint(file).metadata)
    return network.config.image_encoder == "vit" and "num_queries" not in saved


def _usual_start(config: BLIP2Config) -> Path | None:
    """The file for a frozen image encoder: the mini ViT, or the EfficientNet of the package."""
    if not config.freeze_images:
        return None
    if config.image_encoder == "efficientnet":
        return EFFICIENTNET_LITE0.path()
    shipped = list_mini_checkpoints().get("vit-mini")
    usable = config.image_encoder == "vit" and shipped is not None
    wanted = "the weights of a trained image encoder or BLIP-2: what is frozen cannot learn"
    check(usable, "start", "", wanted)
    return shipped


def _trained(recipe: Recipe, file: str | Path) -> BLIP2:
    """The BLIP-2 in a file of any layout."""
    settings = other_settings(recipe.model_name, saved_config(read_checkpoint(file).metadata))
    return create_model(recipe.model_name, pretrained=file, **settings)


# What comes out of it.


def _metadata(data: Pairs | Spoken) -> dict[str, str]:
    if isinstance(data, Spoken):
        told = {"source": data.language.source, "digest": data.language.digest}
        return {LANGUAGE: json.dumps(told)}
    return {TOKENIZER: data.tokenizer.to_json()}


def load_trained(recipe: Recipe, file: str | Path) -> BLIP2:
    """The network in finished weights, or in a checkpoint of a run.

    Such a checkpoint lacks what is frozen, which is taken from where the recipe starts.
    CheckpointError if the file is of another model.
    """
    checkpoint = read_checkpoint(file)
    saved = saved_config(checkpoint.metadata)
    if "num_queries" not in saved:
        raise CheckpointError(f"{str(file)!r} is no {recipe.model_name!r}")
    settings = other_settings(recipe.model_name, saved)
    network = create_model(recipe.model_name, **settings)
    frozen = {k for k in network.state_dict() if k.startswith(network.frozen)}
    if frozen & checkpoint.tensors.keys() or not frozen:
        return create_model(recipe.model_name, pretrained=file, **settings).eval()
    _start(network, replace(recipe, start_text=""))
    own = {key: network.state_dict()[key] for key in frozen}
    try:
        network.load_state_dict(own | checkpoint.tensors)
    except RuntimeError:
        raise CheckpointError(f"{str(file)!r} is no {recipe.model_name!r}") from None
    return network.eval()


def saved_tokenizer(file: str | Path) -> Tokenizer:
    """The word pieces of stage 1; CheckpointError if there are none."""
    return read_saved_tokenizer(read_checkpoint(file).metadata, file)


def load_speaker(recipe: Recipe, file: str | Path) -> LanguageModel | None:
    """The language model that weights of stage 2 speak through; None for those of stage 1.

    CheckpointError if it is another one than in training.
    """
    metadata = read_checkpoint(file).metadata
    if LANGUAGE not in metadata:
        return None
    told = json.loads(metadata[LANGUAGE])
    language = load_language_model(recipe.pretraining.get("language_model", told["source"]))
    if language.digest != told["digest"]:
        raise CheckpointError(
            f"{str(file)!r} was trained with another language model than {language.source!r} is now"
        )
    return language


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """All but biases and other vectors (LAVIS, ``runner_base.py``)."""
    return parameter.ndim >= 2 and not name.endswith(".bias")


BLIP2_SYSTEM = System(_data, _module, _metadata, SETTINGS, _decays, starts=PARTS)
