"""The ALBEF tables: every key of the official file, no loss in either direction, whole states."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

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
from mmlab.models import albef
from mmlab.models.albef import ALBEF, ALBEFConfig, ALBEFPretraining
from mmlab.models.albef_tasks import ALBEFClassification, ALBEFQuestionAnswering, ALBEFRetrieval
from tests.hub.states import SIZES, assert_equal, round_trip, with_random_weights

SHAPES = Path(__file__).parents[1] / "golden" / "albef_fullsize_shapes.json"
SMALL = ALBEFConfig(text_depth=2, fusion_depth=2, **SIZES)
RETRIEVAL = {"heads": ("contrast", "match")}
CLASSES = {"heads": ("classes",), "num_classes": 3}
ASSIGNMENT = {"heads": ("contrast", "classes"), "num_classes": 3, "hidden_head": False}
FITTING = [
    ("albef", {}),
    ("albef", {"heads": ()}),
    ("albef-finetuned", RETRIEVAL),
    ("albef-finetuned", CLASSES),
    ("albef-finetuned", CLASSES | {"num_images": 2}),
    ("albef-finetuned", ASSIGNMENT | {"num_images": 2}),
    ("albef-vqa", {"heads": ("answers",)}),
]
MODULES = [
    ("albef", {}, lambda network: ALBEFPretraining(network, 5, mask_id=3)),
    ("albef-finetuned", RETRIEVAL, lambda network: ALBEFRetrieval(network, 5, mask_id=3)),
    ("albef-finetuned", CLASSES, ALBEFClassification),
    ("albef-finetuned", CLASSES | {"num_images": 2}, ALBEFClassification),
    ("albef-vqa", {"heads": ("answers",)}, ALBEFQuestionAnswering),
]


def network(**changes):
    torch.manual_seed(0)
    return with_random_weights(ALBEF(replace(SMALL, **changes)))


@pytest.mark.parametrize(("layout", "changes"), FITTING)
def test_round_trip_is_exact_and_the_layout_is_recognised(layout, changes):
    ours = network(**changes).state_dict()
    theirs = round_trip(layout, ours)
    if changes.get("heads") != ():
        assert detect_layout(theirs) == layout


@pytest.mark.parametrize(("layout", "changes", "make"), MODULES)
def test_whole_states_come_back_with_twins_and_queues(layout, changes, make):
    module, other = make(network(**changes)), make(ALBEF(replace(SMALL, **changes)))
    for name, tensor in module.state_dict().items():
        if name.startswith("momentum.network"):
            tensor.mul_(1.5)
    state = pretraining_state(module, layout)
    assert any("_m." in key for key in state)
    load_pretraining(other, layout, state)
    assert_equal(other.state_dict(), module.state_dict())


def test_every_key_and_shape_of_the_official_file():
    shapes = json.loads(SHAPES.read_text())
    assert len(shapes) == 844
    with torch.device("meta"):
        theirs = {
            key: torch.empty(s, dtype=torch.long if key == "queue_ptr" else None)
            for key, s in shapes.items()
        }
        module = ALBEFPretraining(ALBEF(albef.ALBEF_B_16))
    converted = to_mmlab("albef", theirs)
    own = {k.removeprefix("network."): t.shape for k, t in module.state_dict().items()}
    del own["momentum.num_updates"]
    assert {key: t.shape for key, t in converted.items()} == own
    back = pretraining_state(module, "albef")
    ids = {key for key in shapes if key.endswith("position_ids")}
    assert {key: list(t.shape) for key, t in back.items()} == {
        key: shape for key, shape in shapes.items() if key not in ids
    }


def test_an_official_file_makes_a_network_without_its_twins(tmp_path):
    module = ALBEFPretraining(network(), 5, mask_id=3)
    path = tmp_path / "ALBEF.pth"
    torch.save({"model": pretraining_state(module, "albef"), "epoch": 29}, path)
    sizes = {
        name: getattr(SMALL, name)
        for name in ALBEFConfig.__dataclass_fields__
        if getattr(SMALL, name) != getattr(albef.ALBEF_B_16, name)
    }
    model = create_model("albef-b-16", pretrained=path, **sizes)
    assert_equal(model.state_dict(), module.network.state_dict())
    larger = create_model("albef-b-16", pretrained=path, **sizes | {"image_size": 24})
    assert larger.image_encoder.position_embedding.shape[1] == 10


@pytest.mark.parametrize(("layout", "changes"), [FITTING[0], FITTING[4], FITTING[6]])
def test_saved_files_load_again(tmp_path, layout, changes):
    model = network(**changes)
    save(model, tmp_path / "m.safetensors", layout=layout)
    sizes = {name: getattr(model.config, name) for name in ALBEFConfig.__dataclass_fields__}
    again = create_model("albef-b-16", pretrained=tmp_path / "m.safetensors", **sizes)
    assert_equal(again.state_dict(), model.state_dict())


def test_missing_left_over_and_untied_tensors_are_named():
    theirs = from_mmlab("albef", network().state_dict())
    lacking = {key: t for key, t in theirs.items() if key != "text_proj.bias"}
    with pytest.raises(CheckpointError, match=r"1 missing: 'text_proj\.bias'"):
        to_mmlab("albef", lacking)
    with pytest.raises(CheckpointError, match=r"1 left over: 'fc\.weight'"):
        to_mmlab("albef", theirs | {"fc.weight": torch.zeros(1)})
    key = "text_encoder.cls.predictions.decoder.weight"
    with pytest.raises(CheckpointError, match="must be the same tensor"):
        to_mmlab("albef", theirs | {key: theirs[key] + 1})
    with pytest.raises(CheckpointError, match="these look like 'albef' keys"):
        to_mmlab("albef-vqa", theirs)


def test_a_state_without_twins_does_not_fit_a_pretraining_module():
    module = ALBEFPretraining(network(), 5, mask_id=3)
    theirs = from_mmlab("albef", module.network.state_dict())
    with pytest.raises(CheckpointError, match="ALBEFPretraining: missing, left over or of another"):
        load_pretraining(module, "albef", theirs)
