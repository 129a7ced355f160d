"""What the tests of tables share: sizes, weights, and when two states are the same."""

import torch

# All different, so that no two dimensions can be mixed up unseen.
SIZES = {
    "image_size": 16,
    "patch_size": 8,
    "num_channels": 2,
    "dim": 12,
    "depth": 3,
    "num_heads": 3,
    "mlp_dim": 20,
    "vocab_size": 17,
    "context_length": 9,
    "text_dim": 16,
    "text_num_heads": 2,
    "text_mlp_dim": 24,
    "embed_dim": 6,
}


def with_random_weights(model):
    """No two weights alike, and no bias of zeros or scale of ones."""
    for parameter in model.parameters():
        parameter.data += torch.randn(parameter.shape)
    return model


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        assert torch.equal(left[key], right[key]), key
