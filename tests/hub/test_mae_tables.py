"""The MAE tables: no loss in either direction, the sheet's keys, the order of a patch's values."""

import pytest
import torch

from mmlab.hub.mapping import CheckpointError, convert
from mmlab.hub.tables.mae import LAYOUTS
from mmlab.hub.tables.vit import LAYOUTS as VIT_LAYOUTS
from mmlab.models.mae import MAE, MAE_B_16, MAEConfig, mae_classifier
from tests.hub.states import assert_equal, random_state

TABLES = {layout.name: layout for layout in (*LAYOUTS, *VIT_LAYOUTS)}
WHOLE = ("mae", "mae-hf", "mae-hf-saved", "mae-hf-memory")
TINY = MAEConfig(
    image_size=12,
    patch_size=4,
    num_channels=2,
    dim=12,
    depth=3,
    num_heads=3,
    mlp_dim=20,
    decoder_dim=8,
    decoder_depth=2,
    decoder_num_heads=2,
    decoder_mlp_dim=28,
)


def small_state(model):
    return random_state(model)


def read(layout, state):
    return convert(layout, TABLES[layout].rows, state)[0]


def write(layout, state):
    return convert(layout, [row.reversed() for row in TABLES[layout].rows], state)[0]


@pytest.mark.parametrize("layout", WHOLE)
def test_round_trip_is_exact_and_no_other_layout_fits_better(layout):
    ours = small_state(MAE(TINY))
    theirs = write(layout, ours)
    assert_equal(read(layout, theirs), ours)
    assert_equal(write(layout, read(layout, theirs)), theirs)
    shares = {name: table.share_of_known(theirs) for name, table in TABLES.items()}
    assert shares.pop(layout) == 1
    assert max(shares.values()) < 1


EXPECTED = {
    "mae": {
        "cls_token": (1, 1, 768),
        "pos_embed": (1, 197, 768),
        "mask_token": (1, 1, 512),
        "decoder_pos_embed": (1, 197, 512),
        "patch_embed.proj.weight": (768, 3, 16, 16),
        "blocks.11.attn.qkv.weight": (2304, 768),
        "blocks.0.mlp.fc1.bias": (3072,),
        "norm.weight": (768,),
        "decoder_embed.weight": (512, 768),
        "decoder_blocks.7.attn.qkv.bias": (1536,),
        "decoder_blocks.0.norm2.weight": (512,),
        "decoder_norm.bias": (512,),
        "decoder_pred.weight": (768, 512),
    },
    "mae-hf": {
        "vit.embeddings.cls_token": (1, 1, 768),
        "vit.embeddings.position_embeddings": (1, 197, 768),
        "vit.embeddings.patch_embeddings.projection.bias": (768,),
        "vit.encoder.layer.11.attention.attention.query.weight": (768, 768),
        "vit.encoder.layer.0.attention.output.dense.bias": (768,),
        "vit.encoder.layer.0.intermediate.dense.weight": (3072, 768),
        "vit.encoder.layer.0.layernorm_after.weight": (768,),
        "vit.layernorm.weight": (768,),
        "decoder.mask_token": (1, 1, 512),
        "decoder.decoder_pos_embed": (1, 197, 512),
        "decoder.decoder_embed.weight": (512, 768),
        "decoder.decoder_layers.7.attention.attention.key.weight": (512, 512),
        "decoder.decoder_layers.0.output.dense.weight": (512, 2048),
        "decoder.decoder_pred.bias": (768,),
    },
    "mae-hf-saved": {"decoder.decoder_encoder.layer.7.layernorm_before.bias": (512,)},
    "mae-hf-memory": {
        "vit.layers.11.attention.q_proj.weight": (768, 768),
        "decoder.decoder_layers.7.mlp.fc2.weight": (512, 2048),
    },
}


@pytest.mark.parametrize("layout", EXPECTED)
def test_keys_and_shapes_of_a_real_b_16(layout):
    with torch.device("meta"):
        theirs = write(layout, MAE(MAE_B_16).state_dict())
    for key, shape in EXPECTED[layout].items():
        assert tuple(theirs[key].shape) == shape, key
    assert sum(tensor.numel() for tensor in theirs.values()) == 111_907_840


@pytest.mark.parametrize("layout", WHOLE)
def test_predicted_values_are_ordered_row_column_channel_there_and_channel_first_here(layout):
    ours = small_state(MAE(TINY))
    key = next(key for key in write(layout, ours) if key.endswith("decoder_pred.bias"))
    there = write(layout, ours)[key].reshape(4, 4, 2)
    here = ours["decoder.prediction.bias"].reshape(2, 4, 4)
    for channel in range(2):
        assert torch.equal(there[..., channel], here[channel])


def test_the_official_file_fuses_queries_keys_values_in_the_decoder_too():
    ours = small_state(MAE(TINY))
    fused = write("mae", ours)["decoder_blocks.1.attn.qkv.weight"]
    parts = [ours[f"decoder.blocks.1.attention.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(fused, torch.cat(parts))


def test_official_files_of_the_encoder_alone_are_those_of_a_vit():
    ours = small_state(MAE(TINY))
    theirs = write("mae", ours)
    alone = {key: t for key, t in theirs.items() if not key.startswith(("decoder_", "mask_token"))}
    expected = {
        key.removeprefix("encoder."): t for key, t in ours.items() if key.startswith("encoder.")
    }
    assert_equal(read("vit-timm", alone), expected)
    with pytest.raises(CheckpointError, match="missing: 'mask_token', 'decoder_pos_embed'"):
        read("mae", alone)


@pytest.mark.parametrize("num_classes", [0, 5])
def test_fine_tuned_files_call_the_norm_otherwise(num_classes):
    ours = small_state(mae_classifier(MAE(TINY), num_classes))
    theirs = write("mae-fine-tuned", ours)
    assert ("head.weight" in theirs) == (num_classes > 0)
    assert torch.equal(theirs["fc_norm.weight"], ours["fc_norm.weight"])
    assert_equal(read("mae-fine-tuned", theirs), ours)
    with pytest.raises(CheckpointError, match=r"missing: 'norm.weight'.*left over: 'fc_norm"):
        read("vit-timm", theirs)


def test_a_wrong_shape_is_named():
    theirs = write("mae", small_state(MAE(TINY)))
    theirs["decoder_pred.bias"] = torch.zeros(33)
    with pytest.raises(CheckpointError, match=r"'decoder_pred.bias' is \(33,\) instead of"):
        read("mae", theirs)
