"""ViLT, three exercises in the middle: whole words, the mask of the row, the cost."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake
from mmlab.exercises.seeded import SEED, random

# --------------------------------------------------------------------------- 3: hide whole words


def hide_words(word_ids: Tensor, chosen: Tensor) -> Tensor:
    """True on every token of a chosen word, never on special tokens."""
    return chosen.gather(1, word_ids.clamp_min(0)) & (word_ids >= 0)


def _by_token(word_ids: Tensor, chosen: Tensor) -> Tensor:
    padded = F.pad(chosen, (0, word_ids.shape[1]))
    return padded[:, : word_ids.shape[1]]


def _first_pieces(word_ids: Tensor) -> Tensor:
    return F.pad(word_ids[:, 1:] != word_ids[:, :-1], (1, 0), value=True)


# [CLS] gi ##raf ##fe eats leaves [SEP], and a shorter text with padding.
_WORDS = torch.tensor([[-1, 0, 0, 0, 1, 2, -1], [-1, 0, 1, 1, -1, -1, -1]])
_CHOSEN = torch.tensor([[True, False, False], [False, True, True]])
_TEXT = (
    "hide_words(torch.tensor([[-1, 0, 0, 0, 1, 2, -1], [-1, 0, 1, 1, -1, -1, -1]]),\n"
    "           torch.tensor([[True, False, False], [False, True, True]]))"
)
_ALL_TEXT = (
    "hide_words(torch.tensor([[-1, 0, 0, 0, 1, 2, -1], [-1, 0, 1, 1, -1, -1, -1]]),\n"
    "           torch.ones(2, 3, dtype=torch.bool))"
)
WHOLE_WORDS = FunctionExercise(
    title="Hide whole words",
    solution=hide_words,
    cases=(
        Case((_WORDS, _CHOSEN), _TEXT),
        Case((_WORDS, torch.ones(2, 3, dtype=torch.bool)), _ALL_TEXT),
    ),
    mistakes=(
        Mistake(
            _by_token,
            "You use the number of the *word* as the number of the *token*. Look the word of each "
            "token up in `word_ids`.",
        ),
        Mistake(
            lambda words, chosen: hide_words(words, chosen) & _first_pieces(words),
            "You hide the first piece of each word and leave the others, which give it away. All "
            "pieces of a chosen word are hidden.",
        ),
        Mistake(
            lambda words, chosen: ~hide_words(words, chosen) & (words >= 0),
            "The other way round: True is for tokens that are hidden.",
        ),
        Mistake(
            lambda words, chosen: chosen.gather(1, words.clamp_min(0)),
            "Special tokens belong to word -1. Cut off at 0, they count as the first word, and are "
            "hidden with it.",
        ),
        Mistake(
            lambda words, chosen: chosen.gather(1, words % chosen.shape[1]),
            "An index of -1 means the last word in Python. Special tokens belong to no word and "
            "are never hidden.",
        ),
        Mistake(
            lambda words, chosen: chosen[0][words.clamp_min(0)] & (words >= 0),
            "You use the first row of `chosen` for all texts. Each text has its own.",
        ),
    ),
    shown="All pieces of a chosen word are hidden, and neither [CLS], [SEP] nor padding.",
)

# ------------------------------------------------------------------------ 4: who may be looked at?


def row_mask(text_valid: Tensor, patch_valid: Tensor) -> Tensor:
    """Valid text, the class token, valid patches; one row for all heads and queries."""
    class_valid = torch.ones_like(patch_valid[:, :1])
    return torch.cat([text_valid, class_valid, patch_valid], 1)[:, None, None]


_TEXT_VALID = torch.tensor([[True, True, True, False], [True, True, True, True]])
_PATCH_VALID = torch.tensor([[True, True, True], [True, False, False]])
MASK = FunctionExercise(
    title="Who may be looked at?",
    solution=row_mask,
    cases=(
        Case(
            (_TEXT_VALID, _PATCH_VALID),
            "row_mask(torch.tensor([[True, True, True, False], [True, True, True, True]]),\n"
            "         torch.tensor([[True, True, True], [True, False, False]]))",
        ),
    ),
    mistakes=(
        Mistake(
            lambda t, p: torch.cat([t, p], 1)[:, None, None],
            "The class token of the picture is missing between words and patches. It is always "
            "there.",
        ),
        Mistake(
            lambda t, p: torch.cat([torch.ones_like(p[:, :1]), p, t], 1)[:, None, None],
            "The order is text first, then the class token and the patches.",
        ),
        Mistake(
            lambda t, p: torch.cat([torch.ones_like(p[:, :1]), t, p], 1)[:, None, None],
            "The class token stands before the patches, not before the words: those have [CLS], "
            "which `text_valid` counts already.",
        ),
        Mistake(
            lambda t, p: ~row_mask(t, p),
            "The other way round: True is for keys that may be looked at.",
        ),
        Mistake(
            lambda t, p: row_mask(t, p)[:, 0, 0],
            "The values are right. For attention the mask needs two more axes, for heads and for "
            "queries, both of length 1: `[:, None, None]`.",
        ),
        Mistake(
            lambda t, p: row_mask(t, p).mT,
            "You hide queries. It is the *keys*, the last axis, that must not be looked at; what a "
            "padded query computes nobody reads.",
        ),
        Mistake(
            lambda t, p: torch.zeros(row_mask(t, p).shape).masked_fill(~row_mask(t, p), -torch.inf),
            "That is the mask as numbers to add, 0 and -inf. It works too; here booleans are "
            "asked for.",
        ),
    ),
    shown="Nobody looks at padding, be it text or picture. One row of booleans does for all.",
)

# ------------------------------------------------------------------------------------ 5: the cost


def transport_cost(words: Tensor, patches: Tensor, word_valid: Tensor) -> Tensor:
    """``1 - cos``, 0 in the rows of padding."""
    cost = 1 - F.normalize(words, dim=-1) @ F.normalize(patches, dim=-1).mT
    return cost * word_valid[..., None]


_VALID = torch.tensor([[True, True, True], [True, True, False]])
COST = FunctionExercise(
    title="What does a journey cost?",
    solution=transport_cost,
    cases=(
        Case(
            (random(2, 3, 4), random(2, 2, 4), _VALID),
            f"transport_cost(torch.randn(2, 3, 4, {SEED}),\n"
            f"               torch.randn(2, 2, 4, {SEED}),\n"
            "               torch.tensor([[True, True, True], [True, True, False]]))",
        ),
    ),
    mistakes=(
        Mistake(
            lambda w, p, v: 1 - F.normalize(w, dim=-1) @ F.normalize(p, dim=-1).mT,
            "Right for tokens. Rows of padding must cost 0: padding is not carried anywhere.",
        ),
        Mistake(
            lambda w, p, v: (F.normalize(w, dim=-1) @ F.normalize(p, dim=-1).mT) * v[..., None],
            "That is the cosine, large where two are alike. The cost is 1 minus it.",
        ),
        Mistake(
            lambda w, p, v: (1 - w @ p.mT) * v[..., None],
            "That is 1 minus the dot product. For a cosine both vectors need length 1.",
        ),
        Mistake(
            lambda w, p, v: (1 - F.normalize(w, dim=1) @ F.normalize(p, dim=1).mT) * v[..., None],
            "You normalise over the tokens. A vector lies along the last axis.",
        ),
        Mistake(
            lambda w, p, v: 1 - (F.normalize(w, dim=-1) @ F.normalize(p, dim=-1).mT) * v[..., None],
            "You set the *cosine* of padding to 0, so its cost is 1. It is the cost that must be "
            "0.",
        ),
        Mistake(
            lambda w, p, v: transport_cost(w, p, v).mT,
            "Words are rows, patches are columns.",
        ),
        Mistake(
            lambda w, p, v: torch.cdist(w, p) * v[..., None],
            "That is the distance between the points. The cost is 1 minus the cosine of their "
            "angle, from 0 to 2.",
        ),
    ),
    shown="0 for the same direction, 1 for a right angle, 2 for the opposite.",
)
