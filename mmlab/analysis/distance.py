"""How far a head looks: mean attention distance in pixels (ViT, figure 7 right, appendix D.7)."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mmlab.analysis.attention import AttentionMaps
from mmlab.nn import Grid


def patch_distances(grid: Grid, patch_size: int) -> Float[Tensor, "patches patches"]:
    """Euclidean distance in pixels between the centres of all patches, counted row by row.

    ValueError if ``grid`` or ``patch_size`` is not positive.
    """
    if min(*grid, patch_size) < 1:
        raise ValueError(f"grid and patch_size must be positive, got {grid} and {patch_size}")
    rows, columns = (torch.arange(side, dtype=torch.float64) for side in grid)
    centres = torch.cartesian_prod(rows, columns) * patch_size
    # By differences: the matrix-product shortcut that cdist takes on large grids loses digits.
    mode = "donot_use_mm_for_euclid_dist"
    return torch.cdist(centres, centres, compute_mode=mode).float()


def query_distances(
    weights: Float[Tensor, "batch heads queries keys"],
    grid: Grid,
    patch_size: int,
    num_prefix_tokens: int = 1,
    include_self: bool = True,
) -> Float[Tensor, "batch heads patches"]:
    """Mean distance in pixels from each patch to the patches it looks at.

    The rows and columns of class and distillation token are dropped, since they have no place in
    the image, and each row is scaled to sum to 1 again. With ``include_self`` a patch counts as a
    neighbour of itself at distance 0; without, its own column is dropped too. Uniform attention on
    14 x 14 patches of 16 pixels gives 116.5 pixels on average in the first convention, 117.1 in
    the second. "All other pixels" in the paper (figure 11) leaves the choice open.

    NaN where a patch looks at no patch at all. ValueError if the map does not fit the grid.
    """
    distances = patch_distances(grid, patch_size).to(weights)
    _check_map(weights, grid, num_prefix_tokens)
    between = weights[..., num_prefix_tokens:, num_prefix_tokens:]
    if not include_self:
        between = between * (distances > 0)
    return (between * distances).sum(dim=-1) / between.sum(dim=-1)


def attention_distance(
    weights: Float[Tensor, "batch heads queries keys"],
    grid: Grid,
    patch_size: int,
    num_prefix_tokens: int = 1,
    include_self: bool = True,
) -> Float[Tensor, "batch heads"]:
    """Mean over the patches of ``query_distances``, one number in pixels per image and head.

    Patches that look at no patch are left out; NaN if that leaves none.
    """
    return query_distances(weights, grid, patch_size, num_prefix_tokens, include_self).nanmean(-1)


def attention_distances(
    maps: AttentionMaps,
    grid: Grid,
    patch_size: int,
    num_prefix_tokens: int = 1,
    include_self: bool = True,
) -> Float[Tensor, "layers heads"]:
    """``attention_distance`` of every recorded layer, in the order of ``maps``, over its images.

    ValueError if there is no map, or if the layers differ in their number of heads.
    """
    if not maps:
        raise ValueError("maps is empty: run the model inside `with record_attention(model)`")
    counts = {name: weights.shape[1] for name, weights in maps.items()}
    if len(set(counts.values())) > 1:
        raise ValueError(f"every layer must have the same number of heads, got {counts}")
    options = (grid, patch_size, num_prefix_tokens, include_self)
    layers = [attention_distance(weights, *options).nanmean(dim=0) for weights in maps.values()]
    return torch.stack(layers)


def _check_map(weights: Tensor, grid: Grid, num_prefix_tokens: int) -> None:
    expected = num_prefix_tokens + grid[0] * grid[1]
    if weights.shape[-2:] != (expected, expected):
        queries, keys = weights.shape[-2:]
        raise ValueError(
            f"weights must be {expected} x {expected} for {num_prefix_tokens} prefix tokens and a "
            f"grid of {grid}, got {queries} x {keys}"
        )
