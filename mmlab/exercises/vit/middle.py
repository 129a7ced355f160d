"""ViT, three exercises in the middle: patchify, attention with a mask, positions resized."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake
from mmlab.exercises.seeded import SEED, random
from mmlab.nn import Grid, interpolate_positions
from mmlab.nn import patchify as cut

# -------------------------------------------------------------------------------------- 4: patchify


def patchify(images: Tensor, patch_size: int) -> Tensor:
    """``mmlab.nn.patchify``."""
    return cut(images, patch_size)


def _cut_as(values: str, images: Tensor, patch_size: int) -> Tensor:
    """Patches whose rows of the result are ordered as the einops pattern ``values`` says."""
    return rearrange(images, f"b c (r p) (k q) -> {values}", p=patch_size, q=patch_size)


_SCRAMBLED = (
    "You only reshape. That takes values that lie side by side in memory: pieces of pixel rows, "
    "not squares. Split the height into (rows, P) and the width into (columns, P), then permute."
)
_COLUMNS_FIRST = (
    "Your patches go down the columns. They are counted row by row, as one reads: the rows of "
    "patches come before the columns."
)
PATCHIFY = FunctionExercise(
    title="Cut a picture",
    solution=patchify,
    cases=(
        Case(
            (torch.arange(48.0).view(1, 2, 4, 6), 2),
            "patchify(torch.arange(48.0).view(1, 2, 4, 6), 2)",
        ),
        Case((random(2, 3, 32, 48), 16), f"patchify(torch.randn(2, 3, 32, 48, {SEED}), 16)"),
    ),
    mistakes=(
        Mistake(partial(_cut_as, "b (k r) (c p q)"), _COLUMNS_FIRST),
        Mistake(partial(_cut_as, "b (k r) (p q c)"), _COLUMNS_FIRST),
        Mistake(
            partial(_cut_as, "b (r k) (p q c)"),
            "The patches are right, the order inside is (row, column, channel). Here it is "
            "(channel, row, column), as in the weight of a convolution.",
        ),
        Mistake(
            partial(_cut_as, "b (r k) (c q p)"),
            "Each patch lies on its side: inside it, the pixel rows come before the pixel columns.",
        ),
        Mistake(
            partial(_cut_as, "b (r k) c p q"),
            "The squares are right. One reshape is missing: flatten each of them into a row of 3P² "
            "values.",
        ),
        Mistake(
            partial(_cut_as, "b r k (c p q)"),
            "The patches still stand in a grid. Flatten rows and columns into one axis of N "
            "patches.",
        ),
        Mistake(
            partial(_cut_as, "b (c r k) (p q)"),
            "You made one patch for each channel. A patch holds all channels: permute the channels "
            "behind rows and columns first.",
        ),
        Mistake(
            lambda x, p: x.reshape(x.shape[0], -1, x.shape[1] * p * p),
            _SCRAMBLED,
        ),
        Mistake(
            lambda x, p: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, x.shape[1] * p * p),
            _SCRAMBLED,
        ),
    ),
    shown="Every pixel is in its place, also when the picture is not square.",
)

# ------------------------------------------------------------------------- 5: attention with a mask


def attention(queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """PyTorch's fused kernel, as an independent judge."""
    return F.scaled_dot_product_attention(queries, keys, values, mask)


def _scores(queries: Tensor, keys: Tensor) -> Tensor:
    return queries @ keys.mT / queries.shape[-1] ** 0.5


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float = 1.0, dim: int = -1):
    """Attention with the scores times ``scale`` and the softmax over ``dim``."""
    scores = (scale * _scores(q, k)).masked_fill(~mask, -torch.inf)
    return scores.softmax(dim).nan_to_num() @ v


# In each row something is seen and something hidden, so that the opposite mask gives no NaN.
_MASK = torch.tensor([[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]]).bool()
_PADDING = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()[:, None, None]
_INVERTED = (
    "Your mask works the other way round: True means that the query may look at the key, so -inf "
    "goes where the mask is False."
)
_WRONG_AXIS = (
    "Your softmax runs over the queries, so each key shares itself out. Each query shares out its "
    "attention over the keys: the last axis of the scores."
)
ATTENTION = FunctionExercise(
    title="Attend, but not everywhere",
    solution=attention,
    cases=(
        Case(
            (*random(3, 1, 2, 3, 4), _MASK),
            f"q, k, v = torch.randn(3, 1, 2, 3, 4, {SEED})\n"
            "mask = torch.tensor([[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]]).bool()\n"
            "attention(q, k, v, mask)",
        ),
        Case(
            (random(2, 2, 3, 8), *random(2, 2, 2, 5, 8), _PADDING),
            f"q = torch.randn(2, 2, 3, 8, {SEED})\n"
            f"k, v = torch.randn(2, 2, 2, 5, 8, {SEED})\n"
            "mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()[:, None, None]\n"
            "attention(q, k, v, mask)",
        ),
    ),
    mistakes=(
        Mistake(
            lambda q, k, v, m: _attend(q, k, v, torch.ones_like(m)),
            "The mask has no effect: every query sees every key.",
        ),
        Mistake(
            lambda q, k, v, m: _attend(q, k, v, torch.ones_like(m), scale=q.shape[-1] ** 0.5),
            "Two things are missing: the mask has no effect, and the scores are not divided by √d.",
        ),
        Mistake(lambda q, k, v, m: _attend(q, k, v, ~m), _INVERTED),
        Mistake(
            lambda q, k, v, m: _attend(q, k, v, m, scale=q.shape[-1] ** 0.5),
            "The scores are not divided by √d; without it the softmax grows hard as heads grow "
            "wide.",
        ),
        Mistake(
            lambda q, k, v, m: _attend(q, k, v, m, scale=q.shape[-1] ** -0.5),
            "You divide by d. A sum of d products has variance d, so its spread is √d: divide by "
            "that.",
        ),
        Mistake(
            lambda q, k, v, m: _attend(q, k, v, m, scale=q.shape[1] ** -0.5),
            "You divide by √D, the width of all heads together. Each head is only d = D / h wide.",
        ),
        Mistake(
            lambda q, k, v, m: _attend(q, k, v, m, scale=float(q.shape[-1])),
            "You multiply by √d; the scores are divided by it.",
        ),
        Mistake(lambda q, k, v, m: _attend(q, k, v, m, dim=-2), _WRONG_AXIS),
        Mistake(lambda q, k, v, m: (_scores(q, k).softmax(-2) * m) @ v, _WRONG_AXIS),
        Mistake(
            lambda q, k, v, m: _attend(q, k, v, m, dim=1),
            "Your softmax runs over the heads, axis 1. Each query shares out its attention over "
            "the keys: the last axis of the scores.",
        ),
        Mistake(
            lambda q, k, v, m: (_scores(q, k) * m).softmax(-1) @ v,
            "You set hidden scores to 0, and e⁰ = 1 is a weight like any other. Set them to -inf "
            "before the softmax.",
        ),
        Mistake(
            lambda q, k, v, m: (_scores(q, k).softmax(-1) * m) @ v,
            "You mask after the softmax, so the weights of a row no longer sum to 1. Set hidden "
            "scores to -inf before it.",
        ),
        Mistake(
            lambda q, k, v, m: _scores(q, k).masked_fill(~m, -torch.inf).softmax(-1),
            "These are the weights A. One step is missing: use them to mix the values, A v.",
        ),
        Mistake(
            lambda q, k, v, m: _scores(q, k).masked_fill(~m, 0) @ v,
            "There is no softmax: the scores must become weights that sum to 1 in each row.",
        ),
    ),
    shown=(
        "It agrees with PyTorch's fused kernel to four digits, with a mask for each query and with "
        "padding that nobody sees."
    ),
)

# ---------------------------------------------------------------- 6: positions for a larger picture


def resize_positions(table: Tensor, old_grid: Grid, new_grid: Grid) -> Tensor:
    """DeiT's variant: bicubic, corners not aligned, the class token's row kept."""
    return interpolate_positions(table, old_grid, new_grid, "bicubic")


def _stretch(rows: Tensor, old: Grid, new: Grid, align: bool | None = False, mode: str = "bicubic"):
    """The rows of the patches alone, stretched."""
    image = rearrange(rows, "1 (h w) d -> 1 d h w", h=old[0])
    image = F.interpolate(image, size=new, mode=mode, align_corners=align)
    return rearrange(image, "1 d h w -> 1 (h w) d")


def _keep_class(table: Tensor, rows: Tensor) -> Tensor:
    return torch.cat([table[:, :1], rows], dim=1)


def _unpermuted(table: Tensor, old: Grid, new: Grid) -> Tensor:
    """Reshapes (N, D) to (D, h, w) without moving D to the front."""
    image = table[:, 1:].reshape(1, table.shape[-1], *old)
    image = F.interpolate(image, size=new, mode="bicubic")
    return _keep_class(table, image.reshape(1, -1, table.shape[-1]))


def _one_dimensional(table: Tensor, old: Grid, new: Grid, prefix: int = 0) -> Tensor:
    """Stretches the sequence as a line, all of it or from row ``prefix`` on."""
    size = 1 - prefix + new[0] * new[1]
    line = F.interpolate(table[:, prefix:].mT, size=size, mode="linear").mT
    return torch.cat([table[:, :prefix], line], dim=1)


_ON_A_LINE = (
    "You stretch the table along the sequence, as a line. Neighbours in the sequence are "
    "neighbours in the picture only within a row: give the patch rows their grid back, (1, D, "
    "rows, columns)."
)
_TRANSPOSED = (
    "You exchange rows and columns of the old grid: `old_grid` is (rows, columns), and the table "
    "runs row by row."
)
POSITIONS = FunctionExercise(
    title="New positions for a larger picture",
    solution=resize_positions,
    cases=(
        Case(
            (torch.arange(14.0).view(1, 7, 2).sin(), (2, 3), (4, 5)),
            "resize_positions(torch.arange(14.0).view(1, 7, 2).sin(), (2, 3), (4, 5))",
        ),
        Case(
            (random(1, 197, 8), (14, 14), (24, 24)),
            f"resize_positions(torch.randn(1, 197, 8, {SEED}), (14, 14), (24, 24))",
        ),
    ),
    mistakes=(
        Mistake(
            lambda t, old, new: _stretch(t[:, 1:], old, new),
            "The class token's row is missing. It has no place in the picture, so it is kept as "
            "it is, in front.",
        ),
        Mistake(
            lambda t, old, new: torch.cat([_stretch(t[:, 1:], old, new), t[:, :1]], dim=1),
            "The class token's row stands at the end; it belongs in front, row 0.",
        ),
        Mistake(
            _one_dimensional, "The class token's row was stretched with the others. " + _ON_A_LINE
        ),
        Mistake(partial(_one_dimensional, prefix=1), _ON_A_LINE),
        Mistake(
            lambda t, old, new: _keep_class(t, _stretch(t[:, 1:], old, new, True, "bilinear")),
            "That is Google's variant, bilinear with aligned corners. The exercise asks for "
            "DeiT's, bicubic without; the two do not give the same table.",
        ),
        Mistake(
            lambda t, old, new: _keep_class(t, _stretch(t[:, 1:], old, new, False, "bilinear")),
            'You interpolate linearly (`mode="bilinear"`); DeiT\'s code does it with '
            '`mode="bicubic"`.',
        ),
        Mistake(
            lambda t, old, new: _keep_class(t, _stretch(t[:, 1:], old, new, None, "nearest")),
            "You repeat the nearest row, which is what `F.interpolate` does unless `mode` says "
            '`"bicubic"`.',
        ),
        Mistake(
            lambda t, old, new: _keep_class(t, _stretch(t[:, 1:], old, new, True)),
            "Bicubic, but with `align_corners=True`. DeiT's code leaves it False: the edges of "
            "the two grids meet, not the centres of their corner patches.",
        ),
        Mistake(
            _unpermuted,
            "You reshape (N, D) to (D, rows, columns) without a permute, so entries of one vector "
            "land in different patches. Reshape to (rows, columns, D), then permute D to the "
            "front, and back afterwards.",
        ),
        Mistake(
            lambda t, old, new: _keep_class(t, _stretch(t[:, 1:], old[::-1], new)), _TRANSPOSED
        ),
        Mistake(
            lambda t, old, new: _keep_class(t, _stretch(t[:, 1:], old[::-1], new[::-1])),
            _TRANSPOSED,
        ),
    ),
    shown="The class token's row is untouched, the others follow the picture, as in DeiT's code.",
)
