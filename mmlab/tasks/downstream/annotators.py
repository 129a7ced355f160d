"""Ten people who answer a question about a scene, some of them wrongly, and how VQA scores that.

People are simulated: the truth is known, and each errs on their own at a given rate, in a way that
fits the answer (a number off by one, a neighbouring color, yes for no).
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from mmlab.datasets.scenes import COLORS, TEXTURES
from mmlab.datasets.scenes.world import MAX_OBJECTS
from mmlab.models.checks import check

NUM_PEOPLE = 10
"""Answers to each question of VQA (Antol et al., ICCV 2015)."""
ERROR_RATE = 0.1
ENOUGH = 3
"""An answer that so many people gave is fully right."""

_LOOKALIKES = (
    ("circle", "ring", "heart"),
    ("square", "diamond", "triangle"),
    ("star", "cross"),
)


def mistakes(answer: str) -> tuple[str, ...]:
    """The wrong answers that a person may give in place of the right one.

    ValueError for what is no answer to a question about scenes.
    """
    if answer in ("yes", "no"):
        return ("no",) if answer == "yes" else ("yes",)
    if answer.isdecimal():
        near = (int(answer) - 1, int(answer) + 1)
        return tuple(str(number) for number in near if 0 <= number <= MAX_OBJECTS)
    if answer in COLORS:
        # The palette goes round the circle of hues.
        place = COLORS.index(answer)
        return COLORS[place - 1], COLORS[(place + 1) % len(COLORS)]
    for group in (*_LOOKALIKES, TEXTURES):
        if answer in group:
            return tuple(other for other in group if other != answer)
    raise ValueError(f"{answer!r} is no answer to a question about scenes")


def people(
    answer: str, rng: Random, error_rate: float = ERROR_RATE, num: int = NUM_PEOPLE
) -> tuple[str, ...]:
    """What ``num`` people answer where ``answer`` is right; each errs with ``error_rate``."""
    check(0 <= error_rate <= 1, "error_rate", error_rate, "between 0 and 1")
    wrong = mistakes(answer)
    return tuple(rng.choice(wrong) if rng.random() < error_rate else answer for _ in range(num))


def simple_score(answer: str, given: Sequence[str]) -> float:
    """``min(#/3, 1)``, # people having given that answer (Antol et al. 2015).

    Answers are compared as they are: those of scenes need none of the official cleaning of
    articles, numerals and punctuation.
    """
    return min(given.count(answer) / ENOUGH, 1.0)


def official_score(answer: str, given: Sequence[str]) -> float:
    """The mean of ``simple_score`` against all people but one, each left out once.

    So scores the official code (``vqaEval.py``, for VQA and for VQA v2, Goyal et al., CVPR 2017),
    since a person's own accuracy can be measured against the nine others only. Two of ten give 0.6
    and not 2/3, three of ten 0.9 and not 1.
    """
    left = [[*given[:i], *given[i + 1 :]] for i in range(len(given))]
    return sum(simple_score(answer, others) for others in left) / len(given)


def vqa_score(
    predicted: Sequence[str], given: Sequence[Sequence[str]], official: bool = True
) -> float:
    """The mean score of the ``predicted`` answers against those that people gave, 0 to 1.

    ``official`` leaves one person out at a time; without it the score is the plain min(#/3, 1).
    ValueError for no answer at all, or unequally many.
    """
    if len(predicted) != len(given) or not predicted:
        raise ValueError(
            f"predicted has {len(predicted)} answers and given those to {len(given)} questions; "
            "both must be equally many, at least one"
        )
    score = official_score if official else simple_score
    both = zip(predicted, given, strict=True)
    return sum(score(answer, people) for answer, people in both) / len(given)
