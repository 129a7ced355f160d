"""EfficientNet's blocks against those of transformers' MobileNetV2, which it took them from."""

import pytest
import torch
from transformers import MobileNetV2Config
from transformers.models.mobilenet_v2.modeling_mobilenet_v2 import (
    MobileNetV2ConvLayer,
    MobileNetV2InvertedResidual,
)

from mmlab.models.efficientnet import ConvNorm, InvertedResidual

CONFIG = MobileNetV2Config(expand_ratio=6, tf_padding=True, layer_norm_eps=1e-3)


def randomised(module):
    generator = torch.Generator().manual_seed(0)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3 * (tensor.ndim > 1))
    return module.eval()


def with_weights_of(theirs, ours):
    """Both list their tensors in the order of the layers."""
    own, state = ours.state_dict(), theirs.state_dict()
    assert [t.shape for t in own.values()] == [t.shape for t in state.values()]
    ours.load_state_dict(dict(zip(own, state.values(), strict=True)))
    return ours.eval()


@pytest.mark.parametrize("size", [12, 13])
@pytest.mark.parametrize(("out_dim", "stride"), [(8, 1), (16, 1), (8, 2)])
def test_a_block_equals_theirs(out_dim, stride, size):
    theirs = randomised(MobileNetV2InvertedResidual(CONFIG, 8, out_dim, stride))
    ours = with_weights_of(theirs, InvertedResidual(8, out_dim, 6, 3, stride))
    x = torch.randn(2, 8, size, size + 3, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [11, 14])
@pytest.mark.parametrize("kernel_size", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_a_convolution_is_padded_as_theirs(stride, kernel_size, size):
    theirs = randomised(MobileNetV2ConvLayer(CONFIG, 3, 8, kernel_size, stride))
    ours = with_weights_of(theirs, ConvNorm(3, 8, kernel_size, stride))
    x = torch.randn(2, 3, size, 10, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)
