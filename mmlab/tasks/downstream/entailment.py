"""Visual entailment: does the picture entail the hypothesis, leave it open, or contradict it?

SNLI-VE: Xie et al., arXiv:1901.06706. Chance 1/3, from the hypothesis alone as well: all three
answers are equally frequent, and the hypothesis is drawn before its answer.
"""

from __future__ import annotations

import torch

from mmlab.datasets import Scenes
from mmlab.datasets.scenes import COLORS, SIZES
from mmlab.datasets.scenes.entailment import LABELS
from mmlab.tasks.downstream.items import Items

CLASSES = LABELS
"""Entailment, neutral, contradiction: in the order in which the paper names them."""


def entailment_items(dataset: Scenes, num: int, seed: int = 0) -> Items:
    """A picture and a hypothesis each; ``kinds`` tell what is asked: color, size or texture."""
    triples = dataset.entailments(num, seed)
    return Items(
        "classes",
        torch.tensor([[triple.image] for triple in triples], dtype=torch.int64).reshape(-1, 1),
        [[triple.hypothesis] for triple in triples],
        torch.tensor([CLASSES.index(triple.label) for triple in triples], dtype=torch.int64),
        [_attribute(triple.hypothesis) for triple in triples],
        CLASSES,
    )


def _attribute(hypothesis: str) -> str:
    """What the word after 'that is' is: 'There is a circle that is red or heavy.'"""
    value = hypothesis.split(" that is ")[1].split()[0]
    if value in COLORS:
        return "color"
    return "size" if value in SIZES else "texture"
