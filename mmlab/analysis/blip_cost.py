"""What the parts of BLIP cost: multiply-accumulate operations (MACs)."""

from __future__ import annotations

from mmlab.analysis.cost import (
    MATCHED_PAIRS,
    block_macs,
    cross_attention_macs,
    keys_and_values_macs,
    vit_macs,
)
from mmlab.models.blip import BLIPConfig


def blip_image_macs(config: BLIPConfig) -> int:
    """MACs of one image through the image encoder."""
    return vit_macs(config.vit)


def blip_text_macs(config: BLIPConfig, num_tokens: int) -> int:
    """MACs of one text through the encoder that sees no image."""
    return config.text_depth * block_macs(num_tokens, config.text_dim, config.text_mlp_dim)


def blip_grounded_macs(config: BLIPConfig, num_tokens: int) -> int:
    """MACs of one text that looks at its image, read by the encoder or written by the decoder.

    The words head is left out; NLVR2 has a cross-attention for each image, and some layers that
    merge them.
    """
    image_tokens, width = config.vit.num_tokens, config.text_dim
    look = cross_attention_macs(num_tokens, image_tokens, width, config.dim)
    merging = max(0, config.text_depth - config.merge_from) if config.num_images == 2 else 0
    looks = config.text_depth * config.num_images * look
    return blip_text_macs(config, num_tokens) + looks + merging * 2 * num_tokens * width**2


def blip_matching_macs(config: BLIPConfig, num_tokens: int) -> int:
    """MACs of a true pair and two false ones, read by the encoder.

    An image of the batch is in three pairs on average, and its keys and values are computed once.
    """
    once = keys_and_values_macs(config.vit.num_tokens, config.text_dim, config.dim)
    saved = (MATCHED_PAIRS - 1) * config.text_depth * once
    return MATCHED_PAIRS * blip_grounded_macs(config, num_tokens) - saved


def blip_words_macs(config: BLIPConfig, num_tokens: int) -> int:
    """MACs of the words head at each token."""
    return num_tokens * config.text_dim * (config.text_dim + config.vocab_size)
