from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis.blip2_cost import (
    LANGUAGE_MODELS,
    blip2_fused_macs,
    blip2_image_macs,
    blip2_query_macs,
    language_model_macs,
)
from mmlab.analysis.training_cost import BLIP2TrainingCost, recipe_cost
from mmlab.hub import model_config
from mmlab.models.blip2 import BLIP2, BLIP2_G_14, BLIP2_MINI, BLIP2Pretraining
from tests.models.tiny import TINY_BLIP2

RECIPES = Path(__file__).parents[2] / "recipes" / "large"
STAGES = {
    "blip2-g-14": (250_000, 1680),
    "blip2-g-14-opt-2.7b": (80_000, 1920),
    "blip2-g-14-flan-t5-xl": (80_000, 1520),
}
# Less than so many days on 16 A100s, with FlanT5-XXL in the second stage (BLIP-2, section 3.4).
DAYS, DEVICES = {1: 6, 2: 3}, 16


def test_published_sizes():
    """Counted with the official classes, for 32 tokens; G are 1e9 MACs."""
    assert blip2_image_macs(BLIP2_G_14) / 1e9 == pytest.approx(260, abs=0.5)
    assert blip2_query_macs(BLIP2_G_14) / 1e9 == pytest.approx(6.37, abs=0.005)
    assert blip2_fused_macs(BLIP2_G_14, 32) / 1e9 == pytest.approx(9.15, abs=0.005)


@pytest.mark.parametrize(
    ("name", "billions"),
    [("opt-2.7b", 2.65), ("opt-6.7b", 6.66), ("flan-t5-xl", 2.85), ("flan-t5-xxl", 11.1)],
)
def test_a_language_model_costs_its_weights_for_each_token(name, billions):
    """Twice the weights in FLOPs: long known of decoders. Of two stacks each sees a part."""
    sizes, prefix, tokens = LANGUAGE_MODELS[name], 32, 32
    macs = language_model_macs(sizes, prefix, tokens)
    if sizes.encodes:
        block = 4 * sizes.dim**2 + 3 * sizes.dim * sizes.mlp_dim
        words = sizes.dim * sizes.vocab_size
        encoder, decoder = (sizes.depth * (block + n * sizes.dim**2) for n in (0, 4))
        assert (encoder + decoder + 2 * words) / 1e9 == pytest.approx(billions, rel=0.01)
        # Two of the four projections of a look are on the encoder's side.
        own = decoder - sizes.depth * 2 * sizes.dim**2 + words
        theirs = encoder + sizes.depth * 2 * sizes.dim**2
        expected = prefix * theirs + tokens * own
    else:
        expected = (prefix + tokens) * billions * 1e9
    assert macs.forward == pytest.approx(expected, rel=0.02)
    assert macs.total == pytest.approx(2 * macs.forward, rel=0.02)


@pytest.mark.parametrize(
    ("config", "freeze_images", "num_devices"),
    [
        (TINY_BLIP2, True, 1),
        (TINY_BLIP2, False, 1),
        (replace(BLIP2_MINI, vocab_size=60), True, 1),
        (TINY_BLIP2, True, 2),
    ],
)
def test_a_step_has_the_flops_pytorch_counts(config, freeze_images, num_devices, monkeypatch):
    def gather(x):
        """On several devices, as if all had the same batch."""
        return torch.cat([x] * num_devices) if num_devices > 1 else x

    monkeypatch.setattr("mmlab.models.blip2.gather_with_gradient", gather)
    batch, tokens = 4, 10
    config = replace(config, freeze_images=freeze_images)
    module = BLIP2Pretraining(BLIP2(config))
    ids = torch.randint(4, 48, (batch, tokens))
    images = torch.randn(batch, 3, config.image_size, config.image_size)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = module.losses({"images": images, "input_ids": ids})
        forward = counter.get_total_flops()
        sum(losses.values()).backward()
    cost = BLIP2TrainingCost(config, 1, batch, mfu=1.0, num_text_tokens=tokens)
    cost = replace(cost, num_devices=num_devices)
    queries, width = config.num_queries, config.text_dim
    heads = (queries + 1) * width * config.embed_dim + 3 * queries * width * 2
    # The rows of each table learn, its columns are constants.
    similarities = 2 * num_devices * batch * queries * config.embed_dim
    pixels = 0 if freeze_images else 3 * config.image_size**2 * config.dim
    assert forward == 2 * batch * (cost.forward_macs_per_pair + heads + similarities)
    left_out = 2 * batch * (3 * heads + 2 * similarities - pixels)
    assert counter.get_total_flops() == cost.flops + left_out


def test_what_is_frozen_is_paid_once():
    cost = BLIP2TrainingCost(BLIP2_G_14, 10, 8, mfu=0.5, num_text_tokens=32)
    image = blip2_image_macs(BLIP2_G_14)
    learning = cost.forward_macs_per_pair - image
    assert cost.flops == 2 * (image + 3 * learning) * 80
    assert cost.recomputed_flops == 2 * learning * 80
    tuned = replace(cost, config=replace(BLIP2_G_14, freeze_images=False))
    assert tuned.flops > 2 * cost.flops


def test_the_stages_need_their_configurations():
    second = model_config("blip2-g-14-opt-2.7b")
    with pytest.raises(ValueError, match=r"prefix_dim must be 0 without .*, got 2560"):
        BLIP2TrainingCost(second, 1, 1, mfu=1.0)
    with pytest.raises(ValueError, match=r"prefix_dim must be 2048.*, got 2560"):
        BLIP2TrainingCost(second, 1, 1, mfu=1.0, language_model=LANGUAGE_MODELS["flan-t5-xl"])
    with pytest.raises(ValueError, match="mlp_matrices must be 2 or 3, got 4"):
        replace(LANGUAGE_MODELS["opt-2.7b"], mlp_matrices=4)


@pytest.mark.parametrize("name", STAGES)
def test_the_recipes_say_what_they_cost(name):
    path = RECIPES / f"{name}-129m.yaml"
    cost = recipe_cost(path, mfu=0.4, num_devices=DEVICES, num_text_tokens=32)
    assert isinstance(cost, BLIP2TrainingCost) and cost.config == model_config(name)
    assert cost.language_model == LANGUAGE_MODELS.get(name.removeprefix("blip2-g-14-"))
    assert (cost.steps, cost.batch_size) == STAGES[name]
    told = " ".join(path.read_text().replace("#", " ").split())
    assert (
        f"{cost.steps:,} steps, {cost.num_pairs:,} pairs, {cost.flops / 1e18:.1f} EFLOPs, "
        f"{cost.device_hours:.0f} device-hours, {cost.hours:.1f} hours on 16 devices"
    ) in told
    assert f"each device takes {cost.pairs_per_second:,.0f} pairs a second" in told


@pytest.mark.parametrize("stage", [1, 2])
def test_the_papers_time_is_that_of_a_lower_utilisation(stage):
    if stage == 1:
        name, cost = "blip2-g-14", recipe_cost(RECIPES / "blip2-g-14-129m.yaml", 0.4, DEVICES, 32)
    else:
        name, largest = "blip2-g-14-flan-t5-xl", model_config("blip2-g-14-flan-t5-xxl")
        sizes = LANGUAGE_MODELS["flan-t5-xxl"]
        cost = BLIP2TrainingCost(largest, *STAGES[name], 0.4, language_model=sizes)
        cost = replace(cost, num_devices=DEVICES, num_text_tokens=32)
    most = DAYS[stage] * 24 * DEVICES
    told = " ".join((RECIPES / f"{name}-129m.yaml").read_text().replace("#", " ").split())
    assert f"at most {most:,} device-hours, {most / cost.device_hours:.1f} times" in told
    assert stage == 1 or f"the {cost.device_hours:.0f} that the same count gives" in told
    share = 0.4 * cost.device_hours / most
    assert f"{100 * share:.0f} % utilisation" in told
