"""Is this sentence true of this image? A judge that reads the words and looks at the regions.

It shares with the writers of the captions only the word lists and the margin that 'left of' asks
for: it parses the text (of the small language that the scenes speak, English or Chinese) and works
on boxes and attributes alone. So it checks them in the tests, and it can mark sentences that a
captioning model writes. Text that it cannot read gets no verdict (None).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mmlab.datasets.example import Example, Region
from mmlab.datasets.scenes.vocabulary import (
    EXTREMES,
    LANGUAGES,
    LEXICONS,
    POSITIONS,
    SPATIAL,
    lexicon,
)
from mmlab.datasets.scenes.world import MARGIN


@dataclass(frozen=True)
class View:
    """What the referee sees of an image; ``image_size`` is its width in pixels."""

    regions: tuple[Region, ...]
    image_size: int
    background: str = ""


class _Unreadable(Exception):
    """Words that the small language does not have."""


Parts = dict[str, str]
Test = Callable[[Parts, View, str], bool]


def view(example: Example | View) -> View:
    """The regions, the size and the background of an example."""
    if isinstance(example, View):
        return example
    return View(example.regions, example.image.shape[-1], example.extra.get("background", ""))


def judge(text: str, example: Example | View, language: str = "en") -> bool | None:
    """Whether a caption or statement is true; None if some part of it cannot be read.

    'A' and 'the' ask for at least one object, numbers for exactly so many, and the items of a list
    for different objects. 'Left of' and the like ask the centers to differ by more than a tenth of
    the image.
    """
    lexicon(language)
    clauses, seen = _clauses(text, language), view(example)
    try:
        return (
            all([_judge_clause(clause, seen, language) for clause in clauses]) if clauses else None
        )
    except _Unreadable:
        return None


def referents(phrase: str, example: Example | View, language: str = "en") -> tuple[int, ...] | None:
    """Indices of the regions that fit a phrase such as 'the circle to the left of the red star'."""
    lexicon(language)
    try:
        return _find(phrase.strip().lower(), view(example), language)
    except _Unreadable:
        return None


def judge_pair(
    text: str, left: Example | View, right: Example | View, language: str = "en"
) -> bool | None:
    """Whether a statement about two images is true; None if it cannot be read."""
    lexicon(language)
    text = text.strip().lower().rstrip(".。")
    for pattern, test in _PAIR_RULES[language]:
        match = re.fullmatch(pattern, text)
        if match:
            try:
                return test(match.groupdict(), view(left), view(right), language)
            except _Unreadable:
                return None
    return None


def judge_entailment(text: str, example: Example | View, language: str = "en") -> str | None:
    """'entailment', 'neutral' or 'contradiction' for 'there is an A that is B or (unseen)'."""
    lexicon(language)
    match = re.fullmatch(_ENTAILMENT[language], text.strip().lower())
    if not match:
        return None
    seen = view(example)
    try:
        candidates = _matching(match["noun"], seen, language)
    except _Unreadable:
        return None
    if not candidates:
        return "contradiction"
    value = _KEYS[language].get(match["attribute"])
    shown = any(value in seen.regions[i].attributes for i in candidates)
    return "entailment" if shown else "neutral"


# Noun phrases.


def _alternatives(words: Iterable[str]) -> str:
    return "|".join(sorted(map(re.escape, words), key=len, reverse=True))


def _noun_pattern(language: str) -> re.Pattern:
    groups = {
        name: f"(?P<{name}>{_alternatives(getattr(lexicon(language), name + 's').values())})"
        for name in ("color", "size", "texture", "shape")
    }
    order = {
        "en": "(?:{size} )?(?:{texture} )?(?:{color} )?{shape}(?:e?s)?",
        "zh": "{color}?{texture}?的?{size}?{shape}",
    }
    return re.compile(order[language].format(**groups))


_NOUNS = {language: _noun_pattern(language) for language in LANGUAGES}
_KEYS = {
    language: {
        word: key
        for table in (w.shapes, w.colors, w.sizes, w.textures)
        for key, word in table.items()
    }
    for language, w in LEXICONS.items()
}


def _matching(phrase: str, seen: View, language: str) -> list[int]:
    """Regions with every attribute of a bare phrase."""
    match = _NOUNS[language].fullmatch(phrase)
    if not match:
        raise _Unreadable(phrase)
    wanted = {name: _KEYS[language][word] for name, word in match.groupdict().items() if word}
    shape = wanted.pop("shape")
    return [
        i
        for i, region in enumerate(seen.regions)
        if shape in ("shape", region.category) and set(wanted.values()) <= set(region.attributes)
    ]


_COUNTED = {
    "en": r"(?:(?P<number>an?|the|one|two|three|four|five|six|seven|eight) )?(?P<noun>.+)",
    "zh": r"(?:(?P<number>一|两|三|四|五|六|七|八)个)?(?P<noun>.+)",
}


def _counted(phrase: str, seen: View, language: str) -> tuple[int | None, list[int]]:
    """The exact number asked for (None: at least one) and the regions that fit."""
    match = re.fullmatch(_COUNTED[language], phrase.strip())
    if not match:
        raise _Unreadable(phrase)
    word, found = match["number"], _matching(match["noun"], seen, language)
    # Chinese has one word for 'a' and 'one'; before the bare word for 'shape' it counts.
    if word in (None, "a", "an", "the") or (word == "一" and match["noun"] != "图形"):
        return None, found
    return lexicon(language).numbers.index(word), found


def _find(phrase: str, seen: View, language: str) -> tuple[int, ...]:
    """Regions that fit a phrase with a superlative, a relation, or neither."""
    phrase = re.sub(r"^the ", "", phrase)
    for key, word in lexicon(language).extremes.items():
        lead = f"{word}的" if language == "zh" else f"{word} "
        if phrase.startswith(lead):
            found = _matching(phrase[len(lead) :], seen, language)
            return tuple(i for i in found if _leads(i, found, EXTREMES[key], seen))
    for word, key in _spatial(language).items():
        pattern = (
            f"(?P<a>.+){word}的(?P<n>.+)" if language == "zh" else f"(?P<n>.+) {word} (?P<a>.+)"
        )
        match = re.fullmatch(pattern, phrase)
        if match:
            anchors = _matching(re.sub("^the ", "", match["a"]), seen, language)
            found = _matching(match["n"], seen, language)
            return tuple(i for i in found if any(_stands(i, key, j, seen) for j in anchors))
    return tuple(_matching(phrase, seen, language))


# Geometry.


def _center(region: Region) -> tuple[float, float]:
    x0, y0, x1, y1 = region.box
    return (x0 + x1) / 2, (y0 + y1) / 2


def _stands(subject: int, relation: str, other: int, seen: View) -> bool:
    """Whether a spatial relation holds between two regions."""
    (x, y), (other_x, other_y) = (_center(seen.regions[i]) for i in (subject, other))
    dx, dy = (other_x - x) / seen.image_size, (other_y - y) / seen.image_size
    return {"left of": dx, "right of": -dx, "above": dy, "below": -dy}[relation] > MARGIN


def _leads(index: int, rivals: list[int], relation: str, seen: View) -> bool:
    return all(_stands(index, relation, j, seen) for j in rivals if j != index)


def _ninth(index: int, seen: View) -> str:
    x, y = (min(int(3 * c / seen.image_size), 2) for c in _center(seen.regions[index]))
    return POSITIONS[y][x]


def _spatial(language: str) -> dict[str, str]:
    return {lexicon(language).relations[key]: key for key in SPATIAL}


# Sentences about one image.

_INTRODUCTIONS = {
    "en": r"^(there (is|are)|an image of|a picture of) ",
    "zh": r"^(图中有|画面上有|图中，|有)",
}
_SEPARATORS = {"en": ", | and ", "zh": "、|和"}


def _clauses(text: str, language: str) -> list[str]:
    """Sentences in lower case, without the words that only introduce them."""
    sentences = [s.strip() for s in re.split(r"[.。;；]", text.lower()) if s.strip()]
    unwrapped = [re.sub(r"^一张有(.+)的图片$", r"\1", sentence) for sentence in sentences]
    return [re.sub(_INTRODUCTIONS[language], "", sentence) for sentence in unwrapped]


def _judge_clause(clause: str, seen: View, language: str) -> bool:
    """The verdict of the first rule that can read the clause."""
    for pattern, test in _CLAUSE_RULES[language]:
        match = re.fullmatch(pattern, clause)
        if match:
            try:
                return test(match.groupdict(), seen, language)
            except _Unreadable:
                continue
    raise _Unreadable(clause)


def _background(parts: Parts, seen: View, language: str) -> bool:
    names = {word: key for key, word in lexicon(language).backgrounds.items()}
    if parts["ground"] not in names:
        raise _Unreadable(parts["ground"])
    listed = "items" not in parts or _list(parts, seen, language)
    return listed and names[parts["ground"]] == seen.background


def _list(parts: Parts, seen: View, language: str) -> bool:
    """Each item needs objects of its own."""
    items = re.split(_SEPARATORS[language], parts["items"])
    wanted = [_counted(item, seen, language) for item in items]
    exact = all(number in (None, len(found)) for number, found in wanted)
    return exact and _assign([found for number, found in wanted for _ in range(number or 1)])


def _assign(choices: list[list[int]], used: frozenset[int] = frozenset()) -> bool:
    """Whether every entry can be given a different object out of its choices."""
    if not choices:
        return True
    return any(_assign(choices[1:], used | {i}) for i in choices[0] if i not in used)


def _relation(parts: Parts, seen: View, language: str) -> bool:
    """'A to the left of B, together with C and D': some assignment to different objects fits."""
    relation = _spatial(language)[parts["relation"]]
    (_, first), (_, second) = (_counted(parts[k], seen, language) for k in ("first", "second"))
    rest = re.split(_SEPARATORS[language], parts["rest"]) if parts["rest"] else []
    others = [_counted(item, seen, language)[1] for item in rest]
    return any(
        _stands(i, relation, j, seen) and _assign(others, frozenset({i, j}))
        for i in first
        for j in second
    )


def _place(parts: Parts, seen: View, language: str) -> bool:
    _, found = _counted(parts["noun"], seen, language)
    places = {word.removeprefix("在"): key for key, word in lexicon(language).positions.items()}
    return any(_ninth(i, seen) == places[parts["place"]] for i in found)


def _clause_rules(language: str) -> list[tuple[str, Test]]:
    relation = f"(?P<relation>{_alternatives(_spatial(language))})"
    places = lexicon(language).positions.values()
    place = f"(?P<place>{_alternatives(p.removeprefix('在') for p in places)})"
    rules = {
        "en": (
            (r"the background is (?P<ground>\w+)", _background),
            (r"(?P<items>.+) on a (?P<ground>\w+) background", _background),
            (r"a (?P<ground>\w+) background with (?P<items>.+)", _background),
            (rf"(?P<noun>.+?)(?: is)? {place}", _place),
            (
                rf"(?P<first>.+?)(?: is)? {relation} (?P<second>.+?)"
                r"(?:, together with (?P<rest>.+))?",
                _relation,
            ),
        ),
        "zh": (
            (r"这张图的背景是(?P<ground>.+)，上面有(?P<items>.+)", _background),
            (r"(?P<ground>.+)背景上有(?P<items>.+)", _background),
            (r"(?P<items>.+?)，背景是(?P<ground>.+)", _background),
            (r"(?P<items>.+?)位于(?P<ground>.+)背景上", _background),
            (rf"(?P<noun>.+)在{place}", _place),
            (rf"{place}有(?P<noun>.+)", _place),
            (
                rf"(?P<first>.+?)在(?P<second>.+?)的{relation}(?:，另外还有(?P<rest>.+))?",
                _relation,
            ),
            (
                rf"(?P<second>.+?)的{relation}有(?P<first>.+?)(?:，另外还有(?P<rest>.+))?",
                _relation,
            ),
        ),
    }
    return [*rules[language], (r"(?P<items>.+)", _list)]


_CLAUSE_RULES = {language: _clause_rules(language) for language in LANGUAGES}


# Sentences about two images, and entailment.


def _has(phrase: str, seen: View, language: str) -> bool:
    return bool(_counted(phrase, seen, language)[1])


def _left(parts: Parts, left: View, right: View, language: str) -> bool:
    return _has(parts["noun"], left, language)


def _right(parts: Parts, left: View, right: View, language: str) -> bool:
    return _has(parts["noun"], right, language)


def _conjunction(parts: Parts, left: View, right: View, language: str) -> bool:
    return _has(parts["a"], left, language) and _has(parts["b"], right, language)


def _more(parts: Parts, left: View, right: View, language: str) -> bool:
    first, second = (len(_counted(parts["noun"], v, language)[1]) for v in (left, right))
    return first > second


def _total(parts: Parts, left: View, right: View, language: str) -> bool:
    numbers = lexicon(language).numbers
    if parts["number"] not in numbers:
        raise _Unreadable(parts["number"])
    total = sum(len(_counted(parts["noun"], v, language)[1]) for v in (left, right))
    return total == numbers.index(parts["number"])


def _images_with(wanted: int) -> Callable[[Parts, View, View, str], bool]:
    def test(parts: Parts, left: View, right: View, language: str) -> bool:
        return sum(_has(parts["noun"], v, language) for v in (left, right)) == wanted

    return test


_PAIR_RULES = {
    "en": (
        (r"the left image contains (?P<a>.+) and the right image contains (?P<b>.+)", _conjunction),
        (r"the left image contains (?P<noun>.+)", _left),
        (r"the right image contains (?P<noun>.+)", _right),
        (r"both images contain (?P<noun>.+)", _images_with(2)),
        (r"exactly one image contains (?P<noun>.+)", _images_with(1)),
        (r"neither image contains (?P<noun>.+)", _images_with(0)),
        (r"there are more (?P<noun>.+) in the left image than in the right image", _more),
        (r"the two images contain exactly (?P<number>\w+) (?P<noun>.+) in total", _total),
    ),
    "zh": (
        (r"左图中有(?P<a>.+)，右图中有(?P<b>.+)", _conjunction),
        (r"左图中有(?P<noun>.+)", _left),
        (r"右图中有(?P<noun>.+)", _right),
        (r"两张图中都有(?P<noun>.+)", _images_with(2)),
        (r"只有一张图中有(?P<noun>.+)", _images_with(1)),
        (r"两张图中都没有(?P<noun>.+)", _images_with(0)),
        (r"左图中的(?P<noun>.+)比右图中的多", _more),
        (r"两张图中一共有(?P<number>.)个(?P<noun>.+)", _total),
    ),
}

_ENTAILMENT = {
    "en": r"there is an? (?P<noun>.+) that is (?P<attribute>\w+) or (?P<hidden>.+)\.",
    "zh": r"图中有一个(?P<noun>.+)，它是(?P<attribute>.+)的或者(?P<hidden>.+)的。",
}
