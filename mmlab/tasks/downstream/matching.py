"""Image-text matching as a choice: which of several captions is the picture's own?

As ViLBERT is fine-tuned for caption-based retrieval (Lu et al., NeurIPS 2019): four pairs of a
picture and a caption, of which one belongs together; there one of the wrong pairs has another
picture, here all have another caption. Chance: one over the options.
"""

from __future__ import annotations

from collections import defaultdict
from random import Random

import torch

from mmlab.datasets import Scenes
from mmlab.datasets.scenes import judge
from mmlab.datasets.scenes.collect import collect
from mmlab.datasets.scenes.noise import view_of
from mmlab.datasets.scenes.vocabulary import lexicon
from mmlab.models.checks import check
from mmlab.tasks.downstream.drawing import generators
from mmlab.tasks.downstream.items import Items

KIND = "medium"
"""Captions that tell of size, texture and a relation, or the place of a single object."""


def matching_items(dataset: Scenes, num: int, seed: int = 0, num_options: int = 4) -> Items:
    """Each picture with its own caption and others that are false of it, in random order.

    All wrong captions are hard: true ones of other pictures that show as many objects. The own
    caption with a word changed would be harder, but its near twin among the options would give both
    away to a reader who sees no picture. ``kinds`` are the numbers of objects, ``"one"``,
    ``"two"``… Without any noise of the data set.

    ValueError if the scenes are too few or too much alike.
    """
    check(num_options >= 2, "num_options", num_options, "2 or more")
    captions = dataset.true_captions("en", KIND)
    alike = _by_number(dataset)
    images, texts, labels, kinds = [], [], [], []
    for rng in generators(dataset, "matching", num, seed):
        image = rng.randrange(len(dataset))
        rivals = alike[len(dataset.scenes[image].objects)]
        wrong = _false_captions(dataset, captions, image, rivals, num_options - 1, rng)
        label = rng.randrange(num_options)
        images.append([image] * num_options)
        texts.append([*wrong[:label], captions[image], *wrong[label:]])
        labels.append(label)
        kinds.append(lexicon("en").numbers[len(dataset.scenes[image].objects)])
    table = torch.tensor(images, dtype=torch.int64).reshape(-1, num_options)
    return Items("choice", table, texts, torch.tensor(labels, dtype=torch.int64), kinds)


def _by_number(dataset: Scenes) -> dict[int, list[int]]:
    """The pictures that show each number of objects."""
    found = defaultdict(list)
    for image, scene in enumerate(dataset.scenes):
        found[len(scene.objects)].append(image)
    return found


def _false_captions(
    dataset: Scenes, captions: list[str], image: int, rivals: list[int], num: int, rng: Random
) -> list[str]:
    """Different captions of other pictures; the referee calls each false of this one."""
    seen, found = view_of(dataset.scenes[image]), []

    def attempt() -> str | None:
        text = captions[rng.choice(rivals)]
        if text in found or judge(text, seen) is not False:
            return None
        found.append(text)
        return text

    return list(collect(num, attempt, "wrong captions of a picture"))
