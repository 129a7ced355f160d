"""FLIP, two hard exercises: every token back in its place, and spending what was saved."""

from __future__ import annotations

import torch
from torch import Tensor

from mmlab.analysis.cost import flip_image_macs, flip_text_macs
from mmlab.exercises.kinds import Case, FunctionExercise, Mistake
from mmlab.exercises.seeded import random
from mmlab.models.flip import FLIP_B_16, FLIP_L_16
from mmlab.nn import restore_patches

# ------------------------------------------------------------------------- 5: back in their places


def decoder_input(visible: Tensor, mask_token: Tensor, noise: Tensor) -> Tensor:
    """``restore_patches`` from the noise that dropped the patches."""
    restore = noise.argsort(dim=1).argsort(dim=1)
    return restore_patches(visible, mask_token[None, None], restore)


def _all(visible: Tensor, mask_token: Tensor, noise: Tensor) -> Tensor:
    """The visible tokens, then as many mask tokens as are missing."""
    missing = noise.shape[1] - visible.shape[1]
    return torch.cat([visible, mask_token.expand(len(visible), missing, -1)], dim=1)


def _placed(full: Tensor, places: Tensor) -> Tensor:
    return full[torch.arange(len(full))[:, None], places]


BACK = FunctionExercise(
    title="Back in their places",
    solution=decoder_input,
    cases=(
        Case((random(1, 2, 2), -random(2), torch.tensor([[0.2, 0.9, 0.7, 0.1, 0.4]]))),
        Case((random(3, 4, 5), -random(5), random(3, 9))),
    ),
    mistakes=(
        Mistake(
            _all,
            "The mask tokens stand behind the visible ones, not in the empty places. The position "
            "that is added next would belong to other patches.",
        ),
        Mistake(
            lambda v, m, u: _placed(_all(v, m, u), u.argsort(1)),
            "One `argsort` too few. It says which patch stands in which place; you need the "
            "inverse, in which place a patch stands.",
        ),
        Mistake(
            lambda v, m, u: decoder_input(v, 0 * m, u),
            "The empty places hold zeros. Put the mask token there, which is learned.",
        ),
        Mistake(
            lambda v, m, u: decoder_input(v, v.mean((0, 1)), u),
            "The empty places hold the mean of the visible tokens. Put the mask token there.",
        ),
        Mistake(
            lambda v, m, u: decoder_input(v, m, -u),
            "You put the visible tokens where the noise is largest. They are the patches with the "
            "least noise.",
        ),
        Mistake(
            lambda v, m, u: decoder_input(v, m, u[:1].expand_as(u)),
            "You use the first picture's noise for all. Each picture dropped other patches.",
        ),
        Mistake(
            lambda v, m, u: _all(v, m, u).roll(u.shape[1] - v.shape[1], 1),
            "The mask tokens stand in front of the visible ones, not in the empty places.",
        ),
    ),
    shown="Every visible token is in its own place, and the mask token in all others.",
)

# -------------------------------------------------------------------------- 6: spend what was saved


def affordable_batch(batch_size: int, image: int, masked_image: int, text: int) -> int:
    """Pairs a step for the multiply-adds of ``batch_size`` unmasked ones, rounded down."""
    return batch_size * (image + text) // (masked_image + text)


_L = (flip_image_macs(FLIP_L_16), flip_image_macs(FLIP_L_16, 0.75), flip_text_macs(FLIP_L_16))
_B = (flip_image_macs(FLIP_B_16), flip_image_macs(FLIP_B_16, 0.5), flip_text_macs(FLIP_B_16))

BATCH = FunctionExercise(
    title="Spend what was saved",
    solution=affordable_batch,
    cases=(Case((100, 90, 21, 10)), Case((16384, *_L)), Case((16384, *_B)), Case((64, 40, 40, 9))),
    mistakes=(
        Mistake(
            lambda b, i, m, t: b * i // m,
            "You forgot the text tower. It is small, but it is not masked, so it weighs the more "
            "the more patches are dropped.",
        ),
        Mistake(
            lambda b, i, m, t: b * (i + t) // m,
            "The masked pair has a text too, and pays for it in full.",
        ),
        Mistake(
            lambda b, i, m, t: b * i // (m + t),
            "The unmasked pair has a text too: it belongs to the budget.",
        ),
        Mistake(
            lambda b, i, m, t: b * (m + t) // (i + t),
            "Your batch shrinks. A cheaper pair means that more of them fit: turn the fraction "
            "over.",
        ),
        Mistake(
            lambda b, i, m, t: -(-b * (i + t) // (m + t)),
            "You round up, and the last pair goes beyond the budget.",
        ),
        Mistake(
            lambda b, i, m, t: b * (i + t) / (m + t),
            "A batch has whole pairs. Round down.",
        ),
        Mistake(
            lambda b, i, m, t: b * ((i + t) // (m + t)),
            "You round the ratio before you multiply. Multiply first, then round down once.",
        ),
        Mistake(
            lambda b, i, m, t: affordable_batch(b, i, m, t) - b,
            "These are the pairs that come on top. Asked is the whole batch.",
        ),
    ),
    shown=(
        f"ViT-L/16 at 75 % affords {affordable_batch(16384, *_L):,} pairs for the "
        "multiply-adds of 16,384. The paper took 65,536, which is more: it filled the memory, and "
        "had fewer steps."
    ),
)
