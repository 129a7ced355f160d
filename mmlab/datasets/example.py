"""The one form that every example of every data set takes."""

from __future__ import annotations

from dataclasses import dataclass, field

from jaxtyping import UInt8
from torch import Tensor

Box = tuple[float, float, float, float]
"""``(x0, y0, x1, y1)`` in pixels, the origin at the top left, ``x1`` and ``y1`` exclusive."""


@dataclass(frozen=True)
class Region:
    """An object in an image: where it is and what it is."""

    box: Box
    category: str
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Relation:
    """A directed edge of the scene graph: ``regions[subject] predicate regions[object]``."""

    subject: int
    predicate: str
    object: int


@dataclass(frozen=True)
class Alignment:
    """The true word-to-region link: ``caption.text[start:end]`` speaks of ``regions[region]``."""

    start: int
    end: int
    region: int


@dataclass(frozen=True)
class Caption:
    """A sentence about an image.

    ``kind`` says how it came about (``"name"``, ``"keywords"``, ``"short"``, ``"detailed"`` …);
    ``noise`` names the corruption put into it on purpose, or is ``None`` for a true caption.
    """

    text: str
    language: str = "en"
    kind: str = "short"
    alignment: tuple[Alignment, ...] = ()
    noise: str | None = None


@dataclass(frozen=True)
class Question:
    """A question about one image with its answer; ``kind`` groups questions for reports."""

    text: str
    answer: str
    kind: str
    language: str = "en"


@dataclass(frozen=True)
class Example:
    """One image with everything that is known about it.

    ``image`` is RGB, 0-255, channels first. Fields that a data set knows nothing about stay empty.
    """

    id: str
    image: UInt8[Tensor, "3 height width"]
    label: str
    captions: tuple[Caption, ...] = ()
    regions: tuple[Region, ...] = ()
    relations: tuple[Relation, ...] = ()
    tags: tuple[str, ...] = ()
    questions: tuple[Question, ...] = ()
    source: str = ""
    license: str = ""
    extra: dict[str, str] = field(default_factory=dict)

    def caption(self, language: str = "en", kind: str | None = None) -> str:
        """Text of the first caption in ``language`` and of ``kind``; KeyError if there is none."""
        for caption in self.captions:
            if caption.language == language and kind in (None, caption.kind):
                return caption.text
        known = sorted({(c.language, c.kind) for c in self.captions})
        raise KeyError(
            f"{self.id} has no caption with language={language!r}, kind={kind!r}; it has {known}"
        )
