"""What is read off the cells of a league: the columns of its table."""

from __future__ import annotations

from mmlab.league.plan import TEXT_ONLY
from mmlab.league.results import Measure

IMAGE_ONLY = "vit"
BASELINES = (TEXT_ONLY, IMAGE_ONLY)
"""The entries that see one half of a pair: what they reach needs no understanding of both."""
BLIND_MARGIN = 0.02
"""With one seed there is no interval: a baseline this near to the best system reaches it."""

FINETUNED = (
    "matching",
    "vqa",
    "nlvr2",
    "entailment",
    "answer",
    "rationale",
    "grounding",
    "binding",
)
"""The tasks that every system learns by the one recipe, and the blind baselines with it."""


def accuracy(task: str) -> Measure:
    """The share of a task's items that an entry gets right."""
    return Measure(task, ((task, ("accuracy",)),))


def recall(name: str, task: str, *names: str) -> Measure:
    """Recall at rank 1, the mean of both directions, below ``names`` of the task's figures."""
    directions = ("image_to_text", "text_to_image")
    return Measure(name, tuple((task, (*names, way, "r@1")) for way in directions))


def probe_recall(way: str) -> Measure:
    """Recall at rank 1 by heads that only pretraining trained: dual, fusion or reranked."""
    return recall(f"retrieval, {way}", "probe", "ways", way, "retrieval")


def probe_binding(way: str) -> Measure:
    """Binding by heads that only pretraining trained: dual, fusion or reranked."""
    return Measure(f"binding, {way}", (("probe", ("ways", way, "binding", "accuracy")),))


def single(name: str, task: str, *names: str) -> Measure:
    """One number of a task's figures."""
    return Measure(name, ((task, names),))


CIDER = "CIDEr"
COLUMNS = (
    *map(accuracy, FINETUNED),
    single("vqa score", "vqa", "vqa_score"),
    single("false yes", "vqa", "hallucination", "false_yes"),
    recall("matching r@1", "matching", "retrieval"),
    *map(probe_recall, ("dual", "fusion", "reranked")),
    *map(probe_binding, ("dual", "fusion")),
    single(CIDER, "captioning", "finetuned", "cider"),
    single("CHAIR", "captioning", "finetuned", "chair_instance"),
    single("vqa ranked", "vqa_written", "ranked_accuracy"),
    single("vqa written", "vqa_written", "written_accuracy"),
    recall("emoji r@1", "emoji", "retrieval"),
    single("emoji zero-shot", "emoji", "zero_shot", "accuracy"),
    single("emoji, new concepts", "emoji", "held_out", "zero_shot", "accuracy"),
)
"""What a column shows. All are shares between 0 and 1 but CIDEr.

``false yes`` is how often yes is said to what is not in the picture, ``CHAIR`` the share of the
objects in written captions that are not: of both, less is better.
"""
