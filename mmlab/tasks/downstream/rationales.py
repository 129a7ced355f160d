"""Visual commonsense reasoning in small: choose the answer, then the reason for it.

VCR: Zellers et al., "From Recognition to Cognition" (CVPR 2019), tasks Q→A and QA→R; there the
right answer is given with the second task too. Chance 25 % for each, and a blind guess does a
little better: a right answer shares words with its question more often than a wrong one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmlab.datasets import Scenes
from mmlab.datasets.scenes import Choice
from mmlab.datasets.scenes.vocabulary import SPATIAL, lexicon
from mmlab.tasks.downstream.items import Items


def answer_items(dataset: Scenes, num: int, seed: int = 0) -> Items:
    """Q→A: each view is the picture with the question and one of four answers.

    ``kinds`` are the relations that are asked about: left of, right of, above, below. ValueError if
    the scenes show too few objects.
    """
    asked = dataset.choices(num, seed)
    texts = [[f"{one.question} {answer}" for answer in one.answers] for one in asked]
    return _items(asked, texts, [one.answer for one in asked])


def rationale_items(dataset: Scenes, num: int, seed: int = 0) -> Items:
    """QA→R: each view is the picture with question, right answer and one of four rationales.

    The same questions as ``answer_items`` of the same seed, with the same ``kinds``.
    """
    asked = dataset.choices(num, seed)
    texts = [
        [f"{one.question} {one.answers[one.answer]} {why}" for why in one.rationales]
        for one in asked
    ]
    return _items(asked, texts, [one.rationale for one in asked])


def _items(asked: Sequence[Choice], texts: list[list[str]], labels: list[int]) -> Items:
    images = torch.tensor([[one.image] * 4 for one in asked], dtype=torch.int64).reshape(-1, 4)
    kinds = [_relation(one.question) for one in asked]
    return Items("choice", images, texts, torch.tensor(labels, dtype=torch.int64), kinds)


def _relation(question: str) -> str:
    words = lexicon("en").relations
    return next(key for key in SPATIAL if f"Which shape is {words[key]} " in question)
