"""What a model costs: parameters and multiply-accumulate operations (MACs)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import nn

from mmlab.models.blip2 import BLIP2Config
from mmlab.models.clip import CLIPConfig
from mmlab.models.clip_resnet import EXPANSION
from mmlab.models.flip import FLIPConfig
from mmlab.models.mae import MAEConfig
from mmlab.models.vit import ViTConfig
from mmlab.nn import conv_stem_widths, num_kept

MATCHED_PAIRS = 3
"""A true pair, and two false ones."""

# The part that a component of a parameter's name stands for.
_PARTS = {
    "patch_embedding": "embedding",
    "class_token": "embedding",
    "distillation_token": "embedding",
    "position_embedding": "positions",
    "attention": "attention",
    "mlp": "mlp",
    "token_embedding": "embedding",
    "norm_pre": "norms",
    "norm1": "norms",
    "norm2": "norms",
    "norm": "norms",
    "image_projection": "head",
    "text_projection": "head",
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


@dataclass(frozen=True)
class GradientMacs:
    """MACs of forward passes, by the gradients that the backward pass computes for them.

    The gradient of each of the two factors of a product costs as much as the product. They are

    - ``none`` where nothing learns, here or before;
    - ``one``, of the tokens where a gradient only passes through frozen weights, or of the weights
      where a layer is the first;
    - ``both`` where weights learn, and in the attention itself, whose factors are tokens.
    """

    none: int | float = 0
    one: int | float = 0
    both: int | float = 0

    def __add__(self, other: GradientMacs) -> GradientMacs:
        sums = (self.none + other.none, self.one + other.one, self.both + other.both)
        return GradientMacs(*sums)

    @property
    def forward(self) -> int | float:
        """MACs forwards."""
        return self.none + self.one + self.both

    @property
    def total(self) -> int | float:
        """MACs forwards and backwards."""
        return self.none + 2 * self.one + 3 * self.both


def block_macs(num_tokens: int, dim: int, mlp_dim: int) -> int:
    """MACs of one transformer block: ``4 T D^2 + 2 T^2 D + 2 T D M`` for ``M = mlp_dim``.

    The terms are the four projections, the attention itself, and the MLP. Norms, activations and
    biases are left out, as usual.
    """
    projections = 4 * num_tokens * dim**2
    attention = 2 * num_tokens**2 * dim
    mlp = 2 * num_tokens * dim * mlp_dim
    return projections + attention + mlp


def cross_attention_macs(num_tokens: int, context_tokens: int, dim: int, context_dim: int) -> int:
    """MACs of ``num_tokens`` queries that look at ``context_tokens`` of another sequence.

    Two projections are on the side of the queries, two on that of the context.
    """
    own = 2 * num_tokens * dim**2
    theirs = keys_and_values_macs(context_tokens, dim, context_dim)
    return own + theirs + 2 * num_tokens * context_tokens * dim


def keys_and_values_macs(context_tokens: int, dim: int, context_dim: int) -> int:
    """The part of ``cross_attention_macs`` that a context costs once, however many look at it."""
    return 2 * context_tokens * context_dim * dim


def block_activations(num_tokens: int, dim: int, num_heads: int, mlp_dim: int) -> int:
    """Numbers that a pre-norm block keeps for its backward pass: ``T (8 D + 2 M + H + 4)``.

    Of each token, ``D`` numbers eight times (what both norms and the two halves' linear layers take
    in, queries, keys, values, attended values), the MLP's hidden layer before and after its
    activation, a number a head for the fused attention, and two for each norm. Dropout keeps more.
    """
    return num_tokens * (8 * dim + 2 * mlp_dim + num_heads + 4)


def vit_macs(config: ViTConfig) -> int:
    """MACs of one image through a ``ViT``; FLOPs are twice as many."""
    blocks = config.depth * block_macs(config.num_tokens, config.dim, config.mlp_dim)
    pre_logits = config.dim**2 if config.pre_logits else 0
    heads = (1 + config.distilled) * config.dim * config.num_classes
    return stem_macs(config) + blocks + pre_logits + heads


def stem_macs(config: ViTConfig | CLIPConfig | BLIP2Config) -> int:
    """MACs that make the patches of one image."""
    if config.stem == "linear":
        values = config.num_channels * config.patch_size**2
        return math.prod(config.grid) * values * config.dim
    macs, channels = math.prod(config.grid) * config.dim**2, config.num_channels
    for stage, width in enumerate(conv_stem_widths(config.patch_size, config.dim), start=1):
        macs += (config.image_size // 2**stage) ** 2 * 9 * channels * width
        channels = width
    return macs


def clip_image_macs(config: CLIPConfig) -> int:
    """MACs of one image through a ``CLIP``, with its projection."""
    if config.stages:
        return _resnet_macs(config)
    blocks = config.depth * block_macs(config.num_image_tokens, config.dim, config.mlp_dim)
    return stem_macs(config) + blocks + config.dim * config.embed_dim


def clip_text_macs(config: CLIPConfig, num_tokens: int | None = None) -> int:
    """MACs of one caption of ``num_tokens`` (all that fit if None) through a ``CLIP``.

    The half of the attention that the causal mask hides is counted, as usual.
    """
    num_tokens = config.context_length if num_tokens is None else num_tokens
    blocks = config.text_depth * block_macs(num_tokens, config.text_dim, config.text_mlp_dim)
    return blocks + config.text_dim * config.embed_dim


def flip_image_macs(config: FLIPConfig, mask_ratio: float | int = 0.0) -> int:
    """MACs of one image through a ``FLIP`` that drops ``mask_ratio`` of its patches.

    The patch embedding comes before the dropping and is paid in full. ValueError as in
    ``mmlab.nn.num_kept``.
    """
    projection = config.dim * config.embed_dim
    return _masked_encoder_macs(config.image, mask_ratio) + projection


def flip_text_macs(config: FLIPConfig) -> int:
    """MACs of one caption through a ``FLIP``, filled up to ``context_length`` as all are."""
    block = block_macs(config.context_length, config.text_dim, config.text_mlp_dim)
    return config.text_depth * block + config.text_dim * config.embed_dim


def mae_encoder_macs(config: MAEConfig, mask_ratio: float | int | None = None) -> int:
    """MACs of one image through an MAE's encoder; ``mask_ratio`` is the configuration's if None."""
    ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    return _masked_encoder_macs(config.encoder, ratio)


def mae_decoder_macs(config: MAEConfig, mask_ratio: float | int | None = None) -> int:
    """MACs of its decoder, which works on all places whatever the encoder saw."""
    ratio = config.mask_ratio if mask_ratio is None else mask_ratio
    num_patches, dim = config.encoder.num_patches, config.decoder_dim
    embedding = (num_kept(num_patches, ratio) + 1) * config.dim * dim
    blocks = config.decoder_depth * block_macs(num_patches + 1, dim, config.decoder_mlp_dim)
    return embedding + blocks + num_patches * dim * config.patch_values


def _masked_encoder_macs(config: ViTConfig, mask_ratio: float | int) -> int:
    """A ViT without a head on the class token and the patches that stay."""
    num_tokens = num_kept(config.num_patches, mask_ratio) + 1
    return stem_macs(config) + config.depth * block_macs(num_tokens, config.dim, config.mlp_dim)


def _resnet_macs(config: CLIPConfig) -> int:
    """Convolutions and attention pooling of a CLIP ResNet."""
    width, cells = config.dim, (config.image_size // 2) ** 2
    half = width // 2
    macs = cells * 9 * (config.num_channels * half + half**2 + half * width)
    cells, in_channels = cells // 4, width
    for stage, num_blocks in enumerate(config.stages):
        inside, stride = width * 2**stage, 1 if stage == 0 else 2
        outside = EXPANSION * inside
        # Averaging comes after the first two convolutions of a block, and before the others.
        macs += cells * (in_channels * inside + 9 * inside**2)
        cells //= stride**2
        macs += cells * (inside + in_channels) * outside
        macs += (num_blocks - 1) * cells * (2 * inside * outside + 9 * inside**2)
        in_channels = outside
    return macs + _attention_pool_macs(in_channels, cells + 1, config.embed_dim)


def _attention_pool_macs(dim: int, num_tokens: int, embed_dim: int) -> int:
    """One query, keys and values of all tokens, the attention, the way out."""
    return dim**2 * (1 + 2 * num_tokens) + 2 * num_tokens * dim + dim * embed_dim
