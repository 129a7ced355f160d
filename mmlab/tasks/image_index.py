"""Search in a folder of pictures: features computed once, kept on disk, compared with any sentence.

That the two towers of a dual encoder never meet is what makes this cheap: N pictures cost N passes
once, a question one pass of the text tower and a matrix product (or less: ``NeighbourGraph``).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmlab.datasets.images import ImageError, load_image
from mmlab.hub.files import atomic_path, write_safetensors

ENDINGS = frozenset([".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"])
DESCRIPTION = "index.json"
PICTURES_A_PART = 1024

EncodeImages = Callable[[list[UInt8[Tensor, "3 _ _"]]], Float[Tensor, "batch dim"]]
"""Pictures of any size to features; a model with its preparation."""


@dataclass(frozen=True)
class PictureFile:
    """A picture as it was when it was read: a changed file is read again."""

    path: str
    size: int
    changed: int


@dataclass(frozen=True)
class Hit:
    """A picture that was found; ``score`` is the cosine of its features and the question's."""

    path: Path
    score: float


@dataclass
class IndexReport:
    """What ``index_pictures`` did; ``broken`` pairs a file with the reason it was left out."""

    added: int = 0
    kept: int = 0
    removed: int = 0
    broken: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class ImageIndex:
    """The features of a folder's pictures, unit vectors, in the order of ``files``."""

    pictures: Path
    model: str
    files: tuple[PictureFile, ...]
    features: Float[Tensor, "files dim"]

    def search(self, query: Float[Tensor, " dim"], k: int = 5) -> list[Hit]:
        """The ``k`` pictures nearest to ``query`` by the cosine, the best first."""
        scores = self.features @ F.normalize(query, dim=-1)
        best = scores.topk(min(k, len(scores)))
        return [
            Hit(self.pictures / self.files[row].path, score)
            for score, row in zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ]


def index_pictures(
    pictures: str | Path,
    index: str | Path,
    encode: EncodeImages,
    model: str,
    batch_size: int = 64,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> IndexReport:
    """Bring the index of a folder of pictures up to date.

    Pictures that the index knows and that have not changed are not read again, so a call that was
    cut short goes on where it stopped (up to ``PICTURES_A_PART`` pictures are read again). A broken
    file is reported and left out. ``model`` names what ``encode`` is, weights included: an index
    holds the features of one model. ``report(done, total)`` is called after each part.

    ValueError if there is no such folder, or the index is of another folder or model;
    CheckpointError (a ValueError) if it cannot be written.
    """
    pictures, index = Path(pictures).resolve(), Path(index)
    if not pictures.is_dir():
        raise ValueError(f"there is no folder of pictures at {str(pictures)!r}")
    _describe(index, pictures, model)
    present = {file.path: file for file in find_pictures(pictures)}
    known = {file: features for file, features in _read_parts(index)}
    valid = {file: f for file, f in known.items() if present.get(file.path) == file}
    todo = [file for file in present.values() if file not in valid]
    done = IndexReport(kept=len(valid), removed=len(known) - len(valid))
    if done.removed:
        _rewrite(index, valid)
    for start in range(0, len(todo), PICTURES_A_PART):
        part = todo[start : start + PICTURES_A_PART]
        _add_part(index, pictures, part, encode, batch_size, done)
        report(min(start + PICTURES_A_PART, len(todo)), len(todo))
    return done


def read_index(index: str | Path) -> ImageIndex:
    """The index in a folder; ValueError if there is none or it is damaged."""
    index = Path(index)
    description = _read_description(index)
    if description is None:
        raise ValueError(f"there is no index of pictures in {str(index)!r}")
    found = list(_read_parts(index))
    if not found:
        raise ValueError(f"the index in {str(index)!r} holds no pictures")
    files, features = zip(*found, strict=True)
    return ImageIndex(
        Path(description["pictures"]), description["model"], files, torch.stack(features)
    )


def find_pictures(folder: Path) -> list[PictureFile]:
    """All picture files under a folder, hidden ones left out, sorted by path."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in names:
            path = Path(parent, name)
            if path.suffix.lower() in ENDINGS and not name.startswith(".") and path.is_file():
                found.append(_picture_file(path, folder))
    return sorted(found, key=lambda file: file.path)


def _picture_file(path: Path, folder: Path) -> PictureFile:
    status = path.stat()
    return PictureFile(path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)


def _describe(index: Path, pictures: Path, model: str) -> None:
    """Make the index' folder, or check that it is the index of these pictures and this model."""
    wanted = {"pictures": str(pictures), "model": model}
    found = _read_description(index)
    if found is None:
        index.mkdir(parents=True, exist_ok=True)
        with atomic_path(index / DESCRIPTION) as aside:
            aside.write_text(json.dumps(wanted))
        return
    for name, value in wanted.items():
        if found[name] != value:
            raise ValueError(
                f"the index in {str(index)!r} is of {name} {found[name]!r}, not {value!r}; choose "
                "another index, or delete this one"
            )


def _read_description(index: Path) -> dict[str, str] | None:
    try:
        found = json.loads((index / DESCRIPTION).read_text())
        return {name: found[name] for name in ("pictures", "model")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise ValueError(f"{str(index / DESCRIPTION)!r} cannot be read: {error}") from None


def _add_part(
    index: Path,
    pictures: Path,
    files: Sequence[PictureFile],
    encode: EncodeImages,
    batch_size: int,
    report: IndexReport,
) -> None:
    """Encode some pictures and write them as one more part, whole or not at all."""
    kept, features = [], []
    for start in range(0, len(files), batch_size):
        readable, images = _read_pictures(pictures, files[start : start + batch_size], report)
        if images:
            with torch.no_grad():
                features.append(F.normalize(encode(images).float().cpu(), dim=-1))
            kept += readable
    if kept:
        _write_part(index, kept, torch.cat(features))
        report.added += len(kept)


def _read_pictures(
    pictures: Path, files: Sequence[PictureFile], report: IndexReport
) -> tuple[list[PictureFile], list[Tensor]]:
    readable, images = [], []
    for file in files:
        try:
            images.append(load_image(pictures / file.path))
            readable.append(file)
        except ImageError as error:
            report.broken.append((file.path, str(error)))
    return readable, images


def _parts(index: Path) -> list[Path]:
    return sorted(index.glob("part-*.safetensors"))


def _read_parts(index: Path) -> Iterator[tuple[PictureFile, Float[Tensor, " dim"]]]:
    for path in _parts(index):
        try:
            with safe_open(path, "pt") as part:
                files = [PictureFile(*row) for row in json.loads(part.metadata()["files"])]
                features = part.get_tensor("features")
            yield from zip(files, features, strict=True)
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            raise ValueError(
                f"{str(path)!r} is damaged ({error}); delete it, and its pictures are read again"
            ) from None


def _write_part(
    index: Path, files: Sequence[PictureFile], features: Float[Tensor, "files dim"]
) -> Path:
    rows = json.dumps([[file.path, file.size, file.changed] for file in files])
    last = int(_parts(index)[-1].stem.removeprefix("part-")) if _parts(index) else 0
    path = index / f"part-{last + 1:06d}.safetensors"
    write_safetensors(path, {"features": features}, {"files": rows})
    return path


def _rewrite(index: Path, valid: dict[PictureFile, Tensor]) -> None:
    """One part with what is still true in place of all; the old ones go last."""
    old = _parts(index)
    if valid:
        _write_part(index, list(valid), torch.stack(list(valid.values())))
    for path in old:
        path.unlink()


class NeighbourGraph:
    """Approximate search among very many vectors: faiss' HNSW graph (Malkov and Yashunin 2018).

    It looks at some thousand vectors where ``ImageIndex.search`` looks at all; in exchange it takes
    long to build, more memory, and misses some neighbours (``benchmarks/search.py`` measures it).
    ``num_links`` is the number of edges a vector has in the graph, ``breadth`` how many candidates
    a search keeps: more finds more and takes longer. ImportError that says what to install where
    faiss is missing.
    """

    def __init__(self, features: Float[Tensor, "num dim"], num_links: int = 32, breadth: int = 64):
        faiss = _import_faiss()
        self._graph = faiss.IndexHNSWFlat(features.shape[1], num_links, faiss.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = 2 * breadth
        self.breadth = breadth
        self._graph.add(features.float().numpy())

    def search(
        self, queries: Float[Tensor, "queries dim"], k: int
    ) -> tuple[Float[Tensor, "queries k"], Tensor]:
        """Scores and row numbers of the ``k`` neighbours found for each query; -1 where none."""
        self._graph.hnsw.efSearch = self.breadth
        scores, rows = self._graph.search(queries.float().numpy(), k)
        return torch.from_numpy(scores), torch.from_numpy(rows)

    def save(self, path: str | Path) -> None:
        """Write the vectors with their edges to one file, whole or not at all."""
        with atomic_path(path) as aside:
            _import_faiss().write_index(self._graph, str(aside))

    @classmethod
    def load(cls, path: str | Path, breadth: int = 64) -> NeighbourGraph:
        """Read what ``save`` wrote; ValueError if the file holds anything else."""
        graph = cls.__new__(cls)
        graph.breadth = breadth
        try:
            graph._graph = _import_faiss().read_index(os.fspath(path))
            graph._graph.hnsw  # noqa: B018 - only a graph has one
        except (RuntimeError, AttributeError) as error:
            reason = next(iter(str(error).splitlines()), "")
            raise ValueError(f"{os.fspath(path)!r} is no graph of neighbours: {reason}") from None
        return graph


def _import_faiss():
    try:
        import faiss
    except ImportError:
        raise ImportError(
            "a graph of neighbours needs faiss; install it with: pip install 'mmlab[search]'"
        ) from None
    return faiss
