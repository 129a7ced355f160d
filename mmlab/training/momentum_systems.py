"""ALBEF and BLIP in the engine: both learn from a momentum twin and from queues.

Twin, queues and pointer are part of the pretraining module, so a checkpoint of a run holds them;
finished weights are the network alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from mmlab.hub import create_model, model_config
from mmlab.models.albef import ALBEFPretraining
from mmlab.models.albef_tasks import ALBEFQuestionAnswering, albef_answerer
from mmlab.models.blip import BLIPPretraining
from mmlab.models.blip_tasks import BLIPQuestionAnswering, blip_answerer
from mmlab.models.checks import check
from mmlab.tasks.paired_scenes import PairedScenes
from mmlab.training.pair_data import Pairs, captioned_pairs, words_and_answers
from mmlab.training.recipe import Recipe
from mmlab.training.starting import PARTS, Places, has_parts, start_with_parts
from mmlab.training.system import (
    System,
    config_of,
    load_started,
    overrides,
    pretraining_settings,
    start_with,
)

TWIN = {"decay": 0.995, "alpha": 0.4, "ramp_steps": 0}
"""What ``Recipe.pretraining`` may set of the ``MomentumTwin``.

``ramp_steps`` left out is that of the paper: an epoch for ALBEF, two for BLIP.
"""
MOMENTUM = {"queue_size": 1024, **TWIN}
"""And of the queues, where there are some: see ``ALBEFPretraining``.

The papers' queues of some 60,000 features would hold our scenes many times over.
"""


def _twin(
    recipe: Recipe, data: Pairs, num_epochs: int, usual: dict[str, object] = MOMENTUM
) -> dict[str, object]:
    """Settings of twin and queue; the twin's say rises over the first ``num_epochs``.

    ValueError for a queue that cannot hold a batch, or if nobody tells the steps of an epoch.
    """
    settings = pretraining_settings(recipe, usual)
    size, batch_size = settings.get("queue_size"), recipe.batch_size
    fits = size is None or size >= batch_size
    check(fits, "queue_size", size, f"at least batch_size={batch_size}")
    if "ramp_steps" not in recipe.pretraining:
        told = "told in pretraining with data: shards, whose length nobody knows"
        check(isinstance(data, PairedScenes), "ramp_steps", None, told)
        settings["ramp_steps"] = num_epochs * (len(data) // batch_size)
    return settings


Answerer = Callable[[nn.Module], nn.Module]
"""From a pretrained network to one that writes answers."""


def _network(
    recipe: Recipe, data: Pairs, answerer: Answerer, places: Places, num_added: int = 0
) -> nn.Module:
    """A fresh network with the weights that the recipe starts with, if any.

    ``places`` and ``num_added`` as in ``start_with_parts``. ValueError if the weights are of
    another shape.
    """
    vocabulary = {"vocab_size": data.tokenizer.vocab_size}
    network = create_model(recipe.model_name, **{**overrides(recipe, *vocabulary), **vocabulary})
    if recipe.start:
        started = load_started(recipe)
        has_answers = "answers" in started.config.heads
        started = answerer(started) if _answers(recipe) and not has_answers else started
        start_with(network, started, recipe)
    elif has_parts(recipe):
        after = "those of pretraining: questions are learned after it, with start"
        check(not _answers(recipe), "heads", recipe.model.get("heads"), after)
        start_with_parts(network, recipe, places, num_added)
    return network


def _lessons(recipe: Recipe, *pretraining: str) -> tuple[str, ...]:
    return ("answers",) if _answers(recipe) else pretraining


def _cut(recipe: Recipe, longest: int) -> Recipe:
    """The recipe of the data: texts of the web are cut to ``longest`` tokens (``pretrain.py``)."""
    if recipe.data != "shards":
        return recipe
    length = min(config_of(recipe).context_length, longest)
    return replace(recipe, model={**recipe.model, "context_length": length})


def _answers(recipe: Recipe) -> bool:
    """Whether the recipe's model learns to answer questions; else it is pretrained."""
    heads = recipe.model.get("heads", model_config(recipe.model_name).heads)
    alone = "alone, as questions are learned after pretraining"
    check("answers" not in heads or heads == ("answers",), "heads", heads, f"'answers' {alone}")
    return "answers" in heads


# ALBEF.

ALBEF_PLACES = (("text_encoder.", ""), ("heads.words.", "words."))
"""Where it has a BERT: the first blocks read the text alone, the last ones fuse."""


def _albef_pairs(recipe: Recipe) -> Pairs:
    """Captions without [SEP], of which single pieces are masked, as in salesforce/ALBEF."""
    heads = _lessons(recipe, "captions", "words")
    return captioned_pairs(_cut(recipe, 25), heads, ends=False, whole_words=False)


def _albef(recipe: Recipe, data: Pairs) -> nn.Module:
    network = _network(recipe, data, albef_answerer, ALBEF_PLACES)
    if _answers(recipe):
        return ALBEFQuestionAnswering(network, **_twin(recipe, data, 1, TWIN))
    words = {"mask_id": data.tokenizer.mask_id, "special_ids": data.tokenizer.special_ids}
    return ALBEFPretraining(network, **_twin(recipe, data, num_epochs=1), **words)


def _albef_decays(name: str, parameter: nn.Parameter) -> bool:
    """All but biases and other vectors (``optim/__init__.py`` of salesforce/ALBEF).

    Positions, class token and temperature have another number of dimensions, so they decay.
    """
    return parameter.ndim != 1 and not name.endswith(".bias")


ALBEF_SYSTEM = System(
    _albef_pairs, _albef, words_and_answers, MOMENTUM, _albef_decays, starts=PARTS
)


# BLIP.

ROLES = ("[DEC]", "[ENC]")
"""The tokens that BLIP adds to BERT's, for a text that is written and one that is read."""
BLIP_PLACES = (("text_encoder.", ""), ("text_decoder.", ""))
"""Where it has a BERT: encoder and decoder, each with self-attentions of its own."""


def _blip_pairs(recipe: Recipe) -> Pairs:
    """Whole captions, with the tokens that BLIP adds to BERT's."""
    heads = _lessons(recipe, "captions")
    return captioned_pairs(_cut(recipe, 30), heads, extra_tokens=ROLES)


def _blip(recipe: Recipe, data: Pairs) -> nn.Module:
    network = _network(recipe, data, blip_answerer, BLIP_PLACES, len(ROLES))
    if _answers(recipe):
        pretraining_settings(recipe, {})
        return BLIPQuestionAnswering(network)
    return BLIPPretraining(network, **_twin(recipe, data, num_epochs=2))


def _blip_decays(name: str, parameter: nn.Parameter) -> bool:
    """Everything, as the optimiser of salesforce/BLIP (``pretrain.py``) is told of no exception."""
    return True


BLIP_SYSTEM = System(_blip_pairs, _blip, words_and_answers, MOMENTUM, _blip_decays, starts=PARTS)
