import math
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from mmlab import datasets
from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.league.figures import accuracy
from mmlab.league.finetuning import (
    FineTuning,
    TaskModel,
    counted_flops,
    draw_items,
    finetune,
    finetuning_flops,
    other_images,
    predict,
    task_loss,
)
from mmlab.tasks.downstream.heads import HIDDEN_DIM, TaskHead, overlap_weights
from mmlab.tasks.downstream.items import Items
from mmlab.tasks.downstream.reading import Reader, Reading
from mmlab.training.loop import TrainingError
from mmlab.training.schedules import rate_factor

COLORS = ("red", "green", "blue")
TEXTS = [
    f"{words} {color}" for color in COLORS for words in ("is it", "it is", "the thing that is")
]
TOKENIZER = train_wordpiece([*TEXTS, "what color is it"], 100)
SCENES = datasets.scenes(900, image_size=32)
PLACES = torch.tensor(
    [[x, y, x + 0.5, y + 0.5] for y in (0.0, 0.5) for x in (0.0, 0.5)], dtype=torch.float32
)
"""Quarters of a picture, row by row."""
WIDTH = 24


def color_and_place(rows):
    """Picture ``i`` shows color ``i mod 3`` in quarter ``(i // 3) mod 4``, opposite the next."""
    return rows % 3, rows // 3 % 4


class Quarters(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.words = nn.EmbeddingBag(TOKENIZER.vocab_size, WIDTH, mode="sum", padding_idx=0)
        self.colors = nn.Linear(3, WIDTH)
        self.mix = nn.Sequential(
            nn.Linear(2 * WIDTH, 2 * WIDTH),
            nn.GELU(),
            nn.Dropout(0.05),
            nn.Linear(2 * WIDTH, WIDTH),
        )


class QuartersReader(Reader):
    """Sees the mean color of each quarter of a picture, and the words without their order."""

    dim = token_dim = WIDTH
    image_size = 32
    tokenizer = TOKENIZER

    def __init__(self):
        super().__init__()
        self.network = Quarters()
        self.asked = []

    def prepared(self, dataset, rows):
        self.asked.append(rows)
        color, place = color_and_place(rows)
        images = torch.zeros(len(rows), 3, 2, 2)
        everyone = torch.arange(len(rows))
        images[everyone, color, place // 2, place % 2] = 1.0
        images[everyone, (color + 1) % 3, (3 - place) // 2, (3 - place) % 2] = 0.5
        return images

    def tokens(self, texts):
        return self.tokenizer(list(texts), 12).input_ids

    def forward(self, images, input_ids):
        tokens = self.network.colors(images.flatten(2).transpose(1, 2))
        seen = torch.cat([tokens.sum(1), self.network.words(input_ids)], dim=1)
        valid = torch.ones(len(images), 4, dtype=torch.bool)
        return Reading(self.network.mix(seen), tokens, PLACES.expand(len(images), 4, 4), valid)

    def blank(self, images):
        return torch.zeros_like(images)


def drawn(num, seed):
    return torch.randint(900, (num,), generator=torch.Generator().manual_seed(seed))


def yes_or_no(num=600, seed=0):
    """Is it red? As often rightly as not, of pictures drawn at random."""
    rows, kinds = drawn(num, seed), drawn(num, seed + 1)
    shown, _ = color_and_place(rows)
    yes = kinds % 2 == 0
    asked = torch.where(yes, shown, (shown + 1 + kinds // 2 % 2) % 3)
    texts = [[f"is it {COLORS[c]}"] for c in asked.tolist()]
    names = [COLORS[c] for c in asked.tolist()]
    return Items("classes", rows[:, None], texts, (~yes).long(), names, ("yes", "no"))


def which_is_true(num=600, seed=0):
    """One picture with three texts in random order, of which one is true."""
    rows, order = drawn(num, seed), drawn(num, seed + 1)
    texts = [[f"it is {COLORS[(i + o) % 3]}" for i in range(3)] for o in order.tolist()]
    labels = (color_and_place(rows)[0] - order) % 3
    return Items("choice", rows[:, None].expand(num, 3), texts, labels, ["any"] * num)


def where_is_it(num=600, seed=0):
    """The quarters in random order, some left out, then a box that only fills up."""
    draws = torch.Generator().manual_seed(seed)
    rows = drawn(num, seed)
    color, place = color_and_place(rows)
    order = torch.stack([torch.randperm(4, generator=draws) for _ in range(num)])
    valid = (torch.rand(num, 4, generator=draws) < 0.7) | (order == place[:, None])
    valid |= order == 3 - place[:, None]
    boxes = torch.cat([PLACES[order] * valid[..., None], torch.zeros(num, 1, 4)], dim=1)
    valid = torch.cat([valid, torch.zeros(num, 1, dtype=torch.bool)], dim=1)
    labels = (order == place[:, None]).long().argmax(1)
    texts = [[f"the thing that is {COLORS[c]}"] for c in color.tolist()]
    kinds = ["any"] * num
    return Items("boxes", rows[:, None], texts, labels, kinds, boxes=boxes, box_valid=valid)


def first_or_second(num=600, seed=0):
    """Two pictures of different colors: which one is red?"""
    first, second, kinds = drawn(num, seed), drawn(num, seed + 1), drawn(num, seed + 2)
    shown, _ = color_and_place(first)
    second = second // 3 * 3 + (shown + 1 + kinds // 2 % 2) % 3
    images = torch.stack([first, second], dim=1)
    labels = kinds % 2
    asked, _ = color_and_place(images.gather(1, labels[:, None])[:, 0])
    texts = [[f"is it {COLORS[c]}"] * 2 for c in asked.tolist()]
    return Items("classes", images, texts, labels, ["any"] * num, ("first", "second"))


QUICK = FineTuning(steps=80, views=96, lr=1e-2, weight_decay=0.01, warmup=10)
FEW = FineTuning(steps=6, views=16, lr=1e-3, warmup=2)


@pytest.mark.parametrize(
    ("make", "blind"),
    [(yes_or_no, 0.5), (which_is_true, 1 / 3), (where_is_it, None), (first_or_second, 0.5)],
)
def test_what_can_be_seen_is_learned_and_nothing_else(make, blind):
    model = finetune(QuartersReader(), SCENES, make(), QUICK, seed=0)
    test = make(num=400, seed=10)
    own, other, unseen = (predict(model, SCENES, test, see) for see in ("own", "other", "blank"))
    assert accuracy(own, test) > 0.95
    if blind is None:
        # Without a picture one of the boxes that are there is guessed.
        blind = (1 / test.box_valid.sum(1)).mean().item()
        assert (own[~test.box_valid] == -math.inf).all()
        assert test.box_valid.gather(1, own.argmax(1)[:, None]).all()
    assert accuracy(other, test) < blind + 0.12
    assert accuracy(unseen, test) < blind + 0.12


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("make", [yes_or_no, where_is_it])
def test_the_same_seed_gives_the_same_weights(make):
    drawing = {"report": lambda figures: torch.rand(7)}
    first = weights(finetune(QuartersReader(), SCENES, make(), FEW, seed=3, **drawing))
    assert same(first, weights(finetune(QuartersReader(), SCENES, make(), FEW, seed=3)))
    assert not same(first, weights(finetune(QuartersReader(), SCENES, make(), FEW, seed=4)))


def test_what_is_frozen_stays():
    reader = QuartersReader()
    reader.network.colors.requires_grad_(False)
    # A gradient left over from before must neither move anything nor be clipped with the others.
    reader.network.colors.weight.grad = torch.full((WIDTH, 3), 1e6)
    reader.network.mix[0].weight.grad = torch.full((2 * WIDTH, 2 * WIDTH), 1e6)
    before, lines = weights(reader), []
    finetune(reader, SCENES, yes_or_no(), FEW, seed=0, report=lines.append)
    after = weights(reader)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {n for n in before if not n.startswith("network.colors")}
    assert max(line["gradient_norm"] for line in lines) < 100


def test_every_step_is_told():
    lines = []
    model = finetune(QuartersReader(), SCENES, yes_or_no(), FEW, seed=0, report=lines.append)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    rates = [FEW.lr * rate_factor("linear", step, 6, 2) for step in range(6)]
    assert [line["lr"] for line in lines] == pytest.approx(rates)
    assert lines[0].keys() == {"step", "loss", "lr", "gradient_norm"}
    assert not model.training


def test_the_steps_are_those_of_adamw_by_hand():
    """Gradients clipped to a norm of 1, no decay on vectors, the rates of the warm-up and after."""
    items, settings = yes_or_no(64), FineTuning(3, views=32, lr=1e-3, weight_decay=0.1, warmup=1)
    reader, twin = QuartersReader(), QuartersReader()
    for own in (reader, twin):
        own.network.mix[2].p = 0.0
        own.network.mix[3].weight.data *= 30
    unmoved = replace(settings, lr=1e-30)
    model = TaskModel(twin, finetune(QuartersReader(), SCENES, items, unmoved, 5).head).train()
    first, second = ([torch.zeros_like(p) for p in model.parameters()] for _ in range(2))
    norms = []
    for step, rows in enumerate(draw_items(items, settings, 5)):
        texts = [items.texts[i][0] for i in rows.tolist()]
        images = twin.prepared(SCENES, items.images[rows, 0])
        logits = model(images, twin.tokens(texts), items.select(rows))
        loss = F.cross_entropy(logits, items.labels[rows])
        gradients = torch.autograd.grad(loss, [*model.parameters()])
        norms.append(torch.cat([g.flatten() for g in gradients]).norm().item())
        rate = settings.lr * (1, 1, 1 / 2)[step]
        for p, g, m, v in zip(model.parameters(), gradients, first, second, strict=True):
            g = g / max(1, norms[-1])
            m += 0.1 * (g - m)
            v += 0.001 * (g * g - v)
            unbiased = m / (1 - 0.9 ** (step + 1)), v / (1 - 0.999 ** (step + 1))
            p.data *= 1 - rate * (0.1 if p.ndim >= 2 else 0.0)
            p.data -= rate * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
    assert max(norms) > 1.2 and max(norms) > 1.1 * min(norms)
    lines = []
    trained = finetune(reader, SCENES, items, settings, 5, lines.append)
    assert [line["gradient_norm"] for line in lines] == pytest.approx(norms, rel=1e-3)
    for p, expected in zip(trained.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, expected, rtol=0, atol=2e-5)


def test_a_loss_that_is_no_number_stops():
    reader = QuartersReader()
    reader.network.colors.weight.data.fill_(math.nan)
    with pytest.raises(TrainingError, match=r"the loss is nan at step 1; try a lower lr"):
        finetune(reader, SCENES, yes_or_no(), FEW, seed=0)


def test_every_item_comes_once_before_any_comes_twice():
    items = which_is_true(10)
    steps = draw_items(items, FineTuning(steps=5, views=14), seed=0)
    assert [len(rows) for rows in steps] == [4] * 5
    order = torch.cat(steps)
    assert order[:10].sort().values.tolist() == order[10:].sort().values.tolist() == [*range(10)]
    assert not torch.equal(order[:10], order[10:])
    again = draw_items(items, FineTuning(steps=5, views=14), seed=0)
    assert all(torch.equal(a, b) for a, b in zip(steps, again, strict=True))
    with pytest.raises(ValueError, match="views must be at least the 3 of one item, got 2"):
        draw_items(items, FineTuning(views=2), seed=0)
    with pytest.raises(ValueError, match="items must be at least one, got 0"):
        draw_items(items.select(torch.tensor([], dtype=torch.int64)), FEW, seed=0)


def test_the_loss_of_scores_is_that_of_vqa():
    logits, scores = torch.randn(3, 2), torch.tensor([[1.0, 0.0], [0.3, 0.6], [0.0, 0.0]])
    items = replace(yes_or_no(3), scores=scores)
    total = 0.0
    for item in range(3):
        for answer in range(2):
            p, s = torch.sigmoid(logits[item, answer]), scores[item, answer]
            total -= s * p.log() + (1 - s) * (1 - p).log()
    torch.testing.assert_close(task_loss(logits, items), total / 3)
    plain = replace(items, scores=None)
    expected = -logits.log_softmax(1)[torch.arange(3), plain.labels].mean()
    torch.testing.assert_close(task_loss(logits, plain), expected)


def test_other_pictures_share_none_with_the_own():
    images = torch.tensor([[0, 1], [1, 2], [3, 4], [3, 4], [5, 0]])
    # Item 4 shares picture 0 with item 0.
    assert other_images(images).tolist() == [[3, 4], [3, 4], [5, 0], [5, 0], [1, 2]]
    with pytest.raises(ValueError, match="item 0 shares a picture with every other item"):
        other_images(torch.tensor([[0], [0]]))
    with pytest.raises(ValueError, match="item 1 shares"):
        other_images(torch.tensor([[0, 1], [1, 2], [2, 3]]))


def test_predictions_come_in_order_and_see_what_they_should():
    items, reader = which_is_true(10), QuartersReader()
    model = TaskModel(reader, TaskHead(WIDTH, WIDTH, "choice", 3)).train()
    logits = predict(model, SCENES, items, batch=7)
    # Two items of three views at a time; a picture is prepared once for all three.
    pairs = items.images[:, 0].split(2)
    assert [rows.tolist() for rows in reader.asked] == [pair.unique().tolist() for pair in pairs]
    assert model.training and not logits.requires_grad
    model.eval()
    alone = torch.cat([predict(model, SCENES, items.select(torch.tensor([i]))) for i in range(10)])
    torch.testing.assert_close(logits, alone)
    exchanged = replace(items, images=other_images(items.images))
    other = predict(model, SCENES, items, see="other")
    assert torch.equal(other, predict(model, SCENES, exchanged))
    assert (other != logits).any(1).sum() >= 5
    swapped = replace(items, images=items.images.roll(1, 0))
    blank = predict(model, SCENES, items, see="blank")
    torch.testing.assert_close(blank, predict(model, SCENES, swapped, see="blank"))
    with pytest.raises(ValueError, match="see must be one of own, other, blank, got 'mine'"):
        predict(model, SCENES, items, see="mine")


def test_a_box_gets_the_share_of_each_place():
    boxes = torch.tensor(
        [
            [0.0, 0.0, 0.5, 0.5],  # The first quarter.
            [0.4, 0.0, 0.8, 0.5],  # A quarter of it in the first, the rest in the second.
            [0.25, 0.25, 0.75, 0.75],  # In the middle.
            [0.0, 0.0, 0.0, 0.0],
        ]
    )
    expected = [[1, 0, 0, 0], [0.25, 0.75, 0, 0], [0.25] * 4, [0] * 4]
    everywhere = torch.ones(1, 4, dtype=torch.bool)
    found = overlap_weights(boxes[None], PLACES[None], everywhere)
    torch.testing.assert_close(found, torch.tensor([expected], dtype=torch.float32))
    # Of regions, the one that covers the box counts most; those that fill up do not count.
    regions = torch.tensor([[0.0, 0.0, 0.5, 0.5], [0.25, 0.0, 0.75, 0.5], [0.0, 0.0, 1.0, 1.0]])
    known = torch.tensor([[True, True, False]])
    found = overlap_weights(boxes[None], regions[None], known)
    expected = [[2 / 3, 1 / 3, 0], [0.1 / 0.45, 0.35 / 0.45, 0], [1 / 3, 2 / 3, 0], [0, 0, 0]]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_boxes_are_told_apart_by_what_is_in_them_and_where_they_are():
    torch.manual_seed(0)
    head, items = TaskHead(5, 3, "boxes", 1), where_is_it(2)
    joint, tokens = torch.randn(2, 5), torch.randn(2, 4, 3)
    places, valid = PLACES.expand(2, 4, 4), torch.ones(2, 4, dtype=torch.bool)
    logits = head(Reading(joint, tokens, places, valid), items)
    pointer = head.pointer
    for item in range(2):
        query = pointer.query.weight @ joint[item] + pointer.query.bias
        for box in range(5):
            if not items.box_valid[item, box]:
                assert logits[item, box] == -math.inf
                continue
            place = (items.boxes[item, box] == PLACES).all(1).nonzero().item()
            known = torch.cat([tokens[item, place], items.boxes[item, box]])
            key = pointer.key.weight @ known + pointer.key.bias
            torch.testing.assert_close(logits[item, box], query @ key / HIDDEN_DIM**0.5)


def test_classes_see_all_views_and_a_choice_sees_each_alone():
    torch.manual_seed(0)
    joint = torch.randn(4, 5, requires_grad=True)
    nowhere = (torch.zeros(4, 1, 3), torch.zeros(4, 1, 4), torch.ones(4, 1, dtype=torch.bool))
    reading = Reading(joint, *nowhere)
    pairs = first_or_second(2)

    def seen(head):
        (gradient,) = torch.autograd.grad(head(reading, pairs)[1, 0], joint)
        return gradient.abs().sum(1).gt(0).tolist()

    assert seen(TaskHead(5, 3, "classes", 2, 7)) == [False, False, True, True]
    assert seen(TaskHead(5, 3, "choice", 2)) == [False, False, True, False]
    assert TaskHead(5, 3, "classes", 2, 7)(reading, pairs).shape == (2, 7)
    assert TaskHead(5, 3, "choice", 2)(reading, pairs).shape == (2, 2)
    # Trained to choose among four, asked to choose among two.
    assert TaskHead(5, 3, "choice", 4)(reading, pairs).shape == (2, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("words", 1), "form must be one of classes, choice, boxes, got 'words'"),
        (("classes", 1, 1), "num_classes must be at least 2, got 1"),
        (("choice", 1), "num_views must be at least 2 to choose from, got 1"),
        (("boxes", 2), "num_views must be 1 where boxes are asked for, got 2"),
    ],
)
def test_heads_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        TaskHead(5, 3, *given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps must be an integer of at least 1, got 0"),
        ({"warmup": -1}, "warmup must be an integer of at least 0"),
        ({"lr": 0.0}, "lr must be a positive number, got 0"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, got -0.1"),
    ],
)
def test_settings_that_cannot_be(given, message):
    with pytest.raises(ValueError, match=message):
        FineTuning(**given)


def test_flops_are_those_of_all_matrices():
    items, reader = yes_or_no(50), QuartersReader()
    head = TaskHead(WIDTH, WIDTH, "classes", 1, 2)
    model, settings = TaskModel(reader, head), FineTuning(steps=20, views=8)
    before = weights(model)
    # Two FLOPs forward and four backward for each weight and row; pictures need no gradient.
    colors = 8 * 4 * 3 * WIDTH * 4
    mix = 8 * (2 * WIDTH * 2 * WIDTH + 2 * WIDTH * WIDTH) * 6
    top = 8 * (WIDTH * HIDDEN_DIM + HIDDEN_DIM * 2) * 6
    assert finetuning_flops(model, SCENES, items, settings) == 20 * (colors + mix + top)
    assert same(before, weights(model)) and all(p.grad is None for p in model.parameters())
    model.reader.network.colors.requires_grad_(False)
    assert finetuning_flops(model, SCENES, items, settings) == 20 * (colors / 2 + mix + top)


def test_attention_is_counted():
    query = torch.randn(1, 2, 5, 4, requires_grad=True)
    attended = counted_flops(lambda: F.scaled_dot_product_attention(query, query, query).sum())
    assert attended == 2 * (2 * 2 * 5 * 5 * 4) * 3
