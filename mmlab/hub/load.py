"""Any network from a checkpoint, strictly: every key has its place, every shape fits, or an error.

ViTs have a way of their own, ``mmlab.hub.fit``: their heads may be exchanged.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from fnmatch import fnmatchcase
from functools import cache

import torch
from torch import Tensor, nn

from mmlab.hub.conversion import OWN, detect_layout, get_layout, layouts, to_mmlab
from mmlab.hub.families import FAMILIES, MODELS, Family, family_of
from mmlab.hub.files import CheckpointFile
from mmlab.hub.mapping import CheckpointError, HFConfig, check_shared, first_few
from mmlab.hub.pretraining import network_part
from mmlab.nn import interpolate_positions
from mmlab.nn.relative_positions import num_patch_offsets, resize_offsets

Settings = Mapping[str, object]
Shapes = dict[str, tuple[int, ...]]

HF_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
}


@dataclass(frozen=True)
class _Checkpoint:
    """A file in our names, and what it says about the network's configuration.

    ``told`` is what its layout and its ``config.json`` say, ``saved`` the configuration that
    ``mmlab.hub.save`` put into it.
    """

    source: str
    layout: str
    state: dict[str, Tensor]
    told: Settings
    saved: Settings
    interpolation: str = "bicubic"


def load_network(
    name: str, family: Family, config: object, overrides: Settings, file: CheckpointFile
) -> nn.Module:
    """The network of ``config`` (``name`` with ``overrides``) with the weights of ``file``.

    CheckpointError, in one sentence, if the file is of another layout, size or behaviour, or if it
    is for another ``image_size`` and ``overrides`` do not ask for one.
    """
    checkpoint = _read(family, config, file)
    config = _take_behaviour(family, config, overrides, checkpoint)
    skeleton = _skeleton(family, config)
    state = _fresh_counters(skeleton) | checkpoint.state
    if "image_size" in overrides:
        state |= _stretched_positions(family, config, skeleton, checkpoint)
    told = _differences(config, _architecture(family, config, checkpoint))
    if told or key_problems(skeleton.state_dict(), state):
        raise CheckpointError(_explain(name, family, config, told, checkpoint))
    try:
        check_shared(skeleton, state)
    except CheckpointError as error:
        raise CheckpointError(f"{checkpoint.source!r}: {error}") from None
    network = family.network(config)
    computed = {key: t for key, t in network.state_dict().items() if state[key].is_meta}
    network.load_state_dict(state | computed)
    return network


def key_problems(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> list[str]:
    """Where ``state`` has other keys or shapes than ``own``."""
    problems = [f"lacks {key!r}" for key in own if key not in state]
    problems += [f"has {key!r} left over" for key in state if key not in own]
    problems += [
        f"has {key!r} as {tuple(state[key].shape)} instead of {tuple(tensor.shape)}"
        for key, tensor in own.items()
        if key in state and state[key].shape != tensor.shape
    ]
    return problems


def first_problems(problems: list[str], limit: int = 3) -> str:
    """``it lacks 'a'; has 'b' left over; 7 more problems``."""
    more = f"; {len(problems) - limit} more problems" if len(problems) > limit else ""
    return f"it {'; '.join(problems[:limit])}{more}"


def saved_config(metadata: Mapping[str, str]) -> dict[str, object]:
    """The configuration that ``mmlab.hub.save`` put into a file; nothing in files of others."""
    try:
        settings = json.loads(metadata.get("mmlab.config", "{}"))
    except ValueError:
        settings = None
    if not isinstance(settings, dict):
        raise CheckpointError("its metadata 'mmlab.config' is no JSON object")
    # JSON has no tuples, and a configuration no lists.
    return {key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()}


def read_hf_config(
    meaning: HFConfig, config: Mapping[str, object], implied: Settings
) -> dict[str, object]:
    """Our settings in a ``config.json`` of transformers; nothing if it is of another library.

    A field that is missing has the value that its layout implies, if there is one. CheckpointError
    if the file is that of another model, or has a value that we have no name for.
    """
    if "model_type" not in config:
        return {}
    if config["model_type"] not in meaning.model_types:
        raise CheckpointError(f"its config.json is that of a {config['model_type']!r} model")
    settings = {}
    for ours, paths in meaning.fields.items():
        found = [_at(config, path) for path in ((paths,) if isinstance(paths, str) else paths)]
        known = [implied.get(ours) if value is None else _our_value(ours, value) for value in found]
        values = [value for value in known if value is not None]
        if any(value != values[0] for value in values):
            shown = first_few(map(str, values))
            raise CheckpointError(f"its config.json has several values for {ours}: {shown}")
        if values:
            settings[ours] = values[0]
    return settings


def _our_value(field: str, theirs: object) -> object:
    if field != "activation":
        return theirs
    if not isinstance(theirs, str) or theirs not in HF_ACTIVATIONS:
        raise CheckpointError(f"its activation {theirs!r} is none of {list(HF_ACTIVATIONS)}")
    return HF_ACTIVATIONS[theirs]


def _at(config: object, path: str) -> object:
    """``config["a"]["b"]`` for ``"a.b"``; None where there is no such thing."""
    for name in path.split("."):
        config = config.get(name) if isinstance(config, Mapping) else None
    return config


def _read(family: Family, config: object, file: CheckpointFile) -> _Checkpoint:
    """Convert a file to our names and gather what it says; later sources overrule earlier ones."""
    try:
        layout = file.metadata.get("mmlab.layout") or _layout(family, config, file.tensors)
        saved = saved_config(file.metadata)
        if layout == OWN:
            return _Checkpoint(file.source, layout, dict(file.tensors), {}, saved)
        table = get_layout(layout)
        told = dict(table.config)
        if table.hf_config is not None:
            told |= read_hf_config(table.hf_config, file.config, table.config)
        state = network_part(to_mmlab(layout, file.tensors))
        return _Checkpoint(file.source, layout, state, told, saved, table.interpolation)
    except ValueError as error:
        raise CheckpointError(f"{file.source!r}: {error}") from None


def _layout(family: Family, config: object, tensors: Mapping[str, Tensor]) -> str:
    """The layout of a file that does not say it; the family's own in case of doubt."""
    own = _skeleton(family, config).state_dict()
    if sum(key in own for key in tensors) == len(tensors):
        return OWN
    return detect_layout(tensors, prefer=layouts(family.layouts))


def _take_behaviour(
    family: Family, config: object, overrides: Settings, checkpoint: _Checkpoint
) -> object:
    told = {**checkpoint.told, **checkpoint.saved}
    known = {field.name for field in fields(config)} & set(family.behaviour)
    taken = {key: told[key] for key in known if key in told and key not in overrides}
    try:
        return replace(config, **taken)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{checkpoint.source!r}: {error}") from None


def _architecture(family: Family, config: object, checkpoint: _Checkpoint) -> Settings:
    """Settings that the file tells and that must be the same.

    A configuration of ours also holds what concerns training only. All of it that matters shows in
    the shapes, except for the heads.
    """
    heads = {key: n for key, n in checkpoint.saved.items() if key.endswith("num_heads")}
    told = {**checkpoint.told, **heads}
    known = {field.name for field in fields(config)} - {*family.behaviour, "image_size"}
    return {key: value for key, value in told.items() if key in known}


def _differences(config: object, told: Settings) -> list[str]:
    own = {key: getattr(config, key) for key in told}
    return [f"{key}={told[key]!r} (not {own[key]!r})" for key in told if told[key] != own[key]]


def _fresh_counters(skeleton: nn.Module) -> dict[str, Tensor]:
    """Zero for what batch norms count in training, which old files lack; no result needs it."""
    counters = (key for key in skeleton.state_dict() if key.endswith(".num_batches_tracked"))
    return {key: torch.tensor(0) for key in counters}


def _skeleton(family: Family, config: object) -> nn.Module:
    """The network without memory for its weights."""
    with torch.device("meta"):
        return family.network(config)


def _shapes(state: Mapping[str, Tensor]) -> Shapes:
    return {key: tuple(tensor.shape) for key, tensor in state.items()}


def _stretched_positions(
    family: Family, config: object, skeleton: nn.Module, checkpoint: _Checkpoint
) -> dict[str, Tensor]:
    """The position tables for the skeleton's grid; those to be computed anew are meta tensors."""
    own = dict(skeleton.named_parameters())
    return {
        key: _stretched(family, config, checkpoint, key, own[key])
        for key in _misfits(family, _shapes(own), checkpoint)
    }


def _stretched(
    family: Family, config: object, checkpoint: _Checkpoint, key: str, own: nn.Parameter
) -> Tensor:
    if not own.requires_grad:
        return own
    old, new = _sides(family, config, key, tuple(own.shape), checkpoint)
    grids, table = ((old, old), (new, new)), checkpoint.state[key].float()
    if key in family.offsets:
        return resize_offsets(table, *grids)
    variant, num_prefix = checkpoint.interpolation, family.positions[key]
    return interpolate_positions(table, *grids, variant, num_prefix)


def _misfits(family: Family, own: Shapes, checkpoint: _Checkpoint) -> list[str]:
    """Keys of the position tables that are as wide as ours, but not as long."""
    theirs = _shapes(checkpoint.state)
    both = [key for key in (*family.positions, *family.offsets) if key in own and key in theirs]
    return [
        key
        for key in both
        if len(theirs[key]) == len(own[key])
        and theirs[key][-2] != own[key][-2]
        and (theirs[key][:-2], theirs[key][-1]) == (own[key][:-2], own[key][-1])
    ]


def _sides(
    family: Family, config: object, key: str, own: tuple[int, ...], checkpoint: _Checkpoint
) -> tuple[int, int]:
    """Patches per side of the images that the checkpoint is for, and of those that ours is for."""
    length = checkpoint.state[key].shape[-2]
    if key in family.positions:
        num_prefix = family.positions[key]
        return _side(checkpoint.source, length, num_prefix), math.isqrt(own[-2] - num_prefix)
    num_others = own[-2] - num_patch_offsets(config.grid)
    side = _side(checkpoint.source, length - num_others, 0)
    if side % 2 == 0:
        raise CheckpointError(f"{checkpoint.source!r} has no square grid of patch offsets")
    return (side + 1) // 2, config.grid[0]


def _side(source: str, num_positions: int, num_prefix: int) -> int:
    side = math.isqrt(max(num_positions - num_prefix, 0))
    if side == 0 or side**2 + num_prefix != num_positions:
        raise CheckpointError(
            f"{source!r} has {num_positions} positions, which is no square grid of patches with "
            f"{num_prefix} learned tokens before it"
        )
    return side


def _explain(
    name: str, family: Family, config: object, told: list[str], checkpoint: _Checkpoint
) -> str:
    """Why the checkpoint does not fit, in one sentence, and what it would fit."""
    skeleton = _skeleton(family, config)
    own = _shapes(skeleton.state_dict())
    state = _fresh_counters(skeleton) | checkpoint.state
    other = _fitting(name, family, checkpoint)
    hint = f"; it fits {other!r}" if other else ""
    misfits = _misfits(family, own, checkpoint)
    problems = key_problems(skeleton.state_dict(), state)
    if not told and misfits and len(problems) == len(misfits):
        size = _size_of_file(family, config, own, misfits[0], checkpoint)
        return (
            f"{checkpoint.source!r} is for images of {size} pixels, {name!r} for "
            f"{config.image_size}; pass image_size={size} to take the file as it is, or another "
            f"size, such as image_size={config.image_size}, to interpolate its positions{hint}"
        )
    fitting = family.sizes.get(other) or _config_of_file(family, config, checkpoint)
    if fitting is not None:
        told = _differences(config, vars(fitting)) or told
    has = f"it has {_some(told)}" if told else first_problems(problems)
    return f"{checkpoint.source!r} is no {name!r}: {has}{hint}"


def _config_of_file(family: Family, config: object, checkpoint: _Checkpoint) -> object | None:
    """The configuration in the file's metadata, if there is one and the file fits it."""
    known = {field.name for field in fields(config)} & checkpoint.saved.keys()
    try:
        own = replace(config, **{key: checkpoint.saved[key] for key in known})
        fits = not key_problems(_skeleton(family, own).state_dict(), checkpoint.state)
    except (ValueError, TypeError):
        return None
    return own if fits else None


def _some(names: list[str], limit: int = 4) -> str:
    """``a, b and 7 more``."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def _size_of_file(
    family: Family, config: object, own: Shapes, key: str, checkpoint: _Checkpoint
) -> int:
    """Pixels per side of the images that the checkpoint is for."""
    old, new = _sides(family, config, key, own[key], checkpoint)
    return config.image_size * old // new


def _fitting(name: str, family: Family, checkpoint: _Checkpoint) -> str:
    """Another model that has exactly these keys and shapes; ``""`` if there is none."""
    shapes = _shapes(checkpoint.state)
    related = [f for f in FAMILIES.values() if fnmatchcase(checkpoint.layout, f.layouts)]
    for relative in [family, *(f for f in related if f is not family)]:
        for other in relative.sizes:
            if other != name and _published_shapes(other) == shapes:
                return other
    return ""


@cache
def _published_shapes(name: str) -> Shapes:
    return _shapes(_skeleton(family_of(name), MODELS[name]).state_dict())
