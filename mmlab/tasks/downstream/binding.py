"""Binding: the true caption, or the same words bound wrongly?

ARO: Yuksekgonul et al., "When and why vision-language models behave like bags-of-words" (ICLR
2023), with exchanged attributes and relations; exchanged numbers are ours. Chance 50 %, and all
that a bag of words can reach.
"""

from __future__ import annotations

import torch

from mmlab.datasets import Scenes
from mmlab.datasets.scenes.binding import is_countable
from mmlab.tasks.downstream.drawing import generators
from mmlab.tasks.downstream.items import Items


def binding_items(dataset: Scenes, num: int, seed: int = 0) -> Items:
    """Each picture with the true caption and the one with words exchanged, in random order.

    ``kinds`` are color, size, texture and relation, and where scenes of three or more objects allow
    it, count. ValueError if no scene shows two objects.
    """
    counts = ("count",) if any(map(is_countable, dataset.scenes)) else ()
    pairs = dataset.binding_pairs(num, seed, kinds=("attribute", "relation", *counts))
    drawn = generators(dataset, "binding order", num, seed)
    labels = [rng.randrange(2) for rng in drawn]
    both = [(pair.text, pair.swapped) for pair in pairs]
    return Items(
        "choice",
        torch.tensor([[pair.image] * 2 for pair in pairs], dtype=torch.int64).reshape(-1, 2),
        [list(texts[::-1] if label else texts) for texts, label in zip(both, labels, strict=True)],
        torch.tensor(labels, dtype=torch.int64),
        [pair.kind for pair in pairs],
    )
