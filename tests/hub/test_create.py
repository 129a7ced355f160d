"""Models by name, checkpoints that fit and checkpoints that do not."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from mmlab.hub import (
    CheckpointError,
    create_model,
    from_mmlab,
    list_models,
    model_config,
    read_checkpoint,
    save,
)
from mmlab.models import vit
from mmlab.nn import interpolate_positions

SIZES = dict(dim=12, depth=2, num_heads=3, mlp_dim=20, image_size=16, patch_size=4)
SMALL = SIZES | dict(num_classes=5)


def small(name: str = "vit-b-16", seed: int = 0, **overrides) -> vit.ViT:
    """A small model in which every parameter is random."""
    model = create_model(name, **SMALL | overrides)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = 0.5 * torch.randn(parameter.shape, generator=generator)
    return model


def images(size: int = 16) -> torch.Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(1))


def assert_same_output(left, right, size: int = 16):
    with torch.no_grad():
        assert torch.equal(left.eval()(images(size)), right.eval()(images(size)))


def published_constants():
    return [value for name, value in vars(vit).items() if isinstance(value, vit.ViTConfig)]


def test_every_published_configuration_has_a_name():
    named = [model_config(name) for name in list_models()]
    assert all(config in named for config in published_constants())


def test_model_names():
    assert list_models("vit-b-*") == ("vit-b-8", "vit-b-16", "vit-b-32")
    assert model_config("vit-l-32") == vit.VIT_L_32
    assert model_config("deit-s-16-distilled").distilled


def test_overrides_replace_fields():
    model = create_model("vit-ti-16", num_classes=10, image_size=384, depth=1)
    assert model.config == replace(vit.VIT_TI_16, num_classes=10, image_size=384, depth=1)


@pytest.mark.parametrize(("given", "nearest"), [("vit-b16", "vit-b-16"), ("ViT-L-32", "vit-l-32")])
def test_an_unknown_name_suggests_the_nearest(given, nearest):
    with pytest.raises(ValueError, match=f"unknown model '{given}'; did you mean '{nearest}'"):
        create_model(given)


def test_an_unknown_option_suggests_the_nearest():
    with pytest.raises(ValueError, match="unknown option 'num_class'; did you mean 'num_classes'"):
        create_model("vit-b-16", num_class=10)


def test_a_wrong_option_value_is_the_configurations_error():
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size=16"):
        create_model("vit-b-16", image_size=100)


LAYOUTS_AND_ENDINGS = [
    ("mmlab", ".safetensors"),
    ("vit-npz", ".npz"),
    ("vit-npz", ".safetensors"),
    ("vit-big-vision", ".npz"),
    ("vit-timm", ".safetensors"),
    ("vit-hf", ".safetensors"),
    ("vit-hf-memory", ".safetensors"),
]


@pytest.mark.parametrize(("layout", "ending"), LAYOUTS_AND_ENDINGS)
def test_a_saved_model_loads_to_the_same_outputs(tmp_path, layout, ending):
    # What .npz cannot say about the configuration must be what its layout implies.
    model = small(norm_eps=1e-6, activation="gelu_tanh")
    save(model, tmp_path / f"model{ending}", layout=layout)
    loaded = create_model("vit-b-16", pretrained=tmp_path / f"model{ending}", **SMALL)
    assert loaded.config == model.config
    assert_same_output(loaded, model)
    assert os.listdir(tmp_path) == [f"model{ending}"]


@pytest.mark.parametrize("layout", ["mmlab", "vit-timm", "deit-hf", "deit-hf-memory"])
def test_a_distilled_model_round_trips(tmp_path, layout):
    model = small("deit-b-16-distilled")
    save(model, tmp_path / "model.safetensors", layout=layout)
    path = tmp_path / "model.safetensors"
    loaded = create_model("deit-b-16-distilled", pretrained=path, **SMALL)
    assert_same_output(loaded, model)


def test_the_mini_model_with_its_convolutional_stem_round_trips(tmp_path):
    model = create_model("vit-mini")
    model.train()(torch.randn(2, 3, 48, 48))  # moves the running means of the stem
    save(model, tmp_path / "mini.safetensors")
    loaded = create_model("vit-mini", pretrained=tmp_path / "mini.safetensors")
    assert_same_output(loaded, model, 48)
    with pytest.raises(CheckpointError, match=r"left over: 'patch_embedding.layers"):
        save(model, tmp_path / "mini.npz", layout="vit-npz")
    assert os.listdir(tmp_path) == ["mini.safetensors"]


def test_metadata_says_layout_configuration_and_what_the_user_adds(tmp_path):
    model = small()
    save(model, tmp_path / "model.safetensors", layout="vit-timm", metadata={"seed": "7"})
    metadata = read_checkpoint(tmp_path / "model.safetensors").metadata
    assert metadata["seed"] == "7"
    assert metadata["mmlab.layout"] == "vit-timm"
    assert vit.ViTConfig(**json.loads(metadata["mmlab.config"])) == model.config


def test_targets_that_cannot_be_saved(tmp_path):
    model = small()
    with pytest.raises(ValueError, match=r"must end in .safetensors or .npz, got 'model.pt'"):
        save(model, tmp_path / "model.pt")
    with pytest.raises(ValueError, match="strings to strings, got 'step': 3"):
        save(model, tmp_path / "model.safetensors", metadata={"step": 3})
    with pytest.raises(ValueError, match=r"metadata must be empty for .npz"):
        save(model, tmp_path / "model.npz", metadata={"step": "3"})
    with pytest.raises(ValueError, match="unknown checkpoint layout"):
        save(model, tmp_path / "model.npz", layout="flax")
    assert not os.listdir(tmp_path)


def write_npz(path, model):
    theirs = from_mmlab("vit-npz", model.state_dict(), num_heads=model.config.num_heads)
    np.savez(path, **{key: tensor.numpy() for key, tensor in theirs.items()})
    return path


def write_timm(path, model):
    torch.save({"model": from_mmlab("vit-timm", model.state_dict())}, path)
    return path


def write_hf(folder, model, **config):
    folder.mkdir()
    torch.save(from_mmlab("vit-hf", model.state_dict()), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "vit"} | config))
    return folder


def test_settings_that_no_shape_shows_come_from_the_layout(tmp_path):
    npz = write_npz(tmp_path / "a.npz", small())
    timm = write_timm(tmp_path / "a.pth", small())
    hf = write_hf(tmp_path / "hf", small(), layer_norm_eps=1e-5, hidden_act="gelu_new")
    bare_hf = write_hf(tmp_path / "bare", small())
    (bare_hf / "config.json").unlink()
    expected = {
        npz: (1e-6, "gelu_tanh"),
        timm: (1e-6, "gelu"),
        hf: (1e-5, "gelu_tanh"),
        bare_hf: (1e-12, "gelu"),
    }
    for path, settings in expected.items():
        config = create_model("vit-b-16", pretrained=path, **SMALL).config
        assert (config.norm_eps, config.activation) == settings, path


def test_an_explicit_option_wins_over_the_checkpoint(tmp_path):
    path = write_npz(tmp_path / "a.npz", small())
    config = create_model("vit-b-16", pretrained=path, activation="gelu", **SMALL).config
    assert config.activation == "gelu"


def test_a_head_of_another_size_must_be_asked_for(tmp_path, monkeypatch):
    path = write_timm(tmp_path / "a.pth", small(num_classes=7))
    expected = "has a head of 7 classes, 'vit-b-16' one of 1000 classes; pass num_classes=7"
    with pytest.raises(CheckpointError, match=expected):
        create_model("vit-b-16", pretrained=path, **SIZES)
    kept = create_model("vit-b-16", pretrained=path, num_classes=7, **SIZES)
    assert torch.equal(kept.head.weight, small(num_classes=7).head.weight)


def test_a_fresh_head_is_zero_and_the_rest_is_loaded(tmp_path):
    source = small(num_classes=7)
    path = write_timm(tmp_path / "a.pth", source)
    model = create_model("vit-b-16", pretrained=path, num_classes=3, **SIZES)
    assert model.head.weight.shape == (3, 12) and not model.head.weight.any()
    assert torch.equal(model.encode_image(images()), source.encode_image(images()))


def test_a_file_without_head_gives_features_or_a_fresh_head(tmp_path):
    path = write_timm(tmp_path / "a.pth", small(num_classes=0))
    with pytest.raises(CheckpointError, match="has no head, 'vit-b-16' one of 1000 classes"):
        create_model("vit-b-16", pretrained=path, **SIZES)
    assert create_model("vit-b-16", pretrained=path, num_classes=0, **SIZES).head is None
    assert create_model("vit-b-16", pretrained=path, num_classes=4, **SIZES).head is not None


def test_pre_logits_belong_to_the_head(tmp_path):
    source = small(pre_logits=True)
    path = write_npz(tmp_path / "a.npz", source)
    kept = create_model("vit-b-16", pretrained=path, **SMALL)
    assert torch.equal(kept.pre_logits.weight, source.pre_logits.weight)
    fresh = create_model("vit-b-16", pretrained=path, num_classes=9, **SIZES)
    assert fresh.pre_logits is None
    both = create_model("vit-b-16", pretrained=path, num_classes=9, pre_logits=True, **SIZES)
    assert torch.equal(both.pre_logits.weight, source.pre_logits.weight)


def test_a_head_cannot_be_kept_without_the_hidden_layer_before_it(tmp_path):
    path = write_npz(tmp_path / "a.npz", small(pre_logits=True))
    with pytest.raises(CheckpointError, match=r"has 'pre_logits.weight' left over"):
        create_model("vit-b-16", pretrained=path, pre_logits=False, **SMALL)


def test_pre_logits_that_the_file_lacks_are_an_error(tmp_path):
    path = write_npz(tmp_path / "a.npz", small())
    with pytest.raises(CheckpointError, match=r"lacks 'pre_logits.weight'"):
        create_model("vit-b-16", pretrained=path, pre_logits=True, **SMALL)


def test_another_image_size_must_be_asked_for(tmp_path):
    path = write_timm(tmp_path / "a.pth", small(image_size=24))
    sizes = {key: value for key, value in SMALL.items() if key != "image_size"}
    expected = "is for images of 24 pixels, 'vit-b-16' for 224; pass image_size=24 .* interpolate"
    with pytest.raises(CheckpointError, match=expected):
        create_model("vit-b-16", pretrained=path, **sizes)
    assert (
        create_model("vit-b-16", pretrained=path, image_size=24, **sizes).config.num_patches == 36
    )


@pytest.mark.parametrize(
    ("write", "name", "variant"),
    [(write_npz, "a.npz", "bilinear_aligned"), (write_timm, "a.pth", "bicubic")],
)
def test_positions_are_interpolated_as_the_layouts_authors_do(tmp_path, write, name, variant):
    source = small()
    path = write(tmp_path / name, source)
    model = create_model("vit-b-16", pretrained=path, **SMALL | dict(image_size=24))
    expected = interpolate_positions(source.position_embedding, (4, 4), (6, 6), variant)
    assert torch.equal(model.position_embedding, expected)


def test_positions_that_are_no_square_grid_are_an_error(tmp_path):
    theirs = from_mmlab("vit-timm", small().state_dict())
    theirs["pos_embed"] = torch.zeros(1, 12, 12)
    torch.save(theirs, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="12 positions, which is no square grid"):
        create_model("vit-b-16", pretrained=tmp_path / "a.pth", **SMALL)


def test_fixed_positions_are_computed_anew(tmp_path):
    options = SMALL | dict(positions="sincos2d", pool="average")
    save(create_model("vit-b-16", **options), tmp_path / "a.safetensors")
    wide = options | dict(image_size=24)
    loaded = create_model("vit-b-16", pretrained=tmp_path / "a.safetensors", **wide)
    fresh = create_model("vit-b-16", **wide)
    assert torch.equal(loaded.position_embedding, fresh.position_embedding)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(patch_size=8), r"patch_size=8 \(not 4\)"),
        (dict(depth=3), r"depth=3 \(not 2\)"),
        (dict(dim=18), r"dim=18 \(not 12\)"),
        (dict(mlp_dim=7), r"mlp_dim=7 \(not 20\)"),
        (dict(num_channels=1), r"num_channels=1 \(not 3\)"),
        (dict(pool="average"), r"pool='average' \(not 'class_token'\)"),
        (dict(distilled=True), r"distilled=True \(not False\)"),
    ],
)
def test_a_checkpoint_of_another_architecture_is_an_error(tmp_path, change, message):
    path = write_timm(tmp_path / "a.pth", small(**change))
    with pytest.raises(CheckpointError, match=f"is no 'vit-b-16': it has {message}"):
        create_model("vit-b-16", pretrained=path, **SMALL)


def test_another_number_of_heads_is_noticed_where_the_file_tells_it(tmp_path):
    model = small(num_heads=4)
    npz = write_npz(tmp_path / "a.npz", model)
    hf = write_hf(tmp_path / "hf", model, num_attention_heads=4)
    for path in (npz, hf):
        with pytest.raises(CheckpointError, match=r"num_heads=4 \(not 3\)"):
            create_model("vit-b-16", pretrained=path, **SMALL)


def test_a_patch_32_file_in_a_patch_16_model_names_the_model_that_fits(tmp_path):
    model = create_model("vit-ti-16", patch_size=32, dim=384, num_heads=6, mlp_dim=1536, depth=12)
    path = write_timm(tmp_path / "a.pth", model)
    expected = r"is no 'vit-s-16': it has patch_size=32 \(not 16\); it fits 'vit-s-32'"
    with pytest.raises(CheckpointError, match=expected):
        create_model("vit-s-16", pretrained=path)


def test_a_checkpoint_of_another_model_is_named(tmp_path):
    keys = ["embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight"]
    torch.save({key: torch.zeros(2, 2) for key in keys}, tmp_path / "bert.bin")
    with pytest.raises(CheckpointError, match=r"bert.bin.*these look like a BERT"):
        create_model("vit-b-16", pretrained=tmp_path / "bert.bin")


def test_a_config_json_of_another_model_is_an_error(tmp_path):
    folder = write_hf(tmp_path / "hf", small(), model_type="siglip")
    with pytest.raises(CheckpointError, match=r"config.json is that of a 'siglip' model"):
        create_model("vit-b-16", pretrained=folder, **SMALL)


def test_an_unknown_activation_is_an_error(tmp_path):
    folder = write_hf(tmp_path / "hf", small(), hidden_act="quick_gelu")
    with pytest.raises(CheckpointError, match="activation 'quick_gelu' is none of"):
        create_model("vit-b-16", pretrained=folder, **SMALL)


@pytest.mark.parametrize("value", [-1.0, "small", None])
def test_a_nonsense_setting_in_config_json_is_an_error(tmp_path, value):
    folder = write_hf(tmp_path / "hf", small(), layer_norm_eps=value)
    with pytest.raises(CheckpointError, match=r"hf': .*norm_eps must be"):
        create_model("vit-b-16", pretrained=folder, **SMALL)


def test_missing_keys_are_named_with_the_file(tmp_path):
    theirs = from_mmlab("vit-timm", small().state_dict())
    del theirs["blocks.1.attn.proj.bias"]
    torch.save(theirs, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a.pth.*1 missing: 'blocks.1.attn.proj.bias'"):
        create_model("vit-b-16", pretrained=tmp_path / "a.pth", **SMALL)


@pytest.mark.parametrize("key", ["norm.weight", "blocks.1.mlp.fc2.weight", "head.weight"])
def test_missing_keys_of_our_own_files_are_named(tmp_path, key):
    state = small().state_dict()
    del state[key]
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=f"a.pt.*lacks '{key}'"):
        create_model("vit-b-16", pretrained=tmp_path / "a.pt", **SMALL)


def test_metadata_that_is_nonsense_is_an_error(tmp_path):
    for value in ("{", "[]", "3"):
        metadata = {"mmlab.layout": "mmlab", "mmlab.config": value}
        save_file(small().state_dict(), tmp_path / "a.safetensors", metadata=metadata)
        with pytest.raises(CheckpointError, match=r"'mmlab.config' is no JSON object"):
            create_model("vit-b-16", pretrained=tmp_path / "a.safetensors", **SMALL)


def test_half_precision_files_load_into_single_precision(tmp_path):
    source = small().half()
    save(source, tmp_path / "a.safetensors")
    model = create_model("vit-b-16", pretrained=tmp_path / "a.safetensors", **SMALL)
    assert model.head.weight.dtype == torch.float32
    assert torch.equal(model.head.weight, source.head.weight.float())


def test_a_real_b_16_loads_strictly(tmp_path):
    """All 86,567,656 parameters of the published size, from a file in the Hugging Face layout."""
    torch.manual_seed(0)
    source = create_model("vit-b-16", norm_eps=1e-12)
    save(source, tmp_path / "model.safetensors", layout="vit-hf")
    torch.manual_seed(1)
    model = create_model("vit-b-16", pretrained=tmp_path / "model.safetensors")
    state = source.state_dict()
    assert sum(parameter.numel() for parameter in model.parameters()) == 86_567_656
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
