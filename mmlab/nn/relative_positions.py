"""Relative position bias: one learned number for each head and each offset between two tokens.

Bao et al. 2021 (BEiT, arXiv 2106.08254) have it for patches; VLMo (Bao et al. 2021, arXiv
2111.02358) for words, and for a text beside an image, as well. The order of the table's rows is
that of microsoft/unilm (``vlmo/modules/vlmo_module.py``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmlab.nn.positions import Grid

FIRST_TOKEN_ROWS = 3
"""A first token ([CLS]) is at no offset: from it, to it, and from it to itself."""
CROSS_ROWS = 2
"""From a text to an image and back: no offset either."""


def image_offsets(grid: Grid) -> Int64[Tensor, "tokens tokens"]:
    """Row of the table for each query and key among a class token and the patches of ``grid``.

    Offsets are those of the query minus those of the key, rows before columns.
    """
    height, width = grid
    place = torch.arange(height * width)
    row, column = place // width, place % width
    down = row[:, None] - row + height - 1
    right = column[:, None] - column + width - 1
    return _with_first_token(down * (2 * width - 1) + right, num_patch_offsets(grid))


def text_offsets(num_tokens: int, longest: int) -> Int64[Tensor, "tokens tokens"]:
    """Row for each query and key of a text, in a table for texts of up to ``longest`` tokens.

    The offset is that of the key minus that of the query: the other way round than in images.
    """
    place = torch.arange(num_tokens - 1)
    return _with_first_token(place - place[:, None] + longest - 2, 2 * longest - 3)


def pair_offsets(grid: Grid, num_tokens: int, longest: int) -> Int64[Tensor, "tokens tokens"]:
    """The same for a text followed by an image; the image's rows come first in the table."""
    to_image = num_patch_offsets(grid) + FIRST_TOKEN_ROWS
    image, text = image_offsets(grid), text_offsets(num_tokens, longest) + to_image + CROSS_ROWS
    above = torch.cat([text, torch.full((len(text), len(image)), to_image)], dim=1)
    below = torch.cat([torch.full((len(image), len(text)), to_image + 1), image], dim=1)
    return torch.cat([above, below])


def num_patch_offsets(grid: Grid) -> int:
    """How many offsets two patches of ``grid`` can have."""
    return (2 * grid[0] - 1) * (2 * grid[1] - 1)


def _with_first_token(
    offsets: Int64[Tensor, "others others"], first: int
) -> Int64[Tensor, "tokens tokens"]:
    table = F.pad(offsets, (1, 0, 1, 0), value=first + 2)
    table[0, 1:], table[1:, 0] = first, first + 1
    return table


class RelativePositionBias(nn.Module):
    """The table for all blocks of a transformer that reads texts, images and both.

    ``table`` has a row for each offset and a column for each head of each block; it starts at
    zero. ``longest`` is the longest text that it has rows for, ``context_length`` the longest that
    is to be read.
    """

    def __init__(self, grid: Grid, context_length: int, longest: int, depth: int, num_heads: int):
        super().__init__()
        self.grid, self.context_length, self.longest = grid, context_length, longest
        self.depth = depth
        self.table = nn.Parameter(torch.zeros(self._num_rows(grid), depth * num_heads))
        offsets = pair_offsets(grid, context_length, longest)
        self.register_buffer("offsets", offsets, persistent=False)

    def text(self, num_tokens: int) -> Float[Tensor, "depth heads tokens tokens"]:
        """What is added to the scores in each block where a text is alone."""
        return self(self.offsets[:num_tokens, :num_tokens])

    def image(self) -> Float[Tensor, "depth heads tokens tokens"]:
        """The same where an image is alone."""
        start = self.context_length
        return self(self.offsets[start:, start:])

    def pair(self, num_tokens: int) -> Float[Tensor, "depth heads tokens tokens"]:
        """The same for a text of ``num_tokens`` followed by an image."""
        queries = self._without_padding(self.offsets, num_tokens, 0)
        return self(self._without_padding(queries, num_tokens, 1))

    def forward(
        self, offsets: Int64[Tensor, "queries keys"]
    ) -> Float[Tensor, "depth heads queries keys"]:
        """Look up one row of the table for each query and key."""
        bias = F.embedding(offsets, self.table)
        return rearrange(bias, "q k (depth heads) -> depth heads q k", depth=self.depth)

    @torch.no_grad()
    def resize(self, grid: Grid) -> RelativePositionBias:
        """Fit the rows of patches to another grid, in a new parameter; returns the module itself.

        See ``resize_offsets``; all other rows stay.
        """
        if grid != self.grid:
            table = resize_offsets(self.table, self.grid, grid)
            self.table = nn.Parameter(table, requires_grad=self.table.requires_grad)
            offsets = pair_offsets(grid, self.context_length, self.longest)
            self.offsets, self.grid = offsets.to(self.offsets.device), grid
        return self

    def _without_padding(self, offsets: Tensor, num_tokens: int, dim: int) -> Tensor:
        text, image = offsets.tensor_split([self.context_length], dim=dim)
        return torch.cat([text.narrow(dim, 0, num_tokens), image], dim=dim)

    def _num_rows(self, grid: Grid) -> int:
        text_rows = 2 * self.longest
        return num_patch_offsets(grid) + FIRST_TOKEN_ROWS + CROSS_ROWS + text_rows


def resize_offsets(
    table: Float[Tensor, "rows columns"], old_grid: Grid, new_grid: Grid
) -> Float[Tensor, "new_rows columns"]:
    """Interpolate the rows of patch offsets, which come first; the rows after them stay (BEiT).

    The old offsets are spread over the new range in geometric steps, so that small offsets, which
    matter most, stay about where they are; a cubic spline through them gives the new ones. Grids
    must be squares of at least 3 x 3, else ValueError.
    """
    for grid in (old_grid, new_grid):
        if grid[0] != grid[1] or grid[0] < 3:
            raise ValueError(f"grids must be squares of at least 3 x 3 patches, got {grid}")
    old, new = 2 * old_grid[0] - 1, 2 * new_grid[0] - 1
    patches, others = table.tensor_split([old * old])
    matrix = _spline_matrix(_geometric_offsets(old // 2, new // 2), torch.arange(new) - new // 2)
    square = rearrange(patches.double(), "(h w) columns -> columns h w", h=old)
    square = matrix.to(table.device) @ square @ matrix.T.to(table.device)
    patches = rearrange(square, "columns h w -> (h w) columns").to(table.dtype)
    return torch.cat([patches, others])


def _geometric_offsets(steps: int, reach: int) -> Float[Tensor, " offsets"]:
    """``-reach ... -1, 0, 1, ... reach``, each step longer than the last by the same factor."""
    low, high = 1.01, 1.5
    while high - low > 1e-6:
        factor = (low + high) / 2
        too_far = (1 - factor**steps) / (1 - factor) > reach
        low, high = (low, factor) if too_far else (factor, high)
    ahead = (factor ** torch.arange(steps, dtype=torch.float64)).cumsum(0)
    return torch.cat([-ahead.flip(0), ahead.new_zeros(1), ahead])


def _spline_matrix(
    x: Float[Tensor, " known"], at: Int64[Tensor, " wanted"]
) -> Float[Tensor, "wanted known"]:
    """Values at ``x`` times this: the not-a-knot cubic spline through them, read at ``at``.

    Beyond the ends the spline keeps its last value.
    """
    knots = torch.cat([x[:1].expand(4), x[2:-2], x[-1:].expand(4)])
    wanted = at.to(x).clamp(x[0], x[-1])
    return torch.linalg.solve(_cubic_basis(x, knots).T, _cubic_basis(wanted, knots).T).T


def _cubic_basis(
    at: Float[Tensor, " points"], knots: Float[Tensor, " knots"]
) -> Float[Tensor, "points functions"]:
    """All cubic B-splines at some points, by de Boor's recursion."""
    at = at[:, None]
    basis = ((knots[:-1] <= at) & (at < knots[1:])).to(at.dtype)
    basis[at[:, 0] == knots[-1], len(knots) - 5] = 1.0
    for degree in range(1, 4):
        width = knots[degree:] - knots[:-degree]
        slope = torch.where(width > 0, 1 / width.clamp_min(1e-12), 0.0)
        rising = (at - knots[: -degree - 1]) * slope[:-1]
        falling = (knots[degree + 1 :] - at) * slope[1:]
        basis = rising * basis[:, :-1] + falling * basis[:, 1:]
    return basis
