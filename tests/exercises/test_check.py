"""The mechanism behind the exercises: what it says, and that nothing of a reader's breaks it."""

import random
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from torch import nn

import mmlab
from mmlab.exercises import (
    EXERCISES,
    Case,
    FunctionExercise,
    Hint,
    Mistake,
    ValueExercise,
    checker,
)


def double(x):
    return 2 * x


DOUBLE = FunctionExercise(
    title="Double it",
    solution=double,
    cases=(Case((torch.tensor([1.0, 2.0, 3.0]),)), Case((torch.arange(20.0).view(4, 5),))),
    mistakes=(Mistake(lambda x: x * x, "You square."), Mistake(lambda x: 0 / 0, "Zero by zero.")),
    shown="Twice as much.",
)
MATRIX = ValueExercise(
    title="A matrix",
    solution=torch.tensor([[1.0, 0.5], [0.5, 1.0]]),
    mistakes=((torch.eye(2), "Only the diagonal."),),
    shown="Symmetric.",
)


@pytest.fixture(autouse=True)
def exercises(monkeypatch):
    names = {**EXERCISES, "test.double": DOUBLE, "test.matrix": MATRIX}
    monkeypatch.setattr(checker, "EXERCISES", names)


def check_double(answer):
    return mmlab.check("test.double", answer)


# ------------------------------------------------------------------------------------- the verdict


def test_a_right_answer_is_true_and_says_what_was_shown():
    result = check_double(double)
    assert result and result.passed
    assert str(result) == "✓ test.double: Solved. Twice as much."


@pytest.mark.parametrize("answer", [None, ...])
@pytest.mark.parametrize("name", ["vit.1", "vit.2", "test.double", "test.matrix"])
def test_an_open_answer_is_not_answered_yet(name, answer):
    result = mmlab.check(name, answer)
    assert result.state == "unanswered" and not result
    assert "Not answered yet." in str(result)
    assert mmlab.check(name).state == "unanswered"


def stub(x): ...


def stub_with_docstring(x):
    """I shall double."""


def stub_that_returns(x):
    return ...


def stub_that_passes(x):
    pass


class StubModule(nn.Module):
    def forward(self, x):
        return ...


@pytest.mark.parametrize(
    "answer", [stub, stub_with_docstring, stub_that_returns, stub_that_passes, StubModule()]
)
def test_an_empty_function_is_not_answered_yet(answer):
    assert check_double(answer).state == "unanswered"


def test_a_forgotten_return_is_told_apart_from_an_empty_function():
    def forgot(x):
        x = 2 * x

    assert "Is the `return` missing?" in check_double(forgot).message


def test_a_half_filled_function_is_told_so():
    def half(x):
        y = ...
        return y.sum()

    result = check_double(half)
    assert "`...` still stands in the function in line" in result.message
    assert "return y.sum()" in result.message


def test_a_recognised_mistake_gets_its_hint_with_the_smallest_failing_call():
    result = check_double(lambda x: x**2)
    assert result.message == "You square."
    assert dict(result.facts) == {
        "call": "double([1, 2, 3])",
        "expected": "[2, 4, 6]",
        "got": "[1, 4, 9]",
    }


def test_an_unknown_mistake_shows_the_smallest_failing_case():
    result = check_double(lambda x: x + 3)
    assert result.message == "The shape is right, the values are not."
    assert dict(result.facts)["got"] == "[4, 5, 6]"


def test_a_large_result_shows_its_first_difference():
    def wrong_late(x):
        result = 2 * x
        if x.ndim == 2:
            result[1, 3] = 0
        return result

    result = check_double(wrong_late)
    assert dict(result.facts) == {
        "call": "double(a tensor of shape (4, 5))",
        "at": "[1, 3]",
        "expected": "16",
        "got": "0",
    }


# --------------------------------------------------------------------------------- kinds of answers


@pytest.mark.parametrize(
    "answer",
    [
        lambda x: (2 * x).tolist(),
        lambda x: (2 * x).numpy(),
        lambda x: 2 * x.double(),
        lambda x: nn.Parameter(2 * x),
        lambda x: tuple((2 * x).tolist()),
    ],
)
def test_the_type_of_a_right_result_does_not_matter(answer):
    assert check_double(answer)


class Double(nn.Module):
    def forward(self, x):
        return 2 * x


def test_a_module_is_a_function_and_its_class_is_not():
    assert check_double(Double())
    result = check_double(Double)
    assert result.message == "`Double` is a class; give one module: `Double(...)`."


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.ones(3), "a tensor of shape (3,), but this exercise asks for the function itself"),
        (17, "an int, but"),
        ("double", "`double` without parentheses"),
    ],
)
def test_a_result_in_place_of_the_function(answer, words):
    assert words in check_double(answer).message


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: "2x", "returns a str; it should return a tensor of (3,)"),
        (lambda x: (y for y in x), "returns a generator"),
        (lambda x: {"x": x}, "returns a dict"),
        (lambda x: [x, x], "returns a list"),
        (lambda x: (2 * x).to(torch.complex64), "returns a tensor of shape (3,)"),
        (lambda x: 2 * x.to("meta"), "returns a tensor"),
        (lambda x: (2 * x).to_sparse(), "returns a tensor"),
        (lambda x: 2 * x[:2], "The shape is (2,); it should be (3,)."),
        (lambda x: 2.0, "The shape is (); it should be (3,)."),
        (lambda x: x / x * torch.nan, "There is a NaN at [0]"),
        (lambda x: x.int() + 5, "The numbers are whole (torch.int32)"),
        (lambda x: (2 * x + 0.05).half(), "half precision is too coarse"),
        (lambda x: 2**70, "returns an int"),
    ],
)
def test_a_result_of_the_wrong_kind(answer, words):
    result = check_double(answer)
    assert result.state == "hint" and words in result.message, result


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (torch.eye(2), "Only the diagonal."),
        ([[1.0, 0.5], [0.5, 0.9]], "The first wrong entry is number [1, 1]."),
        (torch.ones(3), "a tensor of shape (3,); give a tensor of (2, 2)"),
        ([[1.0, torch.nan], [0.5, 1.0]], "not a number (NaN) at [0, 1]"),
        ("identity", "The answer is a str; give a tensor of (2, 2)."),
        (double, "The answer is a function; give a tensor of (2, 2)."),
    ],
)
def test_a_wrong_tensor(answer, words):
    assert words in mmlab.check("test.matrix", answer).message


def test_whole_numbers_count_to_the_unit_however_large():
    large = torch.arange(20) + 1_000_000
    exercise = FunctionExercise("Large", lambda x: large, (Case((0,)),), (), "Large.")
    answer = large.clone()
    answer[7] += 1
    with pytest.raises(Hint) as hint:
        exercise.judge(lambda x: answer)
    assert hint.value.facts[1:] == (("at", "[7]"), ("expected", "1000007"), ("got", "1000008"))


def test_a_right_tensor_from_numpy():
    assert mmlab.check("test.matrix", np.array([[1, 0.5], [0.5, 1]]))


@pytest.mark.parametrize("answer", ["293376", [1, 2], double, {}, object(), 1j, float("nan")])
def test_a_number_of_the_wrong_kind(answer):
    result = mmlab.check("vit.2", answer)
    assert result.state == "hint" and ("give a number" in result.message or "NaN" in result.message)


# ----------------------------------------------------------------------------- code that misbehaves


def test_an_exception_becomes_a_sentence_with_its_line():
    def broken(x):
        y = x + 1
        return y.reshape(7)

    first = broken.__code__.co_firstlineno
    message = check_double(broken).message
    assert f"The function stops in line {first + 2}, `return y.reshape(7)`, with " in message
    assert "RuntimeError: shape '[7]' is invalid" in message
    assert "Traceback" not in message


def helper(x):
    raise KeyError("`lost`" + "x" * 900)


def test_the_line_is_the_readers_own_and_a_long_message_is_cut():
    through = torch.utils.checkpoint.checkpoint
    message = check_double(lambda x: through(helper, x, use_reentrant=False)).message
    assert f"line {helper.__code__.co_firstlineno + 1}," in message
    assert "KeyError" in message and len(message) < 400
    assert message.count("`") % 2 == 0


def test_wrong_parameters_name_the_call():
    message = check_double(lambda x, y: x).message
    assert message.startswith("The exercise calls `double(x)`, and that stops with `TypeError:")


def test_an_exception_that_a_mistake_shares_gets_its_hint():
    assert check_double(lambda x: 1 / 0).message == "Zero by zero."


def test_a_changed_input_is_noticed_and_harms_nobody():
    def in_place(x):
        return x.mul_(2)

    result = check_double(in_place)
    assert "changes its input `x` in place" in result.message
    assert check_double(double)


@pytest.mark.parametrize("change", [lambda maps: maps[1].zero_(), lambda maps: maps.pop()])
def test_a_changed_list_of_tensors_is_noticed(change):
    def rollout(maps):
        result = EXERCISES["vit.8"].solution(maps)
        change(maps)
        return result

    assert "changes its input `maps` in place" in mmlab.check("vit.8", rollout).message


def test_the_check_is_seeded_and_leaves_the_readers_seed_alone():
    seen = []

    def noisy(x):
        seen.append(torch.rand(1).item())
        return 2 * x

    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    first = torch.rand(1)
    check_double(noisy)
    check_double(noisy)
    assert torch.equal(torch.cat([first, torch.rand(1)]), expected)
    assert len(set(seen)) == 1


def test_a_reader_may_stop_a_function_that_never_ends():
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        check_double(interrupted)


# -------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize("name", ["vit.1", "ViT.1", " vit.1 "])
def test_names_may_be_written_loosely(name):
    assert mmlab.check(name, lambda h, w, p, n: h * w // p**2 + n)


@pytest.mark.parametrize(
    ("name", "near"), [("vit1", "vit.1"), ("vti.3", "vit.3"), ("", "vit."), ("7", "7")]
)
def test_an_unknown_name_gets_one_sentence_with_the_nearest(name, near):
    result = mmlab.check(name, 1)
    assert result.state == "unknown" and not result
    assert "did you mean" in result.message and near in result.message.split("did you mean")[1]


def test_arguments_in_the_wrong_order():
    assert "The name comes first" in mmlab.check(double, "vit.1").message


def test_check_is_one_function_under_one_name():
    import mmlab.exercises

    assert mmlab.check is mmlab.exercises.check is checker.check


# ------------------------------------------------------------------------------------------ display


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.open, self.seen, self.text = [], [], ""

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data * ("style" not in self.open)


def shown(result):
    page = Tags()
    page.feed(result._repr_mimebundle_()["text/html"])
    assert page.open == []
    return page


def test_the_html_says_what_the_text_says():
    result = check_double(lambda x: x**2)
    page = shown(result)
    for piece in ("✕", "Not yet.", "You square.", "call", "double([1, 2, 3])", "[1, 4, 9]"):
        assert piece in page.text and piece in result._repr_mimebundle_()["text/plain"]


def test_backticks_become_code_and_html_stays_text():
    def broken(x):
        raise ValueError("<script>alert(1)</script> `tick`")

    page = shown(check_double(broken))
    assert "script" not in page.seen and "code" in page.seen
    assert "<script>alert(1)</script>" in page.text


@pytest.mark.parametrize("name", EXERCISES)
def test_every_message_has_its_code_marked_in_pairs(name):
    exercise = EXERCISES[name]
    hints = [m.hint if isinstance(m, Mistake) else m[1] for m in exercise.mistakes]
    for sentence in (exercise.shown, *hints):
        assert sentence.count("`") % 2 == 0 and sentence.endswith(".")
        assert "{" not in sentence


def test_random_answers_never_break_the_checker():
    generator = random.Random(0)
    odd = [
        0,
        -1,
        1e300,
        "",
        "ü",
        b"x",
        [],
        [[]],
        {},
        object(),
        float("inf"),
        torch.empty(0),
        np.nan,
    ]
    odd += [lambda *a: None, lambda: 1, print, len, torch.relu, nn.Linear(2, 2), int, range(3)]
    for name in (*EXERCISES, "test.double", "test.matrix"):
        for answer in generator.sample(odd, 6):
            assert mmlab.check(name, answer).state in ("hint", "unanswered")
            assert mmlab.check(name, lambda *a, b=answer: b).state in ("hint", "unanswered")
