"""The linear probe: how much a linear layer can read off frozen features (CLIP, section 3.2).

Multinomial logistic regression on features that are not trained any more, also with few examples a
class (CLIP, figure 6). The optimisation is scikit-learn's L-BFGS, as in the paper (appendix A.3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """Accuracy on the test features after fitting on ``num_train`` others."""

    accuracy: float
    num_train: int
    num_test: int


def linear_probe(
    train_features: Float[Tensor, "train dim"],
    train_labels: Int[Tensor, " train"],
    test_features: Float[Tensor, "test dim"],
    test_labels: Int[Tensor, " test"],
    strength: float = 1.0,
) -> ProbeResult:
    """Fit a linear classifier on frozen features and test it.

    ``strength`` is the inverse of the L2 penalty (scikit-learn's ``C``). Features are scaled by the
    spread of the training ones, so one strength means the same for every encoder. ValueError for a
    single class; ImportError that says what to install without scikit-learn.
    """
    classifier = _logistic_regression(strength)
    if len(train_labels.unique()) < 2:
        raise ValueError("a linear probe needs at least two classes in the training labels")
    scale = train_features.std().clamp_min(1e-12)
    classifier.fit((train_features / scale).numpy(), train_labels.numpy())
    guesses = torch.from_numpy(classifier.predict((test_features / scale).numpy()))
    accuracy = (guesses == test_labels).float().mean().item()
    return ProbeResult(accuracy, len(train_labels), len(test_labels))


def few_shot_curve(
    train_features: Float[Tensor, "train dim"],
    train_labels: Int[Tensor, " train"],
    test_features: Float[Tensor, "test dim"],
    test_labels: Int[Tensor, " test"],
    shots: Sequence[int] = (1, 2, 4, 8, 16),
    seed: int = 0,
    strength: float = 1.0,
) -> dict[int, ProbeResult]:
    """The probe with few examples of each class; ``shots`` → result.

    The examples of fewer shots are among those of more. ValueError if a number is not positive.
    """
    curve = {}
    for count in shots:
        rows = sample_shots(train_labels, count, seed)
        curve[count] = linear_probe(
            train_features[rows], train_labels[rows], test_features, test_labels, strength
        )
    return curve


def sample_shots(
    labels: Int[Tensor, " examples"], shots: int, seed: int
) -> Int64[Tensor, " chosen"]:
    """``shots`` examples of every class, all of those that have fewer; ValueError below one."""
    if shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == label][:shots] for label in labels.unique()]
    return torch.cat(chosen)


def _logistic_regression(strength: float):
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ImportError(
            "a linear probe needs scikit-learn; install it with: pip install 'mmlab[photos]'"
        ) from None
    return LogisticRegression(C=strength, max_iter=MAX_ITERATIONS)
