import math

import pytest
import torch
from torch import nn

from mmlab.nn import (
    PatchMask,
    TransformerBlock,
    init_xavier,
    keep_patches,
    num_kept,
    random_masking,
    restore_patches,
)


def noise(batch=3, patches=16, seed=0):
    return torch.rand(batch, patches, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("num_patches", "ratio", "kept"),
    [(196, 0.75, 49), (196, 0.9, 19), (196, 0.7, 58), (256, 0.6, 102), (32, 0.5, 16), (7, 0.0, 7)],
)
def test_the_number_of_kept_patches_is_cut_not_rounded(num_patches, ratio, kept):
    assert num_kept(num_patches, ratio) == kept
    mask = random_masking(noise(patches=num_patches), ratio)
    assert mask.kept.shape == (3, kept)
    assert (mask.removed.sum(dim=1) == num_patches - kept).all()


@pytest.mark.parametrize("ratio", [1.0, -0.1, math.nan, 0.99])
def test_ratios_that_keep_nothing_or_too_much_are_refused(ratio):
    with pytest.raises(ValueError, match=r"mask_ratio must be in \[0, 1\) and leave at least one"):
        num_kept(16, ratio)


def test_the_patches_with_the_least_noise_stay():
    values = torch.tensor([[0.9, 0.1, 0.5, 0.3]])
    mask = random_masking(values, 0.5)
    assert isinstance(mask, PatchMask)
    assert mask.kept.tolist() == [[1, 3]]
    assert mask.removed.tolist() == [[True, False, True, False]]
    assert mask.restore.tolist() == [[3, 0, 2, 1]]


def test_restoring_undoes_shuffling():
    tokens = torch.randn(3, 16, 5, generator=torch.Generator().manual_seed(1))
    mask = random_masking(noise(), 0.0)
    assert (mask.restore.sort(dim=1).values == torch.arange(16)).all()
    visible = keep_patches(tokens, mask.kept)
    assert not torch.equal(visible, tokens)
    assert torch.equal(restore_patches(visible, torch.zeros(1, 1, 5), mask.restore), tokens)


def test_restored_patches_stand_in_their_places_and_the_filling_elsewhere():
    tokens, filling = torch.randn(3, 16, 5), torch.full((1, 1, 5), 7.0)
    mask = random_masking(noise(), 0.75)
    restored = restore_patches(keep_patches(tokens, mask.kept), filling, mask.restore)
    expected = torch.where(mask.removed[..., None], filling, tokens)
    assert torch.equal(restored, expected)


def test_prefix_tokens_always_stay_in_front():
    tokens = torch.randn(3, 18, 5)
    kept = random_masking(noise(), 0.75).kept
    visible = keep_patches(tokens, kept, num_prefix_tokens=2)
    assert torch.equal(visible[:, :2], tokens[:, :2])
    for image in range(3):
        assert torch.equal(visible[image, 2:], tokens[image, 2:][kept[image]])


def test_every_patch_is_kept_equally_often_and_images_are_masked_apart():
    mask = random_masking(noise(batch=4000, seed=3), 0.75)
    share = (~mask.removed).float().mean(dim=0)
    # Four standard deviations of a share of 0.25 in 4000 draws.
    assert (share - 0.25).abs().max() < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert len(mask.removed.unique(dim=0)) > 1000


@torch.no_grad()
def test_queries_keys_and_values_are_initialised_as_one_matrix():
    torch.manual_seed(0)
    block = TransformerBlock(64, 4, 256).apply(init_xavier)
    attention = block.attention
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj):
        assert layer.weight.abs().max() == pytest.approx(math.sqrt(6 / (4 * 64)), rel=1e-2)
    assert attention.out_proj.weight.abs().max() == pytest.approx(math.sqrt(6 / 128), rel=1e-2)
    assert block.mlp.fc1.weight.abs().max() == pytest.approx(math.sqrt(6 / 320), rel=1e-2)
    biases = [m.bias for m in block.modules() if isinstance(m, nn.Linear)]
    assert len(biases) == 6
    assert all((bias == 0).all() for bias in biases)
