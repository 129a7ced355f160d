"""FLIP against networks put together from transformers and PyTorch: there is no other FLIP here.

The image tower is a ViT of transformers with fixed positions, averaged over all tokens; the text
tower is PyTorch's own encoder. All parameters are random.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers import ViTConfig, ViTModel

from mmlab.hub import from_mmlab
from mmlab.models.flip import FLIP, FLIPConfig
from tests.parity.test_vit import images, randomise

TOLERANCE = dict(rtol=0, atol=1e-5)
SIZES = {
    "small": FLIPConfig(
        image_size=16,
        patch_size=4,
        dim=32,
        depth=2,
        num_heads=4,
        mlp_dim=64,
        vocab_size=60,
        context_length=10,
        text_dim=24,
        text_depth=3,
        text_num_heads=3,
        text_mlp_dim=40,
        embed_dim=20,
    ),
    "wide": FLIPConfig(
        image_size=40,
        patch_size=8,
        dim=48,
        depth=3,
        num_heads=3,
        mlp_dim=80,
        vocab_size=90,
        context_length=32,
        text_dim=32,
        text_depth=1,
        text_num_heads=2,
        text_mlp_dim=128,
        embed_dim=16,
    ),
}


def our_model(config):
    torch.manual_seed(0)
    model = randomise(FLIP(config))
    # The code never adds a position to the class token; its row of the table is zero.
    model.image_encoder.position_embedding.data[:, 0] = 0
    return model


def hf_image_tower(ours):
    config = ours.config
    options = ViTConfig(
        hidden_size=config.dim,
        num_hidden_layers=config.depth,
        num_attention_heads=config.num_heads,
        intermediate_size=config.mlp_dim,
        patch_size=config.patch_size,
        image_size=config.image_size,
        hidden_act="gelu_pytorch_tanh",
        layer_norm_eps=1e-6,
    )
    theirs = ViTModel(options, add_pooling_layer=False).eval()
    state = from_mmlab("vit-hf-base-memory", ours.image_encoder.state_dict())
    theirs.load_state_dict(state)
    return theirs


@pytest.mark.parametrize("size", SIZES)
def test_image_features_agree_with_a_vit_of_transformers(size):
    ours = our_model(SIZES[size])
    theirs = hf_image_tower(ours)
    pixels = images(ours.config.image_size)
    with torch.no_grad():
        pooled = theirs(pixel_values=pixels).last_hidden_state.mean(dim=1)
        expected = ours.image_projection(pooled)
        expected = expected / (expected.norm(dim=-1, keepdim=True) + 1e-8)
        torch.testing.assert_close(ours.encode_image(pixels), expected, **TOLERANCE)


def torch_text_tower(text, config):
    """PyTorch's encoder with the weights of ours."""
    layer = nn.TransformerEncoderLayer(
        config.text_dim,
        config.text_num_heads,
        config.text_mlp_dim,
        dropout=0.0,
        activation=lambda x: F.gelu(x, approximate="tanh"),
        layer_norm_eps=1e-6,
        batch_first=True,
        norm_first=True,
    )
    theirs = nn.TransformerEncoder(layer, config.text_depth, text.norm, enable_nested_tensor=False)
    for copy, block in zip(theirs.layers, text.blocks, strict=True):
        attention, projections = block.attention, ("q_proj", "k_proj", "v_proj")
        parts = [getattr(attention, name) for name in projections]
        copy.self_attn.in_proj_weight.data = torch.cat([part.weight for part in parts]).detach()
        copy.self_attn.in_proj_bias.data = torch.cat([part.bias for part in parts]).detach()
        copy.self_attn.out_proj.load_state_dict(attention.out_proj.state_dict())
        copy.norm1.load_state_dict(block.norm1.state_dict())
        copy.norm2.load_state_dict(block.norm2.state_dict())
        copy.linear1.load_state_dict(block.mlp.fc1.state_dict())
        copy.linear2.load_state_dict(block.mlp.fc2.state_dict())
    return theirs.eval()


@pytest.mark.parametrize("size", SIZES)
def test_text_features_agree_with_the_encoder_of_pytorch(size):
    config = SIZES[size]
    ours = our_model(config)
    text = ours.text_encoder
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, config.vocab_size, (4, config.context_length), generator=generator)
    with torch.no_grad():
        tokens = text.token_embedding(ids) + text.position_embedding
        first = torch_text_tower(text, config)(tokens)[:, 0]
        expected = first @ ours.text_projection.weight.T
        expected = expected / (expected.norm(dim=-1, keepdim=True) + 1e-8)
        torch.testing.assert_close(ours.encode_text(ids), expected, **TOLERANCE)
