"""The exercises of the ViLT chapter: two easy, three in the middle, two hard.

Each mistake is a function that does what a reader may do, beside the hint for that reader. The
letters are those of the chapter: T the tokens of a text, N the patches of a picture, D the width.
"""

from mmlab.exercises.kinds import Exercise
from mmlab.exercises.vilt.easy import TEXT_TABLES, TOKENS
from mmlab.exercises.vilt.hard import ALIGNMENT, TRANSPORT
from mmlab.exercises.vilt.middle import COST, MASK, WHOLE_WORDS

EXERCISES: tuple[Exercise, ...] = (
    TOKENS,
    TEXT_TABLES,
    WHOLE_WORDS,
    MASK,
    COST,
    TRANSPORT,
    ALIGNMENT,
)
