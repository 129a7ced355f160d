"""``mmlab embed`` and ``mmlab search``: your own pictures, and a sentence."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from mmlab.tasks.dual_encoder import DualEncoder
from mmlab.tasks.image_index import Hit, IndexReport, index_pictures, read_index


def default_index(pictures: str | Path, model: str) -> Path:
    """Where the index of a folder is kept: in the user's cache, by the folder's full path.

    ``MMLAB_CACHE`` or ``XDG_CACHE_HOME`` in the environment choose another cache.
    """
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    cache = Path(os.environ.get("MMLAB_CACHE") or Path(base, "mmlab"))
    folder = Path(pictures).resolve()
    code = hashlib.sha256(f"{folder}\0{model}".encode()).hexdigest()[:12]
    return cache / "pictures" / f"{folder.name or 'root'}-{code}"


def model_id(name: str, weights: str | Path) -> str:
    """A name for a network with these very weights: an index holds the features of one."""
    with open(weights, "rb") as file:
        return f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"


def embed(
    pictures: str | Path,
    index: str | Path,
    encoder: DualEncoder,
    model: str,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> IndexReport:
    """Bring the index of a folder of pictures up to date; see ``index_pictures``."""
    return index_pictures(pictures, index, encoder.encode_images, model, report=report)


def encode_question(encoder: DualEncoder, question: str) -> Float[Tensor, " dim"]:
    """The unit vector of a sentence; ValueError if it holds no word."""
    if not question.strip():
        raise ValueError("the question is empty; say what to look for")
    return encoder.encode_texts([question])[0]


def search(query: Float[Tensor, " dim"], index: str | Path, k: int = 5) -> list[Hit]:
    """The ``k`` pictures that fit the question best; ValueError for an empty index or a wrong k."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return read_index(index).search(query, k)
