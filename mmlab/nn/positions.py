"""Position embeddings on a grid of patches: fixed tables, and a change of resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

Grid = tuple[int, int]
"""``(height, width)`` in patches."""

INTERPOLATIONS = {
    "bilinear_aligned": {"mode": "bilinear", "align_corners": True},
    "bicubic": {"mode": "bicubic", "align_corners": False},
    "bicubic_aligned": {"mode": "bicubic", "align_corners": True},
}
"""The official variants: Google's ViT (``scipy.ndimage.zoom``, order 1); DeiT, MAE and HF; and that
of BLIP-2 for CLIP's ViT."""


def interpolate_positions(
    position_embedding: Float[Tensor, "1 old_tokens dim"],
    old_grid: Grid,
    new_grid: Grid,
    variant: str = "bilinear_aligned",
    num_prefix_tokens: int = 1,
) -> Float[Tensor, "1 new_tokens dim"]:
    """Stretch the position table of ``old_grid`` patches over ``new_grid`` (ViT, section 3.2).

    The first ``num_prefix_tokens`` rows (class, distillation token) are kept as they are. The
    variants are those of ``INTERPOLATIONS``; they give different tables. An unchanged grid returns
    the table itself. ValueError if ``variant`` is unknown or the table does not fit ``old_grid``.
    """
    if variant not in INTERPOLATIONS:
        raise ValueError(f"variant must be one of {sorted(INTERPOLATIONS)}, got {variant!r}")
    expected_tokens = num_prefix_tokens + old_grid[0] * old_grid[1]
    if position_embedding.shape[1] != expected_tokens:
        raise ValueError(
            f"position_embedding must have {expected_tokens} rows for {num_prefix_tokens} prefix "
            f"tokens and a grid of {old_grid}, got {position_embedding.shape[1]}"
        )
    if old_grid == new_grid:
        return position_embedding
    prefix, table = position_embedding.tensor_split([num_prefix_tokens], dim=1)
    image = rearrange(table, "1 (h w) d -> 1 d h w", h=old_grid[0])
    image = F.interpolate(image, size=new_grid, **INTERPOLATIONS[variant])
    return torch.cat([prefix, rearrange(image, "1 d h w -> 1 (h w) d")], dim=1)


def sincos_positions(
    grid: Grid, dim: int, num_prefix_tokens: int = 0
) -> Float[Tensor, "1 tokens dim"]:
    """Fixed 2-D sine-cosine table of MAE (He et al. 2021; ``util/pos_embed.py``).

    The first half of ``dim`` encodes the column, the second half the row, as in the official code,
    whose variable names say the opposite. Prefix rows are zero. ValueError if 4 does not divide
    ``dim``.
    """
    if dim % 4:
        raise ValueError(f"dim must be a multiple of 4 for sine-cosine positions, got {dim}")
    frequency = 10000 ** -(torch.arange(dim // 4, dtype=torch.float64) / (dim / 4))
    row, column = torch.meshgrid(*map(torch.arange, grid), indexing="ij")
    angles = [axis.reshape(-1, 1) * frequency for axis in (column, row)]
    table = torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
    return F.pad(table, (0, 0, num_prefix_tokens, 0)).float()[None]
