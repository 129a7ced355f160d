"""What can be said about a scene: descriptions of objects, and captions with their alignment.

Every sentence is put together from pieces, and a piece that speaks of objects carries their
indices. So the true word-to-region link falls out of the joining and is never searched for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, pairwise
from random import Random

from mmlab.datasets.checks import check_choice
from mmlab.datasets.example import Alignment, Caption
from mmlab.datasets.scenes.vocabulary import COLORS, INVERSE, POSITIONS, SHAPES, lexicon
from mmlab.datasets.scenes.world import Pair, Scene, SceneObject, main_relation, ninth

KINDS = ("short", "medium", "detailed")
NUM_VARIANTS = 4

Piece = tuple[str, tuple[int, ...]]
"""Some text and the indices of the objects that it names (none for the words in between)."""

Sentence = list[Piece]


@dataclass(frozen=True)
class Description:
    """A set of objects given by some attributes; ``shape="shape"`` and None leave one open."""

    shape: str = "shape"
    color: str | None = None
    size: str | None = None
    texture: str | None = None

    def matches(self, thing: SceneObject) -> bool:
        """Whether ``thing`` has every attribute that is given."""
        return self.shape in ("shape", thing.shape) and all(
            wanted in (None, found)
            for wanted, found in (
                (self.color, thing.color),
                (self.size, thing.size),
                (self.texture, thing.texture),
            )
        )

    def count(self, scene: Scene) -> int:
        """How many objects of ``scene`` match."""
        return sum(map(self.matches, scene.objects))


def describe(thing: SceneObject, attributes: Iterable[str]) -> Description:
    """The description of ``thing`` by the named attributes only."""
    return Description(**{name: getattr(thing, name) for name in attributes})


def describe_as(thing: SceneObject, kind: str) -> Description:
    """What a caption of this kind says of an object; medium ones leave 'solid' unsaid."""
    if kind == "short":
        return describe(thing, ("color", "shape"))
    full = describe(thing, ("size", "texture", "color", "shape"))
    return replace(full, texture=None) if (kind, full.texture) == ("medium", "solid") else full


def identify(scene: Scene, index: int, avoid: tuple[str, ...] = ()) -> Description | None:
    """The shortest description that fits this object alone, without the attributes in ``avoid``."""
    usable = [name for name in ("shape", "color", "size", "texture") if name not in avoid]
    for length in range(1, len(usable) + 1):
        for attributes in combinations(usable, length):
            description = describe(scene.objects[index], attributes)
            if description.count(scene) == 1:
                return description
    return None


def near_miss(scene: Scene, thing: SceneObject, rng: Random, pairs: frozenset[Pair]) -> Pair:
    """A combination out of ``pairs`` that is not in the scene, one word away from ``thing``."""
    near = [(color, thing.shape) for color in COLORS] + [(thing.color, s) for s in SHAPES]
    present = {(o.color, o.shape) for o in scene.objects}
    options = [pair for pair in near if pair in pairs and pair not in present]
    # With many combinations held out there may be none so near: then any absent one has to do.
    return rng.choice(options or sorted(pairs - present))


def noun(description: Description, language: str = "en", plural: bool = False) -> str:
    """The bare phrase: 'large striped red circle', '红色条纹的大圆形'."""
    words = lexicon(language)
    color = words.colors.get(description.color, "")
    size = words.sizes.get(description.size, "")
    texture = words.textures.get(description.texture, "")
    shape = words.shapes[description.shape]
    if language == "zh":
        return color + texture + ("的" if color or texture else "") + size + shape
    if plural:
        shape += "es" if shape.endswith("s") else "s"
    return " ".join(filter(None, (size, texture, color, shape)))


def quantified(description: Description, number: int, language: str = "en") -> tuple[str, str]:
    """The counting word and the phrase: ('a ', 'red circle'), ('两个', '红色的圆形')."""
    phrase = noun(description, language, plural=number != 1)
    if language == "zh":
        return lexicon(language).numbers[number] + "个", phrase
    if number == 1:
        return "an " if phrase[0] in "aeiou" else "a ", phrase
    return lexicon(language).numbers[number] + " ", phrase


def indefinite(description: Description, language: str = "en", number: int = 1) -> str:
    """The phrase with its counting word: 'a red circle', '一个红色的圆形'."""
    return "".join(quantified(description, number, language))


def position(thing: SceneObject, language: str = "en") -> str:
    """Where in the image the object is: 'in the upper left', '在画面的左上方'."""
    row, column = ninth(thing.center)
    return lexicon(language).positions[POSITIONS[row][column]]


def enumerate_phrases(items: Sequence[Sentence], language: str) -> Sentence:
    """Join phrases with commas and a final 'and'."""
    comma, last = ("、", "和") if language == "zh" else (", ", " and ")
    joined = list(items[0])
    for i, item in enumerate(items[1:], start=2):
        joined += [(last if i == len(items) else comma, ()), *item]
    return joined


def compose(sentence: Sentence) -> tuple[str, tuple[Alignment, ...]]:
    """The text of the pieces and the character span of each piece that names objects."""
    text, alignment = "", []
    for words, regions in sentence:
        alignment += [Alignment(len(text), len(text) + len(words), region) for region in regions]
        text += words
    return text, tuple(alignment)


def caption(scene: Scene, kind: str = "short", language: str = "en", variant: int = 0) -> Caption:
    """A true caption at one of the levels of ``KINDS``; the variants are paraphrases.

    Short captions list every object by color and shape. Medium ones add size, texture and one
    relation (the position, if there is one object only). Detailed ones tell everything.
    """
    check_choice("kind", kind, KINDS)
    if not 0 <= variant < NUM_VARIANTS:
        raise ValueError(f"variant is {variant}; it must be 0 to {NUM_VARIANTS - 1}")
    lexicon(language)
    text, alignment = compose(_WRITERS[kind](scene, language, variant))
    return Caption(text, language, kind, alignment)


def _order(scene: Scene, variant: int) -> list[int]:
    """The later variants speak of the objects in reverse."""
    indices = list(range(len(scene.objects)))
    return indices[::-1] if variant >= 2 else indices


def _mention(scene: Scene, index: int, kind: str, language: str) -> Sentence:
    article, phrase = quantified(describe_as(scene.objects[index], kind), 1, language)
    return [(article, ()), (phrase, (index,))]


_LEADS = {
    "en": (("", ""), ("there {be} ", ""), ("an image of ", ""), ("a picture of ", "")),
    "zh": (("", ""), ("图中有", ""), ("画面上有", ""), ("一张有", "的图片")),
}


def _short(scene: Scene, language: str, variant: int) -> Sentence:
    groups: dict[Description, list[int]] = {}
    for index in _order(scene, variant):
        groups.setdefault(describe_as(scene.objects[index], "short"), []).append(index)
    items = []
    for description, members in groups.items():
        article, phrase = quantified(description, len(members), language)
        items.append([(article, ()), (phrase, tuple(members))])
    before, after = _LEADS[language][variant]
    before = before.format(be="is" if len(next(iter(groups.values()))) == 1 else "are")
    return [(before, ()), *enumerate_phrases(items, language), (after, ())]


def _medium(scene: Scene, language: str, variant: int) -> Sentence:
    mentions = [_mention(scene, i, "medium", language) for i in range(len(scene.objects))]
    if len(mentions) == 1:
        return _placed(mentions[0], position(scene.objects[0], language), language, variant)
    first, second = (1, 0) if variant >= 2 else (0, 1)
    relation = main_relation(scene.objects[first], scene.objects[second])
    sentence = _related(mentions[first], relation, mentions[second], language, variant)
    if len(mentions) > 2:
        link = "，另外还有" if language == "zh" else ", together with "
        sentence = [*sentence, (link, ()), *enumerate_phrases(mentions[2:], language)]
    return sentence


def _placed(mention: Sentence, place: str, language: str, variant: int) -> Sentence:
    if language == "en":
        before = _LEADS["en"][variant][0].format(be="is")
        return [(before, ()), *mention, (f" {place}", ())]
    if variant == 2:
        return [(f"{place.removeprefix('在')}有", ()), *mention]
    return [(("", "图中，", "", "有")[variant], ()), *mention, (place, ())]


def _related(
    subject: Sentence, relation: str, other: Sentence, language: str, variant: int
) -> Sentence:
    words = lexicon(language).relations
    if language == "en":
        before = _LEADS["en"][variant][0].format(be="is")
        return [(before, ()), *subject, (f" {words[relation]} ", ()), *other]
    if variant == 3:
        return [*subject, (f"的{words[INVERSE[relation]]}有", ()), *other]
    before = "图中，" if variant == 1 else ""
    return [(before, ()), *subject, ("在", ()), *other, (f"的{words[relation]}", ())]


_OPENINGS = {
    "en": (
        "{number} {shapes} on a {background} background.",
        "There {be} {number} {shapes} on a {background} background.",
        "A {background} background with {number} {shapes}.",
        "The background is {background}. There {be} {number} {shapes}.",
    ),
    "zh": (
        "{background}背景上有{number}个图形。",
        "图中有{number}个图形，背景是{background}。",
        "这张图的背景是{background}，上面有{number}个图形。",
        "{number}个图形位于{background}背景上。",
    ),
}


def _opening(scene: Scene, language: str, variant: int) -> str:
    words, number = lexicon(language), len(scene.objects)
    text = _OPENINGS[language][variant].format(
        number=words.numbers[number],
        shapes=noun(Description(), "en", plural=number != 1),
        be="is" if number == 1 else "are",
        background=words.backgrounds[scene.background],
    )
    return text[0].upper() + text[1:]


def _detailed(scene: Scene, language: str, variant: int) -> Sentence:
    order = _order(scene, variant)
    sentences: list[Sentence] = [[(_opening(scene, language, variant), ())]]
    sentences += [_place_sentence(scene, i, language) for i in order]
    sentences += [_relation_sentence(scene, i, j, language) for i, j in pairwise(order)]
    gap = "" if language == "zh" else " "
    return [piece for sentence in sentences for piece in (*sentence, (gap, ()))][:-1]


def _place_sentence(scene: Scene, index: int, language: str) -> Sentence:
    (article, _), phrase = _mention(scene, index, "detailed", language)
    place = position(scene.objects[index], language)
    if language == "zh":
        return [(article, ()), phrase, (f"{place}。", ())]
    return [(article.capitalize(), ()), phrase, (f" is {place}.", ())]


def _relation_sentence(scene: Scene, index: int, other: int, language: str) -> Sentence:
    relation = main_relation(scene.objects[index], scene.objects[other])
    _, subject = _mention(scene, index, "detailed", language)
    _, anchor = _mention(scene, other, "detailed", language)
    word = lexicon(language).relations[relation]
    if language == "zh":
        return [subject, ("在", ()), anchor, (f"的{word}。", ())]
    return [("The ", ()), subject, (f" is {word} the ", ()), anchor, (".", ())]


_WRITERS = {"short": _short, "medium": _medium, "detailed": _detailed}


def tags(scene: Scene, language: str = "en") -> tuple[str, ...]:
    """The object tags: each category once, in the order of the objects."""
    names = lexicon(language).shapes
    return tuple(dict.fromkeys(names[thing.shape] for thing in scene.objects))
