"""How tasks draw: a generator for each item, so that no item hangs on those before it."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from mmlab.datasets import Scenes
from mmlab.datasets.scenes.draws import text_generator
from mmlab.models.checks import check


def generators(dataset: Scenes, task: str, num: int, seed: int) -> Iterator[Random]:
    """``num`` generators; each hangs on the data set's split and seed, ``task``, ``seed``, number.

    ValueError for a negative ``num`` or ``seed``.
    """
    for name, value in (("num", num), ("seed", seed)):
        check(value >= 0, name, value, "0 or more")
    source = dataset.config
    parts = (source.split, source.seed, task, seed)
    return (text_generator(*parts, item) for item in range(num))
