"""VCR-style multiple choice: a question, four answers, then four rationales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from mmlab.datasets.scenes.collect import TRIES, collect
from mmlab.datasets.scenes.language import Description, describe, noun
from mmlab.datasets.scenes.vocabulary import POSITIONS, SPATIAL, lexicon
from mmlab.datasets.scenes.world import Scene, SceneObject, ninth, predicates


@dataclass(frozen=True)
class Choice:
    """VCR style: a question, four answers, and four rationales for the right one. Chance 25 %.

    ``answer`` and ``rationale`` are indices. All rationales would support the answer; only one of
    them is true of the image.
    """

    image: int
    question: str
    answers: tuple[str, ...]
    answer: int
    rationales: tuple[str, ...]
    rationale: int
    language: str = "en"


def _full(thing: SceneObject) -> Description:
    return describe(thing, ("size", "texture", "color", "shape"))


def _name(description: Description, language: str) -> str:
    phrase = noun(description, language)
    return phrase if language == "zh" else f"the {phrase}"


def _rationale(scene: Scene, i: int, j: int, places: tuple[str, str], language: str) -> str:
    first, second = (_name(_full(scene.objects[k]), language) for k in (i, j))
    a, b = (lexicon(language).positions[place] for place in places)
    if language == "zh":
        return f"{first}{a}，{second}{b}。"
    return f"{first.capitalize()} is {a} and {second} is {b}."


Place = tuple[int, int]
"""Row and column of a ninth of the image."""


def _rationales(
    scenes: Sequence[Scene],
    scene: Scene,
    i: int,
    j: int,
    relation: str,
    rng: Random,
    language: str,
) -> tuple[list[str], int]:
    """The true places of two objects among three other pairs of places that tell the same tale."""
    axis = 1 if relation in ("left of", "right of") else 0
    true = _places(scene, i, j)
    shown = [true, *_wrong_places(scenes, true, axis, rng)]
    rng.shuffle(shown)
    names = [tuple(POSITIONS[row][column] for row, column in pair) for pair in shown]
    return [_rationale(scene, i, j, n, language) for n in names], shown.index(true)


def _places(scene: Scene, i: int, j: int) -> tuple[Place, Place]:
    return ninth(scene.objects[i].center), ninth(scene.objects[j].center)


def _wrong_places(
    scenes: Sequence[Scene], true: tuple[Place, Place], axis: int, rng: Random
) -> list[tuple[Place, Place]]:
    """Three pairs of places as far apart along the axis as the true ones.

    They are those of objects in other images: objects are seldom in corners, and pairs drawn evenly
    would tell a blind reader which one is true. Even draws fill up what too few images leave open.
    """
    gap = true[1][axis] - true[0][axis]
    found: list[tuple[Place, Place]] = []
    for _ in range(TRIES):
        other = rng.choice(scenes)
        if len(found) == 3:
            return found
        if len(other.objects) < 2:
            continue
        pair = _places(other, *rng.sample(range(len(other.objects)), 2))
        if pair[1][axis] - pair[0][axis] == gap and pair not in (true, *found):
            found.append(pair)
    cells = [(row, column) for row in range(3) for column in range(3)]
    like = [(a, b) for a in cells for b in cells if a != b and b[axis] - a[axis] == gap]
    rest = [pair for pair in like if pair not in (true, *found)]
    return [*found, *rng.sample(rest, 3 - len(found))]


def _in_different_thirds(scene: Scene, i: int, j: int, relation: str) -> bool:
    """Whether naming the ninths of the image is reason enough for the relation."""
    axis = 1 if relation in ("left of", "right of") else 0
    return ninth(scene.objects[i].center)[axis] != ninth(scene.objects[j].center)[axis]


def _wrong_answers(
    scenes: Sequence[Scene], scene: Scene, used: tuple[int, int], rng: Random
) -> list[Description] | None:
    """Three: the other objects of the image first, then objects of other images."""
    present = [_full(thing) for thing in scene.objects]
    wrong = [d for k, d in enumerate(present) if k not in used]
    for _ in range(TRIES):
        if len(wrong) >= 3:
            return wrong[:3]
        decoy = _full(rng.choice(rng.choice(scenes).objects))
        wrong += [decoy] if decoy not in (*wrong, *present) else []
    return None


def _question(relation: str, anchor: str, language: str) -> str:
    word = lexicon(language).relations[relation]
    return (
        f"什么图形在{anchor}的{word}？" if language == "zh" else f"Which shape is {word} {anchor}?"
    )


def choices(
    scenes: Sequence[Scene], num: int, rng: Random, language: str = "en"
) -> tuple[Choice, ...]:
    """Questions of where, each with four answers and four rationales (Zellers et al., CVPR 2019).

    The wrong answers are first the other objects of the image, then objects of other images.
    """
    lexicon(language)

    def attempt() -> Choice | None:
        image = rng.randrange(len(scenes))
        scene = scenes[image]
        if len(scene.objects) < 2:
            return None
        anchor, relation = rng.randrange(len(scene.objects)), rng.choice(SPATIAL)
        fits = [
            i
            for i, thing in enumerate(scene.objects)
            if i != anchor and relation in predicates(thing, scene.objects[anchor])
        ]
        if len(fits) != 1 or not _in_different_thirds(scene, fits[0], anchor, relation):
            return None
        return _choice(scenes, image, anchor, fits[0], relation, rng, language)

    return collect(num, attempt, "multiple-choice questions")


def _choice(
    scenes: Sequence[Scene],
    image: int,
    anchor: int,
    right: int,
    relation: str,
    rng: Random,
    language: str,
) -> Choice | None:
    scene = scenes[image]
    wrong = _wrong_answers(scenes, scene, (anchor, right), rng)
    if wrong is None:
        return None
    answers = [_full(scene.objects[right]), *wrong]
    rng.shuffle(answers)
    told = (scenes, scene, right, anchor, relation, rng, language)
    rationales, rationale = _rationales(*told)
    return Choice(
        image,
        _question(relation, _name(_full(scene.objects[anchor]), language), language),
        tuple(_name(d, language) for d in answers),
        answers.index(_full(scene.objects[right])),
        tuple(rationales),
        rationale,
        language,
    )
