"""A VLMo that starts from a BEiT reads images as the BEiT of transformers does."""

import pytest
import torch
from transformers import BeitConfig, BeitModel

from mmlab.hub.beit import start_from_beit
from mmlab.hub.mapping import CheckpointError
from mmlab.models.vlmo import VLMo, VLMoConfig

SIZES = dict(image_size=48, dim=32, depth=3, num_heads=4, mlp_dim=48, fusion_depth=0, vocab_size=20)


def our_model(**changes):
    torch.manual_seed(0)
    return VLMo(VLMoConfig(**SIZES | {"heads": ()} | changes)).eval()


def their_model():
    config = BeitConfig(
        hidden_size=32,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=48,
        image_size=48,
        layer_norm_eps=1e-6,
        use_relative_position_bias=True,
        use_mean_pooling=False,
    )
    model = BeitModel(config, add_pooling_layer=False).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


NAMES = {
    "embeddings.cls_token": "cls_token",
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "layernorm.": "norm.",
    "layers.": "blocks.",
    "lambda_": "gamma_",
    "attention.o_proj": "attn.proj",
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "relative_position_bias.relative": "attn.relative",
}


def official(model):
    """The weights of the model of transformers as BEiT's own code calls them."""
    state = {}
    for key, tensor in model.state_dict().items():
        for theirs, name in NAMES.items():
            key = key.replace(theirs, name)
        state[key] = tensor
    for i in range(3):
        start = f"blocks.{i}.attention."
        parts = {name: state.pop(f"{start}{name}_proj.weight") for name in "qkv"}
        state[f"blocks.{i}.attn.qkv.weight"] = torch.cat(list(parts.values()))
        for name in "qv":
            state[f"blocks.{i}.attn.{name}_bias"] = state.pop(f"{start}{name}_proj.bias")
    return state


def test_images_are_read_as_by_the_beit():
    ours, theirs = our_model(), their_model()
    text = {key: t.clone() for key, t in ours.state_dict().items() if "text" in key}
    start_from_beit(ours, official(theirs))
    # A BEiT has no modalities.
    ours.modality_embedding.weight.data[1] = 0
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        found, expected = ours.image_paths(images).tokens, theirs(images).last_hidden_state
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert all(torch.equal(ours.state_dict()[key], tensor) for key, tensor in text.items())
    assert ours.position_bias.table[28:].abs().max() == 0


def test_one_table_for_all_blocks_goes_to_each():
    state = official(their_model())
    tables = [state.pop(f"blocks.{i}.attn.relative_position_bias_table") for i in range(3)]
    state["rel_pos_bias.relative_position_bias_table"] = tables[0]
    state |= {"head.weight": torch.zeros(2, 32), "rel_pos_bias.relative_position_index": tables[0]}
    state |= {"mask_token": torch.ones(1, 1, 32), "lm_head.weight": torch.ones(8, 32)}
    state |= {"lm_head.bias": torch.ones(8)}
    ours = start_from_beit(our_model(), state)
    assert torch.equal(ours.position_bias.table[:28], tables[0].repeat(1, 3))
    with_codes = start_from_beit(our_model(heads=("codes",), num_codes=8), state)
    assert (with_codes.mask_token == 1).all() and (with_codes.heads["codes"].weight == 1).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 64}, "must have 52 rows and 12 columns in all for this VLMo, got"),
        ({"mlp_dim": 64}, "the BEiT does not fit this VLMo: it has .*mlp.fc1.weight.* instead of"),
        ({"positions": "absolute"}, "both the BEiT and the VLMo must have relative positions"),
        ({"depth": 2}, "does not fit this VLMo|columns in all"),
    ],
)
def test_a_beit_of_another_size_is_refused(changes, message):
    with pytest.raises(CheckpointError, match=message):
        start_from_beit(our_model(**changes), official(their_model()))
