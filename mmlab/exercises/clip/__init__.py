"""The exercises of the CLIP chapter: three easy, three in the middle, two hard.

Each mistake is a function that does what a reader may do, beside the hint for that reader. The
letters are those of the chapter: B the pairs of a batch, E the width of the shared space, V the
vocabulary.
"""

from mmlab.exercises.clip.easy import FIRST_LOSS, LOGITS, TEXT_TOWER
from mmlab.exercises.clip.hard import GRADIENT, SHARE
from mmlab.exercises.clip.middle import CLASSES, LOSS, READ_OUT
from mmlab.exercises.kinds import Exercise

EXERCISES: tuple[Exercise, ...] = (
    FIRST_LOSS,
    LOGITS,
    TEXT_TOWER,
    LOSS,
    READ_OUT,
    CLASSES,
    GRADIENT,
    SHARE,
)
