"""What a position table has learned: its similarities over the grid (ViT, figure 7 centre)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from mmlab.analysis.distance import patch_distances
from mmlab.nn import Grid


def position_similarity(
    position_embedding: Float[Tensor, "1 tokens dim"], grid: Grid, num_prefix_tokens: int = 1
) -> Float[Tensor, "rows columns rows columns"]:
    """Cosine similarity of every patch's position vector to all others.

    ``similarity[r, c]`` is the picture that the paper draws at row ``r``, column ``c``. The rows of
    class and distillation token are left out. ValueError if the table does not fit the grid.
    """
    expected = num_prefix_tokens + grid[0] * grid[1]
    if position_embedding.shape[1] != expected:
        raise ValueError(
            f"position_embedding must have {expected} rows for {num_prefix_tokens} prefix tokens "
            f"and a grid of {grid}, got {position_embedding.shape[1]}"
        )
    directions = F.normalize(position_embedding[0, num_prefix_tokens:], dim=-1)
    pattern = "(r1 c1) (r2 c2) -> r1 c1 r2 c2"
    return rearrange(directions @ directions.T, pattern, r1=grid[0], r2=grid[0])


def grid_structure(similarity: Float[Tensor, "rows columns rows columns"]) -> float:
    """Spearman correlation of similarity with nearness (minus the distance on the grid).

    Over all pairs of different patches: 1 if the similarity falls with every step away, about 0
    for a table drawn at random, NaN if all pairs are equally similar. ValueError for a grid of
    fewer than three patches.
    """
    grid = tuple(similarity.shape[:2])
    num_patches = grid[0] * grid[1]
    if num_patches < 3:
        raise ValueError(f"the grid must have at least 3 patches, got {grid[0]} x {grid[1]}")
    first, second = torch.triu_indices(num_patches, num_patches, offset=1)
    pairs = similarity.detach().reshape(num_patches, num_patches)[first, second]
    nearness = -patch_distances(grid, 1)[first, second]
    return spearman(pairs.cpu(), nearness)


def spearman(x: Float[Tensor, " num"], y: Float[Tensor, " num"]) -> float:
    """Spearman's rank correlation; equal values share the mean of their ranks. NaN if constant."""
    return torch.corrcoef(torch.stack([_ranks(x), _ranks(y)]))[0, 1].item()


def _ranks(values: Float[Tensor, " num"]) -> Float[Tensor, " num"]:
    _, places, counts = values.unique(return_inverse=True, return_counts=True)
    last_ranks = counts.cumsum(0).double()
    return (last_ranks - (counts - 1) / 2)[places]
