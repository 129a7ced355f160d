"""VLMo in the engine: the stages of its pretraining, and questions."""

from __future__ import annotations

from torch import nn

from mmlab.hub import CheckpointError, create_model, read_checkpoint
from mmlab.hub.starting import start_vlmo_from_beit
from mmlab.models.checks import check
from mmlab.models.vlmo_pretraining import (
    VLMoLanguagePretraining,
    VLMoPretraining,
    VLMoVisionPretraining,
    continue_vlmo,
)
from mmlab.models.vlmo_tasks import VLMoQuestionAnswering
from mmlab.training.pair_data import Pairs, captioned_pairs, words_and_answers
from mmlab.training.recipe import Recipe
from mmlab.training.starting import tell
from mmlab.training.system import System, load_started, overrides

NUM_CODES = 64
"""Colors that a patch is told by in the first stage, four levels of each channel."""

_SETTINGS = {
    "vision": {"heads": ("codes",), "num_codes": NUM_CODES, "fusion_depth": 0},
    "language": {"heads": ("words",), "fusion_depth": 0},
}
"""What a model of an earlier stage has instead of what its size has, unless the recipe tells it."""
_LESSONS = {
    "vision": ("patches",),
    "language": ("words",),
    "pairs": ("captions", "words"),
    "questions": ("answers",),
}
_MODULES = {"language": VLMoLanguagePretraining, "pairs": VLMoPretraining}


def stage_of(recipe: Recipe) -> str:
    """What the model's heads say that it learns from.

    ``"codes"`` alone says images, ``"words"`` alone texts, ``"answer"`` alone questions; all others
    are for pairs. ValueError for heads that are learned apart, together.
    """
    heads = recipe.model.get("heads", ())
    alone = {"codes": "vision", "words": "language", "answer": "questions"}
    if len(heads) == 1 and heads[0] in alone:
        return alone[heads[0]]
    apart = "'codes' and 'answer' each alone, as they are learned before pairs and after them"
    check(not {"codes", "answer"} & set(heads), "heads", heads, apart)
    return "pairs"


def _pairs(recipe: Recipe) -> Pairs:
    """Images alone, captions alone, or both; or questions.

    Words are numbered alike in all stages, as the first of them numbers them.
    """
    return captioned_pairs(recipe, _LESSONS[stage_of(recipe)])


def _vlmo(recipe: Recipe, data: Pairs) -> nn.Module:
    stage, given = stage_of(recipe), {"vocab_size": data.tokenizer.vocab_size}
    given["num_classes"] = len(data.answers) if stage == "questions" else 0
    usual = _SETTINGS.get(stage, {})
    after = "those of pretraining: questions are learned after it, with start"
    asks = stage == "questions" and bool(recipe.start_image)
    check(not asks, "heads", recipe.model.get("heads"), after)
    network = _network(recipe, {**usual, **overrides(recipe, *given), **given})
    if stage == "vision":
        return VLMoVisionPretraining(network)
    if stage == "questions":
        return VLMoQuestionAnswering(network)
    return _MODULES[stage](network, data.tokenizer.mask_id)


def _network(recipe: Recipe, settings: dict[str, object]) -> nn.Module:
    """A fresh model, or the one that the recipe starts with, changed to these ``settings``."""
    fresh = create_model(recipe.model_name, **settings)
    if recipe.start_image:
        tell(fresh, [start_vlmo_from_beit(fresh, read_checkpoint(recipe.start_image))])
    if not recipe.start:
        return fresh
    try:
        return continue_vlmo(load_started(recipe), **vars(fresh.config))
    except CheckpointError:
        raise
    except ValueError as error:
        raise ValueError(f"cannot start with {recipe.start!r}: {error}") from None


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """All but biases and the norms that no expert has (``vlmo/modules/vlmo_utils.py``).

    The official code tells by parts of names: the table of relative positions is a "bias", and the
    norms of experts are called otherwise than those that it leaves out.
    """
    is_norm = name.endswith(("norm.weight", "norm1.weight")) and ".experts." not in name
    return not is_norm and "bias" not in name


VLMO_SYSTEM = System(_pairs, _vlmo, words_and_answers, decays=_decays, starts=("start_image",))
