"""Referring expressions: phrases that fit exactly one region of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from mmlab.datasets.scenes.collect import collect
from mmlab.datasets.scenes.language import describe, identify, noun
from mmlab.datasets.scenes.vocabulary import EXTREMES, lexicon
from mmlab.datasets.scenes.world import Scene, main_relation, predicates


@dataclass(frozen=True)
class ReferringExpression:
    """A phrase that fits exactly one region of the image. Chance: one over the regions."""

    image: int
    text: str
    region: int
    kind: str
    language: str = "en"


def _attribute_phrase(scene: Scene, index: int, rng: Random, language: str) -> str | None:
    description = identify(scene, index)
    if description is None:
        return None
    return noun(description, language) if language == "zh" else f"the {noun(description)}"


def _extreme_phrase(scene: Scene, index: int, rng: Random, language: str) -> str | None:
    thing = scene.objects[index]
    description = describe(thing, rng.choice(((), ("shape",), ("color",), ("size",))))
    rivals = [o for o in scene.objects if description.matches(o) and o is not thing]
    options = [
        word
        for word, relation in EXTREMES.items()
        if rivals and all(relation in predicates(thing, other) for other in rivals)
    ]
    if not options:
        return None
    word = lexicon(language).extremes[rng.choice(options)]
    if language == "zh":
        return f"{word}的{noun(description, 'zh')}"
    return f"the {word} {noun(description)}"


def _relation_phrase(scene: Scene, index: int, rng: Random, language: str) -> str | None:
    if len(scene.objects) < 2:
        return None
    anchor = rng.choice([i for i in range(len(scene.objects)) if i != index])
    thing, other = scene.objects[index], scene.objects[anchor]
    anchor_words = identify(scene, anchor)
    description = describe(thing, rng.choice(((), ("shape",), ("color",))))
    relation = main_relation(thing, other)
    fits = [o for o in scene.objects if o is not other and description.matches(o)]
    fits = [o for o in fits if relation in predicates(o, other)]
    if anchor_words is None or len(fits) != 1:
        return None
    word = lexicon(language).relations[relation]
    if language == "zh":
        return f"{noun(anchor_words, 'zh')}{word}的{noun(description, 'zh')}"
    return f"the {noun(description)} {word} the {noun(anchor_words)}"


_PHRASES = {
    "attribute": _attribute_phrase,
    "extreme": _extreme_phrase,
    "relation": _relation_phrase,
}


def referring_expressions(
    scenes: Sequence[Scene], num: int, rng: Random, language: str = "en"
) -> tuple[ReferringExpression, ...]:
    """Phrases for one region each, in images with at least two (Kazemzadeh et al., EMNLP 2014)."""
    lexicon(language)

    def attempt() -> ReferringExpression | None:
        image = rng.randrange(len(scenes))
        scene, kind = scenes[image], rng.choice([*_PHRASES])
        region = rng.randrange(len(scene.objects))
        text = _PHRASES[kind](scene, region, rng, language) if len(scene.objects) > 1 else None
        return text and ReferringExpression(image, text, region, kind, language)

    return collect(num, attempt, "referring expressions")
