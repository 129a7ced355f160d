"""BLEU, CIDEr, truth and CHAIR of captions, on cases that can be counted by hand."""

import math
import sys
from collections import Counter

import numpy as np
import pytest

from mmlab import datasets
from mmlab.tasks.captioning import bleu4, caption_figures, cider, hallucination
from mmlab.tasks.describing import true_wordings


@pytest.fixture(scope="module")
def scenes():
    return datasets.scenes(24, "test", 32, num_objects=(1, 2))


def things(scene):
    return {(thing.color, thing.shape) for thing in scene.objects}


# All figures together.


@pytest.mark.parametrize("kind", ["short", "medium"])
def test_true_captions_are_perfect(kind, scenes):
    figures = caption_figures(scenes.captions("en", kind), scenes)
    assert figures["bleu4"] == pytest.approx(100)
    assert figures["true"] == figures["exact"] == figures["named"] == 1
    assert figures["chair_instance"] == figures["chair_sentence"] == figures["unreadable"] == 0
    assert figures["num_images"] == 24
    assert 1 <= figures["named_each"] <= 2
    # No caption is like all wordings, some of which are short and some long.
    assert 2 < figures["cider"] < 10


def test_captions_of_the_next_scene(scenes):
    """Counted here by another way than in the code: from the scenes that the captions tell of."""
    texts = scenes.captions("en", "medium")
    figures = caption_figures([*texts[1:], texts[0]], scenes)
    all_things = [
        [(thing.color, thing.shape) for thing in scene.objects] for scene in scenes.scenes
    ]
    told = [*all_things[1:], all_things[0]]
    wrong = [
        sum(thing not in own for thing in named)
        for named, own in zip(told, map(things, scenes.scenes), strict=True)
    ]
    assert figures["chair_instance"] == pytest.approx(sum(wrong) / sum(map(len, told)))
    assert figures["chair_sentence"] == pytest.approx(sum(map(bool, wrong)) / 24)
    assert figures["named_each"] == pytest.approx(sum(map(len, told)) / 24)
    assert 0.5 < figures["chair_instance"] < 1
    assert figures["true"] < 0.2 and figures["bleu4"] < 60
    assert figures["cider"] < caption_figures(texts, scenes)["cider"] / 4


def test_what_nobody_can_read_is_neither_true_nor_made_up(scenes):
    figures = caption_figures(["zebra purple on on"] * 24, scenes)
    assert figures["unreadable"] == 1 and figures["true"] == 0
    assert figures["chair_instance"] == figures["chair_sentence"] == figures["named_each"] == 0
    assert figures["num_different"] == 1 and figures["cider"] < 0.1
    empty = caption_figures([""] * 24, scenes)
    assert (empty["bleu4"], empty["true"], empty["unreadable"]) == (0, 0, 1)


def test_half_a_truth_is_true_but_not_exact(scenes):
    """One of the two things is told, the other is not."""
    texts = [f"a {scene.objects[0].color} {scene.objects[0].shape}" for scene in scenes.scenes]
    figures = caption_figures(texts, scenes)
    shown = [len(things(scene)) for scene in scenes.scenes]
    assert figures["true"] == 1 and figures["chair_sentence"] == 0
    assert figures["named"] == pytest.approx(np.mean([1 / n for n in shown]))
    # "a orange circle" is true and readable, but no wording of the grammar.
    assert 0 < figures["exact"] < 1


def test_there_is_one_caption_a_scene_and_it_is_english(scenes):
    with pytest.raises(ValueError, match="there must be 24 captions"):
        caption_figures(["a red circle"], scenes)
    with pytest.raises(ValueError, match="language must be 'en'"):
        caption_figures(scenes.captions("zh"), scenes, "zh")


# CHAIR.


def test_chair_by_hand(scenes):
    """Three things named in 24 captions, two of which are not there."""
    there = scenes.scenes[0].objects[0]
    shown = things(scenes.scenes[1])
    absent = next(
        f"{color} {shape}"
        for color in ("red", "blue", "green")
        for shape in ("circle", "star", "cross")
        if (color, shape) not in shown
    )
    texts = [f"Two {there.color} {there.shape}s", f"a {absent} above a {absent}", *[""] * 22]
    found = hallucination(texts, scenes)
    assert found.instance == pytest.approx(2 / 3)
    assert found.sentence == pytest.approx(1 / 24)
    assert found.named_each == pytest.approx(3 / 24)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a large striped red circle", 1),
        ("two red crosses", 1),
        ("red circles and blue stars, a pink heart.", 3),
        ("a circle that is red", 0),
        ("a red large circle", 0),
        ("a hundred circles", 0),
        ("a red starfish", 0),
    ],
)
def test_things_are_a_color_before_a_shape(text, named, scenes):
    assert hallucination([text, *[""] * 23], scenes).named_each == pytest.approx(named / 24)


# BLEU and CIDEr.


def grams(text, n):
    words = text.split()
    return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))


def naive_bleu(written, references):
    """Papineni et al. 2002, section 2.3, for texts of at least one 4-gram that is right."""
    precisions = []
    for n in range(1, 5):
        hits = total = 0
        for text, own in zip(written, references, strict=True):
            most = Counter()
            for reference in own:
                most |= grams(reference, n)
            found = grams(text, n)
            hits += sum((found & most).values())
            total += sum(found.values())
        precisions.append(hits / total)
    length = sum(len(text.split()) for text in written)
    nearest = 0
    for text, own in zip(written, references, strict=True):
        size = len(text.split())
        nearest += min((len(r.split()) for r in own), key=lambda r, size=size: (abs(r - size), r))
    brevity = min(1.0, math.exp(1 - nearest / length))
    return 100 * brevity * math.exp(sum(map(math.log, precisions)) / 4)


def naive_cider(written, references, sigma=6.0):
    """CIDEr-D (Vedantam et al. 2015, section 6): clipped, with a penalty of other lengths.

    The lengths are those of the official code, which counts pairs of words.
    """
    frequency = Counter(
        gram
        for own in references
        for n in range(1, 5)
        for gram in set().union(*(grams(text, n) for text in own))
    )

    def vector(text, n):
        """Each n-gram: how often, times the logarithm of how rare it is."""
        return {
            gram: count * (math.log(len(references)) - math.log(max(1, frequency[gram])))
            for gram, count in grams(text, n).items()
        }

    def norm(vector):
        return math.sqrt(sum(value * value for value in vector.values()))

    scores = []
    for text, own in zip(written, references, strict=True):
        total = 0.0
        for reference in own:
            apart = sum(grams(text, 2).values()) - sum(grams(reference, 2).values())
            for n in range(1, 5):
                one, two = vector(text, n), vector(reference, n)
                dot = sum(min(one[g], two[g]) * two[g] for g in one.keys() & two.keys())
                if norm(one) and norm(two):
                    total += dot / norm(one) / norm(two) * math.exp(-(apart**2) / 2 / sigma**2)
        scores.append(10 * total / 4 / len(own))
    return sum(scores) / len(scores)


def test_bleu_and_cider_are_those_of_the_papers(scenes):
    references = [sorted(true_wordings(scenes, i)) for i in range(24)]
    texts = scenes.captions("en", "medium")
    # Half are true, the others of the next scene, one is cut short.
    written = [text if i % 2 else texts[(i + 1) % 24] for i, text in enumerate(texts)]
    written[3] = " ".join(written[3].split()[:3])
    assert cider(written, references) == pytest.approx(naive_cider(written, references))
    assert bleu4(written, references) == pytest.approx(naive_bleu(written, references))
    assert 1 < cider(written, references) < 6


def test_captions_like_their_only_reference_have_a_cider_of_ten(scenes):
    texts = [text for text in scenes.captions("en", "medium") if len(text.split()) > 3]
    assert cider(texts, [[text] for text in texts]) == pytest.approx(10)
    # Nothing is rare where there is only one scene.
    assert cider(texts[:1], [texts[:1]]) == 0


def test_marks_are_set_apart_from_words():
    commas = "a red circle, a blue star and a pink heart."
    spaced = "a red circle , a blue star and a pink heart ."
    others = [["two green rings"], ["a cross at the top"]]
    written = [commas, "two green rings", "a cross at the top"]
    assert cider(written, [[spaced], *others]) == pytest.approx(cider(written, [[commas], *others]))
    assert bleu4(written, [[spaced], *others]) == pytest.approx(100)


def test_without_the_libraries_it_says_what_to_install(monkeypatch, scenes):
    monkeypatch.setitem(sys.modules, "sacrebleu", None)
    with pytest.raises(ImportError, match=r"pip install 'mmlab\[captioning\]'"):
        caption_figures(scenes.captions("en", "medium"), scenes)
