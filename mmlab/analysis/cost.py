"""What a model costs: parameters and multiply-accumulate operations (MACs)."""

from __future__ import annotations

from torch import nn

from mmlab.models.vit import ViTConfig
from mmlab.nn import conv_stem_widths

# The part that a component of a parameter's name stands for.
_PARTS = {
    "patch_embedding": "embedding",
    "class_token": "embedding",
    "distillation_token": "embedding",
    "position_embedding": "positions",
    "attention": "attention",
    "mlp": "mlp",
    "norm1": "norms",
    "norm2": "norms",
    "norm": "norms",
    "pre_logits": "head",
    "head": "head",
    "distillation_head": "head",
}


def count_parameters(model: nn.Module, trainable_only: bool = False) -> int:
    """Number of parameters, each shared one once; buffers do not count.

    ``with torch.device("meta"): model = ViT(config)`` builds a model that takes no memory.
    """
    parameters = model.parameters()
    return sum(p.numel() for p in parameters if p.requires_grad or not trainable_only)


def parameters_by_part(model: nn.Module) -> dict[str, int]:
    """Number of parameters in embedding, positions, attention, mlp, norms and head.

    The parts sum to ``count_parameters(model)``; what belongs to none of them is ``"other"``, a key
    that exists only where it is needed. The embedding holds the class and distillation token and
    all of a conv stem.
    """
    counts = dict.fromkeys(_PARTS.values(), 0)
    for name, parameter in model.named_parameters():
        part = next((_PARTS[word] for word in name.split(".") if word in _PARTS), "other")
        counts[part] = counts.get(part, 0) + parameter.numel()
    return counts


def block_macs(num_tokens: int, dim: int, mlp_dim: int) -> int:
    """MACs of one transformer block: ``4 T D^2 + 2 T^2 D + 2 T D M`` for ``M = mlp_dim``.

    The terms are the four projections, the attention itself, and the MLP. Norms, activations and
    biases are left out, as usual.
    """
    projections = 4 * num_tokens * dim**2
    attention = 2 * num_tokens**2 * dim
    mlp = 2 * num_tokens * dim * mlp_dim
    return projections + attention + mlp


def vit_macs(config: ViTConfig) -> int:
    """MACs of one image through a ``ViT``; FLOPs are twice as many."""
    blocks = config.depth * block_macs(config.num_tokens, config.dim, config.mlp_dim)
    pre_logits = config.dim**2 if config.pre_logits else 0
    heads = (1 + config.distilled) * config.dim * config.num_classes
    return _stem_macs(config) + blocks + pre_logits + heads


def _stem_macs(config: ViTConfig) -> int:
    if config.stem == "linear":
        values = config.num_channels * config.patch_size**2
        return config.num_patches * values * config.dim
    macs, channels = config.num_patches * config.dim**2, config.num_channels
    for stage, width in enumerate(conv_stem_widths(config.patch_size, config.dim), start=1):
        macs += (config.image_size // 2**stage) ** 2 * 9 * channels * width
        channels = width
    return macs
