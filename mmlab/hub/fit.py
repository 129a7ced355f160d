"""Fit a ViT's checkpoint to the configuration that was asked for: what may differ, what may not."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from mmlab.hub.conversion import OWN, detect_layout, get_layout, to_mmlab_with_sizes
from mmlab.hub.families import Family
from mmlab.hub.files import CheckpointFile
from mmlab.hub.load import first_problems, key_problems, saved_config
from mmlab.hub.mapping import CheckpointError, first_few
from mmlab.models.vit import ViT, ViTConfig
from mmlab.nn import interpolate_positions

Settings = dict[str, object]

# Our field → the field of transformers' ViTConfig and DeiTConfig.
HF_FIELDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "num_channels": "num_channels",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "norm_eps": "layer_norm_eps",
    "activation": "hidden_act",
}
HF_ACTIVATIONS = {"gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh"}

# Settings that change what the network computes but that no shape shows.
BEHAVIOUR = {"norm_eps": float, "activation": str}
# Settings that must agree between a file and a model.
ARCHITECTURE = (
    "dim",
    "depth",
    "num_heads",
    "mlp_dim",
    "patch_size",
    "num_channels",
    "pool",
    "distilled",
    "stem",
    "positions",
)
# The keys that tell the architecture.
_NEEDED = ("norm.weight", "blocks.0.mlp.fc1.bias", "patch_embedding.projection.weight")
_HEADS = ("head.", "distillation_head.")


@dataclass(frozen=True)
class Checkpoint:
    """A file in our names: its tensors, and the settings that it tells."""

    source: str
    state: dict[str, Tensor]
    settings: Settings
    interpolation: str


def load_vit(
    name: str, family: Family, config: ViTConfig, overrides: Settings, file: CheckpointFile
) -> ViT:
    """The ViT of ``config`` (``name`` with ``overrides``) with the weights of ``file``.

    CheckpointError as in ``fit_config`` and ``fit_state``, and for another architecture.
    """
    checkpoint = read_vit(file)
    _check_architecture(name, family, config, checkpoint)
    model = ViT(fit_config(name, config, overrides, checkpoint))
    model.load_state_dict(fit_state(model.config, model.state_dict(), checkpoint))
    return model


def _check_architecture(
    name: str, family: Family, config: ViTConfig, checkpoint: Checkpoint
) -> None:
    found = differences(config, checkpoint)
    if found:
        sizes = family.sizes
        fitting = [other for other in sizes if not differences(sizes[other], checkpoint)]
        hint = f"; it fits {fitting[0]!r}" if fitting else ""
        raise CheckpointError(
            f"{checkpoint.source!r} is no {name!r}: it has {', '.join(found)}{hint}"
        )


def read_vit(file: CheckpointFile) -> Checkpoint:
    """Convert a ViT file to our names and gather what it says about its configuration.

    Later sources overrule earlier ones: the layout's habits, ``config.json``, our own metadata, the
    shapes. CheckpointError names the file and what is wrong.
    """
    try:
        layout = file.metadata.get("mmlab.layout") or detect_layout(file.tensors)
        state, sizes, settings, interpolation = _convert(layout, file.tensors)
        settings |= _hf_settings(file.config) | _own_settings(file.metadata)
        settings |= {"num_heads": sizes["num_heads"]} if "num_heads" in sizes else {}
        _check_types(settings)
        return Checkpoint(file.source, state, settings | _shape_settings(state), interpolation)
    except ValueError as error:
        raise CheckpointError(f"{file.source!r}: {error}") from None


def differences(config: ViTConfig, checkpoint: Checkpoint) -> list[str]:
    """What the checkpoint's architecture has other than ``config``; empty if it fits."""
    told = checkpoint.settings
    return [
        f"{key}={told[key]!r} (not {getattr(config, key)!r})"
        for key in ARCHITECTURE
        if key in told and told[key] != getattr(config, key)
    ]


def fit_config(
    name: str, config: ViTConfig, overrides: Settings, checkpoint: Checkpoint
) -> ViTConfig:
    """``config`` of ``name``, with the settings that only the checkpoint knows.

    ``overrides``, already in ``config``, win over the checkpoint. Only they may ask for a head or
    an image size other than the checkpoint's: CheckpointError if it differs otherwise.
    """
    told = checkpoint.settings
    _check_head_is_wanted(name, config, overrides, checkpoint)
    _check_size_is_wanted(name, config, overrides, checkpoint)
    # A hidden layer before the head comes with the head.
    keeps_head = told["num_classes"] == config.num_classes
    taken = (*BEHAVIOUR, "pre_logits") if keeps_head else BEHAVIOUR
    settings = {key: told[key] for key in taken if key in told and key not in overrides}
    try:
        return replace(config, **settings)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.source!r}: {error}") from None


def fit_state(
    config: ViTConfig, own: Mapping[str, Tensor], checkpoint: Checkpoint
) -> dict[str, Tensor]:
    """The checkpoint's tensors for a model of ``config``, strictly.

    ``own`` are the model's fresh tensors: they give the head where the number of classes differs,
    and the shapes. Learned positions are interpolated to the model's grid. CheckpointError where a
    key is missing, left over or of a wrong shape.
    """
    state = dict(checkpoint.state)
    fresh_head = checkpoint.settings["num_classes"] != config.num_classes
    if not config.pre_logits and (fresh_head or config.num_classes == 0):
        state = {key: t for key, t in state.items() if not key.startswith("pre_logits.")}
    if fresh_head:
        state = {key: t for key, t in state.items() if not key.startswith(_HEADS)}
        state |= {key: t for key, t in own.items() if key.startswith(_HEADS)}
    if _num_positions(state) not in (0, config.num_tokens):
        state["position_embedding"] = _fit_positions(config, own, checkpoint)
    _check_fits(checkpoint.source, own, state)
    return state


def _check_fits(source: str, own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """CheckpointError unless ``state`` has exactly the keys and shapes of ``own``."""
    problems = key_problems(own, state)
    if problems:
        raise CheckpointError(f"{source!r} does not fit: {first_problems(problems)}")


def _convert(
    layout: str, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, int], Settings, str]:
    """Tensors in our names, sizes of named axes, the layout's settings and interpolation."""
    if layout == OWN:
        _check_complete(tensors)
        return dict(tensors), {}, {}, "bicubic"
    table = get_layout(layout)
    state, sizes = to_mmlab_with_sizes(layout, tensors)
    _check_complete(state)
    return state, sizes, dict(table.config), table.interpolation


def _check_complete(state: Mapping[str, Tensor]) -> None:
    absent = [key for key in _NEEDED if key not in state]
    if absent:
        raise CheckpointError(f"it is no complete ViT, it lacks {first_few(absent)}")


def _hf_settings(config: Mapping[str, object]) -> Settings:
    """Settings in a ``config.json`` of transformers; nothing if it is of another library."""
    if "model_type" not in config:
        return {}
    if config["model_type"] not in ("vit", "deit"):
        raise CheckpointError(f"its config.json is that of a {config['model_type']!r} model")
    settings = {ours: config[theirs] for ours, theirs in HF_FIELDS.items() if theirs in config}
    activation = str(settings.get("activation", "gelu"))
    if activation not in HF_ACTIVATIONS:
        raise CheckpointError(f"its activation {activation!r} is none of {list(HF_ACTIVATIONS)}")
    return settings | {"activation": HF_ACTIVATIONS[activation]}


def _own_settings(metadata: Mapping[str, str]) -> Settings:
    """The configuration that ``mmlab.hub.save`` put into the file."""
    settings = saved_config(metadata)
    return {key: settings[key] for key in (*ARCHITECTURE, *BEHAVIOUR) if key in settings}


def _check_types(settings: Settings) -> None:
    for key, kind in BEHAVIOUR.items():
        if key in settings and not isinstance(settings[key], kind):
            raise CheckpointError(f"its {key} must be a {kind.__name__}, got {settings[key]!r}")


def _shape_settings(state: Mapping[str, Tensor]) -> Settings:
    """The settings that names and shapes tell beyond doubt."""
    settings = {
        "dim": len(state["norm.weight"]),
        "depth": sum(key.startswith("blocks.") and key.endswith(".norm1.bias") for key in state),
        "mlp_dim": len(state["blocks.0.mlp.fc1.bias"]),
        "num_classes": len(state["head.bias"]) if "head.bias" in state else 0,
        "pool": "class_token" if "class_token" in state else "average",
        "distilled": "distillation_token" in state,
        "pre_logits": "pre_logits.weight" in state,
    }
    if "position_embedding" not in state:
        settings["positions"] = "none"
    return settings | _stem_settings(state)


def _stem_settings(state: Mapping[str, Tensor]) -> Settings:
    if "patch_embedding.layers.0.0.weight" in state:
        return {"stem": "conv", "num_channels": state["patch_embedding.layers.0.0.weight"].shape[1]}
    _, num_channels, height, _ = state["patch_embedding.projection.weight"].shape
    return {"stem": "linear", "num_channels": num_channels, "patch_size": height}


def _check_head_is_wanted(
    name: str, config: ViTConfig, overrides: Settings, checkpoint: Checkpoint
) -> None:
    classes = checkpoint.settings["num_classes"]
    if classes != config.num_classes and "num_classes" not in overrides:
        head = f"a head of {classes} classes" if classes else "no head"
        raise CheckpointError(
            f"{checkpoint.source!r} has {head}, {name!r} one of {config.num_classes} classes; pass "
            f"num_classes={classes} to take the file as it is, or another number for a fresh head"
        )


def _check_size_is_wanted(
    name: str, config: ViTConfig, overrides: Settings, checkpoint: Checkpoint
) -> None:
    num_positions = _num_positions(checkpoint.state)
    if num_positions in (0, config.num_tokens):
        return
    size = _grid_side(config, checkpoint) * config.patch_size
    if "image_size" not in overrides:
        raise CheckpointError(
            f"{checkpoint.source!r} is for images of {size} pixels, {name!r} for "
            f"{config.image_size}; pass image_size={size} to take the file as it is, or another "
            f"size, such as image_size={config.image_size}, to interpolate its positions"
        )


def _fit_positions(config: ViTConfig, own: Mapping[str, Tensor], checkpoint: Checkpoint) -> Tensor:
    if config.positions == "sincos2d":
        return own["position_embedding"]
    side = _grid_side(config, checkpoint)
    return interpolate_positions(
        checkpoint.state["position_embedding"],
        (side, side),
        config.grid,
        checkpoint.interpolation,
        config.num_prefix_tokens,
    )


def _grid_side(config: ViTConfig, checkpoint: Checkpoint) -> int:
    """Patches per side of the images that the checkpoint is for."""
    num_positions, prefix = _num_positions(checkpoint.state), config.num_prefix_tokens
    side = math.isqrt(max(num_positions - prefix, 0))
    if side == 0 or side**2 + prefix != num_positions:
        raise CheckpointError(
            f"{checkpoint.source!r} has {num_positions} positions, which is no square grid of "
            f"patches with {prefix} learned tokens before it"
        )
    return side


def _num_positions(state: Mapping[str, Tensor]) -> int:
    return state["position_embedding"].shape[1] if "position_embedding" in state else 0
