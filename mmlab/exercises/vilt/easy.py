"""ViLT, two easy exercises: the length of the sequence, and the parameters of the words."""

from __future__ import annotations

from mmlab.exercises.kinds import Case, FunctionExercise, Mistake, ValueExercise
from mmlab.models.vilt import VILT_B_32

# ------------------------------------------------------------------------ 1: how long is the row?


def sequence_length(num_pieces: int, height: int, width: int, patch_size: int) -> int:
    """Word pieces with [CLS] and [SEP], the class token, the patches."""
    return num_pieces + 2 + 1 + (height // patch_size) * (width // patch_size)


TOKENS = FunctionExercise(
    title="How long is the row?",
    solution=sequence_length,
    cases=(
        Case((3, 96, 160, 32)),
        Case((10, 384, 384, 32)),
        Case((38, 384, 608, 32)),
        Case((7, 64, 64, 16)),
    ),
    mistakes=(
        Mistake(
            lambda t, h, w, p: t + (h // p) * (w // p),
            "Three tokens are missing: [CLS] and [SEP] around the words, and the class token in "
            "front of the patches.",
        ),
        Mistake(
            lambda t, h, w, p: t + 1 + (h // p) * (w // p),
            "Two tokens are missing: [CLS] before the words and [SEP] after them.",
        ),
        Mistake(
            lambda t, h, w, p: t + 2 + (h // p) * (w // p),
            "One token is missing: the patches have a class token of their own in front.",
        ),
        Mistake(
            lambda t, h, w, p: t + 3 + (h // p) ** 2,
            "You take the picture for a square. ViLT keeps its shape: rows times columns.",
        ),
        Mistake(
            lambda t, h, w, p: t + 3 + h // p + w // p,
            "You add rows and columns. A grid has rows times columns.",
        ),
        Mistake(
            lambda t, h, w, p: t + 3 + h * w // p,
            "You divide by the patch's side once. Divide the height by it, and the width.",
        ),
    ),
    shown=(
        "A text of 40 tokens with a picture of 384 × 608 is a row of "
        f"{sequence_length(38, 384, 608, 32)}."
    ),
)

# ----------------------------------------------------------------------- 2: what do words weigh?

_V, _D, _LENGTH = VILT_B_32.vocab_size, VILT_B_32.dim, VILT_B_32.context_length
_WORDS, _PLACES, _SEGMENTS, _NORM = _V * _D, _LENGTH * _D, 2 * _D, 2 * _D
_ALL = _WORDS + _PLACES + _SEGMENTS + _NORM

TEXT_TABLES = ValueExercise(
    title="What do the words weigh?",
    solution=_ALL,
    mistakes=(
        (
            _WORDS,
            "That is the table of words. There are tables of places and segments, and a norm.",
        ),
        (_WORDS + _PLACES, "The segments and the norm are missing."),
        (_ALL - _NORM, "The norm is missing: a scale and an offset, each of width D."),
        (_ALL - _D, "A norm has a scale *and* an offset; a table of two segments has two rows."),
        (
            _ALL - _SEGMENTS,
            "BERT's segments are missing: two rows, of which ViLT uses the first. They are not the "
            "modality rows.",
        ),
        (
            _ALL + 2 * _D,
            "The modality rows are not among these: they come after the norm, and patches have "
            "one, too.",
        ),
        (
            _ALL + (512 - _LENGTH) * _D,
            "BERT has 512 places for words. ViLT has 40, and learns them from nothing.",
        ),
        (
            _ALL + _D,
            "One row too many. The 40 places hold [CLS] and [SEP] as well; the paper's formula "
            "has L + 1 rows, its code has not.",
        ),
    ),
    shown=(
        f"{_ALL:,}: more than a fifth of ViLT, and left out of the 87.4 million of the paper's "
        "table 6."
    ),
)
