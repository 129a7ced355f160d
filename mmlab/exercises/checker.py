"""``mmlab.check``: the reader's answer in, a verdict with its reason out."""

from __future__ import annotations

from difflib import get_close_matches

from mmlab.exercises.catalogue import EXERCISES
from mmlab.exercises.kinds import Exercise
from mmlab.exercises.result import Hint, Result, Unanswered


def check(exercise: object, answer: object = ...) -> Result:
    """Say whether ``answer`` solves the exercise of this name, and if not, what is wrong with it.

    ::

        mmlab.check("vit.1", num_tokens)

    ``answer`` is what the exercise asks for: a number, a tensor, a function, a module. Functions
    are called on copies of the inputs, with a fixed seed. The ``Result`` shows itself in a notebook
    and is true if the exercise is solved. Nothing here raises for a wrong answer or a wrong name:
    an exception inside the answer becomes a message too.
    """
    if not isinstance(exercise, str):
        return Result(
            "mmlab.check", "unknown", 'The name comes first: `mmlab.check("vit.1", answer)`.'
        )
    name = exercise.strip().lower()
    if name not in EXERCISES:
        return Result(exercise, "unknown", _nearest(name))
    state, message, facts = _judge(EXERCISES[name], answer)
    return Result(name, state, message, facts)


def _judge(exercise: Exercise, answer: object) -> tuple[str, str, tuple[tuple[str, str], ...]]:
    try:
        if answer is None or answer is ...:
            raise Unanswered
        return "solved", exercise.judge(answer), ()
    except Unanswered:
        return "unanswered", f"“{exercise.title}” Put your answer where the `...` is.", ()
    except Hint as hint:
        return "hint", hint.message, hint.facts


def _nearest(name: str) -> str:
    near = get_close_matches(name, EXERCISES, n=1, cutoff=0.0)
    return f'`"{name}"` is not the name of an exercise; did you mean `"{near[0]}"`?'.replace(
        "\n", " "
    )
