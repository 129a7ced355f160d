"""What the tests of tables share: sizes, weights, and when two states are the same."""

import torch

from mmlab.hub import from_mmlab, to_mmlab

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


def random_state(model):
    """A state of random numbers, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(t.shape, generator=generator) for key, t in model.state_dict().items()}


def round_trip(layout, ours):
    """``ours`` in a layout, after it was seen that the way there and back loses nothing."""
    theirs = from_mmlab(layout, ours)
    assert_equal(to_mmlab(layout, theirs), ours)
    assert_equal(from_mmlab(layout, to_mmlab(layout, theirs)), theirs)
    return theirs


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for key in left:
        assert left[key].dtype == right[key].dtype, key
        assert torch.equal(left[key], right[key]), key
