"""Region features in LMDB, as ViLBERT and UNITER published them.

``pip install 'mmlab[regions]'`` brings what reads them.
"""

from __future__ import annotations

import io
import os
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from mmlab.datasets.checks import check_choice, check_rows
from mmlab.datasets.regions.batch import Regions
from mmlab.datasets.regions.plain_pickle import PlainPickleError, read_plain_pickle
from mmlab.datasets.regions.rows import (
    FeatureFileError,
    check_feature_dim,
    make_regions,
    row_regions,
)

_LISTS_OF_KEYS = {b"keys", b"__keys__"}  # Each project stores its list of keys among the images.
_UNITER = ("features", "norm_bb", "conf", "soft_labels")
_SIZE_TOLERANCE = 5e-3  # UNITER stores corners and sizes in half precision.


class FeatureLMDB(Dataset):
    """Regions by number, in the order of the database's keys, or by key with ``find``.

    ``layout`` is one of

    - ``"vilbert"``: pickled rows of the TSV (``vilbert/datasets/_image_features_reader.py``). They
      are read without unpickling: one that holds more than plain values is refused.
    - ``"uniter"``: arrays ``features``, ``norm_bb``, ``conf`` and ``soft_labels`` as ``.npz`` or
      msgpack (``scripts/convert_imgdir.py`` of ``ChenRocks/UNITER``). It stores no image sizes, so
      the boxes stay fractions of the image and image sizes are (1, 1): locations come out alike.
      Give the folder of the database itself (``feat_th0.2_max100_min10_compressed`` …).

    Raises:
        ImportError: lmdb is missing (or msgpack, where a file needs it).
        FeatureFileError: the database cannot be opened or is empty, or its first image is damaged.
            Reading another image raises it if that one is.
    """

    def __init__(self, path: str | os.PathLike[str], layout: str):
        check_choice("layout", layout, tuple(_DECODERS))
        self.path, self.layout = os.fspath(path), layout
        with self._transaction() as transaction:
            keys = transaction.cursor().iternext(values=False)
            self.keys = [bytes(key) for key in keys if key not in _LISTS_OF_KEYS]
        if not self.keys:
            raise FeatureFileError(f"{self.path!r} holds no image")
        self.feature_dim = None
        self.feature_dim = self[0].features.shape[2]

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, row: int) -> Regions:
        (row,) = check_rows([row], len(self)).tolist()
        return self._read(self.keys[row])

    @cached_property
    def ids(self) -> list[str]:
        """The keys as text: image numbers (ViLBERT), or names of files (UNITER)."""
        return [key.decode("utf-8", "replace") for key in self.keys]

    def find(self, image_id: str | int) -> Regions:
        """The regions of the image of this key; KeyError if there is none."""
        return self._read(str(image_id).encode())

    def _read(self, key: bytes) -> Regions:
        where = f"{self.path!r}, image {key.decode('utf-8', 'replace')}"
        with self._transaction() as transaction:
            value = transaction.get(key)
        if value is None or key in _LISTS_OF_KEYS:
            raise KeyError(f"{where}: there is none of this name")
        regions = _DECODERS[self.layout](value, where)
        check_feature_dim(regions, self.feature_dim, where)
        return regions

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Opened for each reading, in 0.1 ms.

        LMDB may not be open twice in a process, nor be carried into the workers of a DataLoader.
        """
        lmdb = _import("lmdb")
        try:
            with (
                lmdb.open(
                    self.path,
                    subdir=os.path.isdir(self.path),
                    readonly=True,
                    lock=False,
                    readahead=False,
                    create=False,
                ) as environment,
                environment.begin() as transaction,
            ):
                yield transaction
        except lmdb.Error as error:
            raise FeatureFileError(f"cannot read {self.path!r} as LMDB: {error}") from None


def _vilbert(value: bytes, where: str) -> Regions:
    try:
        fields = read_plain_pickle(value)
    except PlainPickleError as error:
        raise FeatureFileError(
            f"{where}: {error}. Pickles are never loaded here; where you trust the file, write its "
            "rows as a TSV with base64 fields and read that with FeatureTSV"
        ) from None
    if not isinstance(fields, dict) or not all(isinstance(name, str) for name in fields):
        raise FeatureFileError(f"{where}: the value is no dictionary of fields")
    return row_regions(fields, where)


def _uniter(value: bytes, where: str) -> Regions:
    arrays = _npz(value, where) if value[:2] == b"PK" else _msgpack(value, where)
    missing = [name for name in ("features", "norm_bb") if name not in arrays]
    if missing:
        raise FeatureFileError(f"{where}: there is no {', '.join(missing)}")
    boxes = arrays["norm_bb"]
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise FeatureFileError(f"{where}: norm_bb has the shape {tuple(boxes.shape)}, not (…, 6)")
    if not ((boxes[:, 2:4] - boxes[:, :2] - boxes[:, 4:]).abs() <= _SIZE_TOLERANCE).all():
        raise FeatureFileError(f"{where}: norm_bb is not (x1, y1, x2, y2, width, height)")
    return make_regions(
        where,
        features=arrays["features"],
        boxes=boxes[:, :4],
        image_size=(1, 1),
        confidences=arrays.get("conf"),
        class_distributions=arrays.get("soft_labels"),
    )


_DECODERS: dict[str, Callable[[bytes, str], Regions]] = {"vilbert": _vilbert, "uniter": _uniter}


def _npz(value: bytes, where: str) -> dict[str, Tensor]:
    try:
        with np.load(io.BytesIO(value), allow_pickle=False) as arrays:
            return {name: _floats(arrays[name]) for name in _UNITER if name in arrays.files}
    except (ValueError, OSError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise FeatureFileError(f"{where}: the .npz is damaged ({error})") from None


def _msgpack(value: bytes, where: str) -> dict[str, Tensor]:
    msgpack = _import("msgpack")
    try:
        content = msgpack.unpackb(value, strict_map_key=False)
        return {name: _floats(_array(content[name])) for name in _UNITER if name in content}
    except (ValueError, TypeError, KeyError, AttributeError, msgpack.UnpackException) as error:
        raise FeatureFileError(f"{where}: the msgpack is damaged ({error})") from None


def _array(packed: Mapping[bytes, Any]) -> np.ndarray:
    """An array as ``msgpack_numpy`` packs it; one of objects would be a pickle and is refused."""
    if not packed[b"nd"] or packed.get(b"kind"):
        raise ValueError("a value is no plain array")
    return np.frombuffer(packed[b"data"], np.dtype(packed[b"type"])).reshape(packed[b"shape"])


def _floats(array: np.ndarray) -> Tensor:
    """Features are stored in half precision; the copy is writable."""
    return torch.from_numpy(np.array(array, dtype=np.float32))


def _import(name: str):
    try:
        return import_module(name)
    except ImportError:
        raise ImportError(
            f"these region features need {name}; install it with: pip install 'mmlab[regions]'"
        ) from None
