"""A step of BLIP-2's second stage, with language models of transformers."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

from mmlab.analysis.blip2_cost import LanguageModelSizes
from mmlab.analysis.training_cost import BLIP2TrainingCost
from mmlab.models.blip2 import BLIP2
from mmlab.models.blip2_language import BLIP2Language
from tests.models.tiny import TINY_BLIP2

BATCH, TOKENS, WIDTH = 3, 11, 24


def tiny_opt():
    config = OPTConfig(
        vocab_size=50,
        hidden_size=WIDTH,
        word_embed_proj_dim=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        ffn_dim=40,
        max_position_embeddings=64,
    )
    return OPTForCausalLM(config), LanguageModelSizes(WIDTH, 3, 40, 50)


def tiny_t5():
    config = T5Config(
        vocab_size=50,
        d_model=WIDTH,
        d_kv=WIDTH // 2,
        d_ff=40,
        num_layers=3,
        num_heads=2,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
    )
    sizes = LanguageModelSizes(WIDTH, 3, 40, 50, mlp_matrices=3, encodes=True)
    return T5ForConditionalGeneration(config), sizes


def batch_for(sizes):
    ids = torch.randint(4, 48, (BATCH, TOKENS))
    images = {"images": torch.randn(BATCH, 3, TINY_BLIP2.image_size, TINY_BLIP2.image_size)}
    if not sizes.encodes:
        return images | {"input_ids": ids}
    return images | {"output_ids": ids}


@pytest.mark.parametrize("make", [tiny_opt, tiny_t5])
def test_a_step_has_the_flops_pytorch_counts(make):
    language_model, sizes = make()
    config = replace(TINY_BLIP2, heads=("prefix",), prefix_dim=WIDTH)
    module = BLIP2Language(BLIP2(config), language_model).train()
    cost = BLIP2TrainingCost(
        config, 1, BATCH, mfu=1.0, num_text_tokens=TOKENS, language_model=sizes
    )
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        (loss,) = module.losses(batch_for(sizes)).values()
        assert counter.get_total_flops() == 2 * BATCH * cost.forward_macs_per_pair
        loss.backward()
    assert counter.get_total_flops() == cost.flops
