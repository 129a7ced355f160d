import builtins

import pytest
import torch

from mmlab.tasks.linear_probe import few_shot_curve, linear_probe, sample_shots


def clusters(per_class, spread, seed, num_classes=4, dim=6):
    generator = torch.Generator().manual_seed(seed)
    centers = 3 * torch.eye(num_classes, dim)
    labels = torch.arange(num_classes).repeat_interleave(per_class)
    noise = spread * torch.randn(len(labels), dim, generator=generator)
    return centers[labels] + noise, labels


def test_separable_features_are_read_off():
    result = linear_probe(*clusters(20, 0.2, 0), *clusters(30, 0.2, 1))
    assert (result.accuracy, result.num_train, result.num_test) == (1.0, 80, 120)


def test_features_of_noise_are_at_chance():
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(400, 5, generator=generator), torch.arange(400) % 4
    result = linear_probe(features[:200], labels[:200], features[200:], labels[200:])
    assert 0.1 < result.accuracy < 0.4


def test_the_scale_of_the_features_does_not_matter():
    train, labels = clusters(5, 2.0, 0)
    test, test_labels = clusters(50, 2.0, 1)
    plain = linear_probe(train, labels, test, test_labels)
    scaled = linear_probe(100 * train, labels, 100 * test, test_labels)
    assert plain.accuracy == pytest.approx(scaled.accuracy, abs=0.01)
    assert plain.accuracy < 1


def test_more_shots_help_and_hold_the_fewer():
    curve = few_shot_curve(*clusters(64, 2.0, 0), *clusters(200, 2.0, 1), shots=(1, 4, 16, 64))
    accuracies = [result.accuracy for result in curve.values()]
    assert accuracies[0] < accuracies[2] < accuracies[3] + 0.02
    assert [result.num_train for result in curve.values()] == [4, 16, 64, 256]
    labels = torch.arange(90) % 3
    few, more = sample_shots(labels, 2, seed=5), sample_shots(labels, 7, seed=5)
    assert set(few.tolist()) < set(more.tolist())
    assert labels[more].bincount().tolist() == [7, 7, 7]
    assert not torch.equal(few, sample_shots(labels, 2, seed=6))


def test_a_class_with_too_few_gives_all_it_has():
    labels = torch.tensor([0, 0, 0, 1])
    assert labels[sample_shots(labels, 2, seed=0)].bincount().tolist() == [2, 1]


def test_wrong_numbers_are_named():
    features, labels = clusters(2, 1.0, 0)
    with pytest.raises(ValueError, match="shots must be at least 1, got 0"):
        sample_shots(labels, 0, seed=0)
    with pytest.raises(ValueError, match="at least two classes"):
        linear_probe(features[:2], labels[:2], features, labels)


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    features, labels = clusters(2, 1.0, 0)
    with pytest.raises(ImportError, match=r"pip install 'mmlab\[photos\]'"):
        linear_probe(features, labels, features, labels)
