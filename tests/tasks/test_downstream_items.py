"""What the tasks on scenes ask is true, by the word of the referee, and nothing gives it away."""

import re
from collections import Counter
from random import Random

import pytest
import torch

from mmlab.datasets import scenes
from mmlab.datasets.scenes import (
    QUESTION_KINDS,
    SHAPES,
    SceneNoise,
    judge,
    judge_entailment,
    judge_pair,
    referents,
)
from mmlab.datasets.scenes.noise import view_of
from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.tasks.downstream.annotators import (
    mistakes,
    official_score,
    people,
    simple_score,
    vqa_score,
)
from mmlab.tasks.downstream.binding import binding_items
from mmlab.tasks.downstream.entailment import entailment_items
from mmlab.tasks.downstream.grounding import grounding_items
from mmlab.tasks.downstream.matching import matching_items
from mmlab.tasks.downstream.nlvr2 import nlvr2_items
from mmlab.tasks.downstream.rationales import answer_items, rationale_items
from mmlab.tasks.downstream.vocabulary import all_texts
from mmlab.tasks.downstream.vqa import vqa_items
from mmlab.tasks.paired_scenes import ANSWERS

FORMS = {
    matching_items: ("choice", 4),
    vqa_items: ("classes", 1),
    nlvr2_items: ("classes", 2),
    entailment_items: ("classes", 1),
    answer_items: ("choice", 4),
    rationale_items: ("choice", 4),
    grounding_items: ("boxes", 1),
    binding_items: ("choice", 2),
}
NUM = 100
"""Pictures to ask about: run-time checks of types make questions slow."""
tasks = pytest.mark.parametrize("make", FORMS, ids=lambda make: make.__name__)


@pytest.fixture(scope="module", params=[(1, 2), (1, 4)], ids=["two", "four"])
def shown(request):
    """Scenes as the league shows them, and as they usually are."""
    return scenes(NUM, "test", num_objects=request.param)


@pytest.fixture(scope="module")
def views(shown):
    return [view_of(scene) for scene in shown.scenes]


def alike(first, second):
    return (
        first.images.equal(second.images)
        and list(first.texts) == list(second.texts)
        and first.labels.equal(second.labels)
        and first.kinds == second.kinds
    )


def within(count, num, share):
    """No farther from its share than four standard deviations."""
    return abs(count - num * share) < 4 * (num * share * (1 - share)) ** 0.5


# What all tasks have in common.


@tasks
def test_form(make, shown):
    items = make(shown, 60)
    form, num_views = FORMS[make]
    assert (items.form, items.num_views, len(items)) == (form, num_views, 60)
    assert all(len(texts) == num_views for texts in items.texts)
    assert all(text.isascii() for texts in items.texts for text in texts)
    assert items.images.min() >= 0 and items.images.max() < len(shown)
    assert items.labels.min() >= 0 and items.labels.max() < items.num_options
    part = items.select(torch.tensor([7, 3]))
    assert part.texts == [items.texts[7], items.texts[3]]


@tasks
def test_seeds(make, shown):
    first = make(shown, 40, seed=1)
    assert alike(first, make(shown, 40, seed=1))
    assert not alike(first, make(shown, 40, seed=2))
    # The pictures alone do not decide what is asked: another data set asks other things.
    other = scenes(NUM, "validation", num_objects=shown.config.num_objects)
    assert not alike(first, make(other, 40, seed=1))


@tasks
def test_numbers_out_of_range(make, shown):
    empty = make(shown, 0)
    assert len(empty) == 0 and empty.num_views == FORMS[make][1]
    with pytest.raises(ValueError, match="num"):
        make(shown, -1)
    with pytest.raises(ValueError, match="seed"):
        make(shown, 5, seed=-1)


@tasks
def test_no_class_or_place_is_favored(make, shown):
    items = make(shown, 300, seed=3)
    if make is vqa_items:
        closed = [k in ("existence", "relation", "comparison") for k in items.kinds]
        said = items.labels[torch.tensor(closed)]
        assert set(said.tolist()) == {0, 1}
        assert within(int((said == 0).sum()), len(said), 0.5)
        return
    if make is grounding_items:
        lots = items.box_valid / items.box_valid.sum(1, keepdim=True)
        shares = lots.mean(0).tolist()
    else:
        shares = [1 / items.num_options] * items.num_options
    counts = Counter(items.labels.tolist())
    assert all(within(counts[k], 300, share) for k, share in enumerate(shares)), counts


@pytest.mark.parametrize("make", [matching_items, binding_items], ids=["matching", "binding"])
def test_likeness_among_the_options_tells_nothing(make, shown):
    """Choosing the text that shares most words with the others, or fewest, is left to chance."""
    items = make(shown, 300, seed=4)
    found = {max: 0.0, min: 0.0}
    for texts, label in zip(items.texts, items.labels.tolist(), strict=True):
        words = [set(text.split()) for text in texts]
        shared = [sum(len(a & b) for b in words) for a in words]
        for pick in found:
            best = [k for k, value in enumerate(shared) if value == pick(shared)]
            found[pick] += (label in best) / len(best)
    assert all(within(hits, 300, 1 / items.num_options) for hits in found.values()), found


# Each task by the referee.


def test_matching(shown, views):
    items = matching_items(shown, 150)
    captions = shown.captions("en", "medium")
    names = ("no", "one", "two", "three", "four")
    owners = {text: i for i, text in enumerate(captions)}
    for images, texts, label, kind in zip(
        items.images.tolist(), items.texts, items.labels.tolist(), items.kinds, strict=True
    ):
        (image,) = set(images)
        assert texts[label] == captions[image] and len(set(texts)) == 4
        assert [judge(text, views[image]) for text in texts] == [k == label for k in range(4)]
        number = len(shown.scenes[image].objects)
        assert kind == names[number]
        assert {len(shown.scenes[owners[text]].objects) for text in texts} == {number}
    assert set(items.kinds) == set(names[1 : shown.config.num_objects[1] + 1])


def test_matching_never_shows_noise(shown):
    noise = SceneNoise(swapped_pair=0.5, file_name=0.5)
    noisy = scenes(NUM, "test", num_objects=shown.config.num_objects, noise=noise)
    assert alike(matching_items(noisy, 30), matching_items(shown, 30))


def test_matching_has_as_many_options_as_asked_for(shown):
    items = matching_items(shown, 30, num_options=6)
    assert items.num_options == 6 and items.labels.max() > 3
    with pytest.raises(ValueError, match="num_options must be 2 or more, got 1"):
        matching_items(shown, 5, num_options=1)
    with pytest.raises(ValueError, match="needs more images"):
        matching_items(scenes(2), 1)


def test_questions_have_their_answers(shown):
    items = vqa_items(shown, 400)
    asked = [{(q.text, q.kind, q.answer) for q in own} for own in shown.questions()]
    for (image,), (text,), kind, label in zip(
        items.images.tolist(), items.texts, items.kinds, items.labels.tolist(), strict=True
    ):
        assert (text, kind, ANSWERS[label]) in asked[image]
    assert items.classes == ANSWERS and set(items.kinds) == set(QUESTION_KINDS)


def test_every_picture_is_asked_about_once_before_any_twice(shown):
    images = vqa_items(shown, 2 * NUM).images[:, 0]
    for part in images.split(NUM):
        assert part.sort().values.tolist() == list(range(NUM))
    every = sum(len(own) for own in shown.questions())
    items = vqa_items(shown, every)
    assert len({(i, t) for (i,), (t,) in zip(items.images.tolist(), items.texts, strict=True)}) == (
        len({(i, q.text) for i, own in enumerate(shown.questions()) for q in own})
    )
    with pytest.raises(ValueError, match=f"have {every} questions"):
        vqa_items(shown, every + 1)


def test_scores_of_questions(shown):
    sure = vqa_items(shown, 80, error_rate=0.0)
    assert sure.scores.argmax(1).equal(sure.labels) and bool((sure.scores.sum(1) == 1).all())
    unsure, official = (vqa_items(shown, 80, official=which) for which in (False, True))
    true = torch.nn.functional.one_hot(unsure.labels, len(ANSWERS)).bool()
    assert 0.99 < unsure.scores[true].mean() <= 1
    # One of ten people earns a wrong answer a third, and officially three tenths.
    for items, allowed in ((unsure, (0, 1 / 3, 2 / 3, 1)), (official, (0, 0.3, 0.6, 0.9, 1))):
        near = (items.scores[..., None] - torch.tensor(allowed)).abs().amin(-1)
        assert near.max() < 1e-6
        assert bool((items.scores[~true] > 0).any())
    assert bool((official.scores <= unsure.scores + 1e-6).all())
    assert alike(unsure, sure) and alike(unsure, official)
    given = [row > 0 for row in unsure.scores]
    for row, label in zip(given, unsure.labels.tolist(), strict=True):
        said = {ANSWERS[k] for k in row.nonzero()[:, 0].tolist()}
        assert said <= {ANSWERS[label], *mistakes(ANSWERS[label])}


def test_statements_about_two_pictures(shown, views):
    items = nlvr2_items(shown, 200)
    assert items.classes == ("false", "true")
    for (left, right), texts, label in zip(
        items.images.tolist(), items.texts, items.labels.tolist(), strict=True
    ):
        assert texts[0] == texts[1]
        assert judge_pair(texts[0], views[left], views[right]) is bool(label)


def test_entailment(shown, views):
    items = entailment_items(shown, 200)
    assert items.classes == ("entailment", "neutral", "contradiction")
    for (image,), (text,), label in zip(
        items.images.tolist(), items.texts, items.labels.tolist(), strict=True
    ):
        assert judge_entailment(text, views[image]) == items.classes[label]
    kinds = dict(zip((text for (text,) in items.texts), items.kinds, strict=True))
    words = {"color": "red|pink", "size": "small|large", "texture": "striped|dotted"}
    for kind, values in words.items():
        fits = [text for text in kinds if re.search(f"that is ({values}) or", text)]
        assert fits and {kinds[text] for text in fits} == {kind}


def test_answers(shown, views):
    items = answer_items(shown, 150)
    for images, texts, label, kind in zip(
        items.images.tolist(), items.texts, items.labels.tolist(), items.kinds, strict=True
    ):
        (image,) = set(images)
        ((question, *_),) = {tuple(text.split("? ")[:1]) for text in texts}
        relation = question.removeprefix("Which shape is ")
        (truth,) = referents(f"shape {relation}", views[image])
        right = [truth in referents(text.split("? ")[1], views[image]) for text in texts]
        assert right == [k == label for k in range(4)]
        assert kind in relation
    assert set(items.kinds) == {"left of", "right of", "above", "below"}


def test_rationales(shown, views):
    items, asked = rationale_items(shown, 150), answer_items(shown, 150)
    assert items.images.equal(asked.images) and items.kinds == asked.kinds
    for i, (texts, label) in enumerate(zip(items.texts, items.labels.tolist(), strict=True)):
        seen = views[int(items.images[i, 0])]
        given = asked.texts[i][int(asked.labels[i])]
        assert all(text.startswith(f"{given} The ") for text in texts)
        reasons = [text.removeprefix(f"{given} ").rstrip(".").split(" and ") for text in texts]
        true = [all(judge(part, seen) for part in parts) for parts in reasons]
        assert true == [k == label for k in range(4)]


def test_grounding(shown, views):
    items = grounding_items(shown, 200)
    assert set(items.kinds) == {"attribute", "extreme", "relation"}
    assert items.num_options == shown.config.num_objects[1]
    for i, label in enumerate(items.labels.tolist()):
        seen = views[int(items.images[i, 0])]
        assert referents(items.texts[i][0], seen) == (label,)
        own = torch.tensor([region.box for region in seen.regions])
        assert torch.allclose(items.boxes[i, : len(own)], own)
        assert items.box_valid[i].tolist() == [k < len(own) for k in range(items.num_options)]
        assert not items.boxes[i, len(own) :].any()
    assert items.boxes.min() >= 0 and items.boxes.max() <= 1


def test_boxes_lie_on_the_pixels_of_their_objects(shown):
    items = grounding_items(shown, 10)
    size = shown.config.image_size
    for i, (image,) in enumerate(items.images.tolist()):
        mask = shown.masks(image)[int(items.labels[i])]
        rows, columns = mask.any(1).nonzero()[:, 0], mask.any(0).nonzero()[:, 0]
        drawn = torch.stack([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1])
        told = items.boxes[i, int(items.labels[i])] * size
        assert (drawn - told).abs().max() <= 1


def bare_word(word):
    """Without a plural, and with 'a' for 'an'."""
    forms = {form: name for name in (*SHAPES, "shape") for form in (f"{name}s", f"{name}es")}
    return {"an": "a", **forms}.get(word, word)


def test_binding(shown, views):
    items = binding_items(shown, 250)
    for images, texts, label in zip(
        items.images.tolist(), items.texts, items.labels.tolist(), strict=True
    ):
        (image,) = set(images)
        assert [judge(text, views[image]) for text in texts] == [label == 0, label == 1]
        bare = [sorted(map(bare_word, text.split())) for text in texts]
        assert bare[0] == bare[1]
    counts = ("count",) if shown.config.num_objects[1] > 2 else ()
    assert set(items.kinds) == {"color", "size", "texture", "relation", *counts}


def test_scenes_of_one_object_have_nothing_to_bind_or_to_tell_apart():
    lonely = scenes(30, num_objects=(1, 1))
    for make in (answer_items, rationale_items, grounding_items, binding_items):
        with pytest.raises(ValueError, match="found 0 of 3"):
            make(lonely, 3)
    for make in (matching_items, vqa_items, nlvr2_items, entailment_items):
        assert len(make(lonely, 3)) == 3


# Ten people.

TEN = ["red"] * 4 + ["orange"] * 3 + ["pink"] * 2 + ["blue"]


@pytest.mark.parametrize(
    ("answer", "simple", "official"),
    [("red", 1, 1), ("orange", 1, 0.9), ("pink", 2 / 3, 0.6), ("blue", 1 / 3, 0.3), ("no", 0, 0)],
)
def test_both_scores_by_hand(answer, simple, official):
    assert simple_score(answer, TEN) == pytest.approx(simple)
    assert official_score(answer, TEN) == pytest.approx(official)
    assert vqa_score([answer], [TEN]) == pytest.approx(official)
    assert vqa_score([answer], [TEN], official=False) == pytest.approx(simple)


def test_the_score_is_a_mean_over_questions():
    given = [TEN, TEN, ["yes"] * 10]
    assert vqa_score(["pink", "blue", "yes"], given) == pytest.approx((0.6 + 0.3 + 1) / 3)
    with pytest.raises(ValueError, match="predicted has 1 answers and given those to 2"):
        vqa_score(["red"], [TEN, TEN])
    with pytest.raises(ValueError, match="at least one"):
        vqa_score([], [])


@pytest.mark.parametrize("answer", ANSWERS)
def test_mistakes_are_other_answers_of_the_same_sort(answer):
    sorts = [ANSWERS[:2], ANSWERS[2:7], ANSWERS[7:15], ANSWERS[15:23], ANSWERS[23:]]
    (sort,) = (sort for sort in sorts if answer in sort)
    wrong = mistakes(answer)
    assert wrong and set(wrong) <= set(sort) - {answer}


def test_some_mistakes():
    assert mistakes("yes") == ("no",) and mistakes("no") == ("yes",)
    assert mistakes("0") == ("1",) and mistakes("4") == ("3",) and mistakes("2") == ("1", "3")
    assert set(mistakes("red")) == {"pink", "orange"}
    with pytest.raises(ValueError, match="'perhaps' is no answer"):
        mistakes("perhaps")


def test_people_err_at_their_rate():
    rng = Random(0)
    said = [answer for _ in range(400) for answer in people("3", rng, error_rate=0.2)]
    counts = Counter(said)
    assert len(said) == 4000 and set(counts) == {"2", "3", "4"}
    assert within(counts["3"], 4000, 0.8) and within(counts["2"], 4000, 0.1)
    assert people("red", Random(1), 0.0) == ("red",) * 10
    assert people("yes", Random(1), 1.0, num=3) == ("no",) * 3
    with pytest.raises(ValueError, match="error_rate must be between 0 and 1"):
        people("red", Random(1), 2.0)


# Words.


def test_one_vocabulary_reads_every_task():
    shown = scenes(NUM)
    texts = all_texts(shown, 60)
    assert len(texts) == len(set(texts)) and set(ANSWERS) <= set(texts)
    assert {text for own in nlvr2_items(shown, 60).texts for text in own} <= set(texts)
    tokenizer = train_wordpiece(texts, 1000)
    unknown = tokenizer.engine.token_to_id("[UNK]")
    for make in FORMS:
        # Items of another seed than those that the vocabulary was learned from.
        asked = [text for own in make(shown, 30, seed=9).texts for text in own]
        assert unknown not in tokenizer(asked).input_ids
