from types import SimpleNamespace

import pytest

from mmlab.models.checks import check_heads, check_multiple, check_positive


@pytest.mark.parametrize("value", [0.0, -1, float("nan"), float("inf"), "small", None, True])
def test_only_a_finite_number_above_zero_is_positive(value):
    with pytest.raises(ValueError, match=rf"^norm_eps must be positive, got {value!r}$"):
        check_positive(SimpleNamespace(norm_eps=value), "norm_eps")


def test_positive_numbers_pass():
    check_positive(SimpleNamespace(norm_eps=1e-6, lr=2), "norm_eps", "lr")


@pytest.mark.parametrize("dim", [7, 2, 9])
def test_a_multiple_is_told_with_its_unit(dim):
    with pytest.raises(ValueError, match=rf"^dim must be a multiple of num_heads=4, got {dim}$"):
        check_multiple(SimpleNamespace(dim=dim, num_heads=4), "dim", "num_heads")


@pytest.mark.parametrize("dim", [4, 8, 400])
def test_multiples_pass(dim):
    check_multiple(SimpleNamespace(dim=dim, num_heads=4), "dim", "num_heads")


def heads(*names, num_classes=0):
    return SimpleNamespace(heads=names, num_classes=num_classes)


KNOWN = ("words", "match", "answer")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (heads("sound"), r"^heads must be a tuple of some of 'words', 'match', 'answer', got"),
        (SimpleNamespace(heads=["words"], num_classes=0), r"tuple of .*, got \['words'\]$"),
        (SimpleNamespace(heads="words", num_classes=0), r"tuple of .*, got 'words'$"),
        (heads("words", "words"), r"^heads must be free of repetitions, got \('words', 'words'\)$"),
        (heads("answer"), r"^num_classes must be at least 1 with the head 'answer', got 0$"),
        (heads("words", num_classes=3), r"^num_classes must be 0 without 'answer', got 3$"),
    ],
)
def test_wrong_heads_are_told(config, message):
    with pytest.raises(ValueError, match=message):
        check_heads(config, KNOWN, classifier="answer")


@pytest.mark.parametrize("config", [heads(), heads(*KNOWN, num_classes=2), heads("match", "words")])
def test_heads_that_fit_pass(config):
    check_heads(config, KNOWN, classifier="answer")
