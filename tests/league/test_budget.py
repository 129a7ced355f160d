from dataclasses import replace

import pytest
import torch
from torch import nn

from mmlab.analysis.training_cost import TrainingCost
from mmlab.hub import model_config
from mmlab.league import budget
from mmlab.league.budget import StepCost, step_cost, with_steps
from mmlab.training.recipe import Recipe
from mmlab.training.run import new_model, training_data

BATCH, WIDE, NARROW = 4, 8, 3


class TwoLayers(nn.Module):
    """4 x 8 times 8 x 8, then 8 x 3: products that can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(nn.Linear(WIDE, WIDE), nn.Linear(WIDE, NARROW))

    def losses(self, batch):
        return {"loss": self.network(batch["x"]).sum()}


class Numbers:
    def __len__(self):
        return 16

    def batch(self, rows, share, generator):
        return {"x": torch.randn(len(rows), WIDE, generator=generator)}


def test_products_are_counted_forward_and_backward(monkeypatch):
    monkeypatch.setattr(budget, "new_model", lambda recipe, data: TwoLayers())
    cost = step_cost(Recipe(batch_size=BATCH), Numbers(), num_steps=3)
    first, second = 2 * BATCH * WIDE * WIDE, 2 * BATCH * WIDE * NARROW
    # Nobody needs the gradient of the input.
    assert cost.flops == 2 * first + 3 * second
    assert cost.error == 0
    assert cost.num_steps == 3


def test_a_dual_encoder_costs_what_the_arithmetic_says():
    recipe = Recipe(system="clip", size="vit-mini", data="scenes", num_images=64, batch_size=16)
    data = training_data(recipe)
    counted = step_cost(recipe, data, num_steps=1).flops
    words = {"vocab_size": data.tokenizer.vocab_size, "end_id": data.tokenizer.sep_id}
    config = replace(model_config("clip-vit-mini"), **words)
    told = TrainingCost(config, steps=1, batch_size=16, mfu=1.0).flops
    # The arithmetic gives the first layer a gradient for the pixels, which nobody asks for.
    assert 0.95 * told < counted < told


@pytest.mark.parametrize("system", ["uniter", "albef"])
def test_the_count_is_the_same_every_time_and_near_that_of_all_steps(system):
    recipe = Recipe(system=system, data="scenes", num_images=64, batch_size=8)
    data = training_data(recipe)
    few, again = (step_cost(recipe, data, num_steps=4) for _ in range(2))
    assert few == again
    # Other steps have texts of other lengths, and UNITER's have other tasks.
    assert few.error > 0


def test_counting_leaves_the_weights_alone():
    recipe = Recipe(system="clip", size="vit-mini", data="scenes", num_images=32, batch_size=8)
    data = training_data(recipe)
    before = new_model(recipe, data).state_dict()
    step_cost(recipe, data, num_steps=1)
    after = new_model(recipe, data).state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_budget_buys_whole_steps_within_five_percent():
    cost = StepCost(3e9, 0.0, 1)
    for money in (1e11, 1.23e12, 7.7e12):
        assert abs(cost.steps(money) * cost.flops / money - 1) < 0.05
    assert cost.steps(1.0) == 1


def test_the_warm_up_takes_a_tenth_at_most():
    recipe, cost = Recipe(warmup=50), StepCost(1e9, 0.0, 1)
    assert with_steps(recipe, cost, 1e11).warmup == 10
    assert with_steps(recipe, cost, 1e12).warmup == 50
    assert with_steps(recipe, cost, 1e11).steps == 100
