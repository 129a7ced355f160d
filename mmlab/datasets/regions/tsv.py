"""The TSV of bottom-up attention: one image a line, arrays as base64; tens of gigabytes a file.

Anderson et al. 2018, ``tools/generate_tsv.py`` of ``peteanderson80/bottom-up-attention``; ViLBERT
appends the class distribution, LXMERT has classes and attributes with confidences
(``src/utils.py`` of ``airsplay/lxmert``) and height before width. No line names the columns.
"""

from __future__ import annotations

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from mmlab.datasets.checks import check_rows
from mmlab.datasets.regions.batch import Regions
from mmlab.datasets.regions.rows import (
    FeatureFileError,
    check_feature_dim,
    row_regions,
)

BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
VILBERT = (*BOTTOM_UP, "cls_prob")
LXMERT = (
    *("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf"),
    *("num_boxes", "boxes", "features"),
)
_LAYOUTS = {len(columns): columns for columns in (BOTTOM_UP, VILBERT, LXMERT)}
_LONGEST_ID = 200

PathLike = str | os.PathLike[str]


class RowsOfTSV(Dataset, ABC):
    """The lines of a TSV by row number, or by the id that they begin with.

    Opening reads the file once to find where its lines begin; with ``index`` that is kept in a
    small JSON file, which is made anew when the file has changed. ``read`` says what a line means.

    Raises:
        FeatureFileError: the file cannot be read or is empty.
    """

    def __init__(self, path: PathLike, index: PathLike | None = None):
        self.path = Path(path)
        try:
            self._starts, self.ids = _load_index(self.path, index)
        except OSError as error:
            raise FeatureFileError(f"cannot read {str(path)!r}: {error.strerror}") from None
        if not self.ids:
            raise FeatureFileError(f"{str(self.path)!r} is empty")

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> Any:
        (row,) = check_rows([row], len(self)).tolist()
        return self.read(self._line(row), self._where(row))

    @abstractmethod
    def read(self, line: bytes, where: str) -> Any:
        """What stands in a line; ``where`` names it in errors."""

    def find(self, image_id: str | int) -> Any:
        """What stands in the row of this id.

        Raises:
            KeyError: there is no such image, or there are several rows for it.
        """
        rows = self._rows.get(str(image_id), [])
        if len(rows) != 1:
            how = f"rows {rows}" if rows else "no row"
            raise KeyError(f"{str(self.path)!r} has {how} for image {image_id!r}")
        return self[rows[0]]

    @cached_property
    def _rows(self) -> dict[str, list[int]]:
        rows: dict[str, list[int]] = {}
        for row, image_id in enumerate(self.ids):
            rows.setdefault(image_id, []).append(row)
        return rows

    def _where(self, row: int) -> str:
        return f"{str(self.path)!r}, row {row} (image {self.ids[row]})"

    def _line(self, row: int) -> bytes:
        # Opened anew each time: workers of a DataLoader must not share a place in the file.
        try:
            with self.path.open("rb") as file:
                file.seek(self._starts[row])
                return file.readline()
        except OSError as error:
            raise FeatureFileError(f"cannot read {str(self.path)!r}: {error.strerror}") from None


class FeatureTSV(RowsOfTSV):
    """Regions by row number, read from the file when asked for.

    ``columns`` names the columns; without it the layout is one of ``BOTTOM_UP``, ``VILBERT`` and
    ``LXMERT``, told by their number. Columns of other names are left aside. ``index`` as in
    ``RowsOfTSV``.

    Raises:
        FeatureFileError: the file cannot be read, is empty, or its first row is damaged. Reading
            another row raises it if that one is.
    """

    def __init__(
        self, path: PathLike, columns: Sequence[str] | None = None, index: PathLike | None = None
    ):
        super().__init__(path, index)
        self.columns = (columns and tuple(columns)) or _layout(self._line(0), self._where(0))
        self.feature_dim = None
        self.feature_dim = self[0].features.shape[2]

    def read(self, line: bytes, where: str) -> Regions:
        """The regions of one image."""
        regions = row_regions(_fields(line, self.columns, where), where)
        check_feature_dim(regions, self.feature_dim, where)
        return regions


def stream_tsv(
    path: PathLike, columns: Sequence[str] | None = None
) -> Iterator[tuple[str, Regions]]:
    """``(image id, regions)`` row after row, without an index: the file is read once, as it goes.

    ``columns`` as in ``FeatureTSV``.

    Raises:
        FeatureFileError: the file cannot be read, or a row is damaged.
    """
    feature_dim = None
    try:
        with Path(path).open("rb") as file:
            for row, line in enumerate(file):
                image_id = _image_id(line)
                where = f"{str(path)!r}, row {row} (image {image_id})"
                columns = columns or _layout(line, where)
                regions = row_regions(_fields(line, columns, where), where)
                check_feature_dim(regions, feature_dim, where)
                feature_dim = regions.features.shape[2]
                yield image_id, regions
    except OSError as error:
        raise FeatureFileError(f"cannot read {str(path)!r}: {error.strerror}") from None


def split_line(line: bytes) -> list[bytes]:
    """The columns of a line, without its end."""
    return line.rstrip(b"\r\n").split(b"\t")


def _image_id(line: bytes) -> str:
    """All layouts begin with it; a line without a tab is damaged, and may be long."""
    return line[:_LONGEST_ID].split(b"\t")[0].strip().decode("utf-8", "replace")


def _layout(line: bytes, where: str) -> tuple[str, ...]:
    number = len(split_line(line))
    if number not in _LAYOUTS:
        raise FeatureFileError(
            f"{where}: there are {number} columns; the known layouts have "
            f"{', '.join(map(str, _LAYOUTS))}, name others with columns=(…)"
        )
    return _LAYOUTS[number]


def _fields(line: bytes, columns: Sequence[str], where: str) -> dict[str, bytes]:
    values = split_line(line)
    if len(values) != len(columns):
        raise FeatureFileError(
            f"{where}: there are {len(values)} columns, not the {len(columns)} of "
            f"{', '.join(columns)}"
        )
    return dict(zip(columns, values, strict=True))


def _load_index(path: Path, index: PathLike | None) -> tuple[list[int], list[str]]:
    """Where each line begins, and its image."""
    state = path.stat()
    stamp = {"bytes": state.st_size, "modified": state.st_mtime_ns}
    if index is not None and (kept := _read_index(Path(index), stamp)):
        return kept
    starts, ids = _scan(path)
    if index is not None:
        aside = Path(f"{os.fspath(index)}.{os.getpid()}.partial")
        aside.write_text(json.dumps({**stamp, "starts": starts, "ids": ids}), "utf-8")
        aside.replace(index)
    return starts, ids


def _read_index(index: Path, stamp: dict[str, int]) -> tuple[list[int], list[str]] | None:
    """None if it is not there, is damaged, or was made of another state of the file."""
    try:
        kept = json.loads(index.read_text("utf-8"))
        if {name: kept[name] for name in stamp} == stamp:
            return kept["starts"], kept["ids"]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        pass
    return None


def _scan(path: Path) -> tuple[list[int], list[str]]:
    starts, ids, position = [], [], 0
    with path.open("rb") as file:
        for line in file:
            starts.append(position)
            ids.append(_image_id(line))
            position += len(line)
    return starts, ids
