"""Make models by name, fresh or from a checkpoint, and save them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from mmlab.hub.conversion import OWN, from_mmlab
from mmlab.hub.files import read_checkpoint, write_npz, write_safetensors
from mmlab.hub.fit import Checkpoint, differences, fit_config, fit_state, read_vit
from mmlab.hub.mapping import CheckpointError
from mmlab.models import vit

MODELS = {
    "vit-ti-16": vit.VIT_TI_16,
    "vit-s-16": vit.VIT_S_16,
    "vit-s-32": vit.VIT_S_32,
    "vit-b-8": vit.VIT_B_8,
    "vit-b-16": vit.VIT_B_16,
    "vit-b-32": vit.VIT_B_32,
    "vit-l-16": vit.VIT_L_16,
    "vit-l-32": vit.VIT_L_32,
    "vit-h-14": vit.VIT_H_14,
    "vit-mini": vit.VIT_MINI,
    "deit-ti-16": vit.DEIT_TI_16,
    "deit-s-16": vit.DEIT_S_16,
    "deit-b-16": vit.DEIT_B_16,
    "deit-ti-16-distilled": vit.DEIT_TI_16_DISTILLED,
    "deit-s-16-distilled": vit.DEIT_S_16_DISTILLED,
    "deit-b-16-distilled": vit.DEIT_B_16_DISTILLED,
}


def list_models(pattern: str = "*") -> tuple[str, ...]:
    """Names of models that match a glob, such as ``"vit-b-*"``."""
    return tuple(name for name in MODELS if fnmatchcase(name, pattern))


def model_config(name: str) -> vit.ViTConfig:
    """The configuration behind a name; ValueError with the nearest name if there is none."""
    if name not in MODELS:
        near = difflib.get_close_matches(name.lower(), MODELS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(MODELS)}"
        raise ValueError(f"unknown model {name!r}; {hint}")
    return MODELS[name]


def create_model(
    name: str, *, pretrained: str | Path | None = None, **overrides: object
) -> nn.Module:
    """Make the model called ``name``; ``overrides`` replace fields of its configuration.

    ``pretrained`` is a checkpoint file, a Hugging Face folder, or a model of the Hub
    (``"google/vit-base-patch16-224"``), in any layout of ``mmlab.hub.layouts()``; strictly:

    - its architecture must be that of ``name``;
    - ``norm_eps`` and ``activation``, which change results but no shape, are taken from the file:
      1e-6 and tanh GELU for Google's ``.npz``, 1e-6 and exact GELU for DeiT and timm, for Hugging
      Face what ``config.json`` says (else 1e-12 and exact GELU), for our own files their metadata;
    - an explicit ``num_classes`` other than the file's gives a fresh head; an explicit
      ``image_size`` other than the file's interpolates the positions (``"bilinear_aligned"`` for
      Google's files, else ``"bicubic"``). Without the explicit number, either is an error;
    - a ``pre_logits`` layer in the file (the pooler of Hugging Face) is taken with the file's head,
      and dropped under a fresh head or where you say ``pre_logits=False``.

    ValueError for an unknown name or override, CheckpointError (a ValueError) for a checkpoint that
    cannot be read or does not fit.
    """
    config = _override(model_config(name), overrides)
    if pretrained is None:
        return vit.ViT(config)
    checkpoint = read_vit(read_checkpoint(pretrained))
    _check_architecture(name, config, checkpoint)
    model = vit.ViT(fit_config(name, config, overrides, checkpoint))
    model.load_state_dict(fit_state(model.config, model.state_dict(), checkpoint))
    return model


def save(
    model: nn.Module,
    path: str | Path,
    *,
    layout: str = OWN,
    metadata: Mapping[str, object] | None = None,
) -> None:
    """Write the weights of ``model`` to a ``.safetensors`` or ``.npz`` file, whole or not at all.

    ``layout`` is ``"mmlab"`` (our names) or one of ``mmlab.hub.layouts()``. A safetensors file also
    carries the layout, the configuration and your ``metadata`` (strings). ValueError for another
    ending or metadata that cannot be stored; CheckpointError if the file cannot be written.
    """
    path, metadata = Path(path), dict(metadata or {})
    _check_target(path, metadata)
    state = model.state_dict()
    if layout != OWN:
        state = from_mmlab(layout, state, num_heads=model.config.num_heads)
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


def _override(config: vit.ViTConfig, overrides: Mapping[str, object]) -> vit.ViTConfig:
    known = [field.name for field in fields(config)]
    for name in overrides:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"unknown option {name!r}; {hint}")
    return replace(config, **overrides)


def _check_architecture(name: str, config: vit.ViTConfig, checkpoint: Checkpoint) -> None:
    found = differences(config, checkpoint)
    if found:
        fitting = [other for other in MODELS if not differences(MODELS[other], checkpoint)]
        hint = f"; it fits {fitting[0]!r}" if fitting else ""
        raise CheckpointError(
            f"{checkpoint.source!r} is no {name!r}: it has {', '.join(found)}{hint}"
        )
