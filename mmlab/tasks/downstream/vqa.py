"""Visual question answering: every question about scenes, with the answers of ten simulated people.

Antol et al., ICCV 2015; with balanced answers: Goyal et al., CVPR 2017 (VQA v2). The answer is one
of ``ANSWERS``; chance is one over their number, and who knows the kinds of questions does far
better: many want yes or no.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, zip_longest

import torch

from mmlab.datasets import Scenes
from mmlab.datasets.example import Question
from mmlab.datasets.scenes.draws import text_generator
from mmlab.tasks.downstream.annotators import ERROR_RATE, official_score, people, simple_score
from mmlab.tasks.downstream.drawing import generators
from mmlab.tasks.downstream.items import Items
from mmlab.tasks.paired_scenes import ANSWERS


def vqa_items(
    dataset: Scenes,
    num: int,
    seed: int = 0,
    error_rate: float = ERROR_RATE,
    official: bool = False,
) -> Items:
    """Questions, one an item, every picture once before any is asked about twice.

    ``labels`` are the true answers; ``scores`` what each answer earns with ten people of whom each
    errs with ``error_rate``: min(#/3, 1), or the ``official`` mean that leaves one person out at a
    time. ``kinds`` are those of ``QUESTION_KINDS``.

    ValueError if the pictures have fewer questions than ``num``.
    """
    drawn = generators(dataset, "vqa people", num, seed)
    asked = list(islice(_in_turn(dataset, seed), num))
    if len(asked) < num:
        raise ValueError(f"num is {num}; {len(dataset)} pictures have {len(asked)} questions")
    score = official_score if official else simple_score
    given = [people(q.answer, rng, error_rate) for (_, q), rng in zip(asked, drawn, strict=True)]
    scores = [[score(answer, ten) for answer in ANSWERS] for ten in given]
    return Items(
        "classes",
        torch.tensor([[image] for image, _ in asked], dtype=torch.int64).reshape(-1, 1),
        [[question.text] for _, question in asked],
        torch.tensor([ANSWERS.index(q.answer) for _, q in asked], dtype=torch.int64),
        [question.kind for _, question in asked],
        ANSWERS,
        scores=torch.tensor(scores).reshape(-1, len(ANSWERS)),
    )


def _in_turn(dataset: Scenes, seed: int) -> Iterator[tuple[int, Question]]:
    """All questions: one of each picture in random order, then a second of each, and so on."""
    source = dataset.config
    rng = text_generator(source.split, source.seed, "vqa", seed)
    queues = []
    for image, asked in enumerate(dataset.questions("en")):
        queues.append([(image, question) for question in rng.sample(asked, len(asked))])
    rng.shuffle(queues)
    return (one for one in chain.from_iterable(zip_longest(*queues)) if one is not None)
