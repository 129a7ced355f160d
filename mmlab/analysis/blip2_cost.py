"""What the parts of BLIP-2 and its stages cost: multiply-accumulate operations (MACs)."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mmlab.analysis.cost import (
    MATCHED_PAIRS,
    GradientMacs,
    block_macs,
    cross_attention_macs,
    keys_and_values_macs,
    stem_macs,
)
from mmlab.models.blip2 import BLIP2Config
from mmlab.models.checks import check, check_integers


@dataclass(frozen=True)
class LanguageModelSizes:
    """What of a language model decides its cost.

    - ``dim``: the width of its tokens, and of all heads together.
    - ``depth``: blocks of each stack.
    - ``mlp_matrices``: 2, or 3 with a gate.
    - ``encodes``: whether it reads and writes with two stacks, as FlanT5 does.

    A wrong value raises ValueError.
    """

    dim: int
    depth: int
    mlp_dim: int
    vocab_size: int
    mlp_matrices: int = 2
    encodes: bool = False

    def __post_init__(self) -> None:
        check_integers(self, "dim", "depth", "mlp_dim", "vocab_size")
        check(self.mlp_matrices in (2, 3), "mlp_matrices", self.mlp_matrices, "2 or 3")

    def mlp_macs(self, num_tokens: int) -> int:
        """MACs of one MLP."""
        return self.mlp_matrices * num_tokens * self.dim * self.mlp_dim

    def words_macs(self, num_tokens: int) -> int:
        """MACs of the words head at each token."""
        return num_tokens * self.dim * self.vocab_size


# Zhang et al. 2022 (OPT, arXiv 2205.01068, table 1); Chung et al. 2022 (Flan-T5, arXiv 2210.11416),
# with the sizes of T5 1.1.
LANGUAGE_MODELS = {
    "opt-2.7b": LanguageModelSizes(2560, 32, 10240, 50272),
    "opt-6.7b": LanguageModelSizes(4096, 32, 16384, 50272),
    "flan-t5-xl": LanguageModelSizes(2048, 24, 5120, 32128, mlp_matrices=3, encodes=True),
    "flan-t5-xxl": LanguageModelSizes(4096, 24, 10240, 32128, mlp_matrices=3, encodes=True),
}
"""Those of the paper."""


# The image encoder and the Q-Former.


def blip2_image_macs(config: BLIP2Config) -> int:
    """MACs of one image through the image encoder."""
    blocks = config.depth * block_macs(_image_tokens(config), config.dim, config.mlp_dim)
    return stem_macs(config) + blocks


def blip2_query_macs(config: BLIP2Config) -> int:
    """MACs of the queries alone, which look at an image."""
    return _sequence_macs(config, config.num_queries) + _look_macs(config)


def blip2_text_macs(config: BLIP2Config, num_tokens: int) -> int:
    """MACs of one text alone."""
    return _sequence_macs(config, num_tokens)


def blip2_fused_macs(config: BLIP2Config, num_tokens: int) -> int:
    """MACs of queries and text in one sequence; the image encoder is left out."""
    return _sequence_macs(config, config.num_queries + num_tokens) + _look_macs(config)


def blip2_matching_macs(config: BLIP2Config, num_tokens: int, num_devices: int = 1) -> int:
    """MACs of a true pair and two false ones, each queries and text in one sequence.

    On one device an image is in three pairs on average, and its keys and values are computed once.
    With more, wrong images come from all of them: each pair of the batch needs keys and values of
    its own image and of the wrong one.
    """
    once = keys_and_values_macs(_image_tokens(config), config.text_dim, config.dim)
    saved = MATCHED_PAIRS - (1 if num_devices == 1 else 2)
    unshared = MATCHED_PAIRS * blip2_fused_macs(config, num_tokens)
    return unshared - saved * _num_crossing(config) * once


def blip2_written_macs(config: BLIP2Config, num_tokens: int) -> int:
    """MACs of one text that is written after queries whose keys and values are known.

    With the words head; the half of the attention that the causal mask hides is counted, as usual.
    """
    width = config.text_dim
    back = config.text_depth * 2 * num_tokens * config.num_queries * width
    words = num_tokens * width * (width + config.vocab_size)
    return blip2_text_macs(config, num_tokens) + back + words


def _image_tokens(config: BLIP2Config) -> int:
    return 1 + math.prod(config.grid)


def _sequence_macs(config: BLIP2Config, num_tokens: int) -> int:
    return config.text_depth * block_macs(num_tokens, config.text_dim, config.text_mlp_dim)


def _look_macs(config: BLIP2Config) -> int:
    sides = (config.num_queries, _image_tokens(config), config.text_dim, config.dim)
    return _num_crossing(config) * cross_attention_macs(*sides)


def _num_crossing(config: BLIP2Config) -> int:
    return math.ceil(config.text_depth / config.cross_every)


# The stages.


def blip2_step_macs(
    config: BLIP2Config,
    num_tokens: int,
    language_model: LanguageModelSizes | None = None,
    num_devices: int = 1,
) -> GradientMacs:
    """MACs of one pair in stage 1 or, with ``language_model``, in stage 2.

    Of stage 1 the heads for contrast and matching, and the similarities, are left out;
    ``num_devices`` as in ``blip2_matching_macs``.
    """
    if language_model is None:
        losses = _three_losses_macs(config, num_tokens, num_devices)
        return _image_pass(config) + GradientMacs(both=losses)
    prefix = config.num_queries * config.text_dim * config.prefix_dim
    bridge = GradientMacs(both=blip2_query_macs(config) + prefix)
    spoken = language_model_macs(language_model, config.num_queries, num_tokens)
    return _image_pass(config) + bridge + spoken


def _image_pass(config: BLIP2Config) -> GradientMacs:
    """An encoder that learns is counted in full: no pixel needs a gradient, hence a bit more."""
    macs = blip2_image_macs(config)
    return GradientMacs(none=macs) if config.freeze_images else GradientMacs(both=macs)


def _three_losses_macs(config: BLIP2Config, num_tokens: int, num_devices: int) -> int:
    contrast = blip2_query_macs(config) + blip2_text_macs(config, num_tokens)
    matching = blip2_matching_macs(config, num_tokens, num_devices)
    return contrast + matching + blip2_written_macs(config, num_tokens)


def language_model_macs(
    sizes: LanguageModelSizes, prefix_tokens: int, num_tokens: int
) -> GradientMacs:
    """MACs of a frozen language model that reads a learned prefix and foretells a text.

    No weight has a gradient, but the prefix has one, which comes back through all blocks. An
    encoder-decoder reads the prefix and writes the text, as ``mmlab train`` has it; the paper lets
    it read a part of the text as well.
    """
    if sizes.encodes:
        encoder = _stack_macs(sizes, prefix_tokens)
        return encoder + _decoder_macs(sizes, num_tokens, prefix_tokens)
    sequence = prefix_tokens + num_tokens
    return _stack_macs(sizes, sequence) + GradientMacs(one=sizes.words_macs(sequence))


def _stack_macs(sizes: LanguageModelSizes, num_tokens: int) -> GradientMacs:
    matrices = 4 * num_tokens * sizes.dim**2 + sizes.mlp_macs(num_tokens)
    attention = 2 * num_tokens**2 * sizes.dim
    return GradientMacs(one=sizes.depth * matrices, both=sizes.depth * attention)


def _decoder_macs(sizes: LanguageModelSizes, num_tokens: int, encoded: int) -> GradientMacs:
    """The decoder of an encoder-decoder.

    Its words are frozen vectors: until the first block has looked at the encoder, there is no
    gradient to compute, not even of the queries with which it looks.
    """
    width, depth = sizes.dim, sizes.depth
    half_look = num_tokens * encoded * width
    own = 4 * num_tokens * width**2 + num_tokens * width**2
    matrices = num_tokens * width**2 + 2 * encoded * width**2 + sizes.mlp_macs(num_tokens)
    attention = 2 * num_tokens**2 * width
    first = GradientMacs(none=own + attention, one=matrices + half_look, both=half_look)
    others = GradientMacs(
        one=(depth - 1) * (own + matrices), both=(depth - 1) * (attention + 2 * half_look)
    )
    return first + others + GradientMacs(one=sizes.words_macs(num_tokens))
