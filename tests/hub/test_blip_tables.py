"""The BLIP tables: every key of the official file, no loss in either direction, whole states."""

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
from mmlab.models import blip
from mmlab.models.blip import BLIP, BLIPConfig, BLIPPretraining
from mmlab.models.blip_tasks import BLIPRetrieval
from tests.hub.states import SIZES, assert_equal, round_trip, with_random_weights

SHAPES = Path(__file__).parents[1] / "golden" / "blip_fullsize_shapes.json"
SMALL = BLIPConfig(text_depth=2, merge_from=1, **SIZES)
RETRIEVAL = {"heads": ("contrast", "match")}
CAPTIONING = {"heads": ("words",)}
ANSWERS = {"heads": ("answers",)}
PAIRS = {"heads": ("classes",), "num_classes": 2, "num_images": 2}
ITM = RETRIEVAL | {"temperature": None}
FITTING = [
    ("blip", {}),
    ("blip", {"sharing": "none"}),
    ("blip", {"sharing": "all"}),
    ("blip-finetuned", RETRIEVAL),
    ("blip-finetuned", ITM),
    ("blip-finetuned", CAPTIONING),
    ("blip-finetuned", ANSWERS),
    ("blip-finetuned", PAIRS),
    ("blip-finetuned", {"heads": ()}),
    ("blip-hf", ITM),
    ("blip-hf", CAPTIONING),
    ("blip-hf", ANSWERS),
]


def network(**changes):
    torch.manual_seed(0)
    return with_random_weights(BLIP(replace(SMALL, **changes)))


@pytest.mark.parametrize(("layout", "changes"), FITTING)
def test_round_trip_is_exact(layout, changes):
    round_trip(layout, network(**changes).state_dict())


@pytest.mark.parametrize(("layout", "changes"), FITTING[3:])
def test_fine_tuned_files_are_recognised(layout, changes):
    """Neither ALBEF's layouts nor BERT's, which know most of the same keys."""
    assert detect_layout(from_mmlab(layout, network(**changes).state_dict())) == layout


@pytest.mark.parametrize(
    ("layout", "changes", "kind"),
    [
        ("blip", {}, BLIPPretraining),
        ("blip", {"sharing": "none"}, BLIPPretraining),
        ("blip-finetuned", RETRIEVAL, BLIPRetrieval),
    ],
)
def test_whole_states_come_back_with_twins_and_queues(layout, changes, kind):
    module, other = kind(network(**changes), 5), kind(BLIP(replace(SMALL, **changes)), 5)
    for name, tensor in module.state_dict().items():
        if name.startswith("momentum.network"):
            tensor.mul_(1.5)
    state = pretraining_state(module, layout)
    assert any("_m." in key for key in state) and detect_layout(state) == layout
    assert ("ptr_queue" in state) == (kind is BLIPRetrieval)
    load_pretraining(other, layout, state)
    assert_equal(other.state_dict(), module.state_dict())


def test_every_key_and_shape_of_the_official_file():
    shapes = json.loads(SHAPES.read_text())
    assert len(shapes) == 1272
    with torch.device("meta"):
        theirs = {
            key: torch.empty(s, dtype=torch.long if key == "queue_ptr" else None)
            for key, s in shapes.items()
        }
        module = BLIPPretraining(BLIP(blip.BLIP_B_16))
    converted = to_mmlab("blip", theirs)
    own = {k.removeprefix("network."): t.shape for k, t in module.state_dict().items()}
    del own["momentum.num_updates"]
    assert {key: t.shape for key, t in converted.items()} == own
    back = pretraining_state(module, "blip")
    ids = {key for key in shapes if key.endswith("position_ids")}
    assert len(ids) == 3
    assert {key: list(t.shape) for key, t in back.items()} == {
        key: shape for key, shape in shapes.items() if key not in ids
    }


def test_the_large_file_has_as_many_keys_as_the_official_one():
    with torch.device("meta"):
        module = BLIPPretraining(BLIP(blip.BLIP_L_16))
    assert len(pretraining_state(module, "blip")) == 1560 - 3


def sizes_of(config):
    names = BLIPConfig.__dataclass_fields__
    return {
        name: getattr(config, name)
        for name in names
        if getattr(config, name) != getattr(blip.BLIP_B_16, name)
    }


def test_an_official_file_makes_a_network_without_its_twins(tmp_path):
    module = BLIPPretraining(network(), 5)
    path = tmp_path / "model_base.pth"
    torch.save({"model": pretraining_state(module, "blip"), "epoch": 19}, path)
    sizes = sizes_of(SMALL)
    model = create_model("blip-b-16", pretrained=path, **sizes)
    assert_equal(model.state_dict(), module.network.state_dict())
    larger = create_model("blip-b-16", pretrained=path, **sizes | {"image_size": 24})
    assert larger.image_encoder.position_embedding.shape[1] == 10


@pytest.mark.parametrize(("layout", "changes"), [FITTING[0], *FITTING[5:8], *FITTING[9:]])
def test_saved_files_load_again(tmp_path, layout, changes):
    model = network(**changes)
    save(model, tmp_path / "m.safetensors", layout=layout)
    again = create_model(
        "blip-b-16", pretrained=tmp_path / "m.safetensors", **sizes_of(model.config)
    )
    assert_equal(again.state_dict(), model.state_dict())


def test_a_folder_of_transformers_tells_its_epsilon_and_has_no_temperature(tmp_path):
    model = network(**ITM)
    vision = {"image_size": 16, "patch_size": 8, "hidden_size": 12, "num_hidden_layers": 3}
    vision |= {"num_attention_heads": 3, "intermediate_size": 20, "hidden_act": "gelu"}
    text = {"vocab_size": 17, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    text |= {"intermediate_size": 24, "max_position_embeddings": 9, "hidden_act": "gelu"}
    config = {"model_type": "blip", "vision_config": vision, "text_config": text}
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = from_mmlab("blip-hf", model.state_dict())
    save_file(weights, tmp_path / "model.safetensors")
    sizes = sizes_of(SMALL) | RETRIEVAL
    loaded = create_model("blip-b-16", pretrained=tmp_path, **sizes)
    assert loaded.config.norm_eps == 1e-5 and loaded.config.temperature is None
    assert_equal(loaded.state_dict(), model.state_dict())
    text["num_attention_heads"] = 8
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="text_num_heads=8"):
        create_model("blip-b-16", pretrained=tmp_path, **sizes)


def test_transformers_gets_no_temperature():
    model = network(**RETRIEVAL)
    theirs = from_mmlab("blip-hf", model.state_dict())
    assert to_mmlab("blip-hf", theirs).keys() == model.state_dict().keys() - {
        "heads.contrast.temperature"
    }


def test_a_file_whose_shared_weights_differ_is_refused(tmp_path):
    apart = network(sharing="none")
    path = tmp_path / "m.safetensors"
    save(apart, path, layout="blip")
    assert create_model("blip-b-16", pretrained=path, **sizes_of(apart.config))
    with pytest.raises(CheckpointError, match="are the same tensor in this model, but they differ"):
        create_model("blip-b-16", pretrained=path, **sizes_of(SMALL))
    module = BLIPPretraining(network(), 5)
    state = pretraining_state(BLIPPretraining(apart, 5), "blip")
    with pytest.raises(CheckpointError, match="are the same tensor in this model, but they differ"):
        load_pretraining(module, "blip", state)


def test_missing_left_over_and_untied_tensors_are_named():
    theirs = from_mmlab("blip", network().state_dict())
    lacking = {key: t for key, t in theirs.items() if key != "text_proj.bias"}
    with pytest.raises(CheckpointError, match=r"1 missing: 'text_proj\.bias'"):
        to_mmlab("blip", lacking)
    norm = "text_decoder.bert.embeddings.LayerNorm.bias"
    with pytest.raises(CheckpointError, match=f"1 missing: '{norm}'"):
        to_mmlab("blip", {key: t for key, t in theirs.items() if key != norm})
    with pytest.raises(CheckpointError, match=r"1 left over: 'fc\.weight'"):
        to_mmlab("blip", theirs | {"fc.weight": torch.zeros(1)})
    key = "text_decoder.cls.predictions.decoder.weight"
    with pytest.raises(CheckpointError, match="must be the same tensor"):
        to_mmlab("blip", theirs | {key: theirs[key] + 1})


def test_a_state_without_twins_does_not_fit_a_pretraining_module():
    module = BLIPPretraining(network(), 5)
    theirs = from_mmlab("blip", module.network.state_dict())
    with pytest.raises(CheckpointError, match="BLIPPretraining: missing, left over or of another"):
        load_pretraining(module, "blip", theirs)
