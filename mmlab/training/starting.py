"""What a run begins with where that is no model of its own system: an image encoder, a BERT.

A recipe names them apart, as ``start_image`` and ``start_text``.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from accelerate import PartialState
from torch import nn

from mmlab.hub import read_checkpoint
from mmlab.hub.starting import (
    Places,
    Taken,
    start_from_bert,
    start_from_image_encoder,
    untouched,
)
from mmlab.models.checks import check
from mmlab.training.recipe import Recipe

PARTS = ("start_image", "start_text")
"""The fields of a recipe that name a file for a part of the network."""

_LOG = logging.getLogger(__name__)


def check_parts(recipe: Recipe, known: Sequence[str]) -> None:
    """ValueError if a recipe names a part that is not ``known``, or a whole model beside it.

    A BERT's words are numbered by its own vocabulary, which the recipe must name.
    """
    for name in PARTS:
        file = getattr(recipe, name)
        check(not file or name in known, name, file, f"left out: a {recipe.system} takes none")
        check(not (file and recipe.start), name, file, "left out with start")
    told = "told with start_text: the vocabulary of that BERT"
    check(bool(recipe.tokenizer or not recipe.start_text), "tokenizer", recipe.tokenizer, told)


def has_parts(recipe: Recipe) -> bool:
    """Whether the recipe names a file for a part of the network."""
    return any(getattr(recipe, name) for name in PARTS)


def start_with_parts(
    network: nn.Module, recipe: Recipe, places: Places, num_added: int = 0
) -> None:
    """Give a fresh network the parts that the recipe names, and log what became of them.

    ``places`` say where a BERT goes, ``num_added`` how many tokens come after its words.
    CheckpointError if a file does not fit.
    """
    taken = []
    if recipe.start_image:
        taken.append(start_from_image_encoder(network, read_checkpoint(recipe.start_image)))
    if recipe.start_text:
        file = read_checkpoint(recipe.start_text)
        taken.append(start_from_bert(network, file, places, num_added))
    tell(network, taken)


def tell(network: nn.Module, taken: Sequence[Taken]) -> None:
    """Log, in the main process, what was taken of each file, and what begins afresh."""
    if taken and PartialState().is_main_process:
        for part in taken:
            _LOG.info("start: %s", part)
        _LOG.info("afresh: %s", ", ".join(untouched(network, taken)) or "nothing")
