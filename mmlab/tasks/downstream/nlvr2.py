"""NLVR2: is the statement true of the two pictures?

Suhr et al., "A Corpus for Reasoning about Natural Language Grounded in Photographs" (ACL 2019).
Chance 50 %, from the statement alone as well.
"""

from __future__ import annotations

import torch

from mmlab.datasets import Scenes
from mmlab.tasks.downstream.items import Items

CLASSES = ("false", "true")


def nlvr2_items(dataset: Scenes, num: int, seed: int = 0) -> Items:
    """Pairs of pictures as two views, left and right, each with the statement.

    ``kinds`` are those of the statements: one side, quantity, conjunction, more, total. ValueError
    for a single picture.
    """
    pairs = dataset.image_pairs(num, seed)
    images = [[pair.left, pair.right] for pair in pairs]
    return Items(
        "classes",
        torch.tensor(images, dtype=torch.int64).reshape(-1, 2),
        [[pair.text] * 2 for pair in pairs],
        torch.tensor([pair.answer for pair in pairs], dtype=torch.int64),
        [pair.kind for pair in pairs],
        CLASSES,
    )
