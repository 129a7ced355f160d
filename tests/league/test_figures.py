import json
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mmlab import datasets
from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.league.figures import (
    accuracy,
    by_kind,
    cell_figures,
    chance,
    commonest,
    counts,
    right,
    vqa_score,
)
from mmlab.league.finetuning import TaskModel
from mmlab.tasks.downstream.hallucination import asks_for_existence, hallucination
from mmlab.tasks.downstream.heads import TaskHead
from mmlab.tasks.downstream.items import Items
from mmlab.tasks.downstream.reading import Reader, Reading

CLASSES = ("red", "yes", "no")


def asked(labels, kinds=None, images=None, **more):
    num = len(labels)
    images = torch.arange(num) if images is None else torch.tensor(images)
    texts = [["is it there"]] * num
    labels, kinds = torch.tensor(labels), kinds or ["existence"] * num
    return Items("classes", images[:, None], texts, labels, kinds, CLASSES, **more)


def saying(answers, num=3):
    return nn.functional.one_hot(torch.tensor(answers), num).float()


def test_right_is_the_highest_and_ties_are_guessed():
    items = asked([0, 1, 2, 2])
    logits = torch.tensor([[3.0, 1, 2], [3, 1, 2], [1, 5, 5], [0, 0, 0]])
    assert right(logits, items).tolist() == [1, 0, 0.5, pytest.approx(1 / 3)]
    assert accuracy(logits, items) == pytest.approx((1 + 0.5 + 1 / 3) / 4)


def test_a_box_that_only_fills_up_is_never_guessed():
    valid = torch.tensor([[True, True, False], [True, True, True]])
    images, texts, labels = torch.tensor([[0], [1]]), [["it"], ["it"]], torch.tensor([1, 2])
    boxes = torch.zeros(2, 3, 4)
    kinds = ["x", "x"]
    items = Items("boxes", images, texts, labels, kinds, boxes=boxes, box_valid=valid)
    logits = torch.zeros(2, 3).masked_fill(~valid, -math.inf)
    assert right(logits, items).tolist() == [0.5, pytest.approx(1 / 3)]
    # Who sees nothing gets what chance is, exactly.
    assert accuracy(logits, items) == pytest.approx(chance(items)) == pytest.approx(5 / 12)


def test_vqa_scores_are_those_of_the_answers():
    scores = torch.tensor([[0.3, 1.0, 0.0], [0.6, 0.0, 0.9], [0.0, 0.0, 1.0]])
    items = asked([1, 2, 2], scores=scores)
    logits = torch.tensor([[9.0, 0, 0], [4, 0, 4], [0, 0, 1]])
    assert vqa_score(logits, items) == pytest.approx((0.3 + 0.75 + 1) / 3)
    with pytest.raises(ValueError, match="these items have no scores"):
        vqa_score(logits, asked([1, 2, 2]))


def test_kinds_are_told_apart():
    values = torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    kinds = ["size", "color", "color", "size"]
    assert by_kind(values, kinds) == {"color": 0.5, "size": 1.0}
    assert counts(kinds) == {"color": 2, "size": 2}


def test_what_is_right_without_looking():
    items = asked([0, 1, 2, 2])
    assert chance(items) == pytest.approx(1 / 3)
    assert chance(asked([0])) == pytest.approx(1 / 3)
    # "red" is the commonest where is learned, "no" where is tested: only the first may be known.
    assert commonest(items, asked([0, 0, 0, 2, 2])) == 0.25
    assert commonest(items, asked([2])) == 0.5
    views = Items("choice", torch.zeros(2, 4).long(), [["a"] * 4] * 2, torch.tensor([3, 1]), "ab")
    assert chance(views) == 0.25


def test_hallucination_by_hand():
    red, yes, no = range(3)
    truth = [yes, yes, yes, no, no, no, no, red]
    said = [yes, yes, red, yes, no, no, red, yes]
    kinds = ["existence"] * 7 + ["color"]
    found = hallucination(saying(said), asked(truth, kinds))
    assert found == {
        "accuracy": 4 / 7,
        "precision": 2 / 3,
        "recall": 2 / 3,
        "f1": pytest.approx(2 / 3),
        "yes": 3 / 7,
        "neither": 2 / 7,
        "false_yes": 1 / 4,
        "num_items": 7,
    }


def test_who_says_always_yes_hallucinates_everything():
    yes, no = 1, 2
    found = hallucination(saying([yes] * 4), asked([yes, no, no, no]))
    assert (found["precision"], found["recall"], found["f1"]) == (0.25, 1.0, 0.4)
    assert (found["yes"], found["false_yes"], found["accuracy"]) == (1.0, 1.0, 0.25)
    # And who never says it, nothing: then there is nothing to divide by.
    found = hallucination(saying([no] * 4), asked([yes, no, no, no]))
    assert (found["precision"], found["recall"], found["f1"]) == (0.0, 0.0, 0.0)
    assert (found["yes"], found["false_yes"], found["accuracy"]) == (0.0, 0.0, 0.75)


def test_f1_is_that_of_a_naive_count():
    draws = torch.Generator().manual_seed(0)
    truth, said = (torch.randint(1, 3, (50,), generator=draws).tolist() for _ in range(2))
    found = hallucination(saying(said), asked(truth))
    pairs = list(zip(truth, said, strict=True))
    tp, fp, fn = pairs.count((1, 1)), pairs.count((2, 1)), pairs.count((1, 2))
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    assert (found["precision"], found["recall"]) == (precision, recall)
    assert found["f1"] == pytest.approx(2 * precision * recall / (precision + recall))


def test_existence_must_be_asked_for():
    colors = asked([0, 0], ["color", "color"])
    assert not asks_for_existence(colors)
    assert not asks_for_existence(replace(asked([0]), classes=("a", "b", "c")))
    assert asks_for_existence(asked([1, 0], ["existence", "color"]))
    with pytest.raises(ValueError, match="items must be questions of the kind 'existence'"):
        hallucination(saying([0, 0]), colors)
    with pytest.raises(ValueError, match="label must be yes or no for existence, got 'red'"):
        hallucination(saying([0]), asked([0]))


class Believer(Reader):
    """Picture ``i`` shows the number ``i``; it says yes to pictures from 4 on, no to others."""

    dim = token_dim = 2
    image_size = 32
    tokenizer = train_wordpiece(["is it there"], 60)

    def __init__(self):
        super().__init__()
        self.network = nn.Identity()

    def prepared(self, dataset, rows):
        return rows.float()[:, None, None, None].expand(-1, 3, 1, 1)

    def tokens(self, texts):
        return self.tokenizer(list(texts), 12).input_ids

    def forward(self, images, input_ids):
        numbers = images[:, :1, 0, 0]
        joint = torch.cat([numbers, torch.ones_like(numbers)], dim=1)
        nowhere = (torch.zeros(len(joint), 1, 2), torch.zeros(len(joint), 1, 4))
        return Reading(joint, *nowhere, torch.ones(len(joint), 1, dtype=torch.bool))

    def blank(self, images):
        return torch.full_like(images, 9.0)


class Rule(TaskHead):
    """The believer's answers, read off its joint vector."""

    def forward(self, reading, items):
        number = reading.joint[:, 0]
        return torch.stack([torch.zeros_like(number) - 99, number - 4, 3 - number], dim=1)


def test_all_figures_of_a_cell():
    yes, no = 1, 2
    # Six pictures; the last of them are said to show it.
    labels, kinds = [no, no, no, yes, yes, no], ["existence"] * 4 + ["relation"] * 2
    scores = torch.tensor([[0.0, 0.3, 1.0]]).expand(6, 3)
    items = asked(labels, kinds, scores=scores)
    model = TaskModel(Believer(), Rule(2, 2, "classes", 1, 3)).train()
    scenes = datasets.scenes(6, image_size=32)
    figures = cell_figures(model, scenes, items, asked([yes, yes, no]), batch=4)
    # Said: no no no no yes yes. With the next picture: no no no yes yes no. Blank: always yes.
    assert figures == {
        "accuracy": pytest.approx(4 / 6),
        "by_kind": {"existence": 0.75, "relation": 0.5},
        "counts": {"existence": 4, "relation": 2},
        "chance": pytest.approx(1 / 3),
        "commonest": pytest.approx(2 / 6),
        "other_image": 1.0,
        "blank_image": pytest.approx(2 / 6),
        "num_items": 6,
        "vqa_score": pytest.approx((4 * 1 + 2 * 0.3) / 6),
        "hallucination": {
            "accuracy": 0.75,
            "precision": 0.0,
            "recall": 0.0,
            "f1": 0.0,
            "yes": 0.0,
            "neither": 0.0,
            "false_yes": 0.0,
            "num_items": 4,
            "blank_image": {
                "accuracy": 0.25,
                "precision": 0.25,
                "recall": 1.0,
                "f1": pytest.approx(0.4),
                "yes": 1.0,
                "neither": 0.0,
                "false_yes": 1.0,
                "num_items": 4,
            },
        },
    }
    assert json.loads(json.dumps(figures, allow_nan=False)) == figures
    assert model.training
    plain = cell_figures(model, scenes, replace(items, scores=None, kinds=["any"] * 6), items)
    assert plain.keys() == figures.keys() - {"vqa_score", "hallucination"}
