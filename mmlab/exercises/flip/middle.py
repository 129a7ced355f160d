"""FLIP, two exercises in the middle: dropping with gather, and MAE's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake
from mmlab.exercises.seeded import random
from mmlab.models.mae import reconstruction_loss as official
from mmlab.nn import keep_patches

# ---------------------------------------------------------------------------------- 3: drop patches


def drop_patches(tokens: Tensor, noise: Tensor, num_kept: int) -> Tensor:
    """The class token, then the ``num_kept`` patches with the least noise, least first."""
    return keep_patches(tokens, noise.argsort(dim=1)[:, :num_kept], num_prefix_tokens=1)


def _take(tokens: Tensor, places: Tensor) -> Tensor:
    rows = torch.arange(len(tokens))[:, None]
    return torch.cat([tokens[:, :1], tokens[rows, places]], dim=1)


def _ranks(tokens: Tensor, noise: Tensor, num_kept: int) -> Tensor:
    ranks = noise.argsort(dim=1).argsort(dim=1)
    return _take(tokens, 1 + ranks[:, :num_kept])


def _zeroed(tokens: Tensor, noise: Tensor, num_kept: int) -> Tensor:
    kept = noise.argsort(dim=1).argsort(dim=1) < num_kept
    return torch.cat([tokens[:, :1], tokens[:, 1:] * kept[..., None]], dim=1)


DROP = FunctionExercise(
    title="Drop patches",
    solution=drop_patches,
    cases=(
        Case((random(1, 5, 2), random(1, 4), 2)),
        Case((random(3, 10, 4), random(3, 9), 3)),
    ),
    mistakes=(
        Mistake(
            lambda tokens, noise, k: drop_patches(tokens, noise, k)[:, 1:],
            "The class token is missing. It stands in front and is never dropped.",
        ),
        Mistake(
            lambda tokens, noise, k: _take(tokens, noise.argsort(dim=1)[:, :k]),
            "You are off by one: `noise` counts the patches from 0, `tokens` has the class token "
            "there. Split it off first.",
        ),
        Mistake(
            lambda tokens, noise, k: drop_patches(tokens, -noise, k),
            "You keep the patches with the *most* noise.",
        ),
        Mistake(
            lambda tokens, noise, k: _take(tokens, 1 + noise.argsort(1)[:, :k].sort(1).values),
            "The right patches in another order. Keep the order of their noise, the least first.",
        ),
        Mistake(
            _ranks,
            "You take the ranks for places. One `argsort` gives the places in order of their "
            "noise; the second turns it into ranks.",
        ),
        Mistake(
            _zeroed,
            "You set dropped patches to zero, but they are still there, and are paid for. The "
            "result should have `num_kept` + 1 tokens.",
        ),
        Mistake(
            lambda tokens, noise, k: _take(
                tokens, 1 + noise[:1].argsort(1)[:, :k].expand(len(tokens), -1)
            ),
            "All pictures drop the same patches. Each row of `noise` is for a picture of its own.",
        ),
        Mistake(
            lambda tokens, noise, k: drop_patches(tokens, noise, noise.shape[1] - k),
            "You keep as many as should be dropped.",
        ),
    ),
    shown="The class token and the patches with the least noise, another choice for each picture.",
)

# ------------------------------------------------------------------------------------ 4: MAE's loss


def mae_loss(predictions: Tensor, patches: Tensor, removed: Tensor) -> Tensor:
    """``norm_pix`` and the mean over the removed patches."""
    return official(predictions, _normalised(patches), removed)


def _normalised(patches: Tensor, unbiased: bool = True) -> Tensor:
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True, correction=int(unbiased))
    return (patches - mean) / (variance + 1e-6).sqrt()


def _deviation(patches: Tensor) -> Tensor:
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6)


def _whole_picture(patches: Tensor) -> Tensor:
    variance, mean = torch.var_mean(patches, dim=(1, 2), keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


_CASE_A = (random(1, 4, 6), random(1, 4, 6), torch.tensor([[True, False, True, False]]))
_CASE_B = (random(3, 8, 12), 4 * random(3, 8, 12) + 2, random(3, 8) < 0.7)

REBUILD = FunctionExercise(
    title="MAE's loss",
    solution=mae_loss,
    cases=(Case(_CASE_A), Case(_CASE_B)),
    mistakes=(
        Mistake(
            lambda p, x, r: official(p, _normalised(x), torch.ones_like(r)),
            "You average over all patches. Only the removed ones count: to copy what it saw "
            "should teach the model nothing.",
        ),
        Mistake(
            lambda p, x, r: official(p, _normalised(x), ~r),
            "You average over the patches that the encoder saw. `removed` is True where a patch "
            "was dropped.",
        ),
        Mistake(
            lambda p, x, r: ((p - _normalised(x)).square().mean(-1) * r).mean(),
            "You set the seen patches to zero and then divide by all N. Divide by the number of "
            "removed ones.",
        ),
        Mistake(
            lambda p, x, r: official(p, x, r),
            "The patches are not normalised. Take off each patch's mean and divide by its "
            "deviation first.",
        ),
        Mistake(
            lambda p, x, r: official(p, _normalised(x, unbiased=False), r),
            "Your variance divides by n. The code's is the unbiased one and divides by n - 1, as "
            "`torch.var` does.",
        ),
        Mistake(
            lambda p, x, r: official(p, _deviation(x), r),
            "You divide by the variance. Divide by its root.",
        ),
        Mistake(
            lambda p, x, r: official(p, _whole_picture(x), r),
            "You normalise each picture as a whole. `norm_pix` normalises each patch by itself.",
        ),
        Mistake(
            lambda p, x, r: (p - _normalised(x)).abs().mean(-1)[r].mean(),
            "That is the mean absolute error. MAE's is squared.",
        ),
    ),
    shown="Each patch is normalised by itself, and only the removed ones count.",
)
