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

    ViLBERT, section 3.1, and UNITER, section 3.2 (MRC-kl). UNITER's code divides by the number of
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


def _count(chosen: Chosen) -> Int64[Tensor, ""]:
    return chosen.sum().clamp_min(1)


def _uniform(
    like: Bool[Tensor, "batch regions"], generator: torch.Generator | None
) -> Float[Tensor, "batch regions"]:
    """Random numbers on the generator's device, moved to where ``like`` is."""
    device = like.device if generator is None else generator.device
    return torch.rand(like.shape, generator=generator, device=device).to(like.device)
