"""The exercises of the FLIP chapter: two easy, two in the middle, two hard.

Each mistake is a function that does what a reader may do, beside the hint for that reader. The
letters are those of the chapter: N the patches, r the mask ratio, D the width.
"""

from mmlab.exercises.flip.easy import COMPUTE, KEPT
from mmlab.exercises.flip.hard import BACK, BATCH
from mmlab.exercises.flip.middle import DROP, REBUILD
from mmlab.exercises.kinds import Exercise

EXERCISES: tuple[Exercise, ...] = (KEPT, COMPUTE, DROP, REBUILD, BACK, BATCH)
