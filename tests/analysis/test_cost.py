"""Every figure here is from the official repository's size table or computed from the papers'
dimensions by the formulas beside it; see the comments."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis import block_macs, count_parameters, parameters_by_part, vit_macs
from mmlab.analysis.cost import (
    block_activations,
    flip_image_macs,
    flip_text_macs,
    mae_decoder_macs,
    mae_encoder_macs,
)
from mmlab.models import vit
from mmlab.models.flip import FLIP, FLIP_B_16, FLIP_L_16, FLIP_MINI
from mmlab.models.mae import MAE, MAE_B_16, MAE_L_16, MAE_MINI
from mmlab.models.vit import ViT
from mmlab.nn import TransformerBlock, random_masking

# GMAC with a 1000-class head: N 3P^2 D + L (12 T D^2 + 2 T^2 D) + D C.
GMACS = [
    ("VIT_TI_16", 224, 1.2537),
    ("VIT_S_16", 224, 4.5989),
    ("VIT_B_32", 224, 4.4092),
    ("VIT_B_16", 224, 17.5638),
    ("VIT_B_8", 224, 78.148),
    ("VIT_L_32", 224, 15.3775),
    ("VIT_L_16", 224, 61.5547),
    ("VIT_H_14", 224, 167.295),
    ("VIT_B_16", 384, 55.484),
    ("VIT_L_16", 384, 191.066),
    ("VIT_L_16", 512, 361.986),
    ("VIT_H_14", 518, 1016.72),
]
# Compute of pre-training on JFT-300M (303M images) in exaFLOPs, and the epochs, as the ViT paper
# prints them. One forward and backward pass is 3 forwards; a MAC is 2 FLOPs.
EXAFLOPS = [
    ("VIT_B_32", 7, 55),
    ("VIT_B_16", 7, 224),
    ("VIT_L_32", 7, 196),
    ("VIT_L_16", 7, 783),
    ("VIT_L_16", 14, 1567),
    ("VIT_H_14", 14, 4262),
]


def at(name, image_size):
    return replace(getattr(vit, name), image_size=image_size)


def counted_macs(config):
    """PyTorch's own counter, on tensors without memory; it sees the attention as two products."""
    with torch.device("meta"):
        model, images = ViT(config).eval(), torch.empty(1, 3, *[config.image_size] * 2)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            model(images)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize(("name", "image_size", "gmacs"), GMACS)
def test_macs_are_the_known_figures(name, image_size, gmacs):
    assert vit_macs(at(name, image_size)) / 1e9 == pytest.approx(gmacs, rel=5e-5)


@pytest.mark.parametrize(
    "config",
    [
        vit.VIT_TI_16,
        vit.VIT_MINI,
        at("VIT_B_16", 384),
        replace(vit.VIT_S_32, num_classes=21843, pre_logits=True),
        replace(vit.VIT_S_32, pool="average", num_classes=0),
        replace(vit.VIT_S_32, mlp_dim=1000, num_heads=12),
        replace(vit.VIT_TI_16, stem="conv"),
        vit.DEIT_S_16_DISTILLED,
    ],
)
def test_macs_equal_those_pytorch_counts(config):
    assert vit_macs(config) == counted_macs(config)


@pytest.mark.parametrize(("name", "epochs", "exaflops"), EXAFLOPS)
def test_macs_explain_the_compute_the_paper_prints(name, epochs, exaflops):
    flops = 6 * vit_macs(getattr(vit, name)) * 303e6 * epochs
    assert flops / 1e18 == pytest.approx(exaflops, rel=0.025)


@pytest.mark.parametrize(("image_size", "share"), [(224, 0.041), (384, 0.111)])
def test_share_of_the_quadratic_part(image_size, share):
    config = at("VIT_B_16", image_size)
    quadratic = 2 * config.num_tokens**2 * config.dim * config.depth
    assert quadratic / vit_macs(config) == pytest.approx(share, abs=5e-4)


def test_attention_overtakes_the_rest_at_six_times_the_width():
    dim = 64
    linear = 12 * dim**2
    for num_tokens, sign in ((6 * dim - 1, -1), (6 * dim, 0), (6 * dim + 1, 1)):
        quadratic = block_macs(num_tokens, dim, 4 * dim) - num_tokens * linear
        difference = quadratic - num_tokens * linear
        assert (difference > 0) - (difference < 0) == sign


def test_count_parameters_counts_shared_ones_once_and_can_skip_frozen_ones():
    tied = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    tied[1].weight = tied[0].weight
    assert count_parameters(tied) == 16 + 4 + 4
    tied[0].bias.requires_grad_(False)
    assert count_parameters(tied, trainable_only=True) == 16 + 4
    assert count_parameters(nn.BatchNorm1d(3)) == 6


# Parameters with a 1000-class head, from the size table of the official repository's tests.
PARAMETERS = [
    ("VIT_TI_16", 224, 5_717_416),
    ("VIT_S_16", 224, 22_050_664),
    ("VIT_S_32", 224, 22_878_952),
    ("VIT_B_8", 224, 86_576_872),
    ("VIT_B_16", 224, 86_567_656),
    ("VIT_B_32", 224, 88_224_232),
    ("VIT_L_16", 224, 304_326_632),
    ("VIT_L_32", 224, 306_535_400),
    ("VIT_H_14", 224, 632_045_800),
    ("VIT_B_16", 384, 86_859_496),
]


@pytest.mark.parametrize(("name", "image_size", "total"), PARAMETERS)
def test_parts_follow_the_formulas_and_sum_to_the_whole(name, image_size, total):
    config = at(name, image_size)
    with torch.device("meta"):
        parts = parameters_by_part(ViT(config))
    dim, depth = config.dim, config.depth
    assert parts == {
        "embedding": 3 * config.patch_size**2 * dim + dim + dim,
        "positions": (config.num_patches + 1) * dim,
        "attention": depth * (4 * dim**2 + 4 * dim),
        "mlp": depth * (8 * dim**2 + 5 * dim),
        "norms": depth * 4 * dim + 2 * dim,
        "head": 1000 * dim + 1000,
    }
    assert sum(parts.values()) == total


@pytest.mark.parametrize(
    "config",
    [
        vit.VIT_MINI,
        vit.DEIT_TI_16_DISTILLED,
        replace(vit.VIT_TI_16, pre_logits=True, num_classes=21843),
        replace(vit.VIT_TI_16, pool="average", positions="none", num_classes=0),
        replace(vit.VIT_TI_16, positions="sincos2d"),
    ],
)
def test_every_variant_divides_into_known_parts(config):
    with torch.device("meta"):
        model = ViT(config)
    parts = parameters_by_part(model)
    assert sum(parts.values()) == count_parameters(model)
    assert "other" not in parts
    assert (parts["positions"] == 0) == (config.positions == "none")
    assert (parts["head"] == 0) == (config.num_classes == 0)


def test_unknown_and_shared_parameters_are_counted_once_in_the_whole():
    model = nn.ModuleDict({"decoder": nn.Linear(4, 4), "mlp": nn.Linear(4, 4)})
    model["mlp"].weight = model["decoder"].weight
    parts = parameters_by_part(model)
    assert (parts["other"], parts["mlp"]) == (20, 4)
    assert sum(parts.values()) == count_parameters(model)


# GMAC of (image or encoder, text or decoder) at 0, 50 and 75 % dropped, from the formulas of
# block_macs; the papers print FLIP's totals as 1, 0.52, 0.28 (table 1).
MASKED_GMACS = [
    (FLIP_B_16, [17.563, 8.705, 4.409], 1.221),
    (FLIP_L_16, [61.554, 30.534, 15.377], 2.737),
]


@pytest.mark.parametrize(("config", "image", "text"), MASKED_GMACS)
def test_flip_drops_what_its_patches_cost(config, image, text):
    counted = [flip_image_macs(config, ratio) / 1e9 for ratio in (0.0, 0.5, 0.75)]
    assert counted == pytest.approx(image, abs=6e-4)
    assert flip_text_macs(config) / 1e9 == pytest.approx(text, abs=6e-4)


def total_macs(function, *inputs):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        function(*inputs)
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.5, 0.75])
def test_flip_s_macs_equal_those_pytorch_counts(ratio):
    model, size = FLIP(FLIP_MINI).eval(), FLIP_MINI.image_size
    images, kept = torch.zeros(1, 3, size, size), random_masking(torch.rand(1, 64), ratio).kept
    assert flip_image_macs(FLIP_MINI, ratio) == total_macs(model.encode_image, images, kept)
    words = torch.zeros(1, 5, dtype=torch.long)
    assert flip_text_macs(FLIP_MINI) == total_macs(model.encode_text, words)


@pytest.mark.parametrize("ratio", [0.0, 0.3, 0.75])
def test_mae_s_macs_equal_those_pytorch_counts(ratio):
    model, size = MAE(MAE_MINI).eval(), MAE_MINI.image_size
    images, mask = torch.zeros(1, 3, size, size), random_masking(torch.rand(1, 64), ratio)
    encoder = total_macs(model.encode_visible, images, mask.kept)
    assert mae_encoder_macs(MAE_MINI, ratio) == encoder
    assert mae_decoder_macs(MAE_MINI, ratio) == total_macs(model, images, mask) - encoder


def test_mae_s_macs_are_its_own_ratio_s_by_default():
    assert mae_encoder_macs(MAE_L_16) == mae_encoder_macs(MAE_L_16, 0.75)
    assert mae_decoder_macs(MAE_B_16) == mae_decoder_macs(MAE_B_16, 0.75)


@pytest.mark.parametrize("sizes", [(10, 32, 4, 128), (17, 64, 2, 100)])
@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_activations_are_what_autograd_keeps(sizes, activation):
    tokens, *widths = sizes
    block, kept = TransformerBlock(*widths, activation=activation), []
    own = {parameter.data_ptr() for parameter in block.parameters()}
    x = torch.randn(1, tokens, widths[0], requires_grad=True)
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with hooks:
        block(x)
    memory = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in kept}
    assert block_activations(*sizes) == sum(memory[at] for at in memory.keys() - own)
