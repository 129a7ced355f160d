"""Questions about one scene with their answers.

Each kind is a function that returns (text, answer) or None where the scene does not allow such a
question. Yes and no are drawn first and the question is made to fit, so that both are as frequent.
"""

from __future__ import annotations

from random import Random

from mmlab.datasets.example import Question
from mmlab.datasets.scenes.language import (
    Description,
    describe,
    identify,
    indefinite,
    near_miss,
    noun,
)
from mmlab.datasets.scenes.vocabulary import COLORS, INVERSE, SHAPES, lexicon
from mmlab.datasets.scenes.world import Pair, Scene, main_relation

Pairs = frozenset[Pair]
QA = tuple[str, str] | None


def questions(scene: Scene, rng: Random, pairs: Pairs, language: str = "en") -> list[Question]:
    """One question of every kind that the scene allows; only combinations in ``pairs`` are named.

    The same state of ``rng`` gives the same questions in every language.
    """
    found = []
    for kind, ask in _KINDS.items():
        result = ask(scene, rng, pairs, language)
        if result is not None:
            found.append(Question(*result, kind=kind, language=language))
    return found


def _say(yes: bool, language: str) -> str:
    words = lexicon(language)
    return words.yes if yes else words.no


def absent_pair(scene: Scene, rng: Random, pairs: Pairs) -> Description:
    """A combination that is not in the scene and differs from one of its objects in one word."""
    color, shape = near_miss(scene, rng.choice(scene.objects), rng, pairs)
    return Description(shape=shape, color=color)


def _existence(scene: Scene, rng: Random, pairs: Pairs, language: str) -> QA:
    yes = rng.random() < 0.5
    present = describe(rng.choice(scene.objects), ("color", "shape"))
    asked = present if yes else absent_pair(scene, rng, pairs)
    if language == "zh":
        return f"图中有{noun(asked, 'zh')}吗？", _say(yes, language)
    return f"Is there {indefinite(asked)}?", _say(yes, language)


def _count(scene: Scene, rng: Random, pairs: Pairs, language: str) -> QA:
    thing = rng.choice(scene.objects)
    asked = rng.choice(
        [
            Description(),
            describe(thing, ("shape",)),
            describe(thing, ("color",)),
            describe(thing, ("size",)),
            Description(shape=rng.choice(SHAPES)),
            Description(color=rng.choice(COLORS)),
        ]
    )
    text = f"How many {noun(asked, plural=True)} are there?"
    if language == "zh":
        text = f"图中有几个{noun(asked, 'zh')}？"
    return text, str(asked.count(scene))


def _attribute(name: str, english: str, chinese: str, table: str):
    """A question for the value of one attribute of an object that the others pick out."""

    def ask(scene: Scene, rng: Random, pairs: Pairs, language: str) -> QA:
        index = rng.randrange(len(scene.objects))
        description = identify(scene, index, avoid=(name,))
        if description is None:
            return None
        answer = getattr(lexicon(language), table)[getattr(scene.objects[index], name)]
        template = chinese if language == "zh" else english
        return template.format(noun(description, language)), answer

    return ask


def _two_objects(scene: Scene, rng: Random) -> tuple[int, int, Description, Description] | None:
    if len(scene.objects) < 2:
        return None
    first, second = rng.sample(range(len(scene.objects)), 2)
    descriptions = identify(scene, first), identify(scene, second)
    return None if None in descriptions else (first, second, *descriptions)


def _relation(scene: Scene, rng: Random, pairs: Pairs, language: str) -> QA:
    two = _two_objects(scene, rng)
    if two is None:
        return None
    first, second, subject, other = two
    yes = rng.random() < 0.5
    truth = main_relation(scene.objects[first], scene.objects[second])
    word = lexicon(language).relations[truth if yes else INVERSE[truth]]
    if language == "zh":
        text = f"{noun(subject, 'zh')}在{noun(other, 'zh')}的{word}吗？"
    else:
        text = f"Is the {noun(subject)} {word} the {noun(other)}?"
    return text, _say(yes, language)


def _comparison(scene: Scene, rng: Random, pairs: Pairs, language: str) -> QA:
    if rng.random() < 0.5:
        sizes = _compare_sizes(scene, rng, language)
        if sizes is not None:
            return sizes
    return _compare_counts(scene, rng, language)


def _compare_sizes(scene: Scene, rng: Random, language: str) -> QA:
    two, yes = _two_objects(scene, rng), rng.random() < 0.5
    if two is None or scene.objects[two[0]].size == scene.objects[two[1]].size:
        return None
    first, _, subject, other = two
    larger = (scene.objects[first].size == "large") == yes
    if language == "zh":
        word = "大" if larger else "小"
        return f"{noun(subject, 'zh')}比{noun(other, 'zh')}{word}吗？", _say(yes, language)
    word = "larger" if larger else "smaller"
    return f"Is the {noun(subject)} {word} than the {noun(other)}?", _say(yes, language)


def _compare_counts(scene: Scene, rng: Random, language: str) -> QA:
    counted = [(Description(shape=s).count(scene), s) for s in rng.sample(SHAPES, len(SHAPES))]
    many = max(counted, key=lambda item: item[0])
    few = rng.choice([item for item in counted if item[0] < many[0]])
    yes = rng.random() < 0.5
    first, second = (Description(shape=s) for _, s in ((many, few) if yes else (few, many)))
    if language == "zh":
        return f"{noun(first, 'zh')}比{noun(second, 'zh')}多吗？", _say(yes, language)
    a, b = noun(first, plural=True), noun(second, plural=True)
    return f"Are there more {a} than {b}?", _say(yes, language)


def _shape_question(scene: Scene, rng: Random, pairs: Pairs, language: str) -> QA:
    ask = _attribute("shape", "What shape is the {}?", "{}是什么形状？", "shapes")
    result = ask(scene, rng, pairs, language)
    return result and (result[0].replace(" shape?", " one?"), result[1])


_KINDS = {
    "existence": _existence,
    "count": _count,
    "color": _attribute("color", "What color is the {}?", "{}是什么颜色？", "colors"),
    "shape": _shape_question,
    "texture": _attribute(
        "texture", "What is the texture of the {}?", "{}是什么花纹？", "textures"
    ),
    "relation": _relation,
    "comparison": _comparison,
}
QUESTION_KINDS = tuple(_KINDS)
