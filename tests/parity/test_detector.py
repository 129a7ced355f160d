"""The detector against ``transformers``' own network and its own way from tokens to boxes."""

import json

import pytest
import torch
from transformers import (
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
    YolosConfig,
    YolosForObjectDetection,
)

from mmlab.datasets import photos
from mmlab.datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, normalize, resize
from mmlab.nn.region_locations import corner_size_area_locations
from mmlab.tasks.detector import Detector, load_detector

LABELS = {0: "cat", 1: "cup", 2: "tree"}


def yolos():
    return YolosForObjectDetection(
        YolosConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=[64, 96],
            num_detection_tokens=12,
            id2label=LABELS,
            label2id={name: i for i, name in LABELS.items()},
        )
    )


def detr():
    backbone = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 8, 16], depths=[1, 1, 1, 1], out_features=["stage4"]
    )
    return DetrForObjectDetection(
        DetrConfig(
            backbone_config=backbone,
            d_model=32,
            encoder_layers=1,
            decoder_layers=1,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            num_queries=12,
            id2label=LABELS,
            label2id={name: i for i, name in LABELS.items()},
        )
    )


@pytest.fixture(scope="module", params=[yolos, detr], ids=["yolos", "detr"])
def folder(request, tmp_path_factory):
    torch.manual_seed(0)
    network = request.param()
    with torch.no_grad():  # boxes and classes as different as a trained network's
        for parameter in network.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    path = tmp_path_factory.mktemp("detector")
    network.save_pretrained(path)
    return path


@pytest.fixture
def detector(folder):
    return load_detector(folder, shortest_side=64, longest_side=96, fewest=3, most=8)


@pytest.fixture(scope="module")
def images():
    cat = photos()["chelsea"].image
    return [cat, resize(cat[:, :, :100], (180, 90))]


def test_regions_are_the_tokens_of_the_network(detector, images):
    regions = detector.detect(images)
    for row, image in enumerate(images):
        height, width = image.shape[1:]
        scale = min(64 / min(height, width), 96 / max(height, width))
        size = (round(height * scale), round(width * scale))
        pixels = normalize(resize(image, size), IMAGENET_MEAN, IMAGENET_STD)
        with torch.no_grad():
            told = detector.network(pixel_values=pixels[None])
        best, classes = told.logits[0].softmax(-1)[:, :-1].max(-1)
        order = best.argsort(descending=True)[: int(regions.num_regions[row])]
        valid = regions.mask[row]
        torch.testing.assert_close(regions.confidences[row, valid], best[order])
        assert torch.equal(regions.classes[row, valid], classes[order])
        features = told.last_hidden_state[0, -len(best) :][order]
        torch.testing.assert_close(regions.features[row, valid], features)
        x, y, w, h = told.pred_boxes[0, order].unbind(-1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], 1).clamp(0, 1)
        in_pixels = corners * torch.tensor([width, height, width, height])
        torch.testing.assert_close(regions.boxes[row, valid], in_pixels, atol=1e-3, rtol=1e-5)


def test_no_object_stands_first_in_the_distributions(detector, images):
    regions = detector.detect(images)
    own = regions.class_distributions[regions.mask]
    assert own.shape[1] == len(LABELS) + 1
    torch.testing.assert_close(own.sum(1), torch.ones(len(own)))
    best, classes = own[:, 1:].max(1)
    torch.testing.assert_close(best, regions.confidences[regions.mask])
    assert torch.equal(classes, regions.classes[regions.mask])


def test_how_many_regions_are_kept(folder, images):
    def count(**settings):
        sizes = {"shortest_side": 64, "longest_side": 96}
        return load_detector(folder, **sizes, **settings).detect(images).num_regions.tolist()

    assert count(threshold=1.0, fewest=4, most=9) == [4, 4]
    assert count(threshold=0.0, fewest=4, most=9) == [9, 9]
    every = load_detector(folder, shortest_side=64, longest_side=96, threshold=0.0, fewest=12)
    confidences = every.detect(images).confidences
    assert (confidences.diff(dim=1) <= 0).all()
    middle = float(confidences[0, 5:7].mean())
    assert count(threshold=middle, fewest=1, most=12)[0] == 6


def test_regions_serve_a_model(detector, images):
    regions = detector.detect(images)
    locations = corner_size_area_locations(regions.boxes, regions.image_sizes)
    assert (locations >= 0).all() and (locations <= 1).all()
    names = detector.names(regions)
    assert [len(own) for own in names] == regions.num_regions.tolist()
    assert set(names[0]) <= set(LABELS.values())


def test_bytes_and_floats_are_the_same_image(detector, images):
    floats = detector.detect([images[0].float() / 255])
    torch.testing.assert_close(
        floats.features, detector.detect(images[:1]).features, atol=0.05, rtol=0.05
    )


def test_no_images_are_refused(detector):
    with pytest.raises(ValueError, match="images must not be empty"):
        detector.detect([])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"threshold": 1.5}, r"threshold must be in \[0, 1\], got 1.5"),
        ({"fewest": 0}, "fewest must be a whole number above 0, got 0"),
        ({"most": 2}, "most must be at least fewest=10, got 2"),
        ({"longest_side": 100}, "longest_side must be at least 512, the shortest, got 100"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Detector(torch.nn.Identity(), ("cat",), **settings)


def test_what_is_no_detector_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="there is no detector 'nothing'"):
        load_detector("nothing")
    with pytest.raises(ValueError, match="cannot be read"):
        load_detector(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))
    with pytest.raises(ValueError, match="detector must be one of 'yolos', 'detr', got 'bert'"):
        load_detector(tmp_path)
