"""The tensors of a TorchScript archive, such as OpenAI's CLIP files, without running its program.

Such an archive holds the code of a network beside its attributes. PyTorch's own loader compiles the
code. Here it is left out: what remains is read by the unpickler that admits tensors only, with an
empty shell in place of every class of the program.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from tempfile import TemporaryFile
from typing import BinaryIO

import torch
from torch import Tensor

from mmlab.hub.mapping import CheckpointError

_MARK = "constants.pkl"
"""Only programs have it; ``torch.load`` tells them by it, and hands them to the compiler."""
_LISTS = tuple(
    f"torch.jit._pickle.build_{kind}list" for kind in ("int", "double", "bool", "tensor")
)


class _Shell:
    """Stands for an object of the program: its attributes, and none of its code."""


def is_torchscript(path: Path) -> bool:
    """Whether the file is a TorchScript archive."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.rpartition("/")[2] == _MARK for name in archive.namelist())


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The parameters and buffers of the network in the archive, by their names.

    CheckpointError if it holds anything but tensors, plain values and objects of the program.
    """
    with TemporaryFile() as data:
        _copy_data(path, data)
        return dict(_tensors(_load(data), ""))


def _copy_data(path: Path, target: BinaryIO) -> None:
    """Copy the archive without its code and constants."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(target, "w") as copy:
        for name in archive.namelist():
            if "/code/" not in name and name.rpartition("/")[2] != _MARK:
                copy.writestr(name, archive.read(name))


def _load(data: BinaryIO) -> object:
    with warnings.catch_warnings(action="ignore"):
        data.seek(0)
        names = torch.serialization.get_unsafe_globals_in_checkpoint(data)
        stand_ins = [(_stand_in(name), name) for name in names]
        data.seek(0)
        try:
            with torch.serialization.safe_globals(stand_ins):
                return torch.load(data, map_location="cpu", weights_only=True)
        except UnpicklingError:
            raise CheckpointError("it is a damaged TorchScript program, or no plain one") from None


def _stand_in(name: str) -> object:
    """What takes the place of a class or function that the archive asks for."""
    if name.startswith("__torch__."):
        # A type of its own for each name, for PyTorch looks them up by type.
        return type("_Shell", (_Shell,), {})
    if name in _LISTS:
        return _same
    raise CheckpointError(f"it is a TorchScript program that asks for {name!r}; refused")


def _same(value: list) -> list:
    return value


def _tensors(value: object, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors among the attributes of a shell, and of those within it."""
    if isinstance(value, Tensor):
        yield name, value.detach()
    elif isinstance(value, _Shell):
        for attribute, inner in vars(value).items():
            yield from _tensors(inner, f"{name}.{attribute}" if name else attribute)
