import pytest
import torch

from mmlab.analysis import count_parameters
from mmlab.models.efficientnet import DIM, EfficientNetLite0


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return EfficientNetLite0(num_classes=0).eval()


def test_it_has_the_published_number_of_parameters():
    assert count_parameters(EfficientNetLite0()) == 4_652_008


@torch.no_grad()
def test_a_token_is_a_cell_of_the_grid(network):
    images = torch.randn(2, 3, 64, 96)
    tokens = network.forward_tokens(images)
    assert tokens.shape == (2, 2 * 3, DIM)
    torch.testing.assert_close(tokens[:, 4], network.grid(images)[:, :, 1, 1])


@torch.no_grad()
def test_smaller_patches_are_enlarged_pixels():
    torch.manual_seed(0)
    network, images = EfficientNetLite0(16, num_classes=0).eval(), torch.randn(1, 3, 48, 48)
    assert network.forward_tokens(images).shape == (1, 9, DIM)
    torch.manual_seed(0)
    plain = EfficientNetLite0(num_classes=0).eval()
    # One of two halves of a grey level is that level.
    grey = torch.full((1, 3, 48, 48), 0.3)
    larger = torch.full((1, 3, 96, 96), 0.3)
    torch.testing.assert_close(network.grid(grey), plain.grid(larger))


@torch.no_grad()
def test_logits_come_from_the_mean_of_the_grid():
    network, images = EfficientNetLite0(num_classes=7).eval(), torch.randn(2, 3, 64, 64)
    last = network.last(network.grid(images)).flatten(2).mean(2)
    torch.testing.assert_close(network(images), last @ network.head.weight.T + network.head.bias)


def test_what_cannot_be_is_told(network):
    with pytest.raises(ValueError, match="has no head"):
        network(torch.zeros(1, 3, 32, 32))
    for size in (0, 33):
        with pytest.raises(ValueError, match=f"patch_size must be 1 to 32, got {size}"):
            EfficientNetLite0(size)
