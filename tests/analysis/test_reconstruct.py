from dataclasses import replace

import pytest
import torch

from mmlab.analysis.reconstruct import reconstruct
from mmlab.datasets.transforms import IMAGENET_MEAN, IMAGENET_STD, VIT_MEAN, VIT_STD, normalize
from mmlab.models.mae import MAE, MAEConfig, pixel_targets
from mmlab.nn import patchify, random_masking, unpatchify

TINY = MAEConfig(
    image_size=16,
    patch_size=4,
    dim=24,
    depth=1,
    num_heads=3,
    mlp_dim=32,
    decoder_dim=16,
    decoder_depth=1,
    decoder_num_heads=2,
    decoder_mlp_dim=48,
)


class Oracle(MAE):
    """Predicts exactly what the loss asks for."""

    def forward(self, images, mask):
        return pixel_targets(images, self.config.patch_size, self.config.norm_pix)


def pixels(batch=2):
    return torch.rand(batch, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def mask(batch=2, ratio=0.75):
    return random_masking(torch.rand(batch, 16, generator=torch.Generator().manual_seed(1)), ratio)


def build(kind=MAE, **changes):
    torch.manual_seed(0)
    return kind(replace(TINY, **changes)).eval()


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("statistics", [(IMAGENET_MEAN, IMAGENET_STD), (VIT_MEAN, VIT_STD)])
def test_perfect_predictions_give_the_original_back(statistics, norm_pix):
    images = normalize(pixels(), *statistics)
    result = reconstruct(build(Oracle, norm_pix=norm_pix), images, mask(), *statistics)
    torch.testing.assert_close(result.original, pixels())
    torch.testing.assert_close(result.filled, pixels())


def test_removed_patches_are_grey_or_predicted_and_the_others_untouched():
    result = reconstruct(build(), normalize(pixels()), mask())
    removed = mask().removed
    masked, filled, original = (
        patchify(part, 4) for part in (result.masked, result.filled, result.original)
    )
    for part in (masked, filled):
        torch.testing.assert_close(part[~removed], original[~removed])
    torch.testing.assert_close(masked[removed], torch.full_like(masked[removed], 0.5))
    assert ((filled - original)[removed].abs().amax(dim=-1) > 1e-3).all()


def test_raw_predictions_are_shown_as_they_are():
    model, images = build(norm_pix=False), normalize(pixels(), VIT_MEAN, VIT_STD)
    result = reconstruct(model, images, mask(), VIT_MEAN, VIT_STD)
    predicted = unpatchify(model(images, mask()), 4, (4, 4))
    expected = patchify((predicted * 0.5 + 0.5).clamp(0, 1), 4)
    removed = mask().removed
    torch.testing.assert_close(patchify(result.filled, 4)[removed], expected[removed])


def test_light_and_contrast_of_normalised_predictions_are_the_originals():
    """A prediction of zeros has no pattern: every removed patch is its own true mean."""
    model = build()
    torch.nn.init.zeros_(model.decoder.prediction.weight)
    images = normalize(pixels(), VIT_MEAN, VIT_STD)
    filled = patchify(reconstruct(model, images, mask(), VIT_MEAN, VIT_STD).filled, 4)
    means = patchify(pixels(), 4).mean(dim=-1, keepdim=True).expand_as(filled)
    removed = mask().removed
    torch.testing.assert_close(filled[removed], means[removed])


def test_pictures_are_colours():
    wild = 100 * torch.randn(2, 3, 16, 16)
    result = reconstruct(build(norm_pix=False), wild, mask())
    for part in (result.masked, result.filled, result.original):
        assert part.shape == (2, 3, 16, 16)
        assert ((part >= 0) & (part <= 1)).all()
        assert not part.requires_grad


def test_strips_put_the_three_side_by_side():
    result = reconstruct(build(), normalize(pixels()), mask())
    strips = result.strips(gap=3)
    assert strips.shape == (2, 3, 16, 3 * 16 + 2 * 3)
    parts = strips.split([16, 3, 16, 3, 16], dim=-1)
    assert torch.equal(parts[0], result.masked)
    assert torch.equal(parts[2], result.filled)
    assert torch.equal(parts[4], result.original)
    assert (parts[1] == 1).all()
    assert (parts[3] == 1).all()
    assert result.strips(gap=0).shape[-1] == 48
