"""ViT, two hard exercises: how far a head looks, and attention rollout."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

from mmlab.analysis.distance import attention_distance as mean_distance
from mmlab.analysis.distance import patch_distances
from mmlab.analysis.rollout import attention_rollout
from mmlab.exercises.kinds import Case, FunctionExercise, Mistake
from mmlab.exercises.seeded import SEED, random
from mmlab.nn import Grid

# -------------------------------------------------------------------------- 7: how far a head looks


def attention_distance(A: Tensor, grid: Grid, patch_size: int) -> Tensor:
    """One number in pixels for one head."""
    return mean_distance(A[None, None], grid, patch_size)[0, 0]


def _between(A: Tensor) -> Tensor:
    """The weights among patches, each row scaled to sum to 1."""
    patches = A[1:, 1:]
    return patches / patches.sum(-1, keepdim=True)


def _manhattan(grid: Grid, patch_size: int) -> Tensor:
    centres = torch.cartesian_prod(*(torch.arange(float(side)) for side in grid)) * patch_size
    return torch.cdist(centres, centres, p=1)


def _mean(weights: Tensor, distances: Tensor) -> Tensor:
    return (weights * distances).sum(-1).mean()


def _without_self(A: Tensor, distances: Tensor) -> Tensor:
    weights = A[1:, 1:] * (distances > 0)
    return _mean(weights / weights.sum(-1, keepdim=True), distances)


DISTANCE = FunctionExercise(
    title="How far does a head look?",
    solution=attention_distance,
    cases=(
        Case(
            (random(7, 7).softmax(-1), (2, 3), 16),
            f"attention_distance(torch.randn(7, 7, {SEED}).softmax(-1), (2, 3), 16)",
        ),
        Case(
            (torch.full((197, 197), 1 / 197), (14, 14), 16),
            "attention_distance(torch.full((197, 197), 1 / 197), (14, 14), 16)",
        ),
    ),
    mistakes=(
        Mistake(
            lambda A, grid, p: _mean(_between(A), patch_distances(grid, 1)),
            "This is a distance in patches. In pixels it is P times as long.",
        ),
        Mistake(
            lambda A, grid, p: _mean(A[1:, 1:], patch_distances(grid, p)),
            "Without the class token's column the rows no longer sum to 1, so what goes to the "
            "class token counts as distance 0. Divide each row by its sum.",
        ),
        Mistake(
            lambda A, grid, p: (A[1:, 1:] * patch_distances(grid, p)).sum() / A[1:, 1:].sum(),
            "You divide by the sum of all weights, so a patch that looks much at the class token "
            "counts less. Divide each row by its own sum, then average the rows.",
        ),
        Mistake(
            lambda A, grid, p: patch_distances(grid, p).mean(),
            "The weights play no part: this is the mean distance between patches, which every head "
            "shares. Weight each distance by A.",
        ),
        Mistake(
            lambda A, grid, p: _mean(_between(A), _manhattan(grid, p)),
            "You add the steps along rows and columns. The distance here is the straight line, the "
            "root of the sum of squares.",
        ),
        Mistake(
            lambda A, grid, p: _mean(_between(A), patch_distances(grid, p) ** 2),
            "This is the mean of squared distances; the root is missing.",
        ),
        Mistake(
            lambda A, grid, p: _mean(_between(A.T), patch_distances(grid, p)),
            "You normalise the columns of A. Row i says where token i looks.",
        ),
        Mistake(
            lambda A, grid, p: _mean(_between(A.roll((1, 1), (0, 1))), patch_distances(grid, p)),
            "You drop the last token. The class token is the first.",
        ),
        Mistake(
            lambda A, grid, p: _mean(_between(A), patch_distances(grid[::-1], p)),
            "You exchange rows and columns of the grid: `grid` is (rows, columns), and the "
            "patches run row by row.",
        ),
        Mistake(
            lambda A, grid, p: _without_self(A, patch_distances(grid, p)),
            "You leave out the patch itself. That is a convention too; here it counts, at "
            "distance 0.",
        ),
        Mistake(
            lambda A, grid, p: (_between(A) * patch_distances(grid, p)).sum(-1),
            "One distance for each patch: right so far. The head's is their mean.",
        ),
        Mistake(
            lambda A, grid, p: (_between(A) * patch_distances(grid, p)).mean(),
            "You average over the keys. The weights of a row sum to 1 already: sum over the keys, "
            "then average over the queries.",
        ),
        Mistake(
            lambda A, grid, p: (_between(A) * patch_distances(grid, p)).sum(),
            "You sum over the queries too. Sum over the keys, then average over the queries.",
        ),
    ),
    shown=(
        "A head that looks everywhere alike on 14 × 14 patches of 16 pixels has a distance of "
        f"{mean_distance(torch.full((1, 1, 197, 197), 1 / 197), (14, 14), 16).item():.1f} pixels, "
        "and your function finds it."
    ),
)

# --------------------------------------------------------------------------------------- 8: rollout


def rollout(maps: list[Tensor]) -> Tensor:
    """One image: maps of (heads, T, T), the first layer first."""
    return attention_rollout([weights[None] for weights in maps])[0]


def _fused(maps: list[Tensor], skip: float = 0.5, fuse=torch.mean) -> list[Tensor]:
    """Each layer as one matrix, with ``skip`` of the identity."""
    identity = torch.eye(maps[0].shape[-1])
    return [(1 - skip) * fuse(layer, dim=0) + skip * identity for layer in maps]


def _product(layers: list[Tensor]) -> Tensor:
    return reduce(lambda before, layer: layer @ before, layers)


def _largest(layer: Tensor, dim: int) -> Tensor:
    return layer.amax(dim)


def _largest_normalised(layer: Tensor, dim: int) -> Tensor:
    return layer.amax(dim) / layer.amax(dim).sum(-1, keepdim=True)


_MAXIMUM = "You take the largest of the heads. The paper takes their mean."
ROLLOUT = FunctionExercise(
    title="What reaches the class token?",
    solution=rollout,
    cases=(
        Case(
            (list(random(2, 2, 3, 3).softmax(-1)),),
            f"rollout(list(torch.randn(2, 2, 3, 3, {SEED}).softmax(-1)))",
        ),
        Case(
            (list(random(4, 3, 10, 10).softmax(-1)),),
            f"rollout(list(torch.randn(4, 3, 10, 10, {SEED}).softmax(-1)))",
        ),
    ),
    mistakes=(
        Mistake(
            lambda maps: _product(_fused(maps, skip=0.0)),
            "The skip connection is missing: half of each token comes from the token itself, "
            "(A + I) / 2.",
        ),
        Mistake(
            lambda maps: _product(_fused(maps)[::-1]),
            "You multiply in the wrong order. The first layer acts first, so it stands on the "
            "right: the layer's matrix times the rollout so far.",
        ),
        Mistake(
            lambda maps: _product([2 * layer for layer in _fused(maps)]),
            "You add I without halving, so the rows grow with every layer. (A + I) / 2 keeps their "
            "sum at 1.",
        ),
        Mistake(lambda maps: _product(_fused(maps, fuse=_largest)), _MAXIMUM),
        Mistake(lambda maps: _product(_fused(maps, fuse=_largest_normalised)), _MAXIMUM),
        Mistake(
            lambda maps: _product(_fused(maps, fuse=torch.sum)),
            "You sum the heads; take their mean, so that rows still sum to 1.",
        ),
        Mistake(
            lambda maps: sum(_fused(maps)) / len(maps),
            "You average the layers. What layer 2 reads is what layer 1 wrote, so the matrices are "
            "multiplied.",
        ),
        Mistake(
            lambda maps: reduce(torch.mul, _fused(maps)),
            "You multiply entry by entry (`*`). Paths through the layers add up in a matrix "
            "product: `@`.",
        ),
        Mistake(
            lambda maps: _fused(maps)[-1],
            "This is the last layer alone. Its inputs are mixtures already: multiply by the layers "
            "before it.",
        ),
        Mistake(
            lambda maps: _product(_fused(maps))[0],
            "That is row 0, the class token's. The exercise asks for all rows.",
        ),
        Mistake(
            lambda maps: (
                0.5 * _product(_fused(maps, skip=0.0)) + 0.5 * torch.eye(maps[0].shape[-1])
            ),
            "You add the skip connection once, at the end. Every layer has one: put it in before "
            "you multiply.",
        ),
    ),
    shown="Every row sums to 1, and the skip connections and the order of the layers are right.",
)
