"""Checkpoints of any family: what fits, what does not, and the one sentence that says so."""

import json
import re

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mmlab.hub import CheckpointError, create_model, from_mmlab, list_models, save
from mmlab.hub.families import FAMILIES, MODELS
from mmlab.hub.files import read_checkpoint, write_safetensors
from mmlab.hub.load import read_hf_config
from mmlab.hub.mapping import HFConfig
from mmlab.nn import interpolate_positions, sincos_positions

SMALL = dict(
    image_size=16,
    patch_size=4,
    dim=12,
    depth=2,
    num_heads=3,
    mlp_dim=20,
    vocab_size=11,
    context_length=9,
    text_dim=8,
    text_depth=2,
    text_num_heads=2,
    text_mlp_dim=14,
    embed_dim=5,
)


def small(**changes):
    torch.manual_seed(0)
    return create_model("clip-vit-b-32", **SMALL | changes)


def write_hf(folder, model, **config):
    """As transformers saves it: half of the architecture stands in ``config.json`` alone."""
    folder.mkdir()
    torch.save(from_mmlab("clip-hf", model.state_dict()), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "clip"} | config))
    return folder


def load(path, **changes):
    return create_model("clip-vit-b-32", pretrained=path, **SMALL | changes)


def test_names_are_unique_and_of_their_family():
    names = [name for family in FAMILIES.values() for name in family.sizes]
    assert len(names) == len(set(names)) == len(MODELS) == len(list_models())
    for family in FAMILIES.values():
        for config in family.sizes.values():
            assert all(behaviour in vars(config) for behaviour in family.behaviour)


def test_clip_names():
    assert list_models("clip-vit-l*") == ("clip-vit-l-14", "clip-vit-l-14-336")
    assert list_models("clip-rn*")[-1] == "clip-rn50x64"


@pytest.mark.parametrize("key", ["text_encoder.norm.weight", "image_encoder.class_token"])
def test_missing_and_left_over_keys_of_our_own_files_are_named(tmp_path, key):
    state = small().state_dict()
    state["extra"] = state.pop(key)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"lacks '{key}'; has 'extra' left over"):
        load(tmp_path / "a.pt")


def test_missing_keys_of_other_layouts_are_named(tmp_path):
    theirs = from_mmlab("clip-openai", small().state_dict())
    del theirs["transformer.resblocks.1.attn.out_proj.bias"]
    torch.save(theirs, tmp_path / "a.pt")
    expected = r"a.pt'.*1 missing: 'transformer.resblocks.1.attn.out_proj.bias'"
    with pytest.raises(CheckpointError, match=expected):
        load(tmp_path / "a.pt")


def test_a_wrong_shape_is_named_with_the_right_one(tmp_path):
    torch.save(small(embed_dim=6).state_dict(), tmp_path / "a.pt")
    expected = "'text_projection.weight' as (6, 8) instead of (5, 8)"
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        load(tmp_path / "a.pt")


def test_our_own_files_say_what_is_different(tmp_path):
    save(small(vocab_size=12, depth=3), tmp_path / "a.safetensors")
    expected = r"is no 'clip-vit-b-32': it has depth=3 \(not 2\), vocab_size=12 \(not 11\)$"
    with pytest.raises(CheckpointError, match=expected):
        load(tmp_path / "a.safetensors")


def test_heads_that_no_shape_shows_are_compared(tmp_path):
    save(small(text_num_heads=4), tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match=r"it has text_num_heads=4 \(not 2\)$"):
        load(tmp_path / "a.safetensors")
    text = {"num_attention_heads": 4}
    folder = write_hf(tmp_path / "hf", small(text_num_heads=4), text_config=text)
    with pytest.raises(CheckpointError, match=r"it has text_num_heads=4 \(not 2\)$"):
        load(folder)


def meta_file(monkeypatch, name, layout):
    """A file of the published size ``name`` that takes no memory."""
    from mmlab.hub import create
    from mmlab.hub.files import CheckpointFile

    with torch.device("meta"):
        tensors = from_mmlab(layout, create_model(name).state_dict())
    monkeypatch.setattr(create, "read_checkpoint", lambda _: CheckpointFile("a.pt", tensors))


@pytest.mark.parametrize("layout", ["clip-openai", "clip-hf"])
def test_a_patch_16_file_in_a_patch_32_model_names_the_model_that_fits(monkeypatch, layout):
    meta_file(monkeypatch, "clip-vit-b-16", layout)
    expected = (
        "'a.pt' is no 'clip-vit-b-32': it has patch_size=16 (not 32); it fits 'clip-vit-b-16'"
    )
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        create_model("clip-vit-b-32", pretrained="a.pt")


def test_a_large_file_names_the_first_differences(monkeypatch):
    meta_file(monkeypatch, "clip-vit-l-14", "clip-openai")
    expected = (
        "it has patch_size=14 (not 32), dim=1024 (not 768), depth=24 (not 12), num_heads=16 "
        "(not 12) and 5 more; it fits 'clip-vit-l-14'"
    )
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        create_model("clip-vit-b-32", pretrained="a.pt")


def test_the_336_pixel_file_must_be_asked_for(monkeypatch):
    meta_file(monkeypatch, "clip-vit-l-14-336", "clip-openai")
    expected = (
        "is for images of 336 pixels, 'clip-vit-l-14' for 224; pass image_size=336 to take the "
        "file as it is, or another size, such as image_size=224, to interpolate its positions; "
        "it fits 'clip-vit-l-14-336'"
    )
    with pytest.raises(CheckpointError, match=re.escape(expected)):
        create_model("clip-vit-l-14", pretrained="a.pt")


def test_a_file_of_another_family_names_its_model(monkeypatch):
    meta_file(monkeypatch, "vit-b-16", "vit-timm")
    with pytest.raises(CheckpointError, match=r"is no 'clip-vit-b-16': it .*; it fits 'vit-b-16'"):
        create_model("clip-vit-b-16", pretrained="a.pt")


@pytest.mark.parametrize("layout", ["mmlab", "clip-openai", "clip-hf"])
@pytest.mark.parametrize("size", [8, 24])
def test_positions_are_interpolated_where_asked_for(tmp_path, layout, size):
    source = small()
    save(source, tmp_path / "a.safetensors", layout=layout)
    model = load(tmp_path / "a.safetensors", image_size=size)
    table = source.image_encoder.position_embedding
    expected = interpolate_positions(table, (4, 4), (size // 4,) * 2, "bicubic")
    assert torch.equal(model.image_encoder.position_embedding, expected)
    resized = source.resize_positions(size)
    assert torch.equal(resized.image_encoder.position_embedding, expected)
    images, ids = torch.randn(2, 3, size, size), torch.randint(11, (3, 9))
    assert torch.equal(resized.eval()(images, ids), model.eval()(images, ids))


def test_positions_that_are_no_square_grid_are_an_error(tmp_path):
    state = small().state_dict()
    state["image_encoder.position_embedding"] = torch.zeros(1, 12, 12)
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="12 positions, which is no square grid"):
        load(tmp_path / "a.pt", image_size=24)


def test_computed_positions_are_computed_anew(tmp_path):
    sizes = dict(patch_size=4, dim=12, depth=1, num_heads=3, mlp_dim=20, decoder_dim=8)
    sizes |= dict(decoder_depth=1, decoder_num_heads=2, decoder_mlp_dim=8)
    save(create_model("mae-b-16", image_size=16, **sizes), tmp_path / "a.safetensors", layout="mae")
    path = tmp_path / "a.safetensors"
    with pytest.raises(CheckpointError, match="is for images of 16 pixels, 'mae-b-16' for 224"):
        create_model("mae-b-16", pretrained=path, **sizes)
    model = create_model("mae-b-16", pretrained=path, image_size=24, **sizes)
    expected = sincos_positions((6, 6), 8, num_prefix_tokens=1)
    assert torch.equal(model.decoder.position_embedding, expected)


def test_behaviour_comes_from_the_file_unless_it_is_given(tmp_path):
    told = {"hidden_act": "gelu", "layer_norm_eps": 1e-6}
    folder = write_hf(tmp_path / "hf", small(), vision_config=told, text_config=told)
    assert (load(folder).config.activation, load(folder).config.norm_eps) == ("gelu", 1e-6)
    assert load(folder, activation="quick_gelu").config.activation == "quick_gelu"
    (folder / "config.json").unlink()
    assert (load(folder).config.activation, load(folder).config.norm_eps) == ("quick_gelu", 1e-5)


@pytest.mark.parametrize("text", [{"hidden_act": "quick_gelu"}, {}], ids=["told", "implied"])
def test_two_activations_are_refused(tmp_path, text):
    towers = {"vision_config": {"hidden_act": "gelu"}, "text_config": text}
    folder = write_hf(tmp_path / "hf", small(), **towers)
    with pytest.raises(
        CheckpointError, match="several values for activation: 'gelu', 'quick_gelu'"
    ):
        load(folder)


def test_the_config_json_of_another_model_is_an_error(tmp_path):
    folder = write_hf(tmp_path / "hf", small(), model_type="siglip")
    with pytest.raises(CheckpointError, match=r"hf': its config.json is that of a 'siglip' model"):
        load(folder)


@pytest.mark.parametrize("value", ["swish", 3, ["gelu"]])
def test_an_unknown_activation_is_an_error(value):
    meaning = HFConfig(("clip",), {"activation": "hidden_act"})
    with pytest.raises(CheckpointError, match=r"its activation .* is none of"):
        read_hf_config(meaning, {"model_type": "clip", "hidden_act": value}, {})


@pytest.mark.parametrize("value", ["small", -1.0])
def test_a_nonsense_setting_is_an_error(tmp_path, value):
    folder = write_hf(tmp_path / "hf", small(), vision_config={"layer_norm_eps": value})
    with pytest.raises(CheckpointError, match=r"hf': "):
        load(folder)


def test_metadata_that_is_nonsense_is_an_error(tmp_path):
    metadata = {"mmlab.layout": "mmlab", "mmlab.config": "[]"}
    save_file(small().state_dict(), tmp_path / "a.safetensors", metadata=metadata)
    with pytest.raises(CheckpointError, match=r"'mmlab.config' is no JSON object"):
        load(tmp_path / "a.safetensors")


@pytest.mark.parametrize("layout", ["mmlab", "clip-openai", "clip-hf"])
def test_half_precision_loads_as_single_unless_asked(tmp_path, layout):
    source = small().half()
    save(source, tmp_path / "a.safetensors", layout=layout)
    model = load(tmp_path / "a.safetensors")
    assert {t.dtype for t in model.parameters()} == {torch.float32}
    assert torch.equal(model.text_projection.weight, source.text_projection.weight.float())
    half = load(tmp_path / "a.safetensors", dtype=torch.float16)
    assert {t.dtype for t in half.parameters()} == {torch.float16}


def test_tied_weights_are_written_with_both_names(tmp_path):
    tied = nn.ModuleDict({"words": nn.Embedding(5, 3), "head": nn.Linear(3, 5)})
    tied["head"].weight = tied["words"].weight
    view = torch.randn(6, 6)
    tensors = {**tied.state_dict(), "whole": view, "part": view[2:], "turned": view.T}
    write_safetensors(tmp_path / "a.safetensors", tensors, {})
    read = read_checkpoint(tmp_path / "a.safetensors").tensors
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[key], tensors[key]) for key in tensors)
