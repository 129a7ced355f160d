"""FLIP, two easy exercises: the tokens that are encoded, and what they cost."""

from __future__ import annotations

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake, ValueExercise
from mmlab.models.flip import FLIP_L_16

# ------------------------------------------------------------------------------ 1: encoded tokens


def encoded_tokens(image_size: int, patch_size: int, mask_ratio: float | int) -> int:
    """``int(N (1 - r)) + 1``."""
    return int((image_size // patch_size) ** 2 * (1 - mask_ratio)) + 1


KEPT = FunctionExercise(
    title="How many tokens are encoded?",
    solution=encoded_tokens,
    cases=(
        Case((32, 8, 0.75)),
        Case((224, 16, 0.5)),
        Case((224, 16, 0.0)),
        Case((224, 16, 0.9)),
        Case((224, 14, 0.6)),
    ),
    mistakes=(
        Mistake(
            lambda size, p, r: encoded_tokens(size, p, r) - 1,
            "These are the patches that stay. The class token is encoded too, and never dropped.",
        ),
        Mistake(
            lambda size, p, r: int((size // p) ** 2 * r) + 1,
            "You count the patches that are dropped. The ratio is the share that goes, so the "
            "share that stays is 1 - r.",
        ),
        Mistake(
            lambda size, p, r: (size // p) ** 2 + 1,
            "That is the unmasked model. Dropped patches leave the sequence; the encoder never "
            "sees them.",
        ),
        Mistake(
            lambda size, p, r: int(size // p * (1 - r)) + 1,
            "You count one row of patches. A square picture has as many rows as columns.",
        ),
        Mistake(
            lambda size, p, r: round((size // p) ** 2 * (1 - r)) + 1,
            "You round. MAE's code and FLIP's cut to a whole number with `int`: of 196 patches at "
            "90 % stay 19, not 20.",
        ),
    ),
    shown=(
        f"ViT-L/16 at 224 pixels encodes {encoded_tokens(224, 16, 0.0)} tokens unmasked, "
        f"{encoded_tokens(224, 16, 0.5)} at 50 % and {encoded_tokens(224, 16, 0.75)} at 75 %."
    ),
)

# ------------------------------------------------------------------------------ 2: what they cost

_D, _TOKENS, _ALL = FLIP_L_16.dim, 50, 197


def _block(tokens: int) -> int:
    return 12 * tokens * _D**2 + 2 * tokens**2 * _D


_SHARE = _block(_TOKENS) / _block(_ALL)
_LINEAR = _TOKENS / _ALL

COMPUTE = ValueExercise(
    title="What does a block save?",
    solution=_SHARE,
    mistakes=(
        (
            _LINEAR,
            "That holds for the linear layers. Attention falls with the square of the tokens: the "
            "second term of the formula.",
        ),
        (
            _LINEAR**2,
            "That is the attention alone. Most of a block is linear layers, which fall with the "
            "tokens, not with their square.",
        ),
        (
            0.25,
            "About right, and not exact: the class token is never dropped, and attention falls "
            "faster than the tokens. Use the formula with 50 and 197.",
        ),
        (
            _block(49) / _block(196),
            "You forgot the class token: 50 tokens in place of 197.",
        ),
        (
            1 - _SHARE,
            "That is the share that is saved. Asked is the share that is left to pay.",
        ),
        (
            1 / _SHARE,
            "That says how many times more the unmasked block costs. Turn the fraction over.",
        ),
        (
            100 * _SHARE,
            "That is a percentage. Give the fraction, a number between 0 and 1.",
        ),
    ),
    shown=(
        f"A block pays {_SHARE:.4f} of what it paid, a little less than the tokens' share "
        f"{_LINEAR:.4f}: attention falls with their square."
    ),
)
