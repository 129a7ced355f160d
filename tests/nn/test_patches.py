import pytest
import torch
import torch.nn.functional as F

from mmlab.nn import ConvStem, PatchEmbedding, patchify, unpatchify


def test_patchify_cuts_row_by_row_in_the_order_of_a_convolution_kernel():
    image = torch.arange(2 * 4 * 6.0).reshape(1, 2, 4, 6)
    patches = patchify(image, 2)
    assert patches.shape == (1, 6, 8)
    assert torch.equal(patches[0, 0], image[0, :, :2, :2].flatten())
    assert torch.equal(patches[0, 1], image[0, :, :2, 2:4].flatten())
    assert torch.equal(patches[0, 3], image[0, :, 2:, :2].flatten())


def test_patchify_equals_unfold():
    images = torch.randn(2, 3, 12, 8)
    assert torch.equal(patchify(images, 4), F.unfold(images, 4, stride=4).mT)


def test_unpatchify_is_the_inverse():
    images = torch.randn(2, 3, 12, 8)
    assert torch.equal(unpatchify(patchify(images, 4), 4, (3, 2)), images)


def test_patch_embedding_is_a_linear_map_of_the_patches():
    torch.manual_seed(0)
    layer, images = PatchEmbedding(patch_size=4, dim=10), torch.randn(2, 3, 8, 12)
    weight, bias = layer.projection.weight.flatten(1), layer.projection.bias
    torch.testing.assert_close(layer(images), patchify(images, 4) @ weight.T + bias)


def test_linear_patches_are_independent_but_the_stem_looks_over_the_edge():
    torch.manual_seed(0)
    images = torch.randn(1, 3, 16, 16)
    changed = images.clone()
    changed[..., :8, :8] = torch.randn(1, 3, 8, 8)
    for layer, expected in ((PatchEmbedding(8, 16), 1), (ConvStem(8, 16).eval(), 4)):
        difference = (layer(images) - layer(changed)).abs().amax(dim=-1)[0]
        assert (difference > 0).sum() == expected


@pytest.mark.parametrize("patch_size", [2, 4, 8, 16])
def test_conv_stem_makes_as_many_tokens_as_patches(patch_size):
    images = torch.randn(2, 3, 32, 16)
    tokens = ConvStem(patch_size, 32)(images)
    assert tokens.shape == (2, 512 // patch_size**2, 32)


def test_conv_stem_doubles_its_width():
    stem = ConvStem(8, 64)
    assert [stage[0].out_channels for stage in stem.layers] == [16, 32, 64]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: patchify(torch.zeros(1, 3, 8, 9), 4), "got 4 for 8 x 9 pixels"),
        (lambda: PatchEmbedding(4, 8)(torch.zeros(1, 3, 10, 8)), "got 4 for 10 x 8 pixels"),
        (lambda: ConvStem(6, 8), "power of two for a conv stem, got 6"),
        (lambda: ConvStem(1, 8), "power of two for a conv stem, got 1"),
        (lambda: ConvStem(16, 12), "multiple of 8 for a conv stem with patch_size=16, got 12"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
