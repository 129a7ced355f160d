"""The BLIP-2 tables: every key of the official file, no loss in either direction."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmlab.hub import (
    CheckpointError,
    create_model,
    detect_layout,
    from_mmlab,
    load_pretraining,
    pretraining_state,
    save,
    to_mmlab,
)
from mmlab.models import blip2
from mmlab.models.blip2 import BLIP2, BLIP2Config, BLIP2Pretraining
from tests.hub.states import SIZES, assert_equal, round_trip, with_random_weights

SHAPES = Path(__file__).parents[1] / "golden" / "blip2_fullsize_shapes.json"
SMALL = BLIP2Config(text_depth=3, num_queries=3, **SIZES)
STAGE_2 = {"heads": ("prefix",), "prefix_dim": 7}
CLIP = {"image_encoder": "clip", "activation": "quick_gelu", "norm_eps": 1e-5}
RETRIEVAL = {"heads": ("contrast", "match"), "temperature": None, "image_norm_eps": 1e-6}
FITTING = [
    ("blip2", {}),
    ("blip2", {"heads": ()}),
    ("blip2", STAGE_2),
    ("blip2-t5", STAGE_2),
    ("blip2-clip", CLIP),
    ("blip2-clip", CLIP | STAGE_2),
    ("blip2-clip-t5", CLIP | STAGE_2),
    ("blip2-hf", RETRIEVAL),
    ("blip2-hf", STAGE_2 | {"temperature": None, "image_norm_eps": 1e-6}),
]


def network(**changes):
    torch.manual_seed(0)
    return with_random_weights(BLIP2(replace(SMALL, **changes)))


@pytest.mark.parametrize(("layout", "changes"), FITTING)
def test_round_trip_is_exact_and_the_layout_is_recognised(layout, changes):
    ours = network(**changes).state_dict()
    theirs = round_trip(layout, ours)
    if changes != {"heads": ()}:
        assert detect_layout(theirs) == layout


def sizes_of(config):
    names = BLIP2Config.__dataclass_fields__
    return {
        name: getattr(config, name)
        for name in names
        if getattr(config, name) != getattr(blip2.BLIP2_G_14, name)
    }


@pytest.mark.parametrize(("layout", "changes"), FITTING)
def test_saved_files_load_again(tmp_path, layout, changes):
    model = network(**changes)
    path = tmp_path / "m.safetensors"
    save(model, path, layout=layout)
    again = create_model("blip2-g-14", pretrained=path, **sizes_of(model.config))
    assert again.config == model.config
    assert_equal(again.state_dict(), model.state_dict())
    assert not any(p.requires_grad for p in again.image_encoder.parameters())


def test_every_key_and_shape_of_the_official_file():
    shapes = json.loads(SHAPES.read_text())
    assert len(shapes) == 847
    # The list has no heads.
    shapes |= {"query_tokens": [1, 32, 768], "temp": []}
    shapes |= {"ln_vision.weight": [1408], "ln_vision.bias": [1408]}
    for name in ("vision_proj", "text_proj"):
        shapes |= {f"{name}.weight": [256, 768], f"{name}.bias": [256]}
    shapes |= {"itm_head.weight": [2, 768], "itm_head.bias": [2]}
    with torch.device("meta"):
        theirs = {key: torch.empty(shape) for key, shape in shapes.items()}
        model = BLIP2(blip2.BLIP2_G_14)
    own = {key: t.shape for key, t in model.state_dict().items()}
    assert {key: t.shape for key, t in to_mmlab("blip2", theirs).items()} == own
    back = from_mmlab("blip2", model.state_dict())
    del shapes["Qformer.bert.embeddings.position_ids"]
    assert {key: list(t.shape) for key, t in back.items()} == shapes


def test_the_list_alone_is_read_as_well():
    """LAVIS writes what learns, so parts may be missing, each as a whole."""
    shapes = json.loads(SHAPES.read_text())
    with torch.device("meta"):
        theirs = {key: torch.empty(shape) for key, shape in shapes.items()}
    ours = to_mmlab("blip2", theirs)
    assert "image_encoder.class_token" in ours and "qformer.queries" not in ours
    learned = {k: t for k, t in theirs.items() if not k.startswith("visual_encoder.")}
    assert not any(key.startswith("image_encoder.") for key in to_mmlab("blip2", learned))
    key = "visual_encoder.blocks.3.attn.q_bias"
    with pytest.raises(CheckpointError, match=f"1 missing: '{key}'"):
        to_mmlab("blip2", {k: t for k, t in theirs.items() if k != key})


def test_query_key_and_value_are_merged_and_the_bias_of_keys_is_zero():
    model = network(**RETRIEVAL)
    attention = model.image_encoder.blocks[1].attention
    theirs = from_mmlab("blip2-hf", model.state_dict())
    bias = theirs["vision_model.encoder.layers.1.self_attn.qkv.bias"]
    expected = torch.cat([attention.q_proj.bias, torch.zeros(12), attention.v_proj.bias])
    assert torch.equal(bias, expected)
    lavis = from_mmlab("blip2", model.state_dict())
    assert torch.equal(lavis["visual_encoder.blocks.1.attn.q_bias"], attention.q_proj.bias)
    assert torch.equal(lavis["visual_encoder.blocks.1.attn.v_bias"], attention.v_proj.bias)
    # One that was trained there changes no result, so it is not kept.
    bias[12:24] = 3.0
    assert_equal(to_mmlab("blip2-hf", theirs), dict(model.state_dict()))


def test_transformers_gets_neither_temperature_nor_the_head_of_words():
    model = network()
    theirs = from_mmlab("blip2-hf", model.state_dict())
    assert not any("cls" in key or "temp" in key for key in theirs)
    lost = model.state_dict().keys() - to_mmlab("blip2-hf", theirs).keys()
    words = {key for key in model.state_dict() if key.startswith("heads.words")}
    assert lost == words | {"heads.contrast.temperature"}


def test_language_models_are_passed_over():
    model = network(**STAGE_2)
    for layout, key in (
        ("blip2", "opt_model.model.decoder.final_layer_norm.weight"),
        ("blip2-t5", "t5_model.shared.weight"),
        ("blip2-hf", "language_model.shared.weight"),
    ):
        theirs = from_mmlab(layout, model.state_dict()) | {key: torch.zeros(3)}
        assert_equal(to_mmlab(layout, theirs), dict(model.state_dict()))


def test_an_official_file_makes_a_network(tmp_path):
    module = BLIP2Pretraining(network())
    path = tmp_path / "blip2_pretrained.pth"
    torch.save({"model": pretraining_state(module, "blip2")}, path)
    model = create_model("blip2-g-14", pretrained=path, **sizes_of(SMALL))
    assert_equal(model.state_dict(), module.network.state_dict())
    larger = create_model("blip2-g-14", pretrained=path, **sizes_of(SMALL) | {"image_size": 24})
    assert larger.image_encoder.position_embedding.shape[1] == 10
    other = BLIP2Pretraining(BLIP2(SMALL))
    load_pretraining(other, "blip2", pretraining_state(module, "blip2"))
    assert_equal(other.state_dict(), module.state_dict())


def test_a_file_of_another_image_encoder_is_refused(tmp_path):
    path = tmp_path / "m.safetensors"
    save(network(**CLIP), path, layout="blip2-clip")
    with pytest.raises(CheckpointError, match="image_encoder='clip' \\(not 'eva'\\)"):
        create_model("blip2-g-14", pretrained=path, **sizes_of(SMALL))


def test_a_folder_of_transformers_tells_its_epsilon(tmp_path):
    model = network(**RETRIEVAL)
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 12, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 3, "intermediate_size": 20, "layer_norm_eps": 1e-4}
    qformer = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2}
    config = {"model_type": "blip-2", "vision_config": vision, "qformer_config": qformer}
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_query_tokens": 3}))
    save_file(from_mmlab("blip2-hf", model.state_dict()), tmp_path / "model.safetensors")
    sizes = sizes_of(SMALL) | {"heads": ("contrast", "match")}
    loaded = create_model("blip2-g-14", pretrained=tmp_path, **sizes)
    assert loaded.config.norm_eps == loaded.config.image_norm_eps == 1e-4
    assert loaded.config.temperature is None
    assert_equal(loaded.state_dict(), model.state_dict())
    qformer["num_attention_heads"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="text_num_heads=8"):
        create_model("blip2-g-14", pretrained=tmp_path, **sizes)


def test_missing_left_over_and_untied_tensors_are_named():
    theirs = from_mmlab("blip2", network().state_dict())
    for key in ("text_proj.bias", "query_tokens", "Qformer.bert.encoder.layer.1.output.dense.bias"):
        with pytest.raises(CheckpointError, match=f"1 missing: '{key}'"):
            to_mmlab("blip2", {k: t for k, t in theirs.items() if k != key})
    with pytest.raises(CheckpointError, match=r"1 left over: 'fc\.weight'"):
        to_mmlab("blip2", theirs | {"fc.weight": torch.zeros(1)})
    key = "Qformer.cls.predictions.decoder.weight"
    with pytest.raises(CheckpointError, match="must be the same tensor"):
        to_mmlab("blip2", theirs | {key: theirs[key] + 1})
