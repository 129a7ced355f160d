"""How well captions that a model wrote describe scenes, of which everything is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from mmlab.datasets import Scenes
from mmlab.datasets.scenes.language import NUM_VARIANTS, caption
from mmlab.tasks.paired_scenes import CAPTION_KINDS


@dataclass(frozen=True)
class Described:
    """Shares, each beside what the same captions get with the next scene instead of their own.

    - ``exact``: of captions that are, word for word, one of the true ones of the grammar.
    - ``named``: of what a scene shows (colors with shapes, such as "red circle"), the part that its
      caption names; the mean over the scenes.
    - ``num_different``: how many of the captions are different from each other.
    """

    exact: float
    exact_wrong_image: float
    named: float
    named_wrong_image: float
    num_different: int
    num_images: int


def describe_well(captions: Sequence[str], dataset: Scenes, language: str = "en") -> Described:
    """Judge one caption of each scene. ValueError unless there are as many as scenes."""
    if len(captions) != len(dataset):
        raise ValueError(f"there must be {len(dataset)} captions, one a scene, got {len(captions)}")
    true = [true_wordings(dataset, i, language) for i in range(len(dataset))]
    shown = [{f"{o.color} {o.shape}" for o in scene.objects} for scene in dataset.scenes]
    others = [*range(1, len(dataset)), 0]
    return Described(
        _mean([text in own for text, own in zip(captions, true, strict=True)]),
        _mean([text in true[i] for text, i in zip(captions, others, strict=True)]),
        _mean([_part(text, own) for text, own in zip(captions, shown, strict=True)]),
        _mean([_part(text, shown[i]) for text, i in zip(captions, others, strict=True)]),
        len(set(captions)),
        len(dataset),
    )


def true_wordings(dataset: Scenes, index: int, language: str = "en") -> set[str]:
    """All that the grammar can say of one scene in a short or medium caption."""
    # ``Scenes.paraphrases`` would draw the scene anew for each kind.
    scene = dataset.scenes[index]
    variants = product(CAPTION_KINDS, range(NUM_VARIANTS))
    return {caption(scene, kind, language, variant).text for kind, variant in variants}


def _part(text: str, shown: set[str]) -> float:
    """A plural holds its singular: "red circles" names "red circle"."""
    return sum(name in text for name in shown) / len(shown)


def _mean(values: Sequence[float | int]) -> float:
    return sum(values) / len(values)
