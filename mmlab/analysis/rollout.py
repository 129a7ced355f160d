"""Attention rollout: which input tokens reach which output tokens, through all layers at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from mmlab.analysis.attention import AttentionMaps

FUSIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "mean": lambda weights: weights.mean(dim=1),
    "max": lambda weights: weights.amax(dim=1),
    "min": lambda weights: weights.amin(dim=1),
}
"""Ways to make one map of a layer's heads; the papers take the mean."""


def attention_rollout(
    maps: AttentionMaps | Iterable[Float[Tensor, "batch heads queries keys"]],
    residual: float = 0.5,
    fusion: str = "mean",
    discard_ratio: float = 0.0,
) -> Float[Tensor, "batch tokens tokens"]:
    """Product of the layers' attention, with the skip connection in it.

    Each layer is ``(1 - residual) W + residual I`` for its fused heads ``W`` (Abnar and Zuidema
    2020, section 3: one half each); the rollout of a layer is its own matrix times the rollout of
    the layers before. Row ``i`` says how much of each input token is in output token ``i``; it
    sums to 1. ViT, appendix D.8 shows row 0, the class token, over the patches; the skip
    connection goes unmentioned there.

    ``maps`` come from ``record_attention``, first layer first. ``discard_ratio`` drops that share
    of each query's weights, the smallest ones, against noise. ValueError for an unknown fusion, a
    share outside [0, 1), or maps that are not square and of one size.
    """
    _check_options(residual, fusion, discard_ratio)
    layers = list(maps.values() if isinstance(maps, dict) else maps)
    _check_layers(layers)
    rollout = torch.eye(layers[0].shape[-1]).to(layers[0]).expand(len(layers[0]), -1, -1)
    for weights in layers:
        fused = _discard_smallest(FUSIONS[fusion](weights), discard_ratio)
        rollout = _with_residual(fused, residual) @ rollout
    return rollout


def _discard_smallest(
    weights: Float[Tensor, "batch tokens tokens"], ratio: float
) -> Float[Tensor, "batch tokens tokens"]:
    count = int(ratio * weights.shape[-1])
    smallest = weights.argsort(dim=-1)[..., :count]
    return weights.scatter(-1, smallest, 0.0)


def _with_residual(
    weights: Float[Tensor, "batch tokens tokens"], residual: float
) -> Float[Tensor, "batch tokens tokens"]:
    # Max, min and discarding change the row sums; a query that sees nothing has a row of zeros.
    total = weights.sum(dim=-1, keepdim=True)
    identity = torch.eye(weights.shape[-1]).to(weights)
    normalised = torch.where(total > 0, weights / total.clamp_min(1e-30), identity)
    return (1 - residual) * normalised + residual * identity


def _check_options(residual: float, fusion: str, discard_ratio: float) -> None:
    for name, value in (("residual", residual), ("discard_ratio", discard_ratio)):
        if not 0 <= value < 1:
            raise ValueError(f"{name} must be in [0, 1), got {value}")
    if fusion not in FUSIONS:
        raise ValueError(f"fusion must be one of {', '.join(FUSIONS)}, got {fusion!r}")


def _check_layers(layers: list[Tensor]) -> None:
    if not layers:
        raise ValueError("maps is empty: run the model inside `with record_attention(model)`")
    sizes = {(layer.shape[0], *layer.shape[-2:]) for layer in layers}
    if len(sizes) > 1 or len({layers[0].shape[-1], layers[0].shape[-2]}) > 1:
        raise ValueError(
            "attention rollout needs the self-attention of one stack, square maps of one size; "
            f"got (batch, queries, keys) = {sorted(sizes)}"
        )
