"""Make models by name, fresh or from a checkpoint, and save them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import nn

from mmlab.hub.conversion import OWN, from_mmlab
from mmlab.hub.families import MODELS, family_of
from mmlab.hub.files import read_checkpoint, write_npz, write_safetensors
from mmlab.hub.fit import load_vit
from mmlab.hub.load import load_network
from mmlab.models.vit import ViT


def list_models(pattern: str = "*") -> tuple[str, ...]:
    """Names of models that match a glob, such as ``"vit-b-*"``."""
    return tuple(name for name in MODELS if fnmatchcase(name, pattern))


def model_config(name: str) -> object:
    """The configuration behind a name; ValueError with the nearest name if there is none."""
    if name not in MODELS:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(MODELS)}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    return MODELS[name]


def create_model(
    name: str,
    *,
    pretrained: str | Path | None = None,
    dtype: torch.dtype | None = None,
    **overrides: object,
) -> nn.Module:
    """Make the model called ``name``; ``overrides`` replace fields of its configuration.

    ``pretrained`` is a checkpoint file, a Hugging Face folder, or a model of the Hub
    (``"google/vit-base-patch16-224"``), in any layout of ``mmlab.hub.layouts()``; strictly:

    - its architecture must be that of ``name``;
    - settings which change results but no shape, such as ``norm_eps`` and ``activation``, are taken
      from the file: what its layout implies (1e-6 and tanh GELU for Google's ``.npz``, QuickGELU
      for CLIP …), what ``config.json`` says, for our own files their metadata;
    - an explicit ``image_size`` other than the file's interpolates the positions
      (``"bilinear_aligned"`` for Google's files, else ``"bicubic"``). Without the explicit number,
      that is an error;
    - in a ViT an explicit ``num_classes`` other than the file's gives a fresh head; without it,
      that is an error. A ``pre_logits`` layer in the file (the pooler of Hugging Face) is taken
      with the file's head, and dropped under a fresh head or where you say ``pre_logits=False``.

    Weights are float32, also those of a file in half precision, unless ``dtype`` says otherwise.

    ValueError for an unknown name or override, CheckpointError (a ValueError) for a checkpoint that
    cannot be read or does not fit.
    """
    config = _override(model_config(name), overrides)
    family = family_of(name)
    if pretrained is None:
        model = family.network(config)
    else:
        load = load_vit if family.network is ViT else load_network
        model = load(name, family, config, overrides, read_checkpoint(pretrained))
    return model if dtype is None else model.to(dtype)


def save(
    model: nn.Module,
    path: str | Path,
    *,
    layout: str = OWN,
    metadata: Mapping[str, object] | None = None,
    without: tuple[str, ...] = (),
) -> None:
    """Write the weights of ``model`` to a ``.safetensors`` or ``.npz`` file, whole or not at all.

    ``layout`` is ``"mmlab"`` (our names) or one of ``mmlab.hub.layouts()``. A safetensors file also
    carries the layout, the configuration and your ``metadata`` (strings). Weights whose names begin
    with one of ``without`` are left out; ``create_model`` does not take a file that lacks some.
    ValueError for another ending or metadata that cannot be stored; CheckpointError if the file
    cannot be written.
    """
    path, metadata = Path(path), dict(metadata or {})
    _check_target(path, metadata)
    state = {key: t for key, t in model.state_dict().items() if not key.startswith(without)}
    if layout != OWN:
        num_heads = getattr(model.config, "num_heads", None)
        state = from_mmlab(layout, state, num_heads=num_heads)
    if path.suffix == ".npz":
        write_npz(path, state)
        return
    own = {"format": "pt", "mmlab.layout": layout, "mmlab.config": json.dumps(asdict(model.config))}
    write_safetensors(path, state, metadata | own)


def _check_target(path: Path, metadata: Mapping[str, object]) -> None:
    if path.suffix not in (".safetensors", ".npz"):
        raise ValueError(f"path must end in .safetensors or .npz, got {path.name!r}")
    if path.suffix == ".npz" and metadata:
        raise ValueError("metadata must be empty for .npz, which cannot hold it")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise ValueError(f"metadata must map strings to strings, got {key!r}: {value!r}")


def _override(config: object, overrides: Mapping[str, object]) -> object:
    known = [field.name for field in fields(config)]
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"unknown option {name!r}; {hint}")
    return replace(config, **overrides)
