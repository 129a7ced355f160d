from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis.training_cost import VLMoTrainingCost, recipe_cost
from mmlab.analysis.vlmo_cost import (
    vlmo_image_macs,
    vlmo_pair_macs,
    vlmo_step_macs,
    vlmo_text_macs,
)
from mmlab.models.vlmo import VLMO_B_16, VLMO_B_16_VQA, VLMO_L_16, VLMo
from mmlab.models.vlmo_pretraining import (
    VLMoLanguagePretraining,
    VLMoPretraining,
    VLMoVisionPretraining,
)
from tests.models.tiny import TINY_VLMO

RECIPES = Path(__file__).parents[2] / "recipes" / "large"
VISION = {"heads": ("codes",), "num_codes": 27, "fusion_depth": 0}
LANGUAGE = {"heads": ("words",), "fusion_depth": 0}
BATCH, TOKENS = 4, 8


@pytest.mark.parametrize(
    ("config", "image", "text", "pair", "step"),
    [(VLMO_B_16, 17.6, 3.43, 21.3, 110.5), (VLMO_L_16, 61.6, 12.2, 74.5, 382)],
)
def test_published_sizes(config, image, text, pair, step):
    """Counted with the official classes, for 40 tokens; G are 1e9 MACs."""
    assert vlmo_image_macs(config) / 1e9 == pytest.approx(image, abs=0.05)
    assert vlmo_text_macs(config, 40) / 1e9 == pytest.approx(text, abs=0.05)
    assert vlmo_pair_macs(config, 40) / 1e9 == pytest.approx(pair, abs=0.05)
    assert vlmo_step_macs(config, 40).forward / 1e9 == pytest.approx(step, rel=0.001)


def told_in(path):
    return " ".join(path.read_text().replace("#", " ").split())


def flops_of(module):
    """Forwards, and in all."""
    ids = torch.randint(4, 48, (BATCH, TOKENS))
    labels = torch.full_like(ids, -100)
    labels[:, 1] = 5
    size = module.network.config.image_size
    given = {"images": torch.randn(BATCH, 3, size, size), "input_ids": ids}
    masked = {"masked_ids": ids, "labels": labels}
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = module.losses(given | masked)
        forward = counter.get_total_flops()
        sum(losses.values()).backward()
    return forward, counter.get_total_flops()


def cost_of(config):
    return VLMoTrainingCost(config, 1, BATCH, mfu=1.0, num_text_tokens=TOKENS)


@pytest.mark.parametrize(
    ("stage", "changes", "masks"),
    [(VLMoVisionPretraining, VISION, {}), (VLMoLanguagePretraining, LANGUAGE, {"mask_id": 3})],
)
@pytest.mark.parametrize("positions", ["relative", "absolute"])
def test_a_step_alone_has_the_flops_pytorch_counts(stage, changes, masks, positions):
    config = replace(TINY_VLMO, positions=positions, **changes)
    module = stage(VLMo(config), **masks)
    cost = cost_of(config)
    assert flops_of(module) == (2 * BATCH * cost.forward_macs_per_pair, cost.flops)


@pytest.mark.parametrize("fusion_contrast", [True, False])
def test_a_step_with_pairs_has_the_flops_pytorch_counts(fusion_contrast):
    heads = ("contrast", "match", "words") + ("fusion_contrast",) * fusion_contrast
    config = replace(TINY_VLMO, heads=heads)
    cost, width = cost_of(config), config.dim
    contrasts = 1 + fusion_contrast
    left_out = 2 * contrasts * width**2 + 4 * width**2 + 3 * 2 * width
    left_out += contrasts * BATCH * width
    forward, total = flops_of(VLMoPretraining(VLMo(config), mask_id=3))
    assert forward == 2 * BATCH * (cost.forward_macs_per_pair + left_out)
    # The pooler of the pass with masked words has no loss.
    assert total == cost.flops + 2 * BATCH * (3 * left_out - 2 * width**2)


def test_freezing_the_attention_saves_a_gradient_of_its_weights():
    config = replace(VLMO_B_16, context_length=196, **LANGUAGE)
    macs = vlmo_step_macs(config, 196)
    assert macs.none == 0 and macs.one == 12 * 4 * 196 * 768**2
    assert 3 * macs.forward - macs.total == macs.one


def test_a_task_is_no_stage():
    with pytest.raises(ValueError, match=r"no stage of VLMo has heads=\('answer',\)"):
        vlmo_step_macs(VLMO_B_16_VQA, 40)


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("vlmo-b-16-language", {"context_length": 196, **LANGUAGE}),
        ("vlmo-b-16-4m", {}),
    ],
)
def test_the_recipes_say_what_they_cost(name, changes):
    path = RECIPES / f"{name}.yaml"
    cost = recipe_cost(path, mfu=0.4, num_devices=32)
    assert cost.config == replace(VLMO_B_16, **changes)
    assert (cost.steps, cost.batch_size) == (200_000, 1024)
    told = told_in(path)
    unit = "texts" if changes else "pairs"
    assert (
        f"{cost.steps:,} steps, {cost.num_pairs:,} {unit}, {cost.flops / 1e18:.1f} EFLOPs, "
        f"{cost.device_hours:.0f} device-hours, {cost.hours:.1f} hours on 32 devices"
    ) in told
    assert f"each device takes {cost.pairs_per_second:,.0f} {unit} a second" in told


def test_the_beits_time_is_that_of_a_lower_utilisation():
    """Five days on 16 V100s for 500,000 steps of 2,048 images (BEiT, section 2.5)."""
    config = replace(VLMO_B_16, heads=("codes",), num_codes=8192, fusion_depth=0)
    beit = VLMoTrainingCost(config, 500_000, 2048, mfu=1.0, peak_flops=125e12)
    share = beit.device_hours / (5 * 24 * 16)
    pairs, texts = (told_in(RECIPES / f"vlmo-b-16-{name}.yaml") for name in ("4m", "language"))
    assert f"{100 * share:.0f} % of" in pairs and f"{100 * share:.0f} % of" in texts
    slow = recipe_cost(RECIPES / "vlmo-b-16-4m.yaml", mfu=share)
    assert f"would take {slow.device_hours:.0f} device-hours" in pairs


def test_the_recipe_says_what_freezing_saves():
    macs = recipe_cost(RECIPES / "vlmo-b-16-language.yaml", mfu=1.0).gradient_macs
    saved = 1 - macs.total / (3 * macs.forward)
    assert f"{100 * saved:.0f} % less" in told_in(RECIPES / "vlmo-b-16-language.yaml")
