"""NLVR2-style pairs: one statement about two images, true or false.

The statement is drawn first, then the answer, and only then images that make it so: the same
sentence is as often right as wrong, and the text alone is worth nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from mmlab.datasets.scenes.collect import TRIES, collect
from mmlab.datasets.scenes.language import Description, indefinite, noun
from mmlab.datasets.scenes.vocabulary import COLORS, SHAPES, SIZES, TEXTURES, lexicon
from mmlab.datasets.scenes.world import Scene


@dataclass(frozen=True)
class ImagePair:
    """NLVR2 style: is ``text`` true of the two images? Chance 50 %, from the text alone as well."""

    left: int
    right: int
    text: str
    answer: bool
    kind: str
    language: str = "en"


@dataclass(frozen=True)
class _Statement:
    kind: str
    texts: dict[str, str]
    holds: Callable[[Scene, Scene], bool]


def _simple(rng: Random) -> Description:
    """One attribute, so that the statement is neither rarely nor nearly always true."""
    name, values = rng.choice(
        [("shape", SHAPES), ("color", COLORS), ("shape", SHAPES), ("texture", TEXTURES[1:])]
    )
    return Description(**{name: rng.choice(values)})


def _statement(rng: Random) -> _Statement:
    maker = rng.choice((_one_side, _quantity, _conjunction, _more, _total))
    return maker(rng)


def _one_side(rng: Random) -> _Statement:
    d, left = _simple(rng), rng.random() < 0.5
    return _Statement(
        "one side",
        {
            "en": f"The {'left' if left else 'right'} image contains {indefinite(d)}.",
            "zh": f"{'左' if left else '右'}图中有{indefinite(d, 'zh')}。",
        },
        lambda a, b: d.count(a if left else b) > 0,
    )


def _quantity(rng: Random) -> _Statement:
    d, number = _simple(rng), rng.choice((0, 1, 2))
    english = ("Neither image contains", "Exactly one image contains", "Both images contain")
    chinese = ("两张图中都没有", "只有一张图中有", "两张图中都有")
    return _Statement(
        "quantity",
        {
            "en": f"{english[number]} {indefinite(d)}.",
            "zh": f"{chinese[number]}{noun(d, 'zh')}。",
        },
        lambda a, b: (d.count(a) > 0) + (d.count(b) > 0) == number,
    )


def _conjunction(rng: Random) -> _Statement:
    d, e = _simple(rng), _simple(rng)
    return _Statement(
        "conjunction",
        {
            "en": f"The left image contains {indefinite(d)} and the right image contains "
            f"{indefinite(e)}.",
            "zh": f"左图中有{indefinite(d, 'zh')}，右图中有{indefinite(e, 'zh')}。",
        },
        lambda a, b: d.count(a) > 0 and e.count(b) > 0,
    )


def _more(rng: Random) -> _Statement:
    d = rng.choice((Description(), _simple(rng)))
    return _Statement(
        "more",
        {
            "en": f"There are more {noun(d, plural=True)} in the left image than in the right "
            "image.",
            "zh": f"左图中的{noun(d, 'zh')}比右图中的多。",
        },
        lambda a, b: d.count(a) > d.count(b),
    )


def _total(rng: Random) -> _Statement:
    d, number = Description(size=rng.choice((None, *SIZES))), rng.randint(2, 5)
    return _Statement(
        "total",
        {
            "en": f"The two images contain exactly {indefinite(d, number=number)} in total.",
            "zh": f"两张图中一共有{indefinite(d, 'zh', number)}。",
        },
        lambda a, b: d.count(a) + d.count(b) == number,
    )


def image_pairs(
    scenes: Sequence[Scene], num: int, rng: Random, language: str = "en"
) -> tuple[ImagePair, ...]:
    """Statements about two different images, half of them true (Suhr et al., ACL 2019)."""
    lexicon(language)
    if len(scenes) < 2:
        raise ValueError(f"image pairs need at least 2 images; the data set has {len(scenes)}")

    def attempt() -> ImagePair | None:
        statement, answer = _statement(rng), rng.random() < 0.5
        for _ in range(TRIES):
            left, right = rng.sample(range(len(scenes)), 2)
            if statement.holds(scenes[left], scenes[right]) == answer:
                text = statement.texts[language]
                return ImagePair(left, right, text, answer, statement.kind, language)
        return None

    return collect(num, attempt, "image pairs")
