"""Retrieval: which caption belongs to an image, which image to a caption.

Recall@k and the median rank, as in CLIP, ALBEF and BLIP: an image with several captions counts as
found when the first of any of them is (Karpathy and Fei-Fei 2015, section 4.2).
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class Recall:
    """How one direction went: the share of queries found among the first k, and the median rank."""

    recall: dict[int, float]
    median_rank: float

    def figures(self) -> dict[str, float]:
        """``{"r@1": …, "r@5": …, "r@10": …, "median_rank": …}``, shares between 0 and 1."""
        shares = {f"r@{k}": share for k, share in self.recall.items()}
        return {**shares, "median_rank": self.median_rank}


@dataclass(frozen=True)
class Retrieval:
    """Both directions, and between how many images and texts."""

    image_to_text: Recall
    text_to_image: Recall
    num_images: int
    num_texts: int

    def figures(self) -> dict[str, object]:
        """Everything as plain numbers, for JSON."""
        return {
            "image_to_text": self.image_to_text.figures(),
            "text_to_image": self.text_to_image.figures(),
            "num_images": self.num_images,
            "num_texts": self.num_texts,
        }


def retrieval(
    image_features: Float[Tensor, "images dim"],
    text_features: Float[Tensor, "texts dim"],
    image_ids: Int[Tensor, " images"],
    text_ids: Int[Tensor, " texts"],
) -> Retrieval:
    """Rank all texts for each image and all images for each text by the dot product.

    Equal ids mean that the two belong together; an image may have several texts and a text several
    images. ValueError if an image has no text, or a text no image.
    """
    _check_partners("image", image_ids, text_ids)
    _check_partners("text", text_ids, image_ids)
    return Retrieval(
        summarize(ranks(image_features, text_features, image_ids, text_ids)),
        summarize(ranks(text_features, image_features, text_ids, image_ids)),
        len(image_ids),
        len(text_ids),
    )


def ranks(
    queries: Float[Tensor, "queries dim"],
    items: Float[Tensor, "items dim"],
    query_ids: Int[Tensor, " queries"],
    item_ids: Int[Tensor, " items"],
    chunk_size: int = 1024,
) -> Int[Tensor, " queries"]:
    """The rank, from 1, of the best item that belongs to each query.

    A wrong item of the same score comes before the right one, so a model that gives everything the
    same score finds nothing. Scores are made ``chunk_size`` queries at a time.
    """
    parts = []
    for rows in torch.arange(len(queries)).split(chunk_size):
        scores = queries[rows] @ items.T
        parts.append(ranks_of_scores(scores, query_ids[rows][:, None] == item_ids[None, :]))
    return torch.cat(parts)


def ranks_of_scores(
    scores: Float[Tensor, "queries items"], belongs: Tensor
) -> Int[Tensor, " queries"]:
    """``ranks`` from a whole table of scores; ``belongs`` is True where item and query fit.

    For models that score pairs (ALBEF's matching head, say) and have no two feature vectors.
    """
    best = scores.masked_fill(~belongs, -torch.inf).amax(1, keepdim=True)
    return 1 + ((scores >= best) & ~belongs).sum(1)


def summarize(ranks: Int[Tensor, " queries"], recalls: Sequence[int] = RECALLS) -> Recall:
    """Recall@k and the median of the ranks."""
    shares = {k: (ranks <= k).float().mean().item() for k in recalls}
    return Recall(shares, float(statistics.median(ranks.tolist())))


def _check_partners(name: str, ids: Tensor, other_ids: Tensor) -> None:
    lonely = ~torch.isin(ids, other_ids)
    if lonely.any():
        first = int(lonely.nonzero()[0])
        raise ValueError(
            f"{int(lonely.sum())} of {len(ids)} {name}s belong to nothing, the first is number "
            f"{first} with id {int(ids[first])}"
        )
