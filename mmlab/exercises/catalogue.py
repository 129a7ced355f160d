"""Every exercise of the book under its name, ``chapter.number``."""

from mmlab.exercises import clip, flip, vilt, vit
from mmlab.exercises.kinds import Exercise

CHAPTERS = {
    "vit": vit.EXERCISES,
    "clip": clip.EXERCISES,
    "flip": flip.EXERCISES,
    "vilt": vilt.EXERCISES,
}
EXERCISES: dict[str, Exercise] = {
    f"{chapter}.{number}": exercise
    for chapter, exercises in CHAPTERS.items()
    for number, exercise in enumerate(exercises, start=1)
}
