"""What holds for the mistakes and the cases of every exercise of the book."""

import pytest
import torch

import mmlab
from mmlab.exercises import EXERCISES, FunctionExercise, ValueExercise

FUNCTIONS = {name: e for name, e in EXERCISES.items() if isinstance(e, FunctionExercise)}
MISTAKES = [
    pytest.param(name, mistake, id=f"{name}-{index}")
    for name, exercise in FUNCTIONS.items()
    for index, mistake in enumerate(exercise.mistakes)
]


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_knows_at_least_three_mistakes(name):
    mistakes = EXERCISES[name].mistakes
    value = isinstance(EXERCISES[name], ValueExercise)
    assert len({hint for _, hint in mistakes} if value else {m.hint for m in mistakes}) >= 3


@pytest.mark.parametrize(("name", "mistake"), MISTAKES)
def test_no_hint_stands_in_the_shadow_of_another(name, mistake):
    assert mmlab.check(name, mistake.does).message == mistake.hint


@pytest.mark.parametrize("name", FUNCTIONS)
def test_only_a_hint_about_an_exception_comes_from_one(name):
    stops = []
    for case in FUNCTIONS[name].cases:
        for mistake in FUNCTIONS[name].mistakes:
            try:
                mistake.does(*case.inputs)
            except Exception as error:
                stops.append((type(error), mistake.hint))
    assert all(kind is ZeroDivisionError and "divide" in hint for kind, hint in stops)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_call_that_is_shown_gives_the_inputs_that_were_used(name):
    exercise, seen = FUNCTIONS[name], []
    names = {
        "torch": torch,
        exercise.signature.partition("(")[0]: lambda *inputs: seen.append(inputs),
    }
    for case in exercise.cases:
        if case.text:
            exec(case.text, names)
            torch.testing.assert_close(seen.pop(), case.inputs)
