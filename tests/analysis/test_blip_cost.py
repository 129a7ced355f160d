import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis.blip_cost import (
    blip_grounded_macs,
    blip_image_macs,
    blip_text_macs,
)
from mmlab.analysis.cost import keys_and_values_macs
from mmlab.analysis.training_cost import BLIPTrainingCost, recipe_cost, steps_for
from mmlab.models.blip import BLIP, BLIP_B_16, BLIP_L_16, BLIP_MINI, BLIPPretraining

RECIPE = Path(__file__).parents[2] / "recipes" / "large" / "blip-b-16-14m.yaml"


def test_published_sizes():
    """Counted with the official classes, for 30 tokens; G are 1e9 MACs."""
    assert blip_image_macs(BLIP_B_16) / 1e9 == pytest.approx(17.6, abs=0.05)
    assert blip_text_macs(BLIP_B_16, 30) / 1e9 == pytest.approx(2.56, abs=0.005)
    assert blip_grounded_macs(BLIP_B_16, 30) / 1e9 == pytest.approx(5.89, abs=0.005)
    cost = BLIPTrainingCost(BLIP_B_16, 10, 8, mfu=0.5, num_text_tokens=30)
    # The official class computes keys and values for each of the three pairs an image is in.
    shared = 2 * BLIP_B_16.text_depth * keys_and_values_macs(197, 768, 768)
    assert (cost.forward_macs_per_pair + shared) / 1e9 == pytest.approx(64.5, abs=0.2)
    assert blip_image_macs(BLIP_L_16) / 1e9 == pytest.approx(61.6, abs=0.05)
    assert blip_grounded_macs(BLIP_L_16, 30) / 1e9 == pytest.approx(6.82, abs=0.005)


def flops_of(run):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


def test_a_step_has_the_flops_pytorch_counts():
    batch, tokens, queue = 4, 10, 8
    network = BLIP(replace(BLIP_MINI, vocab_size=60))
    module, config = BLIPPretraining(network, queue_size=queue), network.config
    given = {
        "images": torch.randn(batch, 3, 64, 64),
        "input_ids": torch.randint(4, 58, (batch, tokens)),
    }
    features = 2 * (config.dim + config.text_dim) * config.embed_dim + 3 * 2 * config.text_dim
    similarities = 4 * (batch + queue) * config.embed_dim
    cost = BLIPTrainingCost(config, 1, batch, mfu=1.0, num_text_tokens=tokens)
    expected = cost.forward_macs_per_pair + features + similarities
    assert flops_of(lambda: module.losses(given)) == pytest.approx(2 * batch * expected, rel=1e-9)


def test_two_images_cost_two_looks_and_the_mergers():
    pair = replace(
        BLIP_MINI, num_images=2, heads=("classes",), num_classes=2, merge_from=1, vocab_size=60
    )
    network, ids = BLIP(pair).eval(), torch.randint(4, 58, (3, 10))
    tokens = (torch.randn(3, 1 + math.prod(pair.grid), pair.dim),) * 2
    found = flops_of(lambda: network.ground(ids, tokens))
    assert found == 2 * 3 * blip_grounded_macs(pair, 10)


def test_the_recipe_says_what_it_costs():
    yaml = pytest.importorskip("yaml")
    recipe = yaml.safe_load(RECIPE.read_text())
    cost = recipe_cost(RECIPE, mfu=0.4, num_devices=32, num_text_tokens=30)
    assert isinstance(cost, BLIPTrainingCost) and cost.config == BLIP_B_16
    assert recipe["steps"] == steps_for(recipe["num_images"], 20, recipe["batch_size"])
    told = " ".join(RECIPE.read_text().replace("#", " ").split())
    assert (
        f"{cost.steps:,} steps, {cost.num_pairs:,} pairs, {cost.flops / 1e18:.1f} EFLOPs, "
        f"{cost.device_hours:.0f} device-hours, {cost.hours:.1f} hours on 32 devices"
    ) in told
    assert f"each device takes {cost.pairs_per_second:,.0f} pairs a second" in told
    epoch = steps_for(recipe["num_images"], 1, recipe["batch_size"])
    assert recipe["pretraining"]["ramp_steps"] == 2 * epoch
