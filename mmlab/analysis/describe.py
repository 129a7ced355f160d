"""A model in a few numbers, by its name: shapes, parameters, cost. No weights are made."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn

from mmlab.analysis.cost import clip_image_macs, clip_text_macs, count_parameters, vit_macs
from mmlab.hub.create import model_config
from mmlab.hub.families import family_of
from mmlab.models.clip import CLIP
from mmlab.models.vit import ViT

Description = dict[str, object]
"""What a thing is called → a number, a text, or a shape as a list of numbers."""


def describe(name: str) -> Description:
    """Shapes for one example, parameters, and the cost of one example, of the model ``name``.

    Every family has ``"parameters"``; those with an entry in ``DESCRIPTIONS`` have more. ValueError
    for an unknown name.
    """
    config = model_config(name)
    with torch.device("meta"):
        model = family_of(name).network(config)
    about = DESCRIPTIONS.get(type(model), _describe_any)
    return {"model": name, **about(model)}


def _describe_any(model: nn.Module) -> Description:
    """The sizes in a model's configuration, and the parts of it that have parameters."""
    sizes = {name: size for name, size in vars(model.config).items() if type(size) is int and size}
    counts = {part: count_parameters(child) for part, child in model.named_children()}
    parts = {f"{part}_parameters": count for part, count in counts.items() if count}
    return {**sizes, "parameters": count_parameters(model), **parts}


def _describe_vit(model: ViT) -> Description:
    config = model.config
    heads = [head for head in (model.head, model.distillation_head) if head is not None]
    parameters = count_parameters(model)
    return {
        "images": [1, config.num_channels, config.image_size, config.image_size],
        "tokens": [1, config.num_tokens, config.dim],
        "image_features": [1, config.dim],
        "logits": [1, config.num_classes],
        "patch_size": config.patch_size,
        "num_patches": config.num_patches,
        "num_prefix_tokens": config.num_prefix_tokens,
        "depth": config.depth,
        "num_heads": config.num_heads,
        "parameters": parameters,
        "parameters_without_head": parameters - sum(map(count_parameters, heads)),
        **_costs("", vit_macs(config)),
    }


def _describe_clip(model: CLIP) -> Description:
    config = model.config
    in_text = count_parameters(model.text_encoder) + count_parameters(model.text_projection)
    parameters = count_parameters(model)
    image_dim = 32 * config.dim if config.stages else config.dim
    return {
        "images": [1, config.num_channels, config.image_size, config.image_size],
        "image_tokens": [1, config.num_image_tokens, image_dim],
        "texts": [1, config.context_length],
        "text_tokens": [1, config.context_length, config.text_dim],
        "image_features": [1, config.embed_dim],
        "text_features": [1, config.embed_dim],
        "logits": [1, 1],
        **_clip_image_side(model),
        "text_depth": config.text_depth,
        "text_num_heads": config.text_num_heads,
        "vocab_size": config.vocab_size,
        "parameters": parameters,
        "image_parameters": parameters - in_text - 1,
        "text_parameters": in_text,
        **_costs("image_", clip_image_macs(config)),
        **_costs("text_", clip_text_macs(config)),
    }


def _clip_image_side(model: CLIP) -> Description:
    config = model.config
    if config.stages:
        return {"stages": list(config.stages), "num_heads": model.image_encoder.pool.num_heads}
    sizes = {"patch_size": config.patch_size, "depth": config.depth}
    return {**sizes, "num_heads": config.num_heads}


def _costs(prefix: str, macs: int) -> Description:
    giga = macs / 1e9
    return {f"{prefix}gmacs": round(giga, 4), f"{prefix}gflops": round(2 * giga, 4)}


DESCRIPTIONS: Mapping[type[nn.Module], Callable[[nn.Module], Description]] = {
    ViT: _describe_vit,
    CLIP: _describe_clip,
}
"""How each kind of model is described; others tell the sizes of their parts."""
