"""Checkpoints of a run: written whole or not at all, and enough to go on bit for bit.

A checkpoint is a folder ``step-00000300``:

- ``model.safetensors``: the network, as ``mmlab.hub.save`` writes it, with the recipe;
- ``average.safetensors``: the moving average of its weights, if the recipe asks for one;
- ``state.pt``: the step, the optimiser, what only the pretraining module has (queues …), and where
  a stream of data stands, for each process.

The rate, the order of other data and all random numbers are functions of seed and step. What a
module or its network names in ``frozen`` never changes, and a large frozen model would fill the
disk: it is left out, but for a digest that tells whether a resumed run has the same.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import nn

from mmlab.hub import CheckpointError, read_checkpoint, save
from mmlab.hub.files import atomic_path, weights_digest
from mmlab.training.loop import TrainingState

WEIGHTS, AVERAGE, STATE = "model.safetensors", "average.safetensors", "state.pt"
_NETWORK = "network."


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in a folder, oldest first."""
    return sorted(folder.glob("step-" + 8 * "[0-9]"))


def save_checkpoint(state: TrainingState, folder: Path, keep: int) -> Path:
    """Write a checkpoint, then delete all but the ``keep`` newest.

    It is written aside, forced to the disk and renamed, so a crash at any moment leaves either all
    of it or nothing. CheckpointError if it cannot be written; older checkpoints are then intact.
    """
    target = folder / f"step-{state.step:08d}"
    aside = folder / f".{target.name}.partial"
    try:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(parents=True)
        _write(state, aside)
        os.replace(aside, target)
        _force_to_disk(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"could not write {str(target)!r}: {_reason(error)}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    for old in list_checkpoints(folder)[:-keep]:
        _delete(old)
    return target


def load_checkpoint(state: TrainingState, checkpoint: Path) -> None:
    """Set ``state`` to what ``save_checkpoint`` wrote; CheckpointError if it does not fit."""
    try:
        saved = torch.load(checkpoint / STATE, map_location="cpu", weights_only=True)
        if saved.get("frozen", "") != _frozen_digest(state):
            raise CheckpointError(
                f"checkpoint {str(checkpoint)!r} was trained with other frozen weights than the "
                "recipe gives now"
            )
        _load_network(state.model.network, checkpoint / WEIGHTS)
        if state.average is not None:
            _load_network(state.average, checkpoint / AVERAGE)
        state.model.load_state_dict(_other_tensors(state.model) | saved["own"])
        state.optimizer.load_state_dict(saved["optimizer"])
        state.step = saved["step"]
        state.positions = saved.get("positions", [])
    except CheckpointError:
        raise
    except Exception as error:  # damaged bytes can make a parser raise anything
        raise CheckpointError(
            f"checkpoint {str(checkpoint)!r} cannot be resumed: {_reason(error)}"
        ) from None


def remove_partial(folder: Path) -> None:
    """Delete what a killed run has left half-written."""
    for path in folder.glob(".step-*"):
        shutil.rmtree(path, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file, whole or not at all; CheckpointError if it cannot be written."""
    with atomic_path(path) as aside:
        aside.write_text(text, "utf-8")
        _force_to_disk(aside)


def _write(state: TrainingState, folder: Path) -> None:
    network, given = state.model.network, {"metadata": state.metadata}
    save(network, folder / WEIGHTS, without=_frozen(network), **given)
    if state.average is not None:
        save(state.average, folder / AVERAGE, without=_frozen(network), **given)
    rest = {
        "step": state.step,
        "optimizer": state.optimizer.state_dict(),
        "own": _own_tensors(state.model),
        "frozen": _frozen_digest(state),
    }
    torch.save(rest | {"positions": state.positions}, folder / STATE)
    for path in folder.iterdir():
        _force_to_disk(path)
    _force_to_disk(folder)


def _own_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors of a pretraining module that are neither its network's nor frozen."""
    others = (_NETWORK, *_frozen(model))
    return {k: t for k, t in model.state_dict().items() if not k.startswith(others)}


def _other_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    own = _own_tensors(model)
    return {key: tensor for key, tensor in model.state_dict().items() if key not in own}


def _frozen(module: nn.Module) -> tuple[str, ...]:
    """What the names of its weights that never change begin with."""
    return getattr(module, "frozen", ())


def _frozen_digest(state: TrainingState) -> str:
    """A fingerprint of all frozen weights; empty where there are none."""
    if state.frozen is None:
        model = state.model
        frozen = (*_frozen(model), *(_NETWORK + name for name in _frozen(model.network)))
        tensors = {k: t for k, t in model.state_dict().items() if k.startswith(frozen)}
        state.frozen = weights_digest(tensors) if tensors else ""
    return state.frozen


def _load_network(network: nn.Module, path: Path) -> None:
    frozen = {k: t for k, t in network.state_dict().items() if k.startswith(_frozen(network))}
    network.load_state_dict(frozen | read_checkpoint(path).tensors)


def _delete(checkpoint: Path) -> None:
    # Renamed first: what is left of a delete that was cut short is no checkpoint.
    leaving = checkpoint.with_name(f".{checkpoint.name}.old")
    os.replace(checkpoint, leaving)
    shutil.rmtree(leaving, ignore_errors=True)


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), "") or type(error).__name__
