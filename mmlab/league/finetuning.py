"""The one way in which every system learns every task."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.datasets import Scenes
from mmlab.models.checks import check, check_integers
from mmlab.tasks.downstream.heads import TaskHead
from mmlab.tasks.downstream.items import Items
from mmlab.tasks.downstream.reading import Reader
from mmlab.tasks.fusion import BATCH_SIZE, Images, pick
from mmlab.training.loop import Figures, check_finite
from mmlab.training.optim import make_optimizer
from mmlab.training.schedules import rate_factor, set_rate
from mmlab.training.seeds import generator, seed_everything

SEEN = ("own", "other", "blank")
"""What a trained model may be shown: the item's own pictures, those of another item, nothing."""
CLIP_NORM = 1.0
COUNTED_STEPS = 8
"""Steps to count FLOPs on: texts differ in length."""
_HEAD, _STEP, _ORDER = 1, 2, 3


@dataclass(frozen=True)
class FineTuning:
    """The one recipe by which every system learns every task.

    ``views`` are the pictures with texts of a step: an item of four choices has four of them.
    ``num_items`` are made to learn from.
    """

    steps: int = 300
    views: int = 64
    lr: float = 5e-4
    weight_decay: float = 0.01
    warmup: int = 30
    num_items: int = 8000

    def __post_init__(self) -> None:
        check_integers(self, "steps", "views", "num_items")
        check_integers(self, "warmup", minimum=0)
        check(self.lr > 0, "lr", self.lr, "a positive number")
        check(self.weight_decay >= 0, "weight_decay", self.weight_decay, "0 or more")


class TaskModel(nn.Module):
    """A system with the head of one task."""

    def __init__(self, reader: Reader, head: TaskHead):
        super().__init__()
        self.reader, self.head = reader, head

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return next(self.head.parameters()).device

    def forward(
        self, images: Images, input_ids: Int64[Tensor, "all_views tokens"], items: Items
    ) -> Float[Tensor, "items options"]:
        """Logits; images and texts are those of all views of the first item, of the second …"""
        return self.head(self.reader(images, input_ids), items)


def finetune(
    reader: Reader,
    dataset: Scenes,
    items: Items,
    settings: FineTuning,
    seed: int,
    report: Callable[[Figures], None] = lambda figures: None,
) -> TaskModel:
    """Train a reader, with a fresh head, on the items of one task.

    Learning rates rise and fall in lines; gradients are clipped to a norm of 1; parameters that do
    not require gradients stay as they are. The same seed gives the same weights. ``reader`` itself
    is changed. ``report`` gets the figures of every step.

    ValueError if a step has no room for one item; TrainingError if the loss is no number.
    """
    seed_everything(seed, _HEAD)
    model = _with_head(reader, items)
    asked = _Asked.of(reader, dataset, items)
    optimizer = make_optimizer(model, settings.lr, settings.weight_decay)
    optimizer.zero_grad()
    learning = [p for p in model.parameters() if p.requires_grad]
    model.train()
    for step, rows in enumerate(draw_items(items, settings, seed)):
        seed_everything(seed, _STEP, step)
        rate = settings.lr * rate_factor("linear", step, settings.steps, settings.warmup)
        set_rate(optimizer, rate)
        loss = asked.loss(model, rows)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(learning, CLIP_NORM)
        figures = {"loss": loss.item(), "lr": rate, "gradient_norm": norm.item()}
        check_finite(figures, step + 1)
        optimizer.step()
        optimizer.zero_grad()
        report({"step": step + 1, **figures})
    return model.eval()


def _with_head(reader: Reader, items: Items) -> TaskModel:
    """A reader with a fresh head, on the reader's device."""
    widths = (reader.dim, reader.token_dim)
    head = TaskHead(*widths, items.form, items.num_views, len(items.classes))
    return TaskModel(reader, head.to(next(reader.parameters()).device))


def draw_items(items: Items, settings: FineTuning, seed: int) -> tuple[Tensor, ...]:
    """The rows of each step, as many items as there is room for; all come once before any twice.

    ValueError if there is no room for one, or there are none.
    """
    check(len(items) > 0, "items", 0, "at least one")
    room = f"at least the {items.num_views} of one item"
    check(settings.views >= items.num_views, "views", settings.views, room)
    each = settings.views // items.num_views
    draws, wanted = generator(seed, _ORDER), settings.steps * each
    epochs = range(math.ceil(wanted / len(items)))
    order = torch.cat([torch.randperm(len(items), generator=draws) for _ in epochs])
    return order[:wanted].split(each)


def task_loss(logits: Float[Tensor, "items options"], items: Items) -> Float[Tensor, ""]:
    """Cross-entropy over the options, or, where there are scores, what VQA is trained with.

    That is the binary cross-entropy of every answer with its score, summed over the answers (as in
    ViLT and UNITER); the mean is over the items.
    """
    if items.scores is None:
        return F.cross_entropy(logits, items.labels.to(logits.device))
    scores = items.scores.to(logits.device)
    return F.binary_cross_entropy_with_logits(logits, scores) * scores.shape[1]


@dataclass(frozen=True)
class _Asked:
    """Items with their texts as numbers, which are made once; pictures are prepared when needed."""

    dataset: Scenes
    items: Items
    input_ids: Int64[Tensor, "items views tokens"]

    @classmethod
    def of(cls, reader: Reader, dataset: Scenes, items: Items) -> _Asked:
        table = reader.tokens([text for own in items.texts for text in own])
        return cls(dataset, items, table.reshape(len(items), items.num_views, -1))

    def logits(self, model: TaskModel, rows: Tensor, blank: bool = False) -> Tensor:
        """Those of some items, by a model of the reader that made the numbers."""
        # Four captions of one picture need it drawn only once.
        pictures, places = self.items.images[rows].flatten().unique(return_inverse=True)
        images = pick(model.reader.prepared(self.dataset, pictures), places)
        if blank:
            images = model.reader.blank(images)
        ids = self.input_ids[rows].flatten(0, 1)
        ids = ids[:, (ids != model.reader.tokenizer.pad_id).any(0)]
        return model(images.to(model.device), ids.to(model.device), self.items.select(rows))

    def loss(self, model: TaskModel, rows: Tensor) -> Float[Tensor, ""]:
        return task_loss(self.logits(model, rows), self.items.select(rows))


@torch.no_grad()
def predict(
    model: TaskModel, dataset: Scenes, items: Items, see: str = "own", batch: int = BATCH_SIZE
) -> Float[Tensor, "items options"]:
    """Logits of all items, on the CPU; the model's mode is restored.

    ``see`` says which pictures are shown, one of ``SEEN``: each item's own, those of another item
    that shares none with it, or blank ones. ``batch`` is how many views are read at a time.
    ValueError for another ``see``, or if no other item has other pictures.
    """
    check(see in SEEN, "see", see, f"one of {', '.join(SEEN)}")
    shown = replace(items, images=other_images(items.images)) if see == "other" else items
    asked = _Asked.of(model.reader, dataset, shown)
    parts = torch.arange(len(items)).split(max(1, batch // items.num_views))
    training = model.training
    model.eval()
    try:
        return torch.cat([asked.logits(model, part, see == "blank").cpu() for part in parts])
    finally:
        model.train(training)


def other_images(images: Int64[Tensor, "items views"]) -> Int64[Tensor, "items views"]:
    """For each item the pictures of the next one, in a circle, that has none of its pictures.

    ValueError if an item has no such other.
    """
    found, missing = images.clone(), torch.ones(len(images), dtype=torch.bool)
    for shift in range(1, len(images)):
        others = images.roll(-shift, 0)
        apart = (others[:, :, None] != images[:, None, :]).all(2).all(1)
        found[missing & apart] = others[missing & apart]
        missing &= ~apart
        if not missing.any():
            return found
    raise ValueError(f"item {int(missing.nonzero()[0])} shares a picture with every other item")


def finetuning_flops(
    model: TaskModel,
    dataset: Scenes,
    items: Items,
    settings: FineTuning,
    num_steps: int = COUNTED_STEPS,
) -> float:
    """FLOPs of all steps of ``finetune``, forward and backward.

    The mean of a few steps times their number, counted as in ``counted_flops``. That happens on a
    copy: the model itself stays as it is.
    """
    module = copy.deepcopy(model).train()
    asked = _Asked.of(module.reader, dataset, items)
    steps = draw_items(items, settings, seed=0)[:num_steps]
    counts = [counted_flops(lambda rows=rows: asked.loss(module, rows)) for rows in steps]
    return sum(counts) / len(counts) * settings.steps


def counted_flops(loss: Callable[[], Tensor]) -> float:
    """FLOPs of a loss and its gradient; the gradients are left where they are.

    PyTorch's counter sees matrix products, convolutions and attention, two FLOPs a
    multiplication with its addition, and leaves norms, activations and the optimiser out.
    """
    # The fused kernel of the CPU is unknown to the counter; the plain one multiplies as much.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loss().backward()
    return float(counter.get_total_flops())
