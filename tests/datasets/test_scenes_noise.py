"""Scenes: noise has the rate it should, says what it is, and the truth stays at hand."""

import math
import re
from collections import Counter

import pytest
import torch

from mmlab.datasets.scenes import HELD_OUT, NOISE_KINDS, SceneNoise, judge, scenes
from mmlab.datasets.scenes.language import KINDS
from mmlab.datasets.scenes.noise import view_of

MIXED = SceneNoise(
    swapped_pair=0.2, wrong_attribute=0.2, file_name=0.1, advertising=0.05, duplicate=0.15
)


@pytest.fixture(scope="module")
def noisy():
    return scenes(400, noise=MIXED)


def test_observed_rates():
    number = 6000
    counts = Counter(scenes(number, noise=MIXED).noise_kinds())
    expected = {name: rate for name, rate in MIXED.rates()} | {None: 0.3}
    for kind, rate in expected.items():
        error = math.sqrt(rate * (1 - rate) / number)
        assert abs(counts[kind] / number - rate) < 4.5 * error, kind


def test_no_noise_by_default_and_noise_of_one_kind():
    assert set(scenes(50).noise_kinds()) == {None}
    for kind in NOISE_KINDS:
        assert set(scenes(30, noise=SceneNoise(**{kind: 1.0})).noise_kinds()) == {kind}


def test_captions_record_their_noise(noisy):
    kinds = noisy.noise_kinds()
    for i in range(0, 400, 5):
        assert {c.noise for c in noisy[i].captions} == {kinds[i]}


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("kind", KINDS)
def test_verdict_of_the_referee_by_noise(noisy, language, kind):
    expected = {
        None: True,
        "swapped_pair": False,
        "wrong_attribute": False,
        "file_name": None,
        "advertising": None,
        "duplicate": True,
    }
    for i, (text, noise) in enumerate(
        zip(noisy.captions(language, kind), noisy.noise_kinds(), strict=True)
    ):
        verdict = judge(text, view_of(noisy.scenes[i]), language)
        assert verdict is expected[noise], (text, noise)


def test_wrong_attribute_differs_in_one_word(noisy):
    for i, kind in enumerate(noisy.noise_kinds()):
        if kind == "wrong_attribute":
            said = re.findall(r"\w+", noisy.caption(i, kind="detailed").text)
            true = re.findall(r"\w+", noisy.clean.caption(i, kind="detailed").text)
            wrong = {(a, b) for a, b in zip(true, said, strict=True) if a != b}
            wrong -= {("a", "an"), ("an", "a"), ("A", "An"), ("An", "A")}
            assert len(wrong) == 1


def test_the_truth_stays_at_hand(noisy):
    plain = scenes(400)
    assert noisy.true_captions() == plain.captions()
    assert noisy.captions() != plain.captions()
    assert noisy[3].regions == plain[3].regions and noisy[3].questions == plain[3].questions
    assert torch.equal(noisy.images(range(5)), plain.images(range(5)))
    assert noisy.clean[7].captions == plain[7].captions


def test_clean_captions_do_not_change_when_others_are_spoiled(noisy):
    plain = scenes(400).captions()
    for text, true, kind in zip(noisy.captions(), plain, noisy.noise_kinds(), strict=True):
        if kind is None:
            assert text == true


def test_noise_depends_on_the_index_alone(noisy):
    assert scenes(50, noise=MIXED).captions("zh") == noisy.captions("zh")[:50]


def test_duplicates_are_shared_by_many_images():
    texts = Counter(scenes(400, noise=SceneNoise(duplicate=1.0)).captions())
    assert len(texts) <= 16


def test_noise_never_names_a_held_out_combination(noisy):
    forbidden = re.compile("|".join(rf"\b{color} {shape}" for color, shape in HELD_OUT))
    assert not list(filter(forbidden.search, noisy.captions()))


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"swapped_pair": -0.1}, "swapped_pair is -0.1; .* between 0 and 1"),
        ({"file_name": 1.2}, "file_name is 1.2"),
        ({"advertising": float("nan")}, "advertising is nan"),
        ({"swapped_pair": 0.7, "duplicate": 0.6}, "sum to 1.3"),
    ],
)
def test_bad_rates(rates, words):
    with pytest.raises(ValueError, match=words):
        SceneNoise(**rates)


def test_rates_may_reach_one_exactly():
    SceneNoise(0.2, 0.2, 0.2, 0.2, 0.2)
    SceneNoise(0.1, 0.3, 0.3, 0.1, 0.2)


def test_noise_must_be_scene_noise():
    with pytest.raises((ValueError, TypeError), match="noise"):
        scenes(10, noise=0.3)
