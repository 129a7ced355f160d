"""Distillation: a teacher's guess is a part of what is to be learned."""

from __future__ import annotations

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor


def distilled_classification_loss(
    logits: Float[Tensor, "batch classes"],
    labels: Int64[Tensor, " batch"],
    teacher_logits: Float[Tensor, "batch classes"],
    alpha: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """``(1 - alpha)`` of the cross-entropy with the labels, ``alpha`` of that with the teacher.

    ALBEF's fine-tuning (``models/model_ve.py``). No gradient to the teacher.
    """
    guess = teacher_logits.detach().softmax(-1)
    return (1 - alpha) * F.cross_entropy(logits, labels) + alpha * F.cross_entropy(logits, guess)
