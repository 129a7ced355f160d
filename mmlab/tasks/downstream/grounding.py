"""Grounding: which object of the picture does the expression mean?

Referring expressions: Kazemzadeh et al., EMNLP 2014 (ReferItGame); RefCOCO: Yu et al., ECCV 2016.
Chance: one over the objects of the picture, of which there are at least two.
"""

from __future__ import annotations

import torch

from mmlab.datasets import Scenes
from mmlab.tasks.downstream.items import Items


def grounding_items(dataset: Scenes, num: int, seed: int = 0) -> Items:
    """A picture with an expression each, and the exact boxes of all its objects to choose from.

    ``boxes`` are filled up with zeros to the most objects of an item. ``kinds`` are attribute,
    extreme and relation. ValueError if no scene shows two objects.
    """
    meant = dataset.referring_expressions(num, seed)
    shown = [[thing.box(1) for thing in dataset.scenes[one.image].objects] for one in meant]
    counts = torch.tensor([len(own) for own in shown], dtype=torch.int64)
    valid = torch.arange(max(map(len, shown), default=0)) < counts[:, None]
    boxes = torch.zeros(*valid.shape, 4)
    boxes[valid] = torch.tensor([box for own in shown for box in own]).reshape(-1, 4)
    return Items(
        "boxes",
        torch.tensor([[one.image] for one in meant], dtype=torch.int64).reshape(-1, 1),
        [[one.text] for one in meant],
        torch.tensor([one.region for one in meant], dtype=torch.int64),
        [one.kind for one in meant],
        boxes=boxes,
        box_valid=valid,
    )
