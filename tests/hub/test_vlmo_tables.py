"""The VLMo tables: every key of the official files, no loss in either direction, files by name."""

import json
from pathlib import Path

import pytest
import torch

from mmlab.hub import CheckpointError, create_model, detect_layout, from_mmlab, save, to_mmlab
from mmlab.hub.tables import LAYOUTS
from mmlab.models import vlmo
from mmlab.models.vlmo import VLMo, VLMoConfig
from tests.hub.states import assert_equal, random_state, round_trip

SHAPES = json.loads(
    (Path(__file__).parents[1] / "golden" / "vlmo_fullsize_shapes.json").read_text()
)
SMALL = dict(
    image_size=12,
    patch_size=4,
    num_channels=2,
    dim=12,
    depth=3,
    num_heads=3,
    mlp_dim=20,
    fusion_depth=1,
    vocab_size=17,
    context_length=9,
    longest_text=11,
)
NLVR2 = {"heads": ("answer",), "num_classes": 2, "num_images": 2}
ABSOLUTE = {"positions": "absolute", "layer_scale": 0.0}
FITTING = [
    ("vlmo", {}),
    ("vlmo", ABSOLUTE),
    ("vlmo", {"heads": ()}),
    ("vlmo", {"heads": ("words",), "fusion_depth": 0}),
    ("vlmo", {"heads": ("codes",), "num_codes": 8, "fusion_depth": 0}),
    ("vlmo", {"heads": ("contrast",)}),
    ("vlmo", {"heads": ("answer",), "num_classes": 7}),
    ("vlmo-nlvr2", NLVR2),
    ("vlmo-nlvr2", NLVR2 | ABSOLUTE),
]


def small_state(**changes):
    return random_state(VLMo(VLMoConfig(**SMALL | changes)))


@pytest.mark.parametrize(("layout", "changes"), FITTING)
def test_round_trip_is_exact_and_the_layout_is_recognised(layout, changes):
    ours = small_state(**changes)
    theirs = round_trip(layout, ours)
    shares = {name: table.share_of_known(theirs) for name, table in LAYOUTS.items()}
    assert shares.pop(layout) == 1
    assert max(s for name, s in shares.items() if not name.startswith("vlmo")) < 1
    assert detect_layout(theirs) == layout


@pytest.mark.parametrize(
    ("size", "config", "keys"),
    [
        ("base", vlmo.VLMO_B_16, 293),
        ("base_plus", vlmo.VLMO_B_PLUS_16, 503),
        ("large", vlmo.VLMO_L_16, 551),
    ],
)
def test_every_key_and_shape_of_the_official_files(size, config, keys):
    shapes = SHAPES[size]
    assert len(shapes) == keys
    with torch.device("meta"):
        own = VLMo(config).state_dict()
        theirs = {key: torch.empty(shape) for key, shape in shapes.items()}
    converted = to_mmlab("vlmo", theirs)
    assert {k: t.shape for k, t in converted.items()} == {k: t.shape for k, t in own.items()}
    back = {key: list(t.shape) for key, t in from_mmlab("vlmo", own).items()}
    assert back | {"text_embeddings.position_ids": [1, 40]} == shapes


def test_queries_keys_and_values_are_one_matrix_without_a_bias_of_keys():
    ours = small_state()
    theirs = from_mmlab("vlmo", ours)
    parts = [ours[f"blocks.1.attention.{name}_proj.weight"] for name in "qkv"]
    assert torch.equal(theirs["transformer.blocks.1.attn.qkv.weight"], torch.cat(parts))
    for name in "qv":
        bias = theirs[f"transformer.blocks.1.attn.{name}_bias"]
        assert torch.equal(bias, ours[f"blocks.1.attention.{name}_proj.bias"])
    assert not any("k_bias" in key or "qkv.bias" in key for key in theirs)


def test_each_expert_and_each_table_of_types_keeps_its_own_weights():
    ours = small_state()
    theirs = from_mmlab("vlmo", ours)
    for expert, name in (("text", "text"), ("image", "imag"), ("fusion", "vl")):
        own = f"blocks.2.experts.{expert}."
        official = "transformer.blocks.2."
        assert torch.equal(theirs[f"{official}norm2_{name}.weight"], ours[f"{own}norm.weight"])
        assert torch.equal(theirs[f"{official}mlp_{name}.fc1.bias"], ours[f"{own}mlp.fc1.bias"])
    assert torch.equal(theirs["token_type_embeddings.weight"], ours["modality_embedding.weight"])
    vl = theirs["itc_vl_text_proj.fc.weight"]
    assert torch.equal(vl, ours["heads.fusion_contrast.text_projection.weight"])
    assert torch.equal(theirs["logit_vl_scale"], ours["heads.fusion_contrast.logit_scale"])


def test_stored_indices_and_the_prefix_of_deepspeed_are_passed_over():
    theirs = from_mmlab("vlmo", small_state())
    for name in ("", "text_", "text_imag_"):
        theirs[f"{name}relative_position_index"] = torch.arange(9)
    theirs["text_embeddings.position_ids"] = torch.arange(9)[None]
    wrapped = {f"module.{key}": tensor for key, tensor in theirs.items()}
    for state in (theirs, wrapped):
        assert detect_layout(state) == "vlmo"
        assert_equal(to_mmlab("vlmo", state), small_state())


def test_missing_keys_of_an_expert_are_named():
    theirs = from_mmlab("vlmo", small_state())
    del theirs["transformer.blocks.2.norm2_vl.bias"]
    with pytest.raises(CheckpointError, match=r"1 missing: 'transformer.blocks.2.norm2_vl.bias'"):
        to_mmlab("vlmo", theirs)


# Loading by name


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vlmo-b-16", {}),
        ("vlmo-b-plus-16", {}),
        ("vlmo-l-16-vqa", {"num_classes": 7}),
        ("vlmo-b-16-nlvr2", {}),
        ("vlmo-b-plus-16-retrieval", {}),
    ],
)
def test_official_files_are_loaded_by_name(name, changes, tmp_path):
    settings = SMALL | changes
    model = create_model(name, **settings)
    layout = "vlmo-nlvr2" if "nlvr2" in name else "vlmo"
    path = tmp_path / "a.pt"
    torch.save({"module": from_mmlab(layout, model.state_dict())}, path)
    loaded = create_model(name, pretrained=path, **settings)
    assert loaded.config == model.config
    assert_equal(loaded.state_dict(), model.state_dict())


def test_our_own_file_is_loaded_with_its_behaviour(tmp_path):
    model = create_model("vlmo-mini", **SMALL, norm_eps=1e-3)
    save(model, tmp_path / "a.safetensors")
    loaded = create_model("vlmo-mini", pretrained=tmp_path / "a.safetensors", **SMALL)
    assert loaded.config == model.config
    assert_equal(loaded.state_dict(), model.state_dict())


@pytest.mark.parametrize(("name", "positions"), [("vlmo-b-16", {}), ("vlmo-b-plus-16", ABSOLUTE)])
def test_positions_of_another_image_size_are_interpolated_if_wanted(name, positions, tmp_path):
    ours = small_state(**positions)
    torch.save(from_mmlab("vlmo", ours), tmp_path / "a.pt")
    settings = SMALL | {"image_size": 20}
    model = create_model(name, pretrained=tmp_path / "a.pt", **settings)
    same = create_model(name, pretrained=tmp_path / "a.pt", **SMALL)
    assert_equal(same.resize_positions(20).state_dict(), model.state_dict())


def test_without_asking_for_it_another_image_size_is_an_error(tmp_path):
    torch.save(from_mmlab("vlmo", small_state(image_size=20)), tmp_path / "a.pt")
    options = {key: value for key, value in SMALL.items() if key != "image_size"}
    with pytest.raises(CheckpointError, match=r"is for images of 20 pixels, 'vlmo-mini' for 64"):
        create_model("vlmo-mini", pretrained=tmp_path / "a.pt", **options)


def test_a_file_with_other_heads_is_refused(tmp_path):
    torch.save(from_mmlab("vlmo", small_state()), tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"is no 'vlmo-b-16-retrieval'.*left over"):
        create_model("vlmo-b-16-retrieval", pretrained=tmp_path / "a.pt", **SMALL)
