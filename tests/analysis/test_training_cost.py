import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis.training_cost import A100_BF16_PEAK, TrainingCost, recipe_cost, steps_for
from mmlab.datasets.shards import _expand
from mmlab.models.clip import CLIP, CLIP_VIT_B_16, CLIP_VIT_MINI, CLIPPretraining
from mmlab.training.recipe import read_recipe

RECIPE = Path(__file__).parents[2] / "recipes" / "large" / "clip-vit-b-16-cc12m.yaml"
COST = TrainingCost(CLIP_VIT_B_16, steps=1000, batch_size=100, mfu=0.5, peak_flops=1e14)


def test_the_arithmetic_by_hand():
    # open_clip's table of profiles: 41.09 GFLOPs for an image and a caption of ViT-B/16.
    assert COST.num_pairs == 100_000
    similarities = 2 * 100 * 512
    assert 2 * (COST.forward_macs_per_pair - similarities) / 1e9 == pytest.approx(41.086, abs=1e-3)
    assert COST.flops == 3 * 2 * COST.forward_macs_per_pair * 100_000
    seconds = COST.flops / 0.5e14
    assert COST.device_hours == pytest.approx(seconds / 3600)
    assert COST.pairs_per_second == pytest.approx(100_000 / seconds)


def test_devices_share_the_hours_and_mfu_divides_them():
    many, lazy = replace(COST, num_devices=8), replace(COST, mfu=0.25)
    assert many.device_hours == COST.device_hours and many.hours == COST.hours / 8
    assert lazy.flops == COST.flops and lazy.device_hours == 2 * COST.device_hours
    again = replace(COST, recompute=True)
    assert again.flops == COST.flops
    assert again.device_hours == pytest.approx(4 / 3 * COST.device_hours)


def test_shorter_captions_cost_less():
    short = replace(COST, num_text_tokens=32)
    assert replace(COST, num_text_tokens=77) == replace(COST, num_text_tokens=77)
    assert replace(COST, num_text_tokens=77).flops == COST.flops > short.flops


def test_a_step_has_the_flops_pytorch_counts():
    """The backward pass of the first layer needs no gradient of the pixels, hence a bit less."""
    config = replace(CLIP_VIT_MINI, stem="linear")
    batch_size = 6
    cost = TrainingCost(config, 1, batch_size, mfu=1.0)
    torch.manual_seed(0)
    model = CLIPPretraining(CLIP(config))
    images = torch.randn(batch_size, 3, 48, 48)
    ids = torch.randint(4, 4096, (batch_size, config.context_length))
    ids[:, -1] = 3
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        losses = model.losses({"images": images, "input_ids": ids})
        forward = counter.get_total_flops()
        sum(losses.values()).backward()
    assert forward == 2 * batch_size * cost.forward_macs_per_pair
    pixels = 2 * batch_size * 3 * config.image_size**2 * config.dim
    assert counter.get_total_flops() == cost.flops - pixels


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("mfu", 0.0),
        ("mfu", 40.0),
        ("peak_flops", -1.0),
        ("num_devices", 0),
        ("num_text_tokens", 78),
    ],
)
def test_wrong_values_are_named(name, value):
    with pytest.raises(ValueError, match=f"{name} must be .*, got {value}"):
        replace(COST, **{name: value})


def test_steps_cover_the_epochs():
    assert steps_for(1000, 2, 100) == 20
    assert steps_for(1001, 2, 100) == 21
    with pytest.raises(ValueError, match="must be positive"):
        steps_for(0, 1, 1)


def test_the_recipe_says_what_it_costs():
    recipe = read_recipe(RECIPE)
    cost = recipe_cost(RECIPE, mfu=0.4, num_devices=16)
    assert cost.config == CLIP_VIT_B_16 and cost.peak_flops == A100_BF16_PEAK
    assert recipe.steps == steps_for(recipe.num_images, 32, recipe.batch_size)
    told = " ".join(RECIPE.read_text().replace("#", " ").split())
    assert (
        f"{cost.steps:,} steps, {cost.num_pairs:,} pairs, {cost.flops / 1e18:.1f} EFLOPs, "
        f"{cost.device_hours:.0f} device-hours, {cost.hours:.1f} hours on 16 devices"
    ) in told
    assert f"each device takes {cost.pairs_per_second:,.0f} pairs a second" in told


def test_the_recipe_fits_the_devices():
    """That the engine takes it is in tests/training/test_streamed.py."""
    recipe = read_recipe(RECIPE)
    assert len(_expand(*recipe.shards)) == 2176 >= 16 * recipe.workers
    assert recipe.batch_size % 16 == 0
    # The settings of the paper's ViTs (the appendix on hyperparameters).
    told = (recipe.lr, recipe.beta2, recipe.eps, recipe.weight_decay, recipe.warmup)
    assert told == (5e-4, 0.98, 1e-6, 0.2, 2000)


@pytest.mark.parametrize("text", ["", "system: vit", "system: clip\nsize: vit-b-17", "{", "- 1"])
def test_other_files_are_refused(tmp_path, text):
    pytest.importorskip("yaml")
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(repr(str(path)))):
        recipe_cost(path, mfu=0.4)
    with pytest.raises(ValueError, match="cannot be read"):
        recipe_cost(tmp_path / "none.yaml", mfu=0.4)
