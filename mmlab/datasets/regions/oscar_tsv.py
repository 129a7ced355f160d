"""The TSV files of OSCAR and VinVL: features that end in their location, and object tags.

``microsoft/Oscar``: ``oscar/run_captioning.py`` and ``oscar/datasets/oscar_tsv.py``. A line begins
with the image's id. In feature files follow the number of boxes and base64 of its numbers, 2048 and
six of location a box, as columns or as JSON; in tag files follows JSON.
"""

from __future__ import annotations

import json
from typing import NamedTuple

from mmlab.datasets.regions.batch import Regions
from mmlab.datasets.regions.rows import FeatureFileError, check_feature_dim, located_regions
from mmlab.datasets.regions.tsv import PathLike, RowsOfTSV, split_line


class OscarTSV(RowsOfTSV):
    """Regions by row number or by ``find(image_id)``; boxes are shares of the image.

    Lines are ``id, {"num_boxes": …, "features": base64}`` (captioning) or ``id, num_boxes, …,
    base64`` (pretraining, VQA). ``corner_size_locations`` of what is read are the file's own last
    six numbers, as far as these are exact. ``index`` as in ``RowsOfTSV``.

    Raises:
        FeatureFileError: the file cannot be read, is empty, or its first row is damaged. Reading
            another row raises it if that one is.
    """

    def __init__(self, path: PathLike, index: PathLike | None = None):
        super().__init__(path, index)
        self.feature_dim = None
        self.feature_dim = self[0].features.shape[2]

    def read(self, line: bytes, where: str) -> Regions:
        """The regions of one image."""
        columns = split_line(line)
        if len(columns) < 2:
            raise FeatureFileError(f"{where}: there is 1 column, not an id and features")
        if len(columns) == 2:
            told = _json(columns[1], where)
            fields = [_entry(told, name, where) for name in ("features", "num_boxes")]
        else:
            fields = [columns[-1], columns[1]]
        regions = located_regions(*fields, where)
        check_feature_dim(regions, self.feature_dim, where)
        return regions


class Tag(NamedTuple):
    """An object's name, how sure the detector is, and its box in pixels, if these are told."""

    name: str
    confidence: float | None = None
    box: tuple[float | int, ...] | None = None


class TagTSV(RowsOfTSV):
    """The tags of each image, by row number or by ``find(image_id)``.

    Lines are ``id, [{"class": …, "conf": …, "rect": […]}, …]`` (captioning, retrieval) or
    ``id, {"objects": […], "gt_objects": […]}`` (pretraining). With ``ground_truth`` an image's
    objects are those that people have named (``gt_objects``), where there are any: the official
    default (``use_gtlabels``), which makes "detected tags" partly true ones.

    Raises:
        FeatureFileError: the file cannot be read or is empty. Reading a row raises it if that one
            is damaged.
    """

    def __init__(self, path: PathLike, ground_truth: bool = False, index: PathLike | None = None):
        super().__init__(path, index)
        self.ground_truth = ground_truth

    def read(self, line: bytes, where: str) -> tuple[Tag, ...]:
        """The tags of one image, in the file's order, names that are there twice included."""
        columns = split_line(line)
        if len(columns) != 2:
            raise FeatureFileError(f"{where}: there are {len(columns)} columns, not an id and tags")
        told = _json(columns[1], where)
        if isinstance(told, dict):
            true = self.ground_truth and "gt_objects" in told
            told = _entry(told, "gt_objects" if true else "objects", where)
        if not isinstance(told, list):
            raise FeatureFileError(f"{where}: tags must be a list, got {type(told).__name__}")
        return tuple(_tag(entry, place, where) for place, entry in enumerate(told))


def tag_text(tags: tuple[Tag, ...]) -> str:
    """The names in a row, as the model reads them (after the tokenizer)."""
    return " ".join(tag.name for tag in tags)


def _tag(entry: object, place: int, where: str) -> Tag:
    name = entry.get("class") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.strip():
        raise FeatureFileError(f"{where}: tag {place} has no 'class', a name")
    confidence, box = entry.get("conf"), entry.get("rect")
    if confidence is not None and not _is_number(confidence):
        raise FeatureFileError(f"{where}: 'conf' of tag {place} must be a number")
    if box is not None and not (_is_box(box)):
        raise FeatureFileError(f"{where}: 'rect' of tag {place} must be [x1, y1, x2, y2]")
    return Tag(name, confidence, None if box is None else tuple(box))


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


def _json(text: bytes, where: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FeatureFileError(f"{where}: the second column is no JSON ({error})") from None


def _entry(told: object, name: str, where: str) -> object:
    if not isinstance(told, dict) or name not in told:
        raise FeatureFileError(f"{where}: the JSON has no {name!r}")
    return told[name]
