"""Masked region modelling: hide the feature of a region, and say what was there.

What is predicted differs from paper to paper (the detector's distribution, its class, the feature
itself), and so does what a loss is a mean of; each function names its papers. The location of a
hidden region always stays: it says which region is asked for.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

Chosen = Bool[Tensor, "batch regions"]


def choose_regions(
    valid: Bool[Tensor, "batch regions"],
    probability: float | int = 0.15,
    at_least_one: bool = False,
    generator: torch.Generator | None = None,
) -> Chosen:
    """Each valid region with ``probability``, independently.

    With ``at_least_one`` (UNITER) an image of which none was chosen gets one at random. ValueError
    for a wrong probability.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")
    luck = _uniform(valid, generator)
    chosen = (luck < probability) & valid
    if not at_least_one:
        return chosen
    luckiest = F.one_hot(luck.masked_fill(~valid, 2.0).argmin(1), valid.shape[1]).bool() & valid
    return torch.where(chosen.any(1, keepdim=True), chosen, luckiest)


def hide_regions(
    features: Float[Tensor, "batch regions dim"],
    chosen: Chosen,
    zeroed: float | int = 1.0,
    replaced: float | int = 0.0,
    substitutes: Float[Tensor, "batch regions dim"] | None = None,
    generator: torch.Generator | None = None,
) -> Float[Tensor, "batch regions dim"]:
    """The features as the model sees them: of the chosen ones a share ``zeroed`` is 0.

    A share ``replaced`` becomes the ``substitutes`` (features of other regions, LXMERT); the rest
    stays. Shares: UNITER 1 and 0, ViLBERT 0.9 and 0, LXMERT 0.8 and 0.1. ValueError for
    ``replaced`` without substitutes.
    """
    if replaced and substitutes is None:
        raise ValueError("substitutes must be given where regions are replaced")
    fate = _uniform(chosen, generator)
    hidden = features.masked_fill((chosen & (fate < zeroed))[..., None], 0.0)
    if not replaced:
        return hidden
    swapped = chosen & (fate >= zeroed) & (fate < zeroed + replaced)
    return torch.where(swapped[..., None], substitutes, hidden)


def region_distribution_loss(
    logits: Float[Tensor, "batch regions classes"],
    targets: Float[Tensor, "batch regions classes"],
    chosen: Chosen,
    per_class: bool = False,
) -> Float[Tensor, ""]:
    """KL divergence from the detector's distribution to the model's, mean over chosen regions.

    ViLBERT, section 2.2, and UNITER, section 3.2 (MRC-kl). UNITER's code divides by the number of
    classes as well (``per_class``), which makes its loss 1601 times as small. 0 if none is chosen.
    """
    log_p, q = logits[chosen].log_softmax(-1), targets[chosen]
    total = F.kl_div(log_p, q, reduction="sum")
    return total / (_count(chosen) * (logits.shape[-1] if per_class else 1))


def region_class_loss(
    logits: Float[Tensor, "batch regions classes"],
    classes: Int64[Tensor, "batch regions"],
    chosen: Chosen,
) -> Float[Tensor, ""]:
    """Cross-entropy with the detector's class, mean over chosen regions; 0 if none is chosen."""
    total = F.cross_entropy(logits[chosen], classes[chosen], reduction="sum")
    return total / _count(chosen)


def region_soft_class_loss(
    logits: Float[Tensor, "batch regions classes"],
    targets: Float[Tensor, "batch regions classes"],
    chosen: Chosen,
) -> Float[Tensor, ""]:
    """Cross-entropy with the detector's distribution, mean over chosen regions; 0 if none is.

    VL-BERT (section 3.3, task 2; ``soft_cross_entropy``). More than ``region_distribution_loss`` by
    the entropy of the targets, so the gradients are the same.
    """
    total = F.cross_entropy(logits[chosen], targets[chosen], reduction="sum")
    return total / _count(chosen)


def region_feature_loss(
    predicted: Float[Tensor, "batch regions dim"],
    features: Float[Tensor, "batch regions dim"],
    chosen: Chosen,
) -> Float[Tensor, ""]:
    """Squared error, mean over chosen regions and all numbers of a feature (UNITER's MRFR).

    0 if none is chosen.
    """
    total = F.mse_loss(predicted[chosen], features[chosen], reduction="sum")
    return total / (_count(chosen) * features.shape[-1])


def smooth_region_feature_loss(
    predicted: Float[Tensor, "batch regions dim"],
    features: Float[Tensor, "batch regions dim"],
    chosen: Chosen,
    valid: Bool[Tensor, "batch regions"],
) -> Float[Tensor, ""]:
    """Smooth L1 of chosen regions, its mean over all numbers of a feature, over all valid regions.

    LXMERT: section 3.1 says L2, ``lxrt/modeling.py`` has this. What the mean over many that were
    not chosen takes away, the caller gives back: one over the share of chosen regions.
    """
    errors = F.smooth_l1_loss(predicted, features, reduction="none").mean(-1)
    return errors.masked_fill(~(chosen & valid), 0.0).sum() / _count(valid)


def weighted_region_label_loss(
    logits: Float[Tensor, "batch regions labels"],
    labels: Int64[Tensor, "batch regions kinds"],
    weights: Float[Tensor, "batch regions kinds"],
    valid: Bool[Tensor, "batch regions"],
) -> Float[Tensor, ""]:
    """Cross-entropy times a weight, the detector's confidence, mean over all valid regions.

    LXMERT's classes and attributes (``lxrt/modeling.py``): a region counts whether it was hidden or
    not. A detector that tells several kinds of attributes has several labels a region, of one
    vocabulary; the mean is over these, too.
    """
    losses = -logits.log_softmax(-1).gather(-1, labels) * weights
    return losses[valid].sum() / (_count(valid) * labels.shape[-1])


def region_contrast_loss(
    predicted: Float[Tensor, "batch regions dim"],
    features: Float[Tensor, "batch regions dim"],
    chosen: Chosen,
    negatives: Int64[Tensor, "batch regions negatives"],
) -> Float[Tensor, ""]:
    """Which feature was it? Cross-entropy over the true one and the ``negatives`` of each region.

    Scores are products of the predicted vector with the features; ``negatives`` are numbers of
    regions, counted row by row through the batch. ``visual_target`` 2 of ViLBERT's code
    (``vilbert/vilbert.py``). Mean over chosen regions; 0 if none is chosen.
    """
    others = features.flatten(0, 1)[negatives[chosen]]
    candidates = torch.cat([features[chosen][:, None], others], dim=1)
    scores = (candidates @ predicted[chosen][..., None]).squeeze(-1)
    first = scores.new_zeros(len(scores), dtype=torch.int64)
    return F.cross_entropy(scores, first, reduction="sum") / _count(chosen)


def _count(chosen: Chosen) -> Int64[Tensor, ""]:
    return chosen.sum().clamp_min(1)


def _uniform(
    like: Bool[Tensor, "batch regions"], generator: torch.Generator | None
) -> Float[Tensor, "batch regions"]:
    """Random numbers on the generator's device, moved to where ``like`` is."""
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)
