"""ViT, three easy exercises: the tokens, what a larger picture must learn, drop path."""

from __future__ import annotations

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake, ValueExercise
from mmlab.models.vit import VIT_B_16

# ------------------------------------------------------------------------------------ 1: the tokens


def num_tokens(height: int, width: int, patch_size: int, num_prefix_tokens: int) -> int:
    """``T = (H / P)(W / P)`` and the learned tokens in front."""
    return (height // patch_size) * (width // patch_size) + num_prefix_tokens


TOKENS = FunctionExercise(
    title="How many tokens?",
    solution=num_tokens,
    cases=(Case((48, 80, 16, 2)), Case((224, 224, 16, 1)), Case((518, 518, 14, 5))),
    mistakes=(
        Mistake(
            lambda h, w, p, t: num_tokens(h, w, p, 0),
            "These are the patches. The learned tokens in front of them (class, distillation, "
            "registers) are tokens too.",
        ),
        Mistake(
            lambda h, w, p, t: num_tokens(h, w, p, 1),
            "You add one class token whatever `num_prefix_tokens` says. DeiT has two learned "
            "tokens, a ViT with registers more.",
        ),
        Mistake(
            lambda h, w, p, t: p * p,
            "P × P is the size of one patch in pixels, not how many patches there are.",
        ),
        Mistake(
            lambda h, w, p, t: p * p + t,
            "P × P is the size of one patch in pixels, not how many patches there are.",
        ),
        Mistake(
            lambda h, w, p, t: num_tokens(h, h, p, t),
            "You take the picture for a square and use its height twice. A row holds W / P "
            "patches.",
        ),
        Mistake(
            lambda h, w, p, t: num_tokens(w, w, p, t),
            "You take the picture for a square and use its width twice. There are H / P rows.",
        ),
        Mistake(
            lambda h, w, p, t: h * w // p + t,
            "You divide by P once. A patch has P pixels in each of the two directions, so a "
            "picture has H·W / P² patches.",
        ),
        Mistake(
            lambda h, w, p, t: h // p + w // p + t,
            "You add rows and columns. Patches fill the rectangle: multiply the two.",
        ),
        Mistake(
            lambda h, w, p, t: 3 * num_tokens(h, w, p, 0) + t,
            "You count each patch three times, once a colour. One patch holds all three channels.",
        ),
    ),
    shown=(
        f"A picture of 224 × 224 pixels in patches of 16 is {num_tokens(224, 224, 16, 1)} tokens, "
        f"one of 518 × 518 in patches of 14, with a class token and four registers, "
        f"{num_tokens(518, 518, 14, 5):,}; your function counts both, and pictures that are not "
        "square."
    ),
)

# -------------------------------------------------------------- 2: what a larger picture must learn

_D = VIT_B_16.dim
_OLD_PATCHES, _NEW_PATCHES = (224 // 16) ** 2, (384 // 16) ** 2
_NEW_ROWS = (_NEW_PATCHES - _OLD_PATCHES) * _D
_HEAD = _D * 1000 + 1000
# ViT-B/16 without a head: tests/models/test_vit.py holds the model to it.
_BEFORE = 85_798_656
_ADDED = _NEW_ROWS + 2 * _D

LARGER = ValueExercise(
    title="What does a larger picture cost in parameters?",
    solution=_ADDED,
    mistakes=(
        (
            _NEW_ROWS + _D,
            "You are D = 768 short. The distillation token brings two vectors: the token itself, "
            "and its own row in E_pos.",
        ),
        (
            _NEW_ROWS,
            "These are the positions of the new patches, and they are right. The distillation "
            "token is missing: the token itself, and its own row in E_pos.",
        ),
        (
            2 * _D,
            "That is the distillation token. But the picture has more patches now, and each has "
            "its own row in E_pos.",
        ),
        (
            _D,
            "That is the distillation token alone. It has a row in E_pos too, and so has every new "
            "patch.",
        ),
        (
            0,
            "The patch embedding and the blocks do not grow, that is true. E_pos does: it has one "
            "row for each token.",
        ),
        (
            (_NEW_PATCHES + 2) * _D + _D,
            "You count the whole new table of positions. 197 of its rows were there before.",
        ),
        (
            (_NEW_PATCHES + 2) * _D,
            "That is the whole new table of positions. 197 of its rows were there before; and the "
            "distillation token itself is missing.",
        ),
        (
            _ADDED + _HEAD,
            "You count the second head as well. The question leaves the heads aside.",
        ),
        (
            _BEFORE + _ADDED,
            "That is the whole model after the change. The question is what was added.",
        ),
        (
            _BEFORE * _NEW_PATCHES // _OLD_PATCHES,
            "You let all parameters grow with the number of patches. The blocks use the same "
            "weights for every token; only E_pos has a row for each.",
        ),
        (
            _ADDED // _D,
            "You count vectors. Each has D entries.",
        ),
    ),
    shown=(
        f"{_NEW_PATCHES - _OLD_PATCHES} rows of E_pos for the new patches, one for the "
        f"distillation token, and the token itself: {_ADDED:,} parameters, {_ADDED / _BEFORE:.1%} "
        "of the model. Blocks and patch embedding do not know how long the sequence is."
    ),
)

# ------------------------------------------------------------------------------------- 3: drop path


def drop_path_rates(rate: float, depth: int) -> list[float]:
    """From 0 in the first block to ``rate`` in the last."""
    return [rate * block / max(depth - 1, 1) for block in range(depth)]


DROP_PATH = FunctionExercise(
    title="Which block is skipped how often?",
    solution=drop_path_rates,
    cases=(Case((0.3, 4)), Case((0.1, 12)), Case((0.2, 1))),
    mistakes=(
        Mistake(
            lambda rate, depth: [rate * i / depth for i in range(depth)],
            "The last block never reaches `rate`: from 0 to `rate` there are L - 1 steps, not L.",
        ),
        Mistake(
            lambda rate, depth: [rate * (i + 1) / depth for i in range(depth)],
            "The first block is skipped too. Its rate should be 0: count the blocks from 0, in L "
            "- 1 steps.",
        ),
        Mistake(
            lambda rate, depth: [rate] * depth,
            "Every block has the same rate. It should rise: the first block prepares the tokens "
            "for all others and is never skipped.",
        ),
        Mistake(
            lambda rate, depth: drop_path_rates(rate, depth)[::-1],
            "The rates fall. It is the late blocks that are skipped most.",
        ),
        Mistake(
            lambda rate, depth: [1 - r for r in drop_path_rates(rate, depth)],
            "These are the probabilities to keep a block. Asked are those to skip it, 1 minus "
            "yours.",
        ),
        Mistake(
            lambda rate, depth: [rate * i / depth for i in range(depth + 1)],
            "These are L + 1 rates, and there are L blocks.",
        ),
        Mistake(
            lambda rate, depth: [rate * (i // max(depth - 1, 1)) for i in range(depth)],
            "`//` cuts the fraction off, so all blocks but the last have 0. Use `/`.",
        ),
        Mistake(
            lambda rate, depth: [rate * i / (depth - 1) for i in range(depth)],
            "Right for two blocks and more. A network of one block has L - 1 = 0 steps, and you "
            "divide by it: `max(depth - 1, 1)` helps.",
        ),
    ),
    shown="From 0 to the full rate in equal steps; a network of one block is never skipped.",
)
