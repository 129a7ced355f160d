"""From the fields of a published feature file to ``Regions``; a damaged row is an error."""

from __future__ import annotations

import base64
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from mmlab.datasets.regions.batch import Regions

Fields = Mapping[str, str | bytes | int]
"""Names and contents of a row; arrays are base64 of their bytes, numbers are written out."""

# LXMERT's names, and those of bottom-up attention.
_ALIASES = {"img_id": "image_id", "img_w": "image_w", "img_h": "image_h"}
_NEEDED = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
# Numbers a box (None: as many as there are), and their type, little-endian as all files are.
_ARRAYS: dict[str, tuple[int | None, str]] = {
    "boxes": (4, "<f4"),
    "features": (None, "<f4"),
    "cls_prob": (None, "<f4"),
    "objects_id": (1, "<i8"),
    "objects_conf": (1, "<f4"),
    "attrs_id": (1, "<i8"),
    "attrs_conf": (1, "<f4"),
}


LOCATION_DIM = 6
"""Numbers behind each of OSCAR's features: corners, width and height, as shares of the image."""

# A pixel more or less (whether a box ends at its last pixel or behind it) is no damage.
_SIZE_TOLERANCE = 0.02


class FeatureFileError(ValueError):
    """A feature file that cannot be used, or a damaged row; one sentence names file and row."""


def row_regions(fields: Fields, where: str) -> Regions:
    """One image as a batch of one; fields of unknown names are left aside.

    ``where`` names file and row in errors.

    Raises:
        FeatureFileError: a field is missing, cannot be read, or does not fit the others.
    """
    fields = {_ALIASES.get(name, name): value for name, value in fields.items()}
    missing = [name for name in _NEEDED if name not in fields]
    if missing:
        raise FeatureFileError(f"{where}: there is no {', '.join(missing)}")
    width, height, number = (
        _positive(fields[name], name, where) for name in ("image_w", "image_h", "num_boxes")
    )
    arrays = {name: _array(fields[name], name, number, where) for name in _ARRAYS if name in fields}
    return make_regions(
        where,
        features=arrays["features"],
        boxes=arrays["boxes"],
        image_size=(width, height),
        classes=_column(arrays, "objects_id"),
        class_distributions=arrays.get("cls_prob"),
        confidences=_column(arrays, "objects_conf"),
        attributes=arrays.get("attrs_id"),
        attribute_confidences=arrays.get("attrs_conf"),
    )


def located_regions(features: object, num_boxes: object, where: str) -> Regions:
    """One image of OSCAR or VinVL as a batch of one: base64 of features and locations.

    A box's feature and its location are one row. The boxes are shares of the image, so the image's
    size is (1, 1).

    Raises:
        FeatureFileError: they cannot be read, do not fit each other, or the last six numbers are no
            ``corner_size_locations``.
    """
    number = _positive(num_boxes, "num_boxes", where)
    rows = _array(features, "features", number, where)
    if rows.shape[1] <= LOCATION_DIM:
        raise FeatureFileError(
            f"{where}: features are {rows.shape[1]} numbers a box; six of a location come last"
        )
    features, corners, sizes = rows.tensor_split([-LOCATION_DIM, -2], dim=1)
    extents = corners[:, 2:] - corners[:, :2]
    inside = (corners >= -_SIZE_TOLERANCE) & (corners <= 1 + _SIZE_TOLERANCE)
    if not (inside.all() and (sizes - extents).abs().max() <= _SIZE_TOLERANCE):
        raise FeatureFileError(
            f"{where}: the last six numbers of a box must be (x1, y1, x2, y2, width, height) as "
            "shares of the image"
        )
    return make_regions(where, features=features, boxes=corners, image_size=(1, 1))


def make_regions(
    where: str,
    features: Tensor,
    boxes: Tensor,
    image_size: tuple[float | int, float | int],
    **labels: Tensor | None,
) -> Regions:
    """The tensors of one image as a batch of one.

    Raises:
        FeatureFileError: they do not fit each other, or a feature is not finite.
    """
    if not features.isfinite().all():
        raise FeatureFileError(f"{where}: features hold a value that is not finite")
    try:
        return Regions(
            features=features[None],
            boxes=boxes[None],
            image_sizes=torch.tensor([image_size], dtype=boxes.dtype),
            mask=torch.ones(1, len(boxes), dtype=torch.bool),
            **{name: None if value is None else value[None] for name, value in labels.items()},
        )
    except ValueError as error:
        raise FeatureFileError(f"{where}: {error}") from None


def check_feature_dim(regions: Regions, dim: int | None, where: str) -> None:
    """Raise FeatureFileError if the features are not as long as the file's first ones."""
    if dim is not None and regions.features.shape[2] != dim:
        raise FeatureFileError(
            f"{where}: features are {regions.features.shape[2]} numbers a box, the first row's "
            f"are {dim}"
        )


def _positive(value: object, name: str, where: str) -> int:
    try:
        number = int(value)
    except (ValueError, TypeError, OverflowError):
        raise FeatureFileError(f"{where}: {name} is {_shown(value)}, no whole number") from None
    if number < 1:
        raise FeatureFileError(f"{where}: {name} is {number}; it must be 1 or more")
    return number


def _array(value: object, name: str, number: int, where: str) -> Tensor:
    """``(number, columns)`` values out of base64."""
    columns, dtype = _ARRAYS[name]
    try:
        data = base64.b64decode(value, validate=True)
    except (TypeError, ValueError) as error:
        raise FeatureFileError(f"{where}: {name} is not base64 ({error})") from None
    box_bytes = np.dtype(dtype).itemsize * (columns or 1)
    whole = len(data) % (number * box_bytes) == 0
    if not data or not whole or (columns and len(data) != number * box_bytes):
        wanted = f"{number * box_bytes}" if columns else f"a multiple of {number * box_bytes}"
        raise FeatureFileError(
            f"{where}: {name} has {len(data)} bytes; num_boxes is {number}, which needs {wanted}"
        )
    # The copy is writable, and does not hold on to the bytes of the file.
    return torch.from_numpy(np.frombuffer(data, dtype).reshape(number, -1).copy())


def _column(arrays: dict[str, Tensor], name: str) -> Tensor | None:
    return arrays[name][:, 0] if name in arrays else None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}…"
