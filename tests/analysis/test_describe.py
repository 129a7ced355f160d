"""What a model is told to be and to cost, against the sheets and PyTorch's own counter."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis.cost import (
    clip_image_macs,
    clip_text_macs,
    count_parameters,
    parameters_by_part,
)
from mmlab.analysis.describe import describe
from mmlab.hub import create_model, list_models, model_config
from mmlab.models import clip
from mmlab.models.clip import CLIP

# In units of 10^9, from the sheet.
GMACS = [
    ("clip-vit-b-32", 4.4088, 2.9798),
    ("clip-vit-b-16", 17.5635, 2.9798),
    ("clip-vit-l-14", 81.0128, 6.6498),
    ("clip-vit-l-14-336", 190.9599, 6.6498),
]


@pytest.mark.parametrize(("name", "image", "text"), GMACS)
def test_the_cost_of_clip_is_that_of_its_sheet(name, image, text):
    about = describe(name)
    assert about["image_gmacs"] == pytest.approx(image, abs=1e-4)
    assert about["text_gmacs"] == pytest.approx(text, abs=1e-4)


@pytest.mark.parametrize(
    "config",
    [
        clip.CLIP_VIT_B_32,
        replace(clip.CLIP_RN50, stages=(1, 2, 3, 1)),
        replace(clip.CLIP_RN50X4, stages=(2, 1, 1, 2)),
        clip.CLIP_MINI,
        clip.CLIP_VIT_MINI,
    ],
    ids=["transformer", "resnet", "wide-resnet", "mini-resnet", "conv-stem"],
)
def test_macs_are_those_that_pytorch_counts(config):
    with torch.device("meta"):
        model = CLIP(config).eval()
        images = torch.zeros(1, 3, config.image_size, config.image_size)
        ids = torch.zeros(1, config.context_length, dtype=torch.long)
    for encode, inputs, macs in (
        (model.encode_image, images, clip_image_macs(config)),
        (model.encode_text, ids, clip_text_macs(config)),
        (model.encode_text, ids[:, :5], clip_text_macs(config, 5)),
    ):
        with FlopCounterMode(display=False) as counter:
            encode(inputs)
        assert counter.get_total_flops() == 2 * macs


def test_parameters_of_clip_by_part():
    with torch.device("meta"):
        model = create_model("clip-vit-b-32")
    parts = parameters_by_part(model)
    assert sum(parts.values()) == count_parameters(model)
    assert parts["other"] == 1
    assert parts["head"] == 768 * 512 + 512 * 512
    assert parts["positions"] == 50 * 768 + 77 * 512


def test_clip_in_a_few_numbers():
    about = describe("clip-vit-b-32")
    assert about["model"] == "clip-vit-b-32"
    assert about["images"] == [1, 3, 224, 224] and about["texts"] == [1, 77]
    assert about["image_tokens"] == [1, 50, 768] and about["text_tokens"] == [1, 77, 512]
    assert about["image_features"] == about["text_features"] == [1, 512]
    assert about["parameters"] == 151_277_313
    assert (about["image_parameters"], about["text_parameters"]) == (87_849_216, 63_428_096)
    resnet = describe("clip-rn50x4")
    assert resnet["stages"] == [4, 6, 10, 6] and resnet["num_heads"] == 40
    assert resnet["image_tokens"] == [1, 82, 2560]


def test_the_shapes_are_those_of_a_pass():
    about = describe("clip-vit-mini")
    model = create_model("clip-vit-mini").eval()
    ids = torch.ones(about["texts"], dtype=torch.long)
    tokens = model.image_encoder.forward_tokens(torch.zeros(about["images"]))
    assert list(tokens.shape) == about["image_tokens"]
    assert list(model.text_encoder.forward_tokens(ids).shape) == about["text_tokens"]
    assert list(model.encode_text(ids).shape) == about["text_features"]
    assert list(model(torch.zeros(about["images"]), ids).shape) == about["logits"]


def test_vit_in_a_few_numbers():
    about = describe("vit-b-16")
    assert about["tokens"] == [1, 197, 768]
    assert about["parameters"] == 86_567_656
    assert about["parameters_without_head"] == 85_798_656
    assert about["gflops"] == pytest.approx(2 * about["gmacs"], abs=1e-4)


@pytest.mark.parametrize("name", list_models("*mini"))
def test_every_family_can_be_described(name):
    about = describe(name)
    assert about["parameters"] == count_parameters(create_model(name))
    assert model_config(name) is not None


def test_a_model_without_a_description_of_its_own_tells_its_sizes_and_its_parts():
    about = describe("uniter-b")
    assert (about["dim"], about["depth"], about["feature_dim"]) == (768, 12, 2048)
    parts = [value for name, value in about.items() if name.endswith("_parameters")]
    assert all(parts) and sum(parts) == about["parameters"] == 112_938_887


def test_an_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'clip-vit-b-32'"):
        describe("clip-vit-b32")
