"""Questions about scenes: how often a model answers rightly, and what a guess without eyes gets."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from mmlab import datasets
from mmlab.datasets import Scenes
from mmlab.datasets.example import Question
from mmlab.tasks.fusion import BATCH_SIZE, FusionModel
from mmlab.tasks.reranking import Reranker

Answerer = FusionModel | Reranker

NUM_GUESSED_FROM = 2000
"""How many training scenes the guesses are counted in."""


@dataclass(frozen=True)
class Answered:
    """Shares of questions that were answered rightly.

    - ``wrong_image``: each question is asked of the next scene instead of its own.
    - ``question_only``: the answer that the same question has most often in training scenes; where
      it was never asked, the one that its kind of question has most often.
    - ``by_kind``: ``accuracy`` for each kind of question.
    """

    accuracy: float
    wrong_image: float
    question_only: float
    by_kind: dict[str, float]
    num_questions: int
    num_images: int


def answer_questions(model: Answerer, dataset: Scenes, language: str = "en") -> Answered:
    """Ask everything that is asked about the scenes of a data set.

    ValueError if the model has no ``"answer"`` head.
    """
    asked = dataset.questions(language)
    own = torch.arange(len(asked)).repeat_interleave(torch.tensor([len(q) for q in asked]))
    flat = [question for questions in asked for question in questions]
    right = _is_right(model, dataset, flat, own)
    wrong_image = _is_right(model, dataset, flat, (own + 1) % len(dataset))
    guesses = guess(flat, dataset, language)
    guessed = [g == question.answer for g, question in zip(guesses, flat, strict=True)]
    return Answered(
        _share(right),
        _share(wrong_image),
        sum(guessed) / len(flat),
        _by_kind(flat, right),
        len(flat),
        len(dataset),
    )


def _is_right(
    model: Answerer,
    dataset: Scenes,
    asked: Sequence[Question],
    rows: Int64[Tensor, " num"],
) -> Bool[Tensor, " num"]:
    """Whether each question, asked of image ``rows[i]``, gets the answer it should."""
    places = []
    for part in torch.arange(len(rows)).split(BATCH_SIZE):
        images = model.prepared(dataset, rows[part])
        texts = [asked[i].text for i in part.tolist()]
        places += model.answer(images, texts).argmax(-1).tolist()
    said = zip(places, asked, strict=True)
    return torch.tensor([model.answers[place] == question.answer for place, question in said])


def guess(asked: Sequence[Question], dataset: Scenes, language: str = "en") -> list[str]:
    """The commonest answers in training scenes to questions like these, no image looked at."""
    training = datasets.scenes(NUM_GUESSED_FROM, "train", seed=dataset.config.seed)
    by_text, by_kind = defaultdict(Counter), defaultdict(Counter)
    for questions in training.questions(language):
        for question in questions:
            by_text[question.text][question.answer] += 1
            by_kind[question.kind][question.answer] += 1
    return [
        (by_text.get(question.text) or by_kind[question.kind]).most_common(1)[0][0]
        for question in asked
    ]


def _by_kind(asked: Sequence[Question], right: Bool[Tensor, " num"]) -> dict[str, float]:
    kinds = [question.kind for question in asked]
    return {
        kind: _share(right[torch.tensor([other == kind for other in kinds])])
        for kind in dict.fromkeys(kinds)
    }


def _share(right: Bool[Tensor, " num"]) -> float:
    return right.float().mean().item()
