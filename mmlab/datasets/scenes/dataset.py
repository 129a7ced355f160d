"""The data set: scenes by number, drawn when asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from random import Random

import torch
from jaxtyping import Bool, Int64, UInt8
from torch import Tensor
from torch.utils.data import Dataset

from mmlab.datasets.checks import Indices, check_choice, check_rows
from mmlab.datasets.example import Caption, Example, Question
from mmlab.datasets.scenes import binding, choices, entailment, pairs, questions, referring
from mmlab.datasets.scenes.draws import Draws, text_generator
from mmlab.datasets.scenes.language import KINDS, NUM_VARIANTS, caption, tags
from mmlab.datasets.scenes.noise import (
    SceneNoise,
    is_true_of,
    noisy_caption,
    wrong_attribute,
)
from mmlab.datasets.scenes.render import INK, coverage, render
from mmlab.datasets.scenes.vocabulary import (
    BACKGROUNDS,
    COLORS,
    LANGUAGES,
    SHAPES,
    TEXTURES,
    lexicon,
)
from mmlab.datasets.scenes.world import (
    HELD_OUT,
    LAYOUTS,
    MAX_OBJECTS,
    SPLITS,
    Pair,
    Scene,
    SceneBatch,
    allowed_pairs,
    relations,
    sample_free,
    sample_left_right,
    to_scenes,
)

IMAGE_SIZES = (32, 256)
TARGETS = ("largest_shape", "largest_color", "largest_texture", "count", "background", "left_right")
LICENSE = "CC0-1.0"


@dataclass(frozen=True)
class SceneConfig:
    """Everything that decides what a data set of scenes holds.

    ``num_objects`` is the least and the greatest number of objects. ``held_out`` lists the
    combinations (color, shape) that only the split ``"held_out"`` shows. ``layout="left_right"``
    gives one red and one blue shape in images whose patches do not tell which stands left.
    """

    num_images: int = 1000
    split: str = "train"
    image_size: int = 64
    seed: int = 0
    noise: SceneNoise | None = None
    held_out: Sequence[Sequence[str]] = HELD_OUT
    num_objects: Sequence[int] = (1, MAX_OBJECTS)
    layout: str = "free"

    def __post_init__(self):
        object.__setattr__(self, "held_out", tuple(map(tuple, self.held_out)))
        object.__setattr__(self, "num_objects", tuple(self.num_objects))
        _check_whole("num_images", self.num_images, 1, None)
        _check_whole("image_size", self.image_size, *IMAGE_SIZES)
        _check_whole("seed", self.seed, 0, 2**63 - 1)
        check_choice("split", self.split, SPLITS)
        check_choice("layout", self.layout, LAYOUTS)
        if self.noise is not None and not isinstance(self.noise, SceneNoise):
            raise ValueError(f"noise is {self.noise!r}; it must be a SceneNoise or None")
        _check_num_objects(self.num_objects)
        _check_held_out(self.held_out, self.split)
        if self.layout == "left_right":
            _check_left_right(self)


def _check_whole(name: str, value: object, low: int, high: int | None) -> None:
    allowed = f"{low} or more" if high is None else f"{low} to {high}"
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        raise ValueError(f"{name} is {value!r}; it must be a whole number, {allowed}")


def _check_num_objects(num_objects: tuple) -> None:
    whole = len(num_objects) == 2 and all(type(n) is int for n in num_objects)
    if not whole or not 1 <= num_objects[0] <= num_objects[1] <= MAX_OBJECTS:
        raise ValueError(
            f"num_objects is {num_objects!r}; it must be (low, high) with "
            f"1 <= low <= high <= {MAX_OBJECTS}"
        )


def _check_held_out(held_out: tuple, split: str) -> None:
    for pair in held_out:
        if len(pair) != 2 or pair[0] not in COLORS or pair[1] not in SHAPES:
            raise ValueError(
                f"held_out has {pair!r}; a combination is (color, shape) with a color of "
                f"{', '.join(COLORS)} and a shape of {', '.join(SHAPES)}"
            )
    remaining = allowed_pairs(held_out)
    lost = (set(COLORS) - {c for c, _ in remaining}) | (set(SHAPES) - {s for _, s in remaining})
    if lost:
        raise ValueError(
            f"held_out leaves no image with {', '.join(sorted(lost))}; every color and every "
            "shape needs a combination that is not held out"
        )
    if split == "held_out" and not held_out:
        raise ValueError("split is 'held_out' but held_out is empty; name a combination")


def _check_left_right(config: SceneConfig) -> None:
    if config.split == "held_out":
        raise ValueError("layout 'left_right' has no split 'held_out'; use train, validation, test")
    if config.image_size % 4:
        raise ValueError(
            f"image_size is {config.image_size}; layout 'left_right' needs a multiple of 4"
        )


class Scenes(Dataset):
    """Generated images of 1 to 4 colored shapes, with the whole truth about each.

    Image ``i`` depends on the seed, the split and ``i`` only: not on the images before it, not on
    how many there are. Images, captions and questions are made when asked for; nothing is stored.
    """

    def __init__(self, config: SceneConfig):
        self.config = config

    def __len__(self) -> int:
        return self.config.num_images

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: list[int]) -> list[Example]:
        """Many examples at once, rendered together: what a DataLoader calls for a batch."""
        rows = check_rows(indices, len(self))
        batch = self._sample(rows)
        images, scenes = render(batch, self.config.image_size), to_scenes(batch)
        told = self._told(rows, scenes)
        return [
            self._example(*item) for item in zip(rows.tolist(), images, scenes, told, strict=True)
        ]

    def __iter__(self) -> Iterator[Example]:
        for start in range(0, len(self), 64):
            yield from self.__getitems__(list(range(start, min(start + 64, len(self)))))

    # What is in the images.

    def images(self, indices: Indices = None) -> UInt8[Tensor, "batch 3 height width"]:
        """The images ``indices`` (all without it), RGB from 0 to 255; only these are drawn."""
        return render(self._sample(check_rows(indices, len(self))), self.config.image_size)

    def objects(self, indices: Indices = None) -> SceneBatch:
        """The objects of the images ``indices`` (all without it) as tensors, sizes as fractions."""
        return self._sample(check_rows(indices, len(self)))

    def masks(self, index: int) -> Bool[Tensor, "objects height width"]:
        """The pixels of each object of one image, in the order of its regions."""
        batch = self._sample(check_rows([index], len(self)))
        return coverage(batch, self.config.image_size)[0, : int(batch.count[0])] >= INK

    def scene(self, index: int) -> Scene:
        """The objects of one image, with sizes as fractions of its width."""
        return to_scenes(self._sample(check_rows([index], len(self))))[0]

    @cached_property
    def scenes(self) -> tuple[Scene, ...]:
        """The objects of all images; kept once they have been made."""
        return tuple(to_scenes(self._batch))

    # Words.

    def captions(self, language: str = "en", kind: str = "short") -> list[str]:
        """One caption an image, noise included, at a level of ``short, medium, detailed``."""
        return [self.caption(i, language, kind).text for i in range(len(self))]

    def true_captions(self, language: str = "en", kind: str = "short") -> list[str]:
        """The same captions without noise."""
        return self.clean.captions(language, kind)

    def caption(self, index: int, language: str = "en", kind: str = "short") -> Caption:
        """One caption with its alignment and its noise."""
        (row,) = check_rows([index], len(self)).tolist()
        return self._caption(row, self.scenes[row], self._told_scenes[row], language, kind)

    def paraphrases(
        self, index: int, language: str = "en", kind: str = "short"
    ) -> tuple[Caption, ...]:
        """Different true sentences of one kind about one image."""
        scene = self.scene(index)
        return tuple(caption(scene, kind, language, v) for v in range(NUM_VARIANTS))

    def noise_kinds(self) -> list[str | None]:
        """The noise in the captions of each image; None where they are true."""
        return [self._noise_kind(i) for i in range(len(self))]

    @cached_property
    def clean(self) -> Scenes:
        """The same images with true captions."""
        return Scenes(replace(self.config, noise=None))

    def tags(self, language: str = "en") -> list[tuple[str, ...]]:
        """The object tags of each image: the categories that occur in it."""
        return [tags(scene, language) for scene in self.scenes]

    def questions(self, language: str = "en") -> list[list[Question]]:
        """The questions about each image, at most one of each kind, with their answers."""
        return [self._asked(i, scene, language) for i, scene in enumerate(self.scenes)]

    # Labels.

    @property
    def labels(self) -> Int64[Tensor, " num"]:
        """The shape of the largest object of each image, as an index into ``classes``.

        The largest object is wider than every other by 15 % or more.
        """
        return self.targets("largest_shape")[0]

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the shapes."""
        return SHAPES

    def targets(self, name: str = "largest_shape") -> tuple[Int64[Tensor, " num"], tuple[str, ...]]:
        """Labels and class names of a classification task, one of ``TARGETS``.

        ``left_right`` (does the red shape stand left of the blue one?) needs
        ``layout="left_right"``.
        """
        check_choice("target", name, TARGETS)
        batch = self._batch
        if name == "count":
            return batch.count - 1, tuple(str(n + 1) for n in range(MAX_OBJECTS))
        if name == "background":
            return batch.background, BACKGROUNDS
        if name == "left_right":
            return self._left_right()
        largest = self._largest(batch)
        table = {
            "largest_shape": (batch.shape, SHAPES),
            "largest_color": (batch.color, COLORS),
            "largest_texture": (batch.texture, TEXTURES),
        }
        values, classes = table[name]
        return values.gather(1, largest[:, None])[:, 0], classes

    @staticmethod
    def _largest(batch: SceneBatch) -> Int64[Tensor, " num"]:
        filled = torch.arange(batch.radius.shape[1]) < batch.count[:, None]
        return torch.where(filled, batch.radius, 0).argmax(1)

    def _left_right(self) -> tuple[Int64[Tensor, " num"], tuple[str, ...]]:
        if self.config.layout != "left_right":
            raise ValueError("target 'left_right' needs scenes(..., layout='left_right')")
        x = self._batch.center[:, :, 0]
        return (x[:, 0] < x[:, 1]).long(), ("red right of blue", "red left of blue")

    # Tasks. Every item names its images by index.

    def image_pairs(
        self, num: int, seed: int = 0, language: str = "en"
    ) -> tuple[pairs.ImagePair, ...]:
        """Statements about two images, half of them true (as NLVR2)."""
        return pairs.image_pairs(self.scenes, num, self._task_rng("pairs", seed), language)

    def entailments(
        self, num: int, seed: int = 0, language: str = "en"
    ) -> tuple[entailment.Entailment, ...]:
        """Hypotheses that images entail, leave open or contradict, a third each (as SNLI-VE)."""
        rng = self._task_rng("entailment", seed)
        return entailment.entailments(self.scenes, num, rng, self._pairs, language)

    def choices(self, num: int, seed: int = 0, language: str = "en") -> tuple[choices.Choice, ...]:
        """Questions with four answers and four rationales (as VCR)."""
        return choices.choices(self.scenes, num, self._task_rng("choices", seed), language)

    def referring_expressions(
        self, num: int, seed: int = 0, language: str = "en"
    ) -> tuple[referring.ReferringExpression, ...]:
        """Phrases that fit one region each (as RefCOCO)."""
        rng = self._task_rng("referring", seed)
        return referring.referring_expressions(self.scenes, num, rng, language)

    def binding_pairs(
        self,
        num: int,
        seed: int = 0,
        language: str = "en",
        kinds: Sequence[str] = ("attribute", "relation"),
    ) -> tuple[binding.BindingPair, ...]:
        """A true and a false caption made of the same words (as ARO).

        ``kinds`` take turns: ``"attribute"``, ``"relation"``, ``"count"``.
        """
        rng = self._task_rng("binding", seed)
        return binding.binding_pairs(self.scenes, num, rng, self._pairs, language, kinds)

    # How it is made.

    @property
    def _stream(self) -> str:
        return f"scenes/{self.config.split}"

    @cached_property
    def _pairs(self) -> frozenset[Pair]:
        """The combinations that texts of this split may name: held-out ones stay unheard of too."""
        return allowed_pairs(() if self.config.split == "held_out" else self.config.held_out)

    @cached_property
    def _batch(self) -> SceneBatch:
        return self._sample(torch.arange(len(self)))

    def _sample(self, rows: Int64[Tensor, " batch"]) -> SceneBatch:
        c = self.config
        if c.layout == "left_right":
            return sample_left_right(c.seed, self._stream, rows, c.held_out)
        draws = Draws(c.seed, self._stream, rows)
        return sample_free(draws, c.held_out, c.split == "held_out", c.num_objects)

    def _rng(self, index: int, purpose: str) -> Random:
        return text_generator(self._stream, self.config.seed, index, purpose)

    def _task_rng(self, task: str, seed: int) -> Random:
        _check_whole("seed", seed, 0, None)
        return text_generator(self._stream, self.config.seed, task, seed)

    def _noise_kind(self, index: int) -> str | None:
        if self.config.noise is None:
            return None
        return self.config.noise.kind(self._rng(index, "noise").random())

    def _caption(self, index: int, scene: Scene, told: Scene, language: str, kind: str) -> Caption:
        check_choice("kind", kind, KINDS)
        lexicon(language)
        noise = self._noise_kind(index)
        variant = self._rng(index, f"variant {kind}").randrange(NUM_VARIANTS)
        if noise is None:
            return caption(scene, kind, language, variant)
        rng = self._rng(index, "noise words")
        return noisy_caption(scene, noise, told, rng, kind, language, variant)

    def _asked(self, index: int, scene: Scene, language: str) -> list[Question]:
        rng = self._rng(index, "questions")
        return questions.questions(scene, rng, self._pairs, language)

    @cached_property
    def _told_scenes(self) -> list[Scene]:
        return self._told(torch.arange(len(self)), list(self.scenes))

    def _told(self, rows: Int64[Tensor, " batch"], scenes: list[Scene]) -> list[Scene]:
        """The scenes that the captions tell of: other ones where noise has put a false caption."""
        if self.config.noise is None:
            return scenes
        c = self.config
        strangers = rows + 1 + Draws(c.seed, self._stream, rows).integers("stranger", 1000)
        drawn = zip(
            rows.tolist(), scenes, strangers, to_scenes(self._sample(strangers)), strict=True
        )
        return [self._told_of(*item) for item in drawn]

    def _told_of(self, index: int, scene: Scene, row: Int64[Tensor, ""], stranger: Scene) -> Scene:
        noise = self._noise_kind(index)
        if noise == "wrong_attribute":
            return wrong_attribute(scene, self._rng(index, noise), self._pairs)
        if noise != "swapped_pair":
            return scene
        while is_true_of(stranger, scene):
            row = row + 1
            (stranger,) = to_scenes(self._sample(row[None]))
        return stranger

    def _example(
        self, index: int, image: UInt8[Tensor, "3 h w"], scene: Scene, told: Scene
    ) -> Example:
        size, c = self.config.image_size, self.config
        asked = [
            question for language in LANGUAGES for question in self._asked(index, scene, language)
        ]
        return Example(
            id=f"scenes-{c.seed}-{c.split}-{index}",
            image=image,
            label=max(scene.objects, key=lambda o: o.radius).shape,
            captions=tuple(
                self._caption(index, scene, told, language, kind)
                for language in LANGUAGES
                for kind in KINDS
            ),
            regions=tuple(o.region(size) for o in scene.objects),
            relations=relations(scene),
            tags=tags(scene),
            questions=tuple(asked),
            source="mmlab scenes",
            license=LICENSE,
            extra={"background": scene.background},
        )


def scenes(
    num_images: int = 1000,
    split: str = "train",
    image_size: int = 64,
    seed: int = 0,
    noise: SceneNoise | None = None,
    held_out: Sequence[Sequence[str]] = HELD_OUT,
    num_objects: Sequence[int] = (1, MAX_OBJECTS),
    layout: str = "free",
) -> Scenes:
    """Generated scenes of colored shapes, with captions, boxes, questions and tasks.

    The fields of ``SceneConfig`` say what the arguments mean. The splits ``train``, ``validation``
    and ``test`` are alike and share no image; every image of ``held_out`` shows at least one of the
    combinations ``held_out``, and no image or sentence of the others does.

    Raises:
        ValueError: an argument is out of range; the message names it and what is allowed.
    """
    return Scenes(
        SceneConfig(num_images, split, image_size, seed, noise, held_out, num_objects, layout)
    )
