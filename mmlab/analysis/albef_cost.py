"""What the parts of ALBEF cost: multiply-accumulate operations (MACs)."""

from __future__ import annotations

from mmlab.analysis.cost import (
    MATCHED_PAIRS,
    block_macs,
    cross_attention_macs,
    keys_and_values_macs,
    vit_macs,
)
from mmlab.models.albef import ALBEFConfig


def albef_image_macs(config: ALBEFConfig) -> int:
    """MACs of one image through the image encoder."""
    return vit_macs(config.vit)


def albef_text_macs(config: ALBEFConfig, num_tokens: int) -> int:
    """MACs of one text through the blocks that see no image."""
    block = block_macs(num_tokens, config.text_dim, config.text_mlp_dim)
    return config.text_depth * block


def albef_fusion_macs(config: ALBEFConfig, num_tokens: int) -> int:
    """MACs of one pair through the fusion blocks: those of a text block and the cross-attention."""
    width = config.text_dim
    look = cross_attention_macs(num_tokens, config.vit.num_tokens, width, config.dim)
    own = block_macs(num_tokens, width, config.text_mlp_dim)
    return config.num_images * config.fusion_depth * (own + look)


def albef_matching_macs(config: ALBEFConfig, num_tokens: int) -> int:
    """MACs of a true pair and two false ones through the fusion blocks.

    An image of the batch is in three pairs on average, and its keys and values are computed once.
    """
    once = keys_and_values_macs(config.vit.num_tokens, config.text_dim, config.dim)
    saved = (MATCHED_PAIRS - 1) * config.fusion_depth * once
    return MATCHED_PAIRS * albef_fusion_macs(config, num_tokens) - saved
