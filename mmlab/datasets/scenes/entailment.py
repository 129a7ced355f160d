"""SNLI-VE-style entailment: does an image entail, contradict or leave open a hypothesis?

As with the pairs, the sentence comes first, then the label, then an image that makes it so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from mmlab.datasets.scenes.collect import TRIES, collect
from mmlab.datasets.scenes.language import Description, indefinite, noun
from mmlab.datasets.scenes.vocabulary import COLORS, SHAPES, SIZES, TEXTURES, lexicon
from mmlab.datasets.scenes.world import Pair, Scene


@dataclass(frozen=True)
class Entailment:
    """SNLI-VE style: does the image entail the hypothesis? Chance 1/3, from the text alone as well.

    Neutral means that the answer hangs on something that no picture shows (say, a weight).
    """

    image: int
    hypothesis: str
    label: str
    reason: str
    language: str = "en"


HIDDEN = {
    "heavy": "沉重",
    "warm": "温热",
    "magnetic": "磁性",
    "wooden": "木制",
    "soft": "柔软",
    "fragile": "易碎",
    "expensive": "昂贵",
    "wet": "潮湿",
}
"""Properties that no picture of a flat shape shows."""

LABELS = ("entailment", "neutral", "contradiction")


def _hypothesis(rng: Random, pairs: frozenset[Pair]) -> tuple[Description, Description, str, str]:
    """(A, A that is B, B, hidden) of 'there is an A that is B or hidden'."""
    subject = rng.choice((("shape", SHAPES), ("color", COLORS)))
    base = {subject[0]: rng.choice(subject[1])}
    others = [("size", SIZES), ("texture", TEXTURES[1:])]
    if "shape" in base:
        colors = tuple(c for c in COLORS if (c, base["shape"]) in pairs)
        others += [("color", colors), ("color", colors)]
    name, values = rng.choice(others)
    value = rng.choice(values)
    return Description(**base), Description(**base, **{name: value}), value, rng.choice([*HIDDEN])


def _entailment_label(scene: Scene, wide: Description, narrow: Description) -> str:
    if narrow.count(scene):
        return "entailment"
    return "neutral" if wide.count(scene) else "contradiction"


def _words(value: str) -> str:
    words = lexicon("zh")
    return {**words.colors, **words.sizes, **words.textures}[value]


def _reason(label: str, wide: Description, value: str, hidden: str, language: str) -> str:
    """Why the label is right, in one sentence."""
    if language == "zh":
        thing, value, hidden = noun(wide, "zh"), _words(value), HIDDEN[hidden]
        return {
            "entailment": f"图中有一个{thing}是{value}的。",
            "neutral": f"图中有{thing}，但没有一个是{value}的；是不是{hidden}的，从图上看不出来。",
            "contradiction": f"图中没有{thing}。",
        }[label]
    return {
        "entailment": f"The image shows {indefinite(wide)} that is {value}.",
        "neutral": f"The image shows {indefinite(wide)}, but none that is {value}; whether one is "
        f"{hidden} cannot be seen.",
        "contradiction": f"The image shows no {noun(wide)}.",
    }[label]


def _say(wide: Description, value: str, hidden: str, language: str) -> str:
    if language == "en":
        return f"There is {indefinite(wide)} that is {value} or {hidden}."
    subject, value = indefinite(wide, "zh"), _words(value)
    return f"图中有{subject}，它是{value}的或者{HIDDEN[hidden]}的。"


def entailments(
    scenes: Sequence[Scene],
    num: int,
    rng: Random,
    pairs: frozenset[Pair],
    language: str = "en",
) -> tuple[Entailment, ...]:
    """Image, hypothesis and label, each label equally often (Xie et al., arXiv:1901.06706)."""
    lexicon(language)
    waiting = [LABELS[i % len(LABELS)] for i in range(num)]
    rng.shuffle(waiting)

    def attempt() -> Entailment | None:
        wide, narrow, value, hidden = _hypothesis(rng, pairs)
        for _ in range(TRIES):
            image = rng.randrange(len(scenes))
            if _entailment_label(scenes[image], wide, narrow) == waiting[-1]:
                label = waiting.pop()
                text = _say(wide, value, hidden, language)
                reason = _reason(label, wide, value, hidden, language)
                return Entailment(image, text, label, reason, language)
        return None

    return collect(num, attempt, "entailment triples")
