"""Language modelling: each token of a caption is predicted from those before it, and the image.

BLIP (Li et al. 2022, section 3.2) trains its decoder so, GPT its language model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from mmlab.objectives.masked_language import IGNORED


class NextWords(NamedTuple):
    """One step's captions: scores of the next word, and which words are right."""

    labels: Int64[Tensor, "batch tokens"]
    logits: Float[Tensor, "batch tokens vocab"]
    label_smoothing: float

    def loss(self) -> Float[Tensor, ""]:
        """The language-modelling loss (BLIP, section 3.2; BLIP-2, section 3.1)."""
        return language_modeling_loss(self.logits, self.labels, self.label_smoothing)


def language_modeling_loss(
    logits: Float[Tensor, "batch tokens vocab"],
    labels: Int64[Tensor, "batch tokens"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """Cross-entropy of the next token, mean over all that have a label.

    ``labels`` are the tokens themselves, with ``IGNORED`` (-100) on padding and on a prompt; they
    are shifted here: output ``t`` is compared with token ``t + 1``. ``label_smoothing`` is 0.1 in
    BLIP. 0 if nothing is to be predicted.
    """
    return next_words_loss(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), label_smoothing)


def next_words_loss(
    logits: Float[Tensor, "words vocab"],
    targets: Int64[Tensor, " words"],
    label_smoothing: float = 0.0,
) -> Float[Tensor, ""]:
    """The same where scores and the words that follow stand side by side already."""
    total = F.cross_entropy(
        logits, targets, ignore_index=IGNORED, reduction="sum", label_smoothing=label_smoothing
    )
    return total / (targets != IGNORED).sum().clamp_min(1)


def sequence_losses(
    logits: Float[Tensor, "batch tokens vocab"],
    labels: Int64[Tensor, "batch tokens"],
    teacher_logits: Float[Tensor, "batch tokens vocab"] | None = None,
    alpha: float | Float[Tensor, ""] = 0.0,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " batch"]:
    """The cross-entropy of each whole sequence: a sum over its tokens, minus its log-likelihood.

    ``labels`` and ``label_smoothing`` as above. With a teacher, each token's loss is ``(1 -
    alpha)`` of it and ``alpha`` of the cross-entropy with the teacher's guess (ALBEF's question
    answering). No gradient to it.
    """
    targets, scores = labels[:, 1:], logits[:, :-1]
    losses = F.cross_entropy(
        scores.mT,
        targets,
        ignore_index=IGNORED,
        reduction="none",
        label_smoothing=label_smoothing,
    )
    if teacher_logits is not None:
        guess = teacher_logits[:, :-1].detach().softmax(-1)
        distilled = F.cross_entropy(scores.mT, guess.mT, reduction="none")
        losses = (1 - alpha) * losses + alpha * distilled.masked_fill(targets == IGNORED, 0.0)
    return losses.sum(1)


def sequence_labels(
    ids: Int[Tensor, "batch tokens"], valid: Bool[Tensor, "batch tokens"]
) -> Int64[Tensor, "batch tokens"]:
    """The words to be predicted: all but padding."""
    return ids.long().masked_fill(~valid, IGNORED)
