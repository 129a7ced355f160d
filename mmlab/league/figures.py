"""How well a task is done: what was right, and what would be right without seeing anything."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64
from torch import Tensor
from torch.nn import functional as F

from mmlab.datasets import Scenes
from mmlab.league.finetuning import SEEN, TaskModel, predict
from mmlab.tasks.downstream.hallucination import asks_for_existence, hallucination
from mmlab.tasks.downstream.items import Items
from mmlab.tasks.fusion import BATCH_SIZE

Numbers = float | int | dict[str, float] | dict[str, int] | dict[str, object]


def right(logits: Float[Tensor, "items options"], items: Items) -> Float64[Tensor, " items"]:
    """1 for each item that is answered rightly, 0 for others.

    Among several highest logits one is picked blindly, so that ``1 / n`` is right of ``n``: who
    cannot tell the options apart gets no more than chance.
    """
    return _earned(logits, F.one_hot(items.labels, logits.shape[1]))


def accuracy(logits: Float[Tensor, "items options"], items: Items) -> float:
    """The share of items answered rightly, ties as in ``right``."""
    return right(logits, items).mean().item()


def vqa_score(logits: Float[Tensor, "items classes"], items: Items) -> float:
    """The mean score of the answers, min(#/3, 1) in VQA (Antol et al., ICCV 2015).

    Ties as in ``right``. ValueError for items without scores.
    """
    if items.scores is None:
        raise ValueError("these items have no scores, only labels")
    return _earned(logits, items.scores).mean().item()


def _earned(logits: Tensor, worth: Tensor) -> Float64[Tensor, " items"]:
    """What the highest logit of each item is worth, the mean over several that are equal."""
    highest = (logits == logits.amax(1, keepdim=True)).double()
    return (highest * worth).sum(1) / highest.sum(1)


def by_kind(values: Float64[Tensor, " items"], kinds: Sequence[str]) -> dict[str, float]:
    """The mean of what each kind of item has."""
    return {
        kind: values[torch.tensor([other == kind for other in kinds])].mean().item()
        for kind in sorted(set(kinds))
    }


def counts(kinds: Sequence[str]) -> dict[str, int]:
    """How many items there are of each kind."""
    return {kind: sum(other == kind for other in kinds) for kind in sorted(set(kinds))}


def chance(items: Items) -> float:
    """What blind guessing gets: the mean of one over the options of each item."""
    if items.box_valid is None:
        return 1 / items.num_options
    return (1 / items.box_valid.sum(1).double()).mean().item()


def commonest(items: Items, train_items: Items) -> float:
    """What naming always the commonest class, view or box of the training items gets."""
    best = train_items.labels.bincount().argmax()
    return (items.labels == best).double().mean().item()


def cell_figures(
    model: TaskModel,
    dataset: Scenes,
    items: Items,
    train_items: Items,
    batch: int = BATCH_SIZE,
) -> dict[str, Numbers]:
    """All figures of a fine-tuned model on ``items``, ready for JSON; shares from 0 to 1.

    - ``accuracy``, ``by_kind`` and the ``counts`` of each kind, ``num_items``;
    - ``chance`` and ``commonest``: what is right without looking at anything;
    - ``other_image`` and ``blank_image``: the accuracy when shown another item's pictures, or none;
    - ``vqa_score``, where there are scores;
    - ``hallucination``, where existence is asked for: its figures, and under ``"blank_image"`` the
      same when nothing is shown.
    """
    own, other, blank = (predict(model, dataset, items, see, batch) for see in SEEN)
    values = right(own, items)
    figures: dict[str, Numbers] = {
        "accuracy": values.mean().item(),
        "by_kind": by_kind(values, items.kinds),
        "counts": counts(items.kinds),
        "chance": chance(items),
        "commonest": commonest(items, train_items),
        "other_image": accuracy(other, items),
        "blank_image": accuracy(blank, items),
        "num_items": len(items),
    }
    if items.scores is not None:
        figures["vqa_score"] = vqa_score(own, items)
    if asks_for_existence(items):
        unseen = hallucination(blank, items)
        figures["hallucination"] = {**hallucination(own, items), "blank_image": unseen}
    return figures
