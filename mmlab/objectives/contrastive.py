"""Contrastive losses: the features of a pair shall be close, those of all other pairs far apart.

Every loss here sees the global batch: where several processes train together, each holds the rows
of its own pairs against the features of all (``gather_with_gradient``), and the mean of their
losses is the loss of the whole batch. Training averages gradients over processes, so nothing else
is needed. All processes must then call the loss, with equally many pairs.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Scale = Float[Tensor, ""] | float
"""The factor on cosines, ``1 / temperature``."""
INITIAL_SCALE, MAX_SCALE = 1 / 0.07, 100.0
"""Where a learned scale starts, and what it may not exceed (CLIP, section 2.5)."""


def contrastive_loss(
    image_features: Float[Tensor, "batch dim"],
    text_features: Float[Tensor, "batch dim"],
    scale: Scale,
    chunk_size: int | None = None,
) -> Float[Tensor, ""]:
    """Symmetric InfoNCE (CLIP, figure 3): each image finds its caption, each caption its image.

    Row ``i`` of both belongs to pair ``i``; features need no unit length, they get it here. The
    loss is ``ln(batch)`` where all similarities are equal. ``chunk_size`` rows of the table of
    similarities at a time, computed again in the backward pass, make the memory linear in the
    batch: same value and gradients, for one more matrix product. ValueError if it is below 1.
    """
    images, texts = _unit(image_features), _unit(text_features)
    image_loss = _retrieval_loss(images, gather_with_gradient(texts), scale, chunk_size)
    text_loss = _retrieval_loss(texts, gather_with_gradient(images), scale, chunk_size)
    return (image_loss + text_loss) / 2


def soft_contrastive_loss(
    image_to_text: Float[Tensor, "batch texts"],
    text_to_image: Float[Tensor, "batch images"],
    image_targets: Float[Tensor, "batch texts"],
    text_targets: Float[Tensor, "batch images"],
) -> Float[Tensor, ""]:
    """Symmetric cross-entropy of logits under targets that are distributions (ALBEF, equation 6).

    Each row of the targets sums to 1. There may be more candidates than rows, such as a queue of
    earlier features. With rows of the identity as targets this is ``contrastive_loss``.
    """
    image_loss = F.cross_entropy(_single(image_to_text), _single(image_targets))
    text_loss = F.cross_entropy(_single(text_to_image), _single(text_targets))
    return (image_loss + text_loss) / 2


def queue_similarity(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "batch dim"],
    queue: Float[Tensor, "dim size"],
    temperature: Scale,
) -> Float[Tensor, "batch batch+size"]:
    """Dot products with the batch's keys, then with those in a queue, over the temperature.

    ALBEF, equation 1 and section 3.2: queries come from the model, keys and queue from its momentum
    twin, so a pair's own key is its column of the batch. Only this process's keys are in the batch;
    those of others get into the queue.
    """
    return _single(queries @ torch.cat([keys.T, queue.detach()], dim=1)) / temperature


def moco_logits(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "batch dim"],
    queue: Float[Tensor, "dim size"],
    temperature: Scale = 0.07,
) -> Float[Tensor, "batch 1+size"]:
    """The own key in column 0, the queue after it (MoCo, equation 1); the right label is 0.

    He et al. 2019, arXiv 1911.05722, algorithm 1. All features have unit length, and other keys of
    the batch are no negatives.
    """
    own = (queries * keys.detach()).sum(1, keepdim=True)
    return _single(torch.cat([own, queries @ queue.detach()], dim=1)) / temperature


def soften_targets(
    truth: Float[Tensor, "batch items"],
    similarity: Float[Tensor, "batch items"],
    alpha: Scale,
) -> Float[Tensor, "batch items"]:
    """``alpha`` of the teacher's softmax, the rest of the truth (ALBEF, equation 6 in its code).

    ``similarity`` is what the momentum twin sees. No gradient.
    """
    return (alpha * similarity.detach().softmax(-1) + (1 - alpha) * truth).detach()


def sigmoid_loss(
    image_features: Float[Tensor, "batch dim"],
    text_features: Float[Tensor, "batch dim"],
    scale: Scale,
    bias: Scale,
) -> Float[Tensor, ""]:
    """Every pair of the table on its own: does it belong together? (SigLIP, algorithm 1.)

    Zhai et al. 2023, arXiv 2303.15343. The logits are ``scale`` times the cosine plus ``bias``,
    which start at 10 and -10 there; the sum over the table is divided by the batch.
    """
    images, texts = _unit(image_features), gather_with_gradient(_unit(text_features))
    logits = _single(scale * images @ texts.T + bias)
    # +1 for what belongs together, -1 for all else.
    signs = 2 * F.one_hot(own_places(len(images), logits.device), len(texts)) - 1
    return -F.logsigmoid(signs * logits).sum() / len(images)


def token_wise_loss(
    image_tokens: Float[Tensor, "batch patches dim"],
    text_tokens: Float[Tensor, "batch tokens dim"],
    valid: Bool[Tensor, "batch tokens"],
    scale: Scale,
) -> Float[Tensor, ""]:
    """InfoNCE on late interaction: tokens find their best partners (FILIP, equations 3 to 5).

    Yao et al. 2021, arXiv 2111.07783. An image is as similar to a text as its patches are, on
    average, to the token that each likes most; a text to an image likewise. ``valid`` is a
    tokenizer's attention mask: padding neither finds nor is found. Texts of all processes must be
    equally long.
    """
    images, texts = _unit(image_tokens), _unit(text_tokens)
    all_images, all_texts = gather_with_gradient(images), gather_with_gradient(texts)
    all_valid = gather_with_gradient(valid)
    to_texts = token_similarity(
        images, all_texts, torch.ones_like(images[..., 0]).bool(), all_valid
    )
    to_images = token_similarity(
        texts, all_images, valid, torch.ones_like(all_images[..., 0]).bool()
    )
    places = own_places(len(images), images.device)
    image_loss = F.cross_entropy(_single(scale * to_texts), places)
    text_loss = F.cross_entropy(_single(scale * to_images), places)
    return (image_loss + text_loss) / 2


def token_similarity(
    queries: Float[Tensor, "queries query_tokens dim"],
    keys: Float[Tensor, "keys key_tokens dim"],
    query_valid: Bool[Tensor, "queries query_tokens"],
    key_valid: Bool[Tensor, "keys key_tokens"],
) -> Float[Tensor, "queries keys"]:
    """For each query the mean, over its tokens, of the best dot product with a key's tokens."""
    products = torch.einsum("qtd,ksd->qkts", queries, keys)
    products = products.masked_fill(~key_valid[None, :, None, :], -torch.inf)
    best = products.amax(dim=-1).masked_fill(~query_valid[:, None, :], 0.0)
    return best.sum(dim=-1) / query_valid.sum(dim=-1, keepdim=True)


def gather_with_gradient(x: Tensor) -> Tensor:
    """The rows of all processes, in their order, on every process; gradients find their way back.

    The gradient of a process's rows is the sum of what all processes say about them. Without other
    processes this is ``x`` itself.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return x
    return _Gather.apply(x)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(context, x: Tensor) -> Tensor:
        context.num_rows = len(x)
        parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, x.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(context, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous()
        dist.all_reduce(gradient)
        return gradient.split(context.num_rows)[dist.get_rank()]


def _unit(features: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
    return F.normalize(features, dim=-1)


def own_places(num_rows: int, device: torch.device) -> Int64[Tensor, " rows"]:
    """Where this process's rows stand in the global batch: each has as many as the others."""
    several = dist.is_available() and dist.is_initialized()
    first = dist.get_rank() * num_rows if several else 0
    return torch.arange(first, first + num_rows, device=device)


def _retrieval_loss(
    queries: Float[Tensor, "batch dim"],
    keys: Float[Tensor, "all dim"],
    scale: Scale,
    chunk_size: int | None,
) -> Float[Tensor, ""]:
    """Mean cross-entropy of finding one's own key among all."""
    places = own_places(len(queries), queries.device)
    if chunk_size is None:
        return _summed_loss(queries, keys, scale, places) / len(queries)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    chunks = zip(queries.split(chunk_size), places.split(chunk_size), strict=True)
    total = sum(
        checkpoint(_summed_loss, rows, keys, scale, own, use_reentrant=False)
        for rows, own in chunks
    )
    return total / len(queries)


def _summed_loss(
    queries: Float[Tensor, "rows dim"],
    keys: Float[Tensor, "all dim"],
    scale: Scale,
    places: Int64[Tensor, " rows"],
) -> Float[Tensor, ""]:
    return F.cross_entropy(_single(scale * queries @ keys.T), places, reduction="sum")


def _single(logits: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """At least single precision: half has too few digits for logits of up to 100."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
