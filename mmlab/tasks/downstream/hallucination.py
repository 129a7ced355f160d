"""Object hallucination: does a model say yes to what is not in the picture?

POPE asks whether an object is there, as often one that is as one that is not (Li et al., EMNLP
2023, "Evaluating Object Hallucination in Large Vision-Language Models"). What is asked for in vain
here differs in one word from something in the scene: it is near what POPE calls adversarial.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mmlab.models.checks import check
from mmlab.tasks.downstream.items import Items

EXISTENCE = "existence"
"""The kind of the questions for what is there."""
YES, NO = "yes", "no"


def asks_for_existence(items: Items) -> bool:
    """Whether some of the items are questions for existence, to be answered with yes or no."""
    return EXISTENCE in items.kinds and {YES, NO} <= set(items.classes)


def hallucination(logits: Float[Tensor, "items classes"], items: Items) -> dict[str, float | int]:
    """POPE's figures of the questions for existence among ``items``; shares from 0 to 1.

    - ``accuracy``, and ``precision``, ``recall`` and ``f1`` of "yes" (0 where nothing is divided by
      nothing: if yes is never said, or never right);
    - ``yes``: how often yes is said; ``neither``: how often another answer than yes and no, which
      is always wrong;
    - ``false_yes``: how often yes is said where it is wrong, the share of hallucinated objects;
    - ``num_items``.

    ValueError if there are no such questions, or the right answer to one is not yes or no.
    """
    check(asks_for_existence(items), "items", items.form, f"questions of the kind {EXISTENCE!r}")
    asked = torch.tensor([kind == EXISTENCE for kind in items.kinds])
    yes, no = (items.classes.index(word) for word in (YES, NO))
    said, truth = logits.argmax(-1)[asked], items.labels[asked]
    for label in truth.tolist():
        check(label in (yes, no), "label", items.classes[label], f"{YES} or {NO} for existence")
    there, claimed = truth == yes, said == yes
    hits, claims, present = (int(mask.sum()) for mask in (there & claimed, claimed, there))
    return {
        "accuracy": _share(int((said == truth).sum()), len(truth)),
        "precision": _share(hits, claims),
        "recall": _share(hits, present),
        "f1": _share(2 * hits, claims + present),
        "yes": _share(claims, len(truth)),
        "neither": _share(len(truth) - claims - int((said == no).sum()), len(truth)),
        "false_yes": _share(claims - hits, len(truth) - present),
        "num_items": len(truth),
    }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
