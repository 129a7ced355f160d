"""Right answers pass; plausible wrong ones each get the hint that was written for them."""

import pytest

import mmlab
from mmlab.exercises import EXERCISES
from tests.exercises import test_clip, test_flip, test_vilt, test_vit

MODULES = (test_vit, test_clip, test_flip, test_vilt)
RIGHT = [answer for module in MODULES for answer in module.RIGHT]
WRONG = [answer for module in MODULES for answer in module.WRONG]


@pytest.mark.parametrize(("name", "answer"), RIGHT)
def test_right_answers_pass_whichever_way_they_are_written(name, answer):
    result = mmlab.check(name, answer)
    assert result.passed, result


@pytest.mark.parametrize(("name", "answer", "words"), WRONG)
def test_wrong_answers_get_their_own_hint(name, answer, words):
    result = mmlab.check(name, answer)
    assert result.state == "hint"
    assert words in result.message, result


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_is_tried_with_at_least_three_kinds_of_wrong_answer(name):
    assert len({words for wrong, _, words in WRONG if wrong == name}) >= 3


@pytest.mark.parametrize("name", EXERCISES)
def test_every_exercise_is_tried_with_a_right_answer_of_another_making(name):
    assert name in {right for right, _ in RIGHT}
