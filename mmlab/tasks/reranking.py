"""Retrieval in two stages: features find candidates, a fusion encoder ranks them.

ALBEF (Li et al. 2021, section 5.1), BLIP and BLIP-2: comparing features is cheap enough for all
pairs, the matching head is not, but knows better.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mmlab.models.albef import ALBEF
from mmlab.models.blip import BLIP
from mmlab.models.blip2 import BLIP2, query_similarity
from mmlab.tasks.retrieval import Retrieval, ranks_of_scores, summarize

NO_CANDIDATE = -100.0
"""The score of a pair that the matching head has not seen, as in the official code."""

PairScores = Callable[[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]], Float[Tensor, " pairs"]]
"""From numbers of queries and of items to one score for each pair."""


def rerank(
    similarity: Float[Tensor, "queries items"],
    k: int,
    pair_scores: PairScores,
    similarity_weight: float = 0.0,
    batch_size: int = 256,
) -> Float[Tensor, "queries items"]:
    """Scores of the ``k`` most similar items of each query, ``NO_CANDIDATE`` for all others.

    ALBEF ranks by the score of the pair alone; BLIP and BLIP-2 add the similarity
    (``similarity_weight=1``).
    ``batch_size`` pairs are scored at a time. With fewer than ``k`` items, all are candidates.
    ValueError for a ``k`` below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    best, items = similarity.topk(min(k, similarity.shape[1]), dim=1)
    queries = torch.arange(len(similarity), device=items.device)[:, None].expand_as(items)
    pairs = zip(queries.flatten().split(batch_size), items.flatten().split(batch_size), strict=True)
    scores = torch.cat([pair_scores(*rows).to(similarity) for rows in pairs]).view_as(best)
    table = torch.full_like(similarity, NO_CANDIDATE)
    return table.scatter(1, items, scores + similarity_weight * best)


@torch.no_grad()
def reranked_scores(
    model: ALBEF | BLIP | BLIP2,
    images: Float[Tensor, "images channels height width"],
    input_ids: Int[Tensor, "texts tokens"],
    text_valid: Tensor | None = None,
    k: int = 128,
    batch_size: int = 256,
) -> tuple[Float[Tensor, "images texts"], Float[Tensor, "texts images"]]:
    """Both tables of scores: each image's ``k`` best texts, each text's ``k`` best images.

    Candidates come from the cosines, the scores from the matching head's output for "fits"
    (``Retrieval.py`` of ALBEF); BLIP and BLIP-2 add the cosine (``train_retrieval.py``) and read
    each text anew with each image. ``text_valid`` as in ``ALBEF.forward``.
    """
    valid = input_ids != 0 if text_valid is None else text_valid.bool()
    image_tokens = torch.cat([model.image_tokens(part) for part in images.split(batch_size)])
    parts = zip(input_ids.split(batch_size), valid.split(batch_size), strict=True)
    text_tokens = torch.cat([model.text_tokens(*part) for part in parts])
    cosines = _cosines(model, image_tokens, text_tokens, batch_size)

    def score(image_rows: Tensor, text_rows: Tensor) -> Tensor:
        images, texts_valid = image_tokens[image_rows], valid[text_rows]
        if isinstance(model, ALBEF):
            fused = model.fuse(text_tokens[text_rows], (images,), texts_valid)
        elif isinstance(model, BLIP):
            fused = model.ground(input_ids[text_rows], (images,), texts_valid)
        else:
            fused = model.fuse(input_ids[text_rows], images, texts_valid)
        return model.matching_logits(fused)[:, 1]

    weight = 0.0 if isinstance(model, ALBEF) else 1.0
    settings = {"similarity_weight": weight, "batch_size": batch_size}
    to_texts = rerank(cosines, k, score, **settings)
    to_images = rerank(cosines.T, k, lambda t, i: score(i, t), **settings)
    return to_texts, to_images


def _cosines(
    model: ALBEF | BLIP | BLIP2,
    image_tokens: Float[Tensor, "images image_tokens dim"],
    text_tokens: Float[Tensor, "texts tokens text_dim"],
    batch_size: int,
) -> Float[Tensor, "images texts"]:
    """BLIP-2 has a feature for each query, of which the likest counts."""
    texts = model.text_features(text_tokens)
    if not isinstance(model, BLIP2):
        return model.image_features(image_tokens) @ texts.T
    parts = (model.qformer.look(part).tokens for part in image_tokens.split(batch_size))
    return torch.cat([query_similarity(model.image_features(part), texts) for part in parts])


def reranked_retrieval(
    model: ALBEF | BLIP | BLIP2,
    images: Float[Tensor, "images channels height width"],
    input_ids: Int[Tensor, "texts tokens"],
    image_ids: Int[Tensor, " images"],
    text_ids: Int[Tensor, " texts"],
    text_valid: Tensor | None = None,
    k: int = 128,
) -> Retrieval:
    """Recall of both directions after re-ranking; equal ids mean that the two belong together."""
    to_texts, to_images = reranked_scores(model, images, input_ids, text_valid, k)
    belongs = image_ids[:, None] == text_ids
    return Retrieval(
        summarize(ranks_of_scores(to_texts, belongs)),
        summarize(ranks_of_scores(to_images, belongs.T)),
        len(image_ids),
        len(text_ids),
    )
