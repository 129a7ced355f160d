"""A detector for scenes whose errors are made on purpose, at known rates.

It knows the truth and spoils it, so that a claim about region features ("better regions matter more
than a better fusion") can be tried at any quality of regions. Its features come from the pixels of
the box that it reports, right or wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from mmlab.datasets.checks import Indices, check_rows
from mmlab.datasets.regions.batch import Regions
from mmlab.datasets.regions.crops import region_features
from mmlab.datasets.scenes import COLORS, SHAPES, TEXTURES, Scenes
from mmlab.datasets.scenes.draws import Draws
from mmlab.datasets.scenes.shapes import HALF_EXTENTS
from mmlab.datasets.scenes.world import MAX_OBJECTS, SceneBatch

ATTRIBUTES = COLORS + TEXTURES
"""The vocabulary of attributes: a region has a color, then a texture."""

OVERLAP_SHIFT = 0.25
CHUNK = 256
RATES = ("missed", "wrong_class", "wrong_attribute", "overlapping")


@dataclass(frozen=True)
class ToyDetector:
    """What the detector does wrong, and what it tells; without any error it tells the truth.

    Chances, each in [0, 1]:

    - ``missed``: an object is not found.
    - ``wrong_class``: a box has another class than its object, all others equally likely.
    - ``wrong_attribute``: the same of its color, and of its texture.
    - ``overlapping``: a found object has a second box, whose edges lie up to a quarter of the
      object's width or height away from the true ones (further, if ``jitter`` is more).

    ``jitter`` in [0, 0.5) moves each edge of a box by up to this share of its width or height; the
    overlap with the truth (IoU) stays above ((1 - 2 jitter) / (1 + 2 jitter))². ``confidence`` is
    the range of probabilities that the reported class gets, between 0.5 and 1: wrong classes and
    second boxes get one from its lower half. ``feature_dim`` is the length of the features.

    What is told about a scene depends on ``seed`` and on the scene, not on what else is asked for.
    An image of which all objects were missed has one region: the whole image, as background. A
    wrong class or color may happen to make a combination that the split holds out.
    """

    missed: float | int = 0.0
    wrong_class: float | int = 0.0
    wrong_attribute: float | int = 0.0
    overlapping: float | int = 0.0
    jitter: float | int = 0.0
    confidence: Sequence[float | int] = (0.6, 0.95)
    feature_dim: int = 64
    seed: int = 0

    def __post_init__(self):
        object.__setattr__(self, "confidence", tuple(self.confidence))
        for name in RATES:
            if not (_is_number(getattr(self, name)) and 0 <= getattr(self, name) <= 1):
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be between 0 and 1")
        if not (_is_number(self.jitter) and 0 <= self.jitter < 0.5):
            raise ValueError(f"jitter is {self.jitter!r}; it must be at least 0 and below 0.5")
        if len(self.confidence) != 2 or not 0.5 < self.confidence[0] <= self.confidence[1] <= 1:
            raise ValueError(
                f"confidence is {self.confidence!r}; it must be (low, high) with "
                "0.5 < low <= high <= 1"
            )
        for name, least in (("feature_dim", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} is {value!r}; it must be a whole number, {least} or more")

    def detect(self, scenes: Scenes, indices: Indices = None) -> Regions:
        """The regions of the images ``indices`` (all without it), the most confident ones first.

        ``classes`` count in ``SHAPES``, ``attributes`` in ``ATTRIBUTES``.

        Raises:
            IndexError: an index is out of range.
        """
        rows = check_rows(indices, len(scenes))
        found = self._find(scenes, rows)
        features = [self._features(scenes, rows[part], found, part) for part in _parts(len(rows))]
        size = float(scenes.config.image_size)
        return Regions(
            features=torch.cat(features),
            boxes=found.boxes,
            image_sizes=torch.full((len(rows), 2), size),
            mask=found.exists,
            classes=found.classes,
            class_distributions=found.distributions,
            confidences=found.confidences,
            attributes=found.attributes,
            attribute_confidences=found.attribute_confidences,
        )

    def objects(self, scenes: Scenes, indices: Indices = None) -> Int64[Tensor, "batch regions"]:
        """Which object of its scene each region of ``detect`` shows; -1 for none, and padding."""
        return self._find(scenes, check_rows(indices, len(scenes))).objects

    def _features(
        self, scenes: Scenes, rows: Int64[Tensor, " part"], found: _Found, part: slice
    ) -> Float[Tensor, "part slots dim"]:
        exists, boxes = found.exists[part], found.boxes[part]
        features = torch.zeros(*exists.shape, self.feature_dim)
        features[exists] = region_features(
            scenes.images(rows), boxes[exists], exists.nonzero()[:, 0], self.feature_dim
        )
        return features

    def _find(self, scenes: Scenes, rows: Int64[Tensor, " batch"]) -> _Found:
        config = scenes.config
        draws = Draws(self.seed, f"detector/{config.layout}/{config.split}/{config.seed}", rows)
        truth = scenes.objects(rows)
        boxes = _true_boxes(truth, config.image_size)
        firsts = self._look(draws, truth, boxes, second=False)
        seconds = self._look(draws, truth, boxes, second=True)
        present = torch.arange(MAX_OBJECTS) < truth.count[:, None]
        present = present[:, : truth.shape.shape[1]]
        exists = present & (draws.uniform("missed", *present.shape[1:]) >= self.missed)
        again = exists & (draws.uniform("overlapping", *present.shape[1:]) < self.overlapping)
        nothing = _whole_image(len(rows), config.image_size)
        found = _Found(
            *(torch.cat(parts, 1) for parts in zip(firsts, seconds, nothing, strict=True))
        )
        told = torch.cat([exists, again, ~exists.any(1, keepdim=True)], 1)
        return _sorted(found._replace(exists=told, boxes=found.boxes.clamp(0, config.image_size)))

    def _look(self, draws: Draws, truth: SceneBatch, boxes: Tensor, second: bool) -> _Found:
        """What would be told of each object, were it found."""
        slots, copy = truth.shape.shape[1], "second" if second else "first"
        wrong = draws.uniform(f"{copy} wrong class", slots) < self.wrong_class
        classes = _other(truth.shape, wrong, draws.uniform(f"{copy} class", slots), len(SHAPES))
        confidences = self._confidence(draws.uniform(f"{copy} confidence", slots), wrong | second)
        weights = -torch.log1p(-draws.uniform(f"{copy} rest", slots, len(SHAPES) + 1))
        attributes, sure = self._attributes(draws, truth, copy)
        amount = max(self.jitter, OVERLAP_SHIFT) if second else self.jitter
        return _Found(
            exists=torch.ones_like(classes, dtype=torch.bool),
            boxes=_shifted(boxes, amount, draws.uniform(f"{copy} edges", slots, 4)),
            classes=classes,
            distributions=_distributions(confidences, classes, truth.shape, weights),
            confidences=confidences.float(),
            attributes=attributes,
            attribute_confidences=sure.float(),
            objects=torch.arange(slots).expand(len(classes), slots),
        )

    def _attributes(
        self, draws: Draws, truth: SceneBatch, copy: str
    ) -> tuple[Int64[Tensor, "batch slots 2"], Float64[Tensor, "batch slots 2"]]:
        told, sure, slots = [], [], truth.shape.shape[1]
        for name, values, options in (
            ("color", truth.color, COLORS),
            ("texture", truth.texture, TEXTURES),
        ):
            wrong = draws.uniform(f"{copy} wrong {name}", slots) < self.wrong_attribute
            other = draws.uniform(f"{copy} {name}", slots)
            told.append(_other(values, wrong, other, len(options)) + ATTRIBUTES.index(options[0]))
            sure.append(self._confidence(draws.uniform(f"{copy} {name} confidence", slots), wrong))
        return torch.stack(told, -1), torch.stack(sure, -1)

    def _confidence(
        self, uniform: Float64[Tensor, "batch slots"], doubtful: Bool[Tensor, "batch slots"]
    ) -> Float64[Tensor, "batch slots"]:
        low, high = self.confidence
        return low + (high - low) * torch.where(doubtful, uniform / 2, uniform)


class _Found(NamedTuple):
    """Candidates of a batch; those that do not exist are not told."""

    exists: Bool[Tensor, "batch slots"]
    boxes: Float[Tensor, "batch slots 4"]
    classes: Int64[Tensor, "batch slots"]
    distributions: Float[Tensor, "batch slots classes"]
    confidences: Float[Tensor, "batch slots"]
    attributes: Int64[Tensor, "batch slots 2"]
    attribute_confidences: Float[Tensor, "batch slots 2"]
    objects: Int64[Tensor, "batch slots"]


def _parts(number: int) -> list[slice]:
    """Images drawn together: their crops take 12 KiB a region."""
    return [slice(start, start + CHUNK) for start in range(0, number, CHUNK)]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _true_boxes(truth: SceneBatch, image_size: int) -> Float64[Tensor, "batch slots 4"]:
    """The boxes of ``SceneObject.box``, rounded alike."""
    half = (
        truth.radius[..., None]
        * torch.tensor([HALF_EXTENTS[shape] for shape in SHAPES], dtype=torch.float64)[truth.shape]
    )
    return image_size * torch.cat([truth.center - half, truth.center + half], -1)


def _shifted(
    boxes: Float64[Tensor, "batch slots 4"], amount: float | int, uniform: Tensor
) -> Float[Tensor, "batch slots 4"]:
    extents = (boxes[..., 2:] - boxes[..., :2]).repeat(1, 1, 2)
    return (boxes + (2 * uniform - 1) * amount * extents).float()


def _other(
    values: Int64[Tensor, "batch slots"], wrong: Tensor, uniform: Tensor, number: int
) -> Int64[Tensor, "batch slots"]:
    """Another of ``number`` values where ``wrong``, all others equally likely."""
    step = 1 + (uniform * (number - 1)).long()
    return torch.where(wrong, (values + step) % number, values)


def _distributions(
    confidences: Float64[Tensor, "batch slots"],
    classes: Int64[Tensor, "batch slots"],
    truth: Int64[Tensor, "batch slots"],
    weights: Float64[Tensor, "batch slots columns"],
) -> Float[Tensor, "batch slots columns"]:
    """``confidences`` for the class that is told; ``weights`` share out what is left.

    The true class weighs more than another one: a detector that errs mostly has it in second place,
    which a hard label does not tell.
    """
    weights = weights.scatter_add(-1, truth[..., None] + 1, torch.full_like(weights, 2.0))
    weights = weights.scatter(-1, classes[..., None] + 1, 0)
    rest = (1 - confidences)[..., None] * weights / weights.sum(-1, keepdim=True)
    return rest.scatter(-1, classes[..., None] + 1, confidences[..., None]).float()


def _whole_image(batch: int, image_size: int) -> _Found:
    """The region of last resort: everything, and it is background."""
    background = torch.zeros(batch, 1, len(SHAPES) + 1)
    background[..., 0] = 1
    return _Found(
        exists=torch.ones(batch, 1, dtype=torch.bool),
        boxes=torch.tensor([0.0, 0.0, image_size, image_size]).expand(batch, 1, 4),
        classes=torch.zeros(batch, 1, dtype=torch.int64),
        distributions=background,
        confidences=torch.zeros(batch, 1),
        attributes=torch.tensor([0, len(COLORS)]).expand(batch, 1, 2),
        attribute_confidences=torch.zeros(batch, 1, 2),
        objects=torch.full((batch, 1), -1),
    )


def _sorted(found: _Found) -> _Found:
    """Told regions first, the most confident ones before the others; the rest becomes padding."""
    confidences = torch.where(found.exists, found.confidences, -1)
    longest = int(found.exists.sum(1).max())
    order = confidences.argsort(dim=1, descending=True, stable=True)[:, :longest]
    told = _Found(*(value[torch.arange(len(order))[:, None], order] for value in found))
    padding = ~told.exists
    for value in told:
        value[padding] = 0
    told.objects[padding] = -1
    return told
