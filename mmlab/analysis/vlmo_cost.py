"""What the parts of VLMo and its stages cost: multiply-accumulate operations (MACs)."""

from __future__ import annotations

import math

from mmlab.analysis.cost import MATCHED_PAIRS, GradientMacs, block_macs
from mmlab.models.vlmo import VLMoConfig


def vlmo_image_macs(config: VLMoConfig) -> int:
    """MACs of one image alone, through the experts for images."""
    return _patches_macs(config) + _blocks_macs(config, _image_tokens(config))


def vlmo_text_macs(config: VLMoConfig, num_tokens: int) -> int:
    """MACs of one text alone, through the experts for texts."""
    return _blocks_macs(config, num_tokens)


def vlmo_pair_macs(config: VLMoConfig, num_tokens: int) -> int:
    """MACs of a text and an image read together."""
    return _patches_macs(config) + _blocks_macs(config, num_tokens + _image_tokens(config))


def vlmo_words_macs(config: VLMoConfig, num_tokens: int) -> int:
    """MACs of the words head at each token."""
    return num_tokens * config.dim * (config.dim + config.vocab_size)


def vlmo_step_macs(config: VLMoConfig, num_tokens: int) -> GradientMacs:
    """MACs of one sample of the stage that the heads are for.

    With ``"codes"`` that is an image, with ``"words"`` but without ``"match"`` a text, and else a
    pair (see ``mmlab.models.vlmo_pretraining``). Poolers, features and the head of matching are
    left out. ValueError if the heads are those of a task.
    """
    if "codes" in config.heads:
        return _vision_macs(config)
    if "words" not in config.heads:
        raise ValueError(f"no stage of VLMo has heads={config.heads}")
    return (_pair_macs if "match" in config.heads else _language_macs)(config, num_tokens)


def _vision_macs(config: VLMoConfig) -> GradientMacs:
    codes = math.prod(config.grid) * config.dim * config.num_codes
    return _image_pass(config) + GradientMacs(both=codes)


def _language_macs(config: VLMoConfig, num_tokens: int) -> GradientMacs:
    """The four projections of each attention are frozen, and the gradient passes through them."""
    frozen = config.depth * 4 * num_tokens * config.dim**2
    learning = vlmo_text_macs(config, num_tokens) - frozen + vlmo_words_macs(config, num_tokens)
    return GradientMacs(one=frozen, both=learning)


def _pair_macs(config: VLMoConfig, num_tokens: int) -> GradientMacs:
    """Either modality alone, on two paths; three pairs to match; the pair with masked words.

    Pairs to match are as long as texts can be.
    """
    image_tokens = _image_tokens(config)
    again = config.fusion_depth if "fusion_contrast" in config.heads else 0
    second = again * sum(_block_macs(config, count) for count in (image_tokens, num_tokens))
    text = vlmo_text_macs(config, num_tokens) + vlmo_words_macs(config, num_tokens)
    matched = MATCHED_PAIRS * _blocks_macs(config, config.context_length + image_tokens)
    masked = _blocks_macs(config, num_tokens + image_tokens)
    patches = (MATCHED_PAIRS + 1) * _patches_macs(config)
    together = GradientMacs(one=patches, both=matched + masked)
    return _image_pass(config) + GradientMacs(both=second + text) + together


def _image_pass(config: VLMoConfig) -> GradientMacs:
    """All learns; there is nothing before the patches."""
    patches = _patches_macs(config)
    return GradientMacs(one=patches, both=vlmo_image_macs(config) - patches)


def _image_tokens(config: VLMoConfig) -> int:
    return 1 + math.prod(config.grid)


def _patches_macs(config: VLMoConfig) -> int:
    return config.image_size**2 * config.num_channels * config.dim


def _blocks_macs(config: VLMoConfig, num_tokens: int) -> int:
    return config.depth * _block_macs(config, num_tokens)


def _block_macs(config: VLMoConfig, num_tokens: int) -> int:
    return block_macs(num_tokens, config.dim, config.mlp_dim)
