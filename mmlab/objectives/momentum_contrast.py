"""Contrast with a momentum twin and a queue: how ALBEF and BLIP align images and texts.

Li et al. 2021 (ALBEF, arXiv 2107.07651), sections 3.2 and 3.3, equations 1 and 6. BLIP (Li et al.
2022, section 3.2) took it over as it is.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from mmlab.nn import FeatureQueue
from mmlab.objectives.contrastive import (
    Scale,
    gather_with_gradient,
    queue_similarity,
    soft_contrastive_loss,
    soften_targets,
)


class Encoding(NamedTuple):
    """A batch as one network sees it: tokens, and features of length 1."""

    image_tokens: Float[Tensor, "batch image_tokens dim"]
    text_tokens: Float[Tensor, "batch tokens text_dim"]
    image_features: Float[Tensor, "batch embed_dim"]
    text_features: Float[Tensor, "batch embed_dim"]


class MomentumContrast(NamedTuple):
    """One step's alignment: tokens, features, similarities over temperature, and their targets.

    Columns of the tables are the batch's momentum features, then the queue as it was before the
    step. ``momentum_images`` are the twin's image tokens; ``belongs`` says which images and texts
    of the batch are no negatives of each other.
    """

    image_tokens: Float[Tensor, "batch image_tokens dim"]
    text_tokens: Float[Tensor, "batch tokens text_dim"]
    image_features: Float[Tensor, "batch embed_dim"]
    text_features: Float[Tensor, "batch embed_dim"]
    momentum_images: Float[Tensor, "batch image_tokens dim"]
    momentum_texts: Float[Tensor, "batch tokens text_dim"]
    momentum_image_features: Float[Tensor, "batch embed_dim"]
    momentum_text_features: Float[Tensor, "batch embed_dim"]
    image_to_text: Float[Tensor, "batch columns"]
    text_to_image: Float[Tensor, "batch columns"]
    image_targets: Float[Tensor, "batch columns"]
    text_targets: Float[Tensor, "batch columns"]
    belongs: Bool[Tensor, "batch batch"]

    def loss(self) -> Float[Tensor, ""]:
        """The image-text contrastive loss (ALBEF, equation 6)."""
        return soft_contrastive_loss(
            self.image_to_text, self.text_to_image, self.image_targets, self.text_targets
        )


def momentum_contrast(
    own: Encoding,
    twin: Encoding,
    queue: FeatureQueue,
    temperature: Scale,
    alpha: float | Float[Tensor, ""],
    image_ids: Int64[Tensor, " batch"] | None = None,
) -> MomentumContrast:
    """Images and texts against the twin's features of this batch and of the queue.

    ``queue`` has the tables ``images`` and ``texts``; ``alpha`` of the targets is the twin's guess.
    ``image_ids``, for a queue with ids, tell which rows are of the same image: all of them are
    right, in the batch and in the queue.
    """

    def to_texts(features: Tensor) -> Tensor:
        return queue_similarity(features, twin.text_features, queue.texts, temperature)

    def to_images(features: Tensor) -> Tensor:
        return queue_similarity(features, twin.image_features, queue.images, temperature)

    truth = _truth(own.image_features, queue, image_ids)
    targets = truth / truth.sum(1, keepdim=True)
    return MomentumContrast(
        *own,
        *twin,
        to_texts(own.image_features),
        to_images(own.text_features),
        soften_targets(targets, to_texts(twin.image_features), alpha),
        soften_targets(targets, to_images(twin.text_features), alpha),
        truth[:, : len(truth)].bool(),
    )


@torch.no_grad()
def enqueue_contrast(
    queue: FeatureQueue,
    contrast: MomentumContrast,
    image_ids: Int64[Tensor, " batch"] | None = None,
) -> None:
    """Put the twin's features of all processes into the queue."""
    queue.enqueue(
        None if image_ids is None else gather_with_gradient(image_ids),
        images=gather_with_gradient(contrast.momentum_image_features),
        texts=gather_with_gradient(contrast.momentum_text_features),
    )


def _truth(
    features: Float[Tensor, "batch embed_dim"],
    queue: FeatureQueue,
    image_ids: Int64[Tensor, " batch"] | None,
) -> Float[Tensor, "batch columns"]:
    """1 where a column is of the row's own image, else 0; nothing in the queue is, unless told.

    Other captions of an image count as wrong in pre-training, as in the official code.
    """
    if image_ids is not None:
        return (image_ids[:, None] == torch.cat([image_ids, queue.ids])).float()
    count = len(features)
    return torch.eye(count, count + queue.size, device=features.device)
