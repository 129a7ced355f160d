from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis.albef_cost import albef_fusion_macs, albef_image_macs, albef_text_macs
from mmlab.analysis.cost import keys_and_values_macs
from mmlab.analysis.training_cost import MASKED_SHARE, ALBEFTrainingCost, recipe_cost, steps_for
from mmlab.models.albef import (
    ALBEF,
    ALBEF_B_16,
    ALBEF_B_16_NLVR2,
    ALBEF_B_16_VE,
    ALBEF_MINI,
    ALBEFPretraining,
)

RECIPE = Path(__file__).parents[2] / "recipes" / "large" / "albef-b-16-4m.yaml"


def test_published_sizes():
    """Counted with the official classes; G are 1e9 MACs."""
    assert albef_image_macs(ALBEF_B_16) / 1e9 == pytest.approx(23.2, abs=0.05)
    assert albef_text_macs(ALBEF_B_16, 25) / 1e9 == pytest.approx(1.07, abs=0.005)
    assert albef_fusion_macs(ALBEF_B_16, 25) / 1e9 == pytest.approx(3.12, abs=0.005)
    assert albef_image_macs(ALBEF_B_16_VE) / 1e9 == pytest.approx(55.5, abs=0.05)
    assert albef_fusion_macs(ALBEF_B_16_VE, 30) / 1e9 == pytest.approx(5.74, abs=0.005)
    twice = albef_fusion_macs(ALBEF_B_16_NLVR2, 30)
    assert twice == 2 * albef_fusion_macs(ALBEF_B_16_VE, 30)


def test_a_step_has_the_flops_pytorch_counts():
    batch, tokens, masked = 4, 10, 2
    network = ALBEF(replace(ALBEF_MINI, vocab_size=60))
    module = ALBEFPretraining(network, queue_size=8, mask_id=3)
    ids = torch.randint(4, 60, (batch, tokens))
    labels = torch.full_like(ids, -100)
    labels[:, 1 : 1 + masked] = 5
    given = {
        "images": torch.randn(batch, 3, 64, 64),
        "input_ids": ids,
        "masked_ids": ids,
        "labels": labels,
    }
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        module.losses(given)
    cost = ALBEFTrainingCost(network.config, 1, batch, mfu=1.0, num_text_tokens=tokens)
    config, width = network.config, network.config.text_dim
    word = width * (width + config.vocab_size)
    heads = 2 * masked * word - 2 * MASKED_SHARE * tokens * word
    features = 2 * (config.dim + width) * config.embed_dim + 3 * 2 * width
    similarities = 4 * (batch + 8) * config.embed_dim
    expected = cost.forward_macs_per_pair + heads + features + similarities
    assert counter.get_total_flops() == pytest.approx(2 * batch * expected, rel=1e-9)


def test_the_twin_has_no_backward_pass():
    cost = ALBEFTrainingCost(ALBEF_B_16, 10, 512, mfu=0.5, num_text_tokens=25)
    # The official class computes keys and values for each of the three pairs an image is in.
    shared = 2 * ALBEF_B_16.fusion_depth * keys_and_values_macs(257, 768, 768)
    assert (cost.forward_macs_per_pair + shared) / 1e9 == pytest.approx(66.5, abs=0.1)
    online, twin = cost.online_macs_per_pair, cost.momentum_macs_per_pair
    assert cost.flops == pytest.approx(2 * (3 * online + twin) * 5120)
    again = replace(cost, recompute=True)
    assert again.device_hours / cost.device_hours == pytest.approx(
        (4 * online + twin) / (3 * online + twin)
    )


def test_the_recipe_says_what_it_costs():
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load(RECIPE.read_text())
    cost = recipe_cost(RECIPE, mfu=0.4, num_devices=8, num_text_tokens=25)
    assert isinstance(cost, ALBEFTrainingCost) and cost.config == ALBEF_B_16
    assert recipe["steps"] == steps_for(recipe["num_images"], 30, recipe["batch_size"])
    told = " ".join(RECIPE.read_text().replace("#", " ").split())
    assert (
        f"{cost.steps:,} steps, {cost.num_pairs:,} pairs, {cost.flops / 1e18:.1f} EFLOPs, "
        f"{cost.device_hours:.0f} device-hours, {cost.hours:.1f} hours on 8 devices"
    ) in told
    assert f"each device takes {cost.pairs_per_second:,.0f} pairs a second" in told
    epoch = steps_for(recipe["num_images"], 1, recipe["batch_size"])
    assert recipe["pretraining"]["ramp_steps"] == epoch
