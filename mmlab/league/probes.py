"""What a system can do right after pretraining, by the heads that pretraining trained.

A system has up to three ways of scoring a picture with a text:

- ``"dual"``: the dot product of what it makes of each alone (of a BLIP-2's queries, the likest);
- ``"fusion"``: what its matching head says of the two together;
- ``"reranked"``: the matching head, for what the dot products put first.

Each is measured by retrieval, with the passes that it takes, and by binding: does the true caption
score higher than the same words bound wrongly? Nothing is fine-tuned.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from torch import Tensor

from mmlab.datasets import Scenes
from mmlab.datasets.scenes import BindingPair
from mmlab.hub import model_config
from mmlab.models.checks import check
from mmlab.tasks.dual_encoder import DualEncoder
from mmlab.tasks.fusion import (
    BATCH_SIZE,
    CAPTION_KIND,
    FusionModel,
    Images,
    load_fusion,
    pick,
)
from mmlab.tasks.reranking import (
    CANDIDATES,
    ReadApart,
    Reranker,
    load_reranker,
    rerank,
    similarity_weight,
)
from mmlab.tasks.retrieval import RECALLS, Retrieval, ranks_of_scores, summarize
from mmlab.training.blip2_system import load_trained, saved_tokenizer
from mmlab.training.evaluation import RERANKED
from mmlab.training.recipe import Recipe, check_known
from mmlab.training.region_systems import MANNERS, load_trained_regions
from mmlab.training.run import device, load_encoder
from mmlab.training.system import image_size

WAYS = ("dual", "fusion", "reranked")
DUAL_ENCODERS = ("clip", "flip")
WITHOUT = {
    "vit": "it never reads a text",
    "visualbert": "its matching head compares two captions; there is none for one caption",
    "vlbert": "its pretraining trains no matching head",
}
"""Systems that have no way, and why."""

Rows = Int64[Tensor, " pairs"]
Shown = Images | UInt8[Tensor, "_ 3 _ _"]
"""What a model is shown; dual encoders normalise pictures for themselves."""
Figures = dict[str, object]


# How a model scores.


@dataclass
class Passes:
    """What a model was given: images alone, texts alone, and pairs of both.

    Counted row by row where the rows are handed to the model, so also where a batch is cut.
    """

    images: int = 0
    texts: int = 0
    pairs: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.images + self.texts + self.pairs


class Read(Protocol):
    """Images and texts, ready to be scored: all by what is made of each alone, or in pairs."""

    passes: Passes

    def similarities(self) -> Float[Tensor, "images texts"]:
        """Dot products of features."""

    def fits(self, image_rows: Rows, text_rows: Rows) -> Float[Tensor, " pairs"]:
        """What the matching head says of some pairs, higher where the text fits."""


class ReadTogether:
    """For models whose matching head reads each pair anew; and for those that have none."""

    def __init__(self, model: DualEncoder | FusionModel, images: Shown, texts: Sequence[str]):
        self.model, self.images, self.texts = model, images, list(texts)
        self.passes = Passes()

    def similarities(self) -> Float[Tensor, "images texts"]:
        """Dot products of unit vectors."""
        self.passes.images += len(self.images)
        self.passes.texts += len(self.texts)
        return self.model.encode_images(self.images) @ self.model.encode_texts(self.texts).T

    def fits(self, image_rows: Rows, text_rows: Rows) -> Float[Tensor, " pairs"]:
        """Logits for "fits" against "does not": see ``FusionModel.match``."""
        self.passes.pairs += len(text_rows)
        texts = [self.texts[row] for row in text_rows.tolist()]
        return self.model.match(pick(self.images, image_rows), texts)


class ReadInStages:
    """For an ALBEF, BLIP or BLIP-2, which reads images and texts alone once, whatever follows."""

    def __init__(self, model: Reranker, images: Float[Tensor, "n 3 _ _"], texts: Sequence[str]):
        self.read = ReadApart(model.network, images, model.tokens(texts))
        self.passes = Passes(len(images), len(texts))

    def similarities(self) -> Float[Tensor, "images texts"]:
        """Cosines; of a BLIP-2's features of an image the likest counts."""
        return self.read.cosines().cpu()

    def fits(self, image_rows: Rows, text_rows: Rows) -> Float[Tensor, " pairs"]:
        """The output for "fits" alone, as the official codes rank by it."""
        self.passes.pairs += len(text_rows)
        return self.read.fits(image_rows, text_rows).cpu()


@dataclass(frozen=True)
class Scorer:
    """A trained model, and the ``ways`` in which it scores pictures with texts.

    - ``prepared``: scenes of a data set as the model is shown them.
    - ``read``: images and texts ready to be scored.
    - ``weight``: what a dot product counts beside the matching head's score in ``"reranked"``.
    """

    ways: tuple[str, ...]
    prepared: Callable[[Scenes, Int64[Tensor, " batch"]], Shown]
    read: Callable[[Shown, Sequence[str]], Read]
    weight: float = 0.0

    def scores(self, way: str, images: Shown, texts: Sequence[str]) -> Float[Tensor, " pairs"]:
        """Each picture with the text in its place. ValueError for a way that it has not.

        In ``"reranked"`` every pair is a candidate.
        """
        self._check(way)
        read, rows = self.read(images, texts), torch.arange(len(texts))
        if way == "fusion":
            return read.fits(rows, rows)
        alike = read.similarities().diagonal()
        return alike if way == "dual" else read.fits(rows, rows) + self.weight * alike

    def tables(self, way: str, images: Shown, texts: Sequence[str], k: int) -> Tables:
        """Every picture with every text; ``"reranked"`` ranks ``k`` candidates of each query.

        ValueError as in ``scores``, and for a ``k`` below 1.
        """
        self._check(way)
        read = self.read(images, texts)
        if way == "fusion":
            # Whatever is as alike as everything else is a candidate.
            alike = torch.zeros(len(images), len(texts))
            to_texts = rerank(alike, len(texts), read.fits, batch_size=BATCH_SIZE)
            return Tables(to_texts, to_texts.T, read.passes)
        alike = read.similarities()
        if way == "dual":
            return Tables(alike, alike.T, read.passes)
        settings = {"similarity_weight": self.weight, "batch_size": BATCH_SIZE}
        to_texts = rerank(alike, k, read.fits, **settings)
        to_images = rerank(alike.T, k, lambda text, image: read.fits(image, text), **settings)
        return Tables(to_texts, to_images, read.passes)

    def _check(self, way: str) -> None:
        check_known("way of scoring", way, WAYS)
        check(way in self.ways, "way", way, f"one of {', '.join(self.ways) or 'none'}")


@dataclass(frozen=True)
class Tables:
    """Scores of all texts for each image and of all images for each text, and what they took."""

    to_texts: Float[Tensor, "images texts"]
    to_images: Float[Tensor, "texts images"]
    passes: Passes = field(default_factory=Passes)


# Which system has which.


def ways_of(recipe: Recipe) -> tuple[str, ...]:
    """The ways that the model of a recipe has, as its system and its heads tell.

    None for those of ``WITHOUT``, and none for models that have learned something else, such as to
    answer questions or to speak through a language model.
    """
    if recipe.system in DUAL_ENCODERS:
        return ("dual",)
    if recipe.system in WITHOUT or recipe.pretraining.get("language_model"):
        return ()
    heads = set(recipe.model.get("heads", model_config(recipe.model_name).heads))
    dual, fusion = "contrast" in heads, bool(heads & {"match", "rank"})
    return tuple(way for way, has in zip(WAYS, (dual, fusion, dual and fusion), strict=True) if has)


def load_scorer(recipe: Recipe, weights: str | Path) -> Scorer:
    """The finished model of a recipe, ready to score. ValueError if it has no way of scoring.

    ALBEF ranks by its matching head alone; BLIP, BLIP-2 and VLMo add the cosine (the official codes
    of each). CheckpointError if the weights are of another model.
    """
    ways, reason = ways_of(recipe), WITHOUT.get(recipe.system, "it has no head for that")
    check(bool(ways), "system", recipe.system, f"one that scores a picture with a text: {reason}")
    model = _load(recipe, Path(weights))
    model.network.to(device())
    if isinstance(model, DualEncoder):
        return Scorer(ways, _drawn, partial(ReadTogether, model))
    if isinstance(model, Reranker):
        weight = similarity_weight(model.network)
        return Scorer(ways, model.prepared, partial(ReadInStages, model), weight)
    return Scorer(ways, model.prepared, partial(ReadTogether, model), 1.0)


def _drawn(dataset: Scenes, rows: Int64[Tensor, " batch"]) -> Shown:
    return dataset.images(rows)


def _load(recipe: Recipe, weights: Path) -> DualEncoder | FusionModel | Reranker:
    if recipe.system in DUAL_ENCODERS:
        return load_encoder(recipe, weights)
    if recipe.system in MANNERS:
        return load_trained_regions(recipe, weights)
    if recipe.system == "blip2":
        return Reranker(load_trained(recipe, weights), saved_tokenizer(weights))
    load = load_reranker if recipe.system in RERANKED else load_fusion
    return load(recipe.model_name, weights)


# Figures.


def probe(
    recipe: Recipe,
    weights: str | Path,
    dataset: Scenes,
    binding_dataset: Scenes,
    num_retrieved: int,
    seed: int = 0,
    k: int = CANDIDATES,
) -> Figures:
    """What a finished run can do, by each way of scoring that it has.

    Retrieval is among ``num_retrieved`` pictures of ``dataset``, drawn by ``seed``, and their
    medium captions; binding asks as many pairs as ``binding_dataset`` has pictures. Scenes are
    drawn anew in the model's own size. ``"ways"`` is empty for a system without any, and
    ``"without"`` then says why. ValueError for more pictures than there are.
    """
    ways, few = ways_of(recipe), f"at most {len(dataset)}, the pictures that there are"
    check(1 <= num_retrieved <= len(dataset), "num_retrieved", num_retrieved, few)
    if not ways:
        reason = WITHOUT.get(recipe.system, "it has not learned to match pictures with texts")
        return {"ways": {}, "without": reason}
    scorer, size = load_scorer(recipe, weights), image_size(recipe)
    shown, bound = (_of_size(scenes, size) for scenes in (dataset, binding_dataset))
    rows = torch.randperm(len(shown), generator=torch.Generator().manual_seed(seed))
    pairs = bound.binding_pairs(len(bound), seed)
    found = {
        way: {
            **retrieval_figures(scorer, way, shown, rows[:num_retrieved], k),
            "binding": binding_figures(scorer, way, bound, pairs),
        }
        for way in ways
    }
    return {"ways": found, "without": "", "num_retrieved": num_retrieved, "candidates": k}


def retrieval_figures(
    scorer: Scorer, way: str, dataset: Scenes, rows: Int64[Tensor, " num"], k: int = CANDIDATES
) -> Figures:
    """Both directions among some pictures and their medium captions, with chance.

    Equal captions are right for each other's pictures. ``"seconds"`` are those from prepared images
    and texts to all scores; ``"passes"`` is how many images, texts and pairs the model was given
    meanwhile, ``"passed"`` how many of each.
    """
    captions = dataset.captions("en", CAPTION_KIND)
    texts, images = [captions[row] for row in rows.tolist()], scorer.prepared(dataset, rows)
    started = time.perf_counter()
    tables = scorer.tables(way, images, texts, k)
    seconds = time.perf_counter() - started
    belongs = _equal(texts)
    recalls = (summarize(ranks_of_scores(t, belongs)) for t in (tables.to_texts, tables.to_images))
    figures = Retrieval(*recalls, len(texts), len(texts)).figures()
    return {
        "retrieval": {**figures, "chance": chance_of_recall(belongs)},
        "passes": tables.passes.total,
        "passed": dict(vars(tables.passes)),
        "seconds": seconds,
    }


def _equal(texts: Sequence[str]) -> Bool[Tensor, "texts texts"]:
    numbers = {text: number for number, text in enumerate(texts)}
    ids = torch.tensor([numbers[text] for text in texts])
    return ids[:, None] == ids


def chance_of_recall(belongs: Bool[Tensor, "queries items"]) -> dict[str, float]:
    """Recall@k to be expected of items in random order."""
    num_items, right = belongs.shape[1], belongs.sum(1).tolist()

    def missed(num_right: int, k: int) -> float:
        k = min(k, num_items)
        return math.comb(num_items - num_right, k) / math.comb(num_items, k)

    return {f"r@{k}": 1 - sum(missed(num, k) for num in right) / len(right) for k in RECALLS}


def binding_figures(
    scorer: Scorer, way: str, dataset: Scenes, pairs: Sequence[BindingPair]
) -> Figures:
    """How often the true caption scores higher than the same words bound wrongly; ties count half.

    ``"ties"`` is the share of these.
    """
    margins = []
    for start in range(0, len(pairs), BATCH_SIZE):
        part = pairs[start : start + BATCH_SIZE]
        images = scorer.prepared(dataset, torch.tensor([pair.image for pair in part]))
        true, false = (
            scorer.scores(way, images, [getattr(pair, name) for pair in part])
            for name in ("text", "swapped")
        )
        margins += (true - false).tolist()
    right = [(margin > 0) + 0.5 * (margin == 0) for margin in margins]
    kinds = [pair.kind for pair in pairs]
    counts = {kind: kinds.count(kind) for kind in sorted(set(kinds))}
    own = {k: [r for r, kind in zip(right, kinds, strict=True) if kind == k] for k in counts}
    return {
        "accuracy": sum(right) / len(right),
        "by_kind": {kind: sum(own[kind]) / count for kind, count in counts.items()},
        "counts": counts,
        "ties": sum(margin == 0 for margin in margins) / len(margins),
        "chance": 0.5,
        "num_items": len(pairs),
    }


def _of_size(dataset: Scenes, size: int) -> Scenes:
    return Scenes(replace(dataset.config, image_size=size))
