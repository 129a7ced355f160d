"""Checkpoint files: read without ever running what is in them, written whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import safetensors.torch
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub import logging as hub_logging
from huggingface_hub.errors import (
    EntryNotFoundError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor

from mmlab.hub.mapping import CheckpointError, as_tensors, first_few
from mmlab.hub.torchscript import is_torchscript, read_torchscript

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Where a Hugging Face folder keeps its weights, in the order of preference."""

_REFUSED = "it holds Python objects, which could run code, not only tensors; refused"
_DAMAGED_OR_REFUSED = "it is damaged, or holds Python objects, which could run code; refused"
_WRAPPERS = ("model", "state_dict", "model_state_dict", "module")


@dataclass(frozen=True)
class CheckpointFile:
    """What a file or folder holds: tensors, ``config.json`` beside them, safetensors metadata."""

    source: str
    tensors: dict[str, Tensor]
    config: dict = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def read_checkpoint(source: str | Path) -> CheckpointFile:
    """Read a file, a Hugging Face folder or a model of the Hugging Face Hub (``"owner/name"``).

    Files: ``.safetensors``, ``.npz``, ``.pt``, ``.pth``, ``.th``, ``.bin``, ``.ckpt``. Pickled code
    is refused, never run. CheckpointError says what is wrong with the source.
    """
    path = Path(source)
    if path.is_dir():
        return _read_folder(path)
    if path.is_file():
        config = _read_json(path.parent / "config.json", missing={})
        return _read_file(path, config)
    if _is_hub_id(str(source)):
        return _read_hub(str(source))
    raise CheckpointError(f"there is no checkpoint file or folder {str(source)!r}")


def write_safetensors(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Write a ``.safetensors`` file, whole or not at all; CheckpointError if it cannot be."""
    on_cpu = _unshared({key: tensor.detach().cpu() for key, tensor in tensors.items()})
    with atomic_path(path) as aside:
        safetensors.torch.save_file(on_cpu, aside, metadata=dict(metadata))


def write_npz(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a ``.npz`` file, whole or not at all; CheckpointError if it cannot be."""
    for key, tensor in tensors.items():
        if tensor.dtype == torch.bfloat16:
            raise CheckpointError(f".npz has no bfloat16, which {key!r} is; use model.float()")
    arrays = {key: tensor.detach().cpu().numpy() for key, tensor in tensors.items()}
    with atomic_path(path) as aside, open(aside, "wb") as file:
        np.savez(file, **arrays)


def weights_digest(tensors: Mapping[str, Tensor]) -> str:
    """A fingerprint of names, types and values."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous tensors, each with memory of its own: safetensors takes no tied weights."""
    seen, unshared = set(), {}
    for key, tensor in tensors.items():
        memory = tensor.untyped_storage().data_ptr()
        unshared[key] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return {key: tensor.contiguous() for key, tensor in unshared.items()}


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A path beside ``path`` to write to; it takes its place at the end, or vanishes on any error.

    OSError and SafetensorError (a full disk, a missing folder) become a CheckpointError.
    """
    path = Path(path)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield aside
        os.replace(aside, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"could not write {str(path)!r}: {_one_line(error)}") from None
    finally:
        aside.unlink(missing_ok=True)


def _read_file(path: Path, config: dict) -> CheckpointFile:
    if path.suffix not in _READERS:
        known = ", ".join(_READERS)
        raise CheckpointError(f"{path.name!r} is no checkpoint file; known endings are {known}")
    try:
        tensors, metadata = _READERS[path.suffix](path)
    except CheckpointError as error:
        raise CheckpointError(f"{path.name!r}: {error}") from None
    except Exception as error:  # damaged bytes can make a parser raise anything
        raise CheckpointError(
            f"{path.name!r} cannot be read; it may be truncated or damaged ({_one_line(error)})"
        ) from None
    if not tensors:
        raise CheckpointError(f"{path.name!r} holds no tensors")
    return CheckpointFile(str(path), tensors, config, metadata)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def _read_npz(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    file = np.load(path, allow_pickle=False)
    if isinstance(file, np.ndarray):
        raise CheckpointError("it is a single array, not an .npz archive")
    with file:
        try:
            return as_tensors({key: file[key] for key in file.files}), {}
        except ValueError as error:
            if "allow_pickle" not in str(error):
                raise
            raise CheckpointError(_REFUSED) from None


def _read_torch(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if is_torchscript(path):
        return read_torchscript(path), {}
    # The official training scripts put their argparse.Namespace, plain data, beside the weights.
    safe = torch.serialization.safe_globals([argparse.Namespace])
    with safe, warnings.catch_warnings(action="ignore"):
        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
        except UnpicklingError as error:
            # PyTorch's own message recommends to switch the protection off.
            why = _REFUSED if "GLOBAL" in str(error) else _DAMAGED_OR_REFUSED
            raise CheckpointError(why) from None
    return _unwrap(content), {}


def _unwrap(content: object) -> dict[str, Tensor]:
    """The state dict inside what a training script saved."""
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping):
        raise CheckpointError(f"it holds a {type(content).__name__}, not a dict of tensors")
    others = [str(key) for key, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise CheckpointError(f"not all of its entries are tensors: {first_few(others)}")
    return {str(key): value for key, value in content.items()}


_READERS: dict[str, Callable[[Path], tuple[dict[str, Tensor], dict[str, str]]]] = {
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".th": _read_torch,
    ".bin": _read_torch,
    ".ckpt": _read_torch,
}


def _read_folder(folder: Path) -> CheckpointFile:
    names = [name for name in WEIGHT_FILES if (folder / name).is_file()]
    if not names:
        expected = ", ".join(WEIGHT_FILES)
        raise CheckpointError(f"folder {str(folder)!r} has no weights; looked for {expected}")
    config = _read_json(folder / "config.json", missing={})
    return _read_parts(str(folder), names[0], config, lambda name: folder / name)


def _read_parts(
    source: str, name: str, config: dict, find: Callable[[str], Path | None]
) -> CheckpointFile:
    """Read one file, or the shards that an index lists; ``find`` turns a name into a path."""
    if not name.endswith(".index.json"):
        whole = _read_file(find(name), config)
        return CheckpointFile(source, whole.tensors, config, whole.metadata)
    tensors: dict[str, Tensor] = {}
    for shard, keys in _shards(find(name)).items():
        path = find(shard)
        if path is None or not path.is_file():
            raise CheckpointError(f"{source!r} lacks its shard {shard!r}")
        part = _read_file(path, config).tensors
        absent = [key for key in keys if key not in part]
        if absent:
            raise CheckpointError(f"shard {shard!r} of {source!r} lacks {first_few(absent)}")
        tensors.update(part)
    return CheckpointFile(source, tensors, config)


def _shards(index: Path) -> dict[str, list[str]]:
    """Shard file → its keys. A shard must lie beside its index."""
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(n, str) for n in weight_map.values()):
        raise CheckpointError(f"{index.name!r} has no weight_map")
    shards: dict[str, list[str]] = {}
    for key, name in weight_map.items():
        if Path(name).name != name:
            raise CheckpointError(f"{index.name!r} points outside its folder: {name!r}")
        shards.setdefault(name, []).append(key)
    return shards


def _read_json(path: Path, missing: dict | None = None) -> dict:
    if missing is not None and not path.is_file():
        return missing
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path.name!r} is no readable JSON: {_one_line(error)}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path.name!r} must hold a JSON object")
    return content


def _is_hub_id(source: str) -> bool:
    ending = Path(source).suffix
    return bool(re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", source)) and ending not in _READERS


def _read_hub(repository: str) -> CheckpointFile:
    config_path = _download(repository, "config.json")
    config = _read_json(config_path) if config_path else {}
    found = (name for name in WEIGHT_FILES if _download(repository, name, required=False))
    name = next(found, None)
    if name is None:
        raise CheckpointError(f"{repository!r} on the Hub offers none of {', '.join(WEIGHT_FILES)}")
    return _read_parts(repository, name, config, partial(_download, repository))


def _download(repository: str, name: str, required: bool = True) -> Path | None:
    """Path of a file of the Hub in the local cache; None if the model has no such file.

    CheckpointError if the Hub cannot be reached and a ``required`` file is not in the cache.
    """
    try:
        with _quiet_hub():
            return Path(hf_hub_download(repository, name))
    except LocalEntryNotFoundError:
        if not required:
            return None
        raise CheckpointError(
            f"{repository!r} is no local file or folder, and the Hugging Face Hub cannot be "
            f"reached to fetch its {name}"
        ) from None
    except EntryNotFoundError:
        return None
    except (RepositoryNotFoundError, HFValidationError):
        raise CheckpointError(
            f"{repository!r} is no local file or folder, and no public model of the Hub"
        ) from None
    except Exception as error:  # whatever a network may do
        reason = _one_line(error)
        raise CheckpointError(f"could not fetch {name} of {repository!r}: {reason}") from None


@contextmanager
def _quiet_hub() -> Iterator[None]:
    """Without the warning that the Hub's client prints at each of its retries."""
    verbosity = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(verbosity)


def _one_line(error: BaseException) -> str:
    text = next(iter(str(error).splitlines()), "")
    return text or type(error).__name__
