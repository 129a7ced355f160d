"""Emoji: the same concepts drawn by six vendors, named and described in English and Chinese.

``data/emoji.md`` tells where everything comes from, and how the concepts were chosen and split.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property

import torch
from jaxtyping import Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mmlab.datasets.checks import Indices, check_choice, check_image_size, check_rows
from mmlab.datasets.example import Caption, Example
from mmlab.datasets.images import decode_image
from mmlab.datasets.resources import read_data
from mmlab.datasets.transforms import resize

VENDORS = ("noto", "twemoji", "emojione", "noto-v1", "fluent", "openmoji")
TRAINING_VENDORS = ("noto", "twemoji", "emojione")
"""The styles to train on. ``fluent`` is kept for testing only: see ``emoji``."""
SPLITS = ("train", "held_out", "all")
LANGUAGES = ("en", "zh")
KINDS = ("name", "keywords")
TARGETS = ("concept", "group", "subgroup", "vendor")
NATIVE_SIZE = 48
MAX_IMAGE_SIZE = 1024
_SEPARATORS = {"en": ", ", "zh": "、"}


@dataclass(frozen=True)
class Concept:
    """One emoji, apart from how anyone draws it.

    ``index`` is its place in the full table, in Unicode's order; ``names`` and ``keywords`` are
    CLDR's, by language; ``vendors`` are those who draw it.
    """

    index: int
    emoji: str
    code_points: tuple[str, ...]
    unicode_name: str
    group: str
    subgroup: str
    vendors: tuple[str, ...]
    split: str
    names: dict[str, str] = field(hash=False)
    keywords: dict[str, tuple[str, ...]] = field(hash=False)

    def text(self, language: str, kind: str) -> str:
        """The name, or the keywords in one line."""
        if kind == "name":
            return self.names[language]
        return _SEPARATORS[language].join(self.keywords[language])


@cache
def emoji_concepts() -> tuple[Concept, ...]:
    """The full table of concepts; ``labels`` of every selection index it."""
    return tuple(_concept(i, row) for i, row in enumerate(_table()["concepts"]))


@cache
def _table() -> dict:
    return json.loads(read_data("emoji", "concepts.json"))


def _concept(index: int, row: dict) -> Concept:
    keywords = {language: tuple(words) for language, words in row["keywords"].items()}
    return Concept(
        index=index,
        emoji=row["emoji"],
        code_points=tuple(row["code_points"]),
        unicode_name=row["unicode_name"],
        group=row["group"],
        subgroup=row["subgroup"],
        vendors=tuple(row["vendors"]),
        split=row["split"],
        names=row["names"],
        keywords=keywords,
    )


@cache
def _drawings(vendor: str) -> UInt8[Tensor, "num 3 48 48"]:
    """All drawings of a vendor, in the order of the concepts that it draws."""
    sheet = decode_image(read_data("emoji", f"{vendor}.webp"), f"{vendor}.webp")
    tiles = sheet.reshape(3, -1, NATIVE_SIZE, _table()["columns"], NATIVE_SIZE)
    tiles = tiles.permute(1, 3, 0, 2, 4).reshape(-1, 3, NATIVE_SIZE, NATIVE_SIZE)
    return tiles[: len(_drawn_by(vendor))]


@cache
def _drawn_by(vendor: str) -> tuple[int, ...]:
    return tuple(c.index for c in emoji_concepts() if vendor in c.vendors)


class Emoji(Dataset):
    """Drawings of emoji; one example for each concept of ``split`` and vendor that draws it.

    Examples stand vendor by vendor, in the order given, and within a vendor in Unicode's order.
    """

    def __init__(self, split: str, vendors: Sequence[str], language: str, image_size: int):
        self.split = check_choice("split", split, SPLITS)
        self.vendors = _check_vendors(vendors)
        self.language = check_choice("language", language, LANGUAGES)
        self.image_size = check_image_size(image_size, MAX_IMAGE_SIZE)
        self._items = [
            (concept, vendor)
            for vendor in self.vendors
            for concept in emoji_concepts()
            if vendor in concept.vendors and split in ("all", concept.split)
        ]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """Many examples at once: what a DataLoader calls for a batch."""
        rows = check_rows(indices, len(self)).tolist()
        images = self.images(rows)
        return [self._example(row, image) for row, image in zip(rows, images, strict=True)]

    def images(self, indices: Indices = None) -> UInt8[Tensor, "batch 3 height width"]:
        """The images ``indices`` (all without it), RGB on white, from 0 to 255.

        They are stored at 48 x 48; other sizes are made by bicubic resizing with antialiasing.
        """
        images = self._stored[check_rows(indices, len(self))]
        if self.image_size == NATIVE_SIZE:
            return images
        return resize(images, (self.image_size, self.image_size), interpolation="bicubic")

    @property
    def concepts(self) -> tuple[Concept, ...]:
        """The concept of each example."""
        return tuple(concept for concept, _ in self._items)

    @property
    def labels(self) -> Int64[Tensor, " num"]:
        """The concept of each example as its index in the full table, the same for all vendors."""
        return torch.tensor([concept.index for concept, _ in self._items], dtype=torch.int64)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of all concepts of the table, in the data set's language."""
        return tuple(concept.names[self.language] for concept in emoji_concepts())

    def targets(self, name: str = "concept") -> tuple[Int64[Tensor, " num"], tuple[str, ...]]:
        """Labels and class names of a classification task, one of ``TARGETS``.

        The classes are the same for every selection. ``vendor`` asks for the style.
        """
        check_choice("target", name, TARGETS)
        if name == "concept":
            return self.labels, self.classes
        if name == "vendor":
            names, values = VENDORS, [vendor for _, vendor in self._items]
        else:
            names = tuple(dict.fromkeys(getattr(c, name) for c in emoji_concepts()))
            values = [getattr(c, name) for c in self.concepts]
        return torch.tensor([names.index(v) for v in values], dtype=torch.int64), names

    def captions(self, language: str | None = None, kind: str = "name") -> list[str]:
        """One text an example: its ``"name"``, or its ``"keywords"`` in one line.

        ``language`` is ``"en"`` or ``"zh"``; without it, the data set's own.
        """
        language = (
            self.language if language is None else check_choice("language", language, LANGUAGES)
        )
        check_choice("kind", kind, KINDS)
        return [concept.text(language, kind) for concept in self.concepts]

    @cached_property
    def _stored(self) -> UInt8[Tensor, "num 3 48 48"]:
        parts = []
        for vendor in self.vendors:
            place = {index: i for i, index in enumerate(_drawn_by(vendor))}
            rows = [place[concept.index] for concept, v in self._items if v == vendor]
            parts.append(_drawings(vendor)[rows])
        return torch.cat(parts)

    def _example(self, row: int, image: UInt8[Tensor, "3 height width"]) -> Example:
        concept, vendor = self._items[row]
        source = _table()["vendors"][vendor]
        languages = sorted(LANGUAGES, key=lambda language: language != self.language)
        return Example(
            id=f"emoji-{vendor}-{'-'.join(concept.code_points).replace('U+', '').lower()}",
            image=image,
            label=concept.names[self.language],
            captions=tuple(
                Caption(concept.text(language, kind), language, kind)
                for language in languages
                for kind in KINDS
            ),
            tags=concept.keywords[self.language],
            source=f"{source['package']} {source['version']}",
            license=source["license"],
            extra={
                "emoji": concept.emoji,
                "vendor": vendor,
                "group": concept.group,
                "subgroup": concept.subgroup,
                "split": concept.split,
            },
        )


def _check_vendors(vendors: str | Iterable[str]) -> tuple[str, ...]:
    vendors = (vendors,) if isinstance(vendors, str) else tuple(vendors)
    if not vendors:
        raise ValueError(f"vendors is empty; name at least one of {', '.join(VENDORS)}")
    for vendor in vendors:
        check_choice("vendor", vendor, VENDORS)
    if len(set(vendors)) < len(vendors):
        raise ValueError(f"vendors is {vendors}; each can be named once")
    return vendors


def emoji(
    split: str = "train",
    vendors: str | Sequence[str] = TRAINING_VENDORS,
    language: str = "en",
    image_size: int = NATIVE_SIZE,
) -> Emoji:
    """Drawings of emoji with their names and keywords.

    Two things can be unseen. ``split`` is about the concepts: ``"train"`` has nine tenths of
    them, ``"held_out"`` the rest, which no model of the book trains on, ``"all"`` both.
    ``vendors`` (one name or several) is about the style:

    ====================================  =========================================================
    ``noto``, ``twemoji``, ``emojione``   the styles to train on, and the default
    ``noto-v1``                           an older style: for validation, to choose settings by
    ``fluent``                            **never trained on**: the test of an unseen style
    ``openmoji``                          line art: the harder test
    ====================================  =========================================================

    So ``emoji("train", "fluent")`` tests known concepts in an unseen style, and
    ``emoji("held_out", "fluent")`` unseen concepts in an unseen style.

    Args:
        split: ``"train"``, ``"held_out"`` or ``"all"``.
        vendors: who drew the emoji.
        language: ``"en"`` or ``"zh"``, for ``classes``, labels and the first caption.
        image_size: height and width in pixels, 1 to 1024; 48 is the stored size.

    Raises:
        ValueError: an unknown split, vendor or language, or an image size out of range.
        FileNotFoundError: the data did not come with mmlab.
    """
    return Emoji(split, vendors, language, image_size)
