"""Binding pairs: two captions made of the same words, one true and one false."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from mmlab.datasets.scenes.collect import collect
from mmlab.datasets.scenes.language import Description, describe, indefinite
from mmlab.datasets.scenes.vocabulary import lexicon
from mmlab.datasets.scenes.world import Pair, Scene, main_relation


@dataclass(frozen=True)
class BindingPair:
    """Two captions with the same words, of which only ``text`` is true. Chance 50 %."""

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


def binding_pairs(
    scenes: Sequence[Scene], num: int, rng: Random, pairs: frozenset[Pair], language: str = "en"
) -> tuple[BindingPair, ...]:
    """A true caption and the same words bound wrongly (as in ARO, Yuksekgonul et al., ICLR 2023).

    Half of the items exchange an attribute of two objects, half the two sides of a relation.
    """
    lexicon(language)

    def attempt() -> BindingPair | None:
        image = rng.randrange(len(scenes))
        scene = scenes[image]
        if len(scene.objects) < 2:
            return None
        i, j = rng.sample(range(len(scene.objects)), 2)
        swap = wanted[0]
        found = swap(scene, i, j, rng, pairs, language)
        if found is None:
            return None
        wanted.reverse()
        return BindingPair(image, *found, language)

    wanted = [_swap_attribute, _swap_roles]
    return collect(num, attempt, "binding pairs")
