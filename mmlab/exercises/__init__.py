"""The exercises of the book and the one mechanism behind them: ``mmlab.check(name, answer)``.

An exercise is data: what is right, a few inputs, and the mistakes that people make with the hint
for each. The checker tries the reader's answer on the inputs and says what is wrong with it.
"""

from mmlab.exercises.catalogue import EXERCISES
from mmlab.exercises.checker import check
from mmlab.exercises.kinds import Case, Exercise, FunctionExercise, Mistake, ValueExercise
from mmlab.exercises.result import Hint, Result, Unanswered

__all__ = [
    "EXERCISES",
    "Case",
    "Exercise",
    "FunctionExercise",
    "Hint",
    "Mistake",
    "Result",
    "Unanswered",
    "ValueExercise",
    "check",
]
