"""Zero-shot classification: the classes are sentences (CLIP, section 3.1).

A class is the mean direction of several sentences about it ("prompt ensembling", section 3.1.4), so
a model that never saw a label can still choose among any classes that words can name.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

EncodeText = Callable[[list[str]], Float[Tensor, "texts dim"]]
"""Sentences to features; a model with its tokenizer."""

TEMPLATES: dict[str, tuple[str, ...]] = {
    "name": ("{}",),
    "en": ("{}", "a picture of {}", "a drawing of {}", "an emoji of {}", "the symbol for {}"),
    "zh": ("{}", "{}的图片", "一幅{}的画", "{}表情符号"),
}
"""Sets of prompt templates; each has one ``{}`` for the name of the class."""


@dataclass(frozen=True)
class ZeroShot:
    """Shares of images whose class came first, or among the first five."""

    top1: float
    top5: float
    num_images: int
    num_classes: int


def check_templates(templates: Sequence[str]) -> tuple[str, ...]:
    """The templates; ValueError unless there is one and each has exactly one ``{}``."""
    templates = tuple(templates)
    if not templates:
        raise ValueError("templates is empty; give at least one sentence with {} for the class")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"a template must have one {{}} for the class, got {template!r}")
    return templates


@torch.no_grad()
def class_features(
    encode_text: EncodeText, class_names: Sequence[str], templates: Sequence[str]
) -> Float[Tensor, "classes dim"]:
    """One unit vector a class: the mean of the unit vectors of its sentences.

    The mean is taken of features and not of probabilities, so classifying costs the same with one
    template or eighty (CLIP, section 3.1.4). ValueError for wrong templates.
    """
    templates = check_templates(templates)
    total = 0
    for template in templates:
        # replace and not format: a class may be called "{" or "}".
        features = encode_text([template.replace("{}", name) for name in class_names])
        total = total + F.normalize(features, dim=-1)
    return F.normalize(total, dim=-1)


def zero_shot(
    image_features: Float[Tensor, "images dim"],
    class_features: Float[Tensor, "classes dim"],
    labels: Int[Tensor, " images"],
) -> ZeroShot:
    """Accuracy of taking the class whose vector is nearest to the image's."""
    scores = F.normalize(image_features, dim=-1) @ class_features.T
    num_classes = len(class_features)
    found = scores.topk(min(5, num_classes), dim=-1).indices == labels[:, None]
    top1, top5 = (found[:, :k].any(1).float().mean().item() for k in (1, 5))
    return ZeroShot(top1, top5, len(labels), num_classes)
