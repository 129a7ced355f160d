"""Retrieval by a score that was learned: every picture with every caption."""

from __future__ import annotations

import torch

from mmlab.datasets import Scenes
from mmlab.league.finetuning import TaskModel, predict
from mmlab.tasks.downstream.items import Items
from mmlab.tasks.downstream.matching import KIND
from mmlab.tasks.retrieval import Retrieval, ranks_of_scores, summarize


def learned_retrieval(model: TaskModel, dataset: Scenes, num: int) -> dict[str, object]:
    """Both directions among the first ``num`` pictures and their captions.

    ``model`` has learned ``matching_items``, which compares captions of one picture; that its
    scores of different pictures can be compared as well, it was never taught. Equal captions are
    right for each other's pictures.
    """
    captions = dataset.true_captions("en", KIND)[:num]
    rows = torch.arange(len(captions))
    views = rows[:, None].expand(-1, len(captions))
    kinds = ["retrieval"] * len(captions)
    items = Items("choice", views, [captions] * len(captions), rows, kinds)
    scores = predict(model, dataset, items)
    numbers = {text: number for number, text in enumerate(captions)}
    ids = torch.tensor([numbers[text] for text in captions])
    belongs = ids[:, None] == ids
    recalls = (summarize(ranks_of_scores(table, belongs)) for table in (scores, scores.T))
    return Retrieval(*recalls, len(captions), len(captions)).figures()
