"""Every exercise of the book under its name, ``chapter.number``."""

from mmlab.exercises import vit
from mmlab.exercises.kinds import Exercise

EXERCISES: dict[str, Exercise] = {
    f"{chapter}.{number}": exercise
    for chapter, exercises in {"vit": vit.EXERCISES}.items()
    for number, exercise in enumerate(exercises, start=1)
}
