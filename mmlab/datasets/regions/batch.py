"""What a detector tells about a batch of images: one form for all models and all file formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

# The axes of each field after (batch, regions); a name stands for any size.
_AXES: dict[str, tuple[int | str, ...]] = {
    "features": ("dim",),
    "boxes": (4,),
    "mask": (),
    "classes": (),
    "class_distributions": ("classes",),
    "confidences": (),
    "attributes": ("kinds",),
    "attribute_confidences": ("kinds",),
}
_WHOLE_NUMBERS = ("classes", "attributes")
_SUM_TOLERANCE = 1e-2  # Published distributions are softmaxes stored in half precision.


@dataclass(frozen=True, eq=False)
class Regions:
    """The detected regions of some images, padded with zeros to the same number.

    - ``features``: one vector a region.
    - ``boxes``: ``(x1, y1, x2, y2)`` in pixels; ``image_sizes``: ``(width, height)`` in pixels.
      Boxes in fractions of the image have image sizes of (1, 1).
    - ``mask``: True on regions, False on padding; every image has a region.
    - ``classes``: the most likely object class, counted without the background.
    - ``class_distributions``: column 0 is the background, so class c stands in column c + 1.
    - ``confidences``: the probability of the class.
    - ``attributes``: numbers in one vocabulary of attributes; detectors of Visual Genome tell one a
      region, the toy detector two (color and texture). ``attribute_confidences`` are theirs.

    What a detector or a file does not tell is None. Padded labels are 0, which is a class, too:
    a loss has to look at ``mask``.

    Raises:
        ValueError: shapes that do not fit each other, or (looked for on the CPU only, where looking
            makes nobody wait) boxes that are upside down, distributions that do not sum to 1,
            padding that is not zero, an image without any region.
    """

    features: Float[Tensor, "batch regions dim"]
    boxes: Float[Tensor, "batch regions 4"]
    image_sizes: Float[Tensor, "batch 2"]
    mask: Bool[Tensor, "batch regions"]
    classes: Int64[Tensor, "batch regions"] | None = None
    class_distributions: Float[Tensor, "batch regions classes"] | None = None
    confidences: Float[Tensor, "batch regions"] | None = None
    attributes: Int64[Tensor, "batch regions kinds"] | None = None
    attribute_confidences: Float[Tensor, "batch regions kinds"] | None = None

    def __post_init__(self):
        _check_shapes(self)
        if self.mask.device.type == "cpu":
            _check_padding(self)
            _check_boxes(self)
            _check_labels(self)

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def num_regions(self) -> Int64[Tensor, " batch"]:
        """How many regions each image has."""
        return self.mask.sum(1)

    def to(self, device: torch.device | str) -> Regions:
        """The same on another device."""
        return Regions(**{name: value.to(device) for name, value in _given(self).items()})

    def select(self, rows: Int64[Tensor, " rows"]) -> Regions:
        """The images of ``rows`` only."""
        return Regions(**{name: value[rows] for name, value in _given(self).items()})


def collate_regions(examples: Sequence[Regions]) -> Regions:
    """One batch of many, padded with zeros to the image with the most regions.

    Fits a ``DataLoader`` as ``collate_fn``, where every example is a batch of one image.

    Raises:
        ValueError: no examples, or examples that do not tell the same things.
    """
    if not examples:
        raise ValueError("there are no examples to collate")
    longest = max(example.mask.shape[1] for example in examples)
    names = [field.name for field in fields(Regions)]
    return Regions(**{name: _join(name, examples, longest) for name in names})


def _join(name: str, examples: Sequence[Regions], longest: int) -> Tensor | None:
    values = [getattr(example, name) for example in examples]
    given = [value for value in values if value is not None]
    if not given:
        return None
    if len(given) < len(values):
        missing = next(i for i, value in enumerate(values) if value is None)
        raise ValueError(f"example {missing} has no {name}, others have; collate like with like")
    if name == "image_sizes":
        return torch.cat(given)
    for i, value in enumerate(given):
        if value.shape[2:] != given[0].shape[2:]:
            raise ValueError(
                f"{name} of example {i} are {value.shape[2]} numbers, those of example 0 are "
                f"{given[0].shape[2]}; collate like with like"
            )
    return torch.cat([_pad(value, longest) for value in given])


def _pad(value: Tensor, longest: int) -> Tensor:
    """Zeros behind the regions; ``F.pad`` counts axes from the last one."""
    return F.pad(value, (0, 0) * (value.ndim - 2) + (0, longest - value.shape[1]))


def _given(regions: Regions) -> dict[str, Tensor]:
    values = {field.name: getattr(regions, field.name) for field in fields(regions)}
    return {name: value for name, value in values.items() if value is not None}


def _check_shapes(regions: Regions) -> None:
    if regions.mask.ndim != 2 or regions.mask.dtype != torch.bool:
        raise ValueError(
            f"mask must be booleans of shape (batch, regions), got {regions.mask.dtype} of shape "
            f"{tuple(regions.mask.shape)}"
        )
    leading = tuple(regions.mask.shape)
    for name, value in _given(regions).items():
        wanted = (leading[0], 2) if name == "image_sizes" else leading + _AXES[name]
        if not _fits(value.shape, wanted):
            expected = ", ".join(map(str, wanted))
            raise ValueError(
                f"{name} has the shape {tuple(value.shape)}; with a mask of shape {leading} it "
                f"must be ({expected})"
            )
        if name != "mask":
            _check_dtype(name, value)
    if regions.attribute_confidences is not None and (
        regions.attributes is None
        or regions.attributes.shape != regions.attribute_confidences.shape
    ):
        raise ValueError("attribute_confidences need attributes of the same shape")


def _fits(shape: torch.Size, wanted: tuple[int | str, ...]) -> bool:
    sizes = zip(shape, wanted, strict=False)
    return len(shape) == len(wanted) and all(isinstance(w, str) or n == w for n, w in sizes)


def _check_dtype(name: str, value: Tensor) -> None:
    if name in _WHOLE_NUMBERS and value.dtype != torch.int64:
        raise ValueError(f"{name} must be int64, got {value.dtype}")
    if name not in _WHOLE_NUMBERS and not value.is_floating_point():
        raise ValueError(f"{name} must be floating-point numbers, got {value.dtype}")


def _check_padding(regions: Regions) -> None:
    if not regions.mask.any(1).all():
        image = int((~regions.mask.any(1)).nonzero()[0])
        raise ValueError(f"image {image} of the batch has no region; a model could look at nothing")
    for name in _given(regions).keys() - {"image_sizes", "mask"}:
        if getattr(regions, name)[~regions.mask].any():
            raise ValueError(f"{name} must be zero where the mask is False")


def _check_boxes(regions: Regions) -> None:
    if not (regions.image_sizes > 0).all():
        raise ValueError("image_sizes must be positive: (width, height)")
    boxes = regions.boxes
    fine = boxes.isfinite().all(-1) & (boxes[..., :2] <= boxes[..., 2:]).all(-1)
    if not fine.all():
        image, region = (~fine).nonzero()[0].tolist()
        raise ValueError(
            f"box {region} of image {image} is {boxes[image, region].tolist()}; "
            "it must be (x1, y1, x2, y2) with x1 <= x2 and y1 <= y2"
        )


def _check_labels(regions: Regions) -> None:
    for name in _WHOLE_NUMBERS:
        labels = getattr(regions, name)
        if labels is not None and (labels < 0).any():
            raise ValueError(f"{name} must be 0 or more, got {int(labels.min())}")
    if regions.class_distributions is None:
        return
    valid = regions.class_distributions[regions.mask]
    off = (valid.float().sum(1) - 1).abs()
    if not ((valid >= 0).all() and (off <= _SUM_TOLERANCE).all()):
        raise ValueError("class_distributions must be 0 or more and sum to 1 in each region")
    num_classes = valid.shape[1] - 1
    if regions.classes is not None and (regions.classes >= num_classes).any():
        raise ValueError(
            f"classes must be below {num_classes}, the number of columns of class_distributions "
            f"without the background, got {int(regions.classes.max())}"
        )
