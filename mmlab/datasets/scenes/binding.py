"""Binding pairs: two captions made of the same words, one true and one false."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from mmlab.datasets.checks import check_choice
from mmlab.datasets.scenes.collect import collect
from mmlab.datasets.scenes.language import Description, describe, indefinite, noun
from mmlab.datasets.scenes.vocabulary import lexicon
from mmlab.datasets.scenes.world import Pair, Scene, main_relation

_GROUPED = ("shape", "color")


@dataclass(frozen=True)
class BindingPair:
    """Two captions with the same words, of which only ``text`` is true. Chance 50 %.

    ``kind`` is what was exchanged: ``color``, ``size`` or ``texture`` of two objects, the sides of
    a ``relation``, or the numbers of a ``count`` ('two circles and one square' for 'one circle and
    two squares': here the plurals move along).
    """

    image: int
    text: str
    swapped: str
    kind: str
    language: str = "en"


def _both(first: Description, second: Description, language: str) -> str:
    link = "和" if language == "zh" else " and "
    return indefinite(first, language) + link + indefinite(second, language)


def _swap_attribute(
    scene: Scene, i: int, j: int, rng: Random, pairs: frozenset[Pair], language: str
) -> tuple[str, str, str] | None:
    name = rng.choice(("color", "color", "size", "texture"))
    first, second = (describe(scene.objects[k], (name, "shape")) for k in (i, j))
    a, b = getattr(first, name), getattr(second, name)
    wrong = Description(first.shape, **{name: b}), Description(second.shape, **{name: a})
    if first.shape == second.shape or a == b or any(d.count(scene) for d in wrong):
        return None
    if name == "color" and not all((d.color, d.shape) in pairs for d in wrong):
        return None
    return _both(first, second, language), _both(*wrong, language), name


def _swap_roles(
    scene: Scene, i: int, j: int, rng: Random, pairs: frozenset[Pair], language: str
) -> tuple[str, str, str] | None:
    first, second = (describe(scene.objects[k], ("color", "shape")) for k in (i, j))
    if first.count(scene) > 1 or second.count(scene) > 1:
        return None
    word = lexicon(language).relations[main_relation(scene.objects[i], scene.objects[j])]

    def say(a: Description, b: Description) -> str:
        if language == "zh":
            return f"{indefinite(a, 'zh')}在{indefinite(b, 'zh')}的{word}"
        return f"{indefinite(a)} {word} {indefinite(b)}"

    return say(first, second), say(second, first), "relation"


def _numbered(description: Description, number: int, language: str) -> str:
    """'one circle' with the number as a word, which 'a circle' leaves open."""
    if language == "zh":
        return indefinite(description, "zh", number)
    phrase = noun(description, plural=number != 1)
    return f"{lexicon(language).numbers[number]} {phrase}"


def _swap_counts(
    scene: Scene, i: int, j: int, rng: Random, pairs: frozenset[Pair], language: str
) -> tuple[str, str, str] | None:
    name = rng.choice(_GROUPED)
    first, second = (describe(scene.objects[k], (name,)) for k in (i, j))
    a, b = first.count(scene), second.count(scene)
    if a == b:
        return None
    link = "和" if language == "zh" else " and "
    right, wrong = (
        _numbered(first, x, language) + link + _numbered(second, y, language)
        for x, y in ((a, b), (b, a))
    )
    return right, wrong, "count"


_SWAPS = {"attribute": _swap_attribute, "relation": _swap_roles, "count": _swap_counts}
SWAPS = tuple(_SWAPS)
"""What a binding pair may exchange."""


def is_countable(scene: Scene) -> bool:
    """Whether two shapes, or two colors, occur in different numbers: a ``count`` needs that."""
    numbers = ({describe(o, (name,)).count(scene) for o in scene.objects} for name in _GROUPED)
    return any(len(found) > 1 for found in numbers)


def binding_pairs(
    scenes: Sequence[Scene],
    num: int,
    rng: Random,
    pairs: frozenset[Pair],
    language: str = "en",
    kinds: Sequence[str] = ("attribute", "relation"),
) -> tuple[BindingPair, ...]:
    """A true caption and the same words bound wrongly (as in ARO, Yuksekgonul et al., ICLR 2023).

    ``kinds`` of ``SWAPS`` take turns: an attribute of two objects, the two sides of a relation, or
    the numbers of two groups (not in ARO), which only scenes of three or more objects allow.
    """
    lexicon(language)
    wanted = [_SWAPS[check_choice("kind", kind, SWAPS)] for kind in kinds]
    if not wanted:
        raise ValueError(f"kinds is empty; give some of {', '.join(SWAPS)}")

    def attempt() -> BindingPair | None:
        image = rng.randrange(len(scenes))
        scene = scenes[image]
        if len(scene.objects) < 2:
            return None
        i, j = rng.sample(range(len(scene.objects)), 2)
        found = wanted[0](scene, i, j, rng, pairs, language)
        if found is None:
            return None
        wanted.append(wanted.pop(0))
        return BindingPair(image, *found, language)

    return collect(num, attempt, "binding pairs")
