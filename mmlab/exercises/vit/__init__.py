"""The exercises of the ViT chapter: three easy, three in the middle, two hard.

Each mistake is a function that does what a reader may do, beside the hint for that reader. The
letters are those of the chapter: P the patch size, T the tokens, D their width, d that of a head, L
the depth.
"""

from mmlab.exercises.kinds import Exercise
from mmlab.exercises.vit.easy import DROP_PATH, LARGER, TOKENS
from mmlab.exercises.vit.hard import DISTANCE, ROLLOUT
from mmlab.exercises.vit.middle import ATTENTION, PATCHIFY, POSITIONS

EXERCISES: tuple[Exercise, ...] = (
    TOKENS,
    LARGER,
    DROP_PATH,
    PATCHIFY,
    ATTENTION,
    POSITIONS,
    DISTANCE,
    ROLLOUT,
)
