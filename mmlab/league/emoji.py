"""The emoji track of the league: dual encoders, on a style that they never trained on."""

from __future__ import annotations

from pathlib import Path

import torch

from mmlab.league.probes import DUAL_ENCODERS, Figures, chance_of_recall
from mmlab.models.checks import check
from mmlab.training.evaluation import HELD_OUT, choose, measure
from mmlab.training.recipe import Recipe


def emoji_figures(recipe: Recipe, weights: str | Path) -> Figures:
    """Retrieval and zero-shot classification of a finished run on emoji, with chance beside each.

    Of concepts that it trained on in other styles, and under ``"held_out"`` of concepts that it
    never saw; ``"vendor"`` is the style. ValueError for a run on other data, or of a system that is
    no dual encoder; CheckpointError if the weights are of another model.
    """
    check(recipe.data == "emoji", "data", recipe.data, "emoji: this track is about them")
    check(recipe.system in DUAL_ENCODERS, "system", recipe.system, "a dual encoder, clip or flip")
    known, new = (_figures(recipe, Path(weights), split) for split in ("train", HELD_OUT))
    return {"vendor": choose("emoji", {})["vendor"], **known, HELD_OUT: new}


def _figures(recipe: Recipe, weights: Path, split: str) -> Figures:
    where = choose("emoji", {"split": split})
    retrieved = measure(recipe, weights, "retrieval", where, "en")
    classified = measure(recipe, weights, "zero-shot", where, "en")
    # One style draws a concept once, so that each name has one picture.
    own = torch.eye(retrieved["num_images"], retrieved["num_texts"], dtype=torch.bool)
    classes = classified["num_classes"]
    return {
        "retrieval": {**retrieved, "chance": chance_of_recall(own)},
        "zero_shot": {
            "accuracy": classified["top1"],
            "top5": classified["top5"],
            "chance": {"accuracy": 1 / classes, "top5": min(5, classes) / classes},
            "num_images": classified["num_images"],
            "num_classes": classes,
        },
    }
