"""Finding the data that travels with mmlab: inside an installed package, or in a checkout."""

from __future__ import annotations

from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path


def data_folder(name: str) -> Traversable:
    """The folder of a data set, such as ``"emoji"``, or of the mini ``"checkpoints"``.

    A wheel holds it as ``mmlab/_data/<name>``, a checkout as ``data/<name>`` beside ``mmlab``.

    Raises:
        FileNotFoundError: it is in neither place.
    """
    packaged = files("mmlab") / "_data" / name
    checkout = Path(__file__).resolve().parents[2] / "data" / name
    for folder in (packaged, checkout):
        if folder.is_dir():
            return folder
    raise FileNotFoundError(
        f"mmlab's data folder {name!r} is neither in the installed package nor at {checkout}; "
        f"reinstall mmlab, or run `make {_target(name)}` in a checkout"
    )


def read_data(folder: str, name: str) -> bytes:
    """The bytes of one file of a data set.

    Raises:
        FileNotFoundError: the data set or the file is missing.
    """
    path = data_folder(folder) / name
    if not path.is_file():
        raise FileNotFoundError(
            f"mmlab's data folder {folder!r} lacks {name!r}; "
            f"reinstall mmlab, or run `make {_target(folder)}` in a checkout"
        )
    return path.read_bytes()


def _target(name: str) -> str:
    """What makes a folder anew."""
    return "checkpoints" if name == "checkpoints" else "data"
