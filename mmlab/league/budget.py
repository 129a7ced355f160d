"""How many steps a budget of FLOPs buys: counted on steps of the training itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import nn

from mmlab.league.finetuning import counted_flops
from mmlab.training.batches import Batches, TrainingData
from mmlab.training.recipe import Recipe
from mmlab.training.run import new_model

COUNTED_STEPS = 64
"""Steps to count on: texts differ in length, and where tasks take turns, steps differ more."""


@dataclass(frozen=True)
class StepCost:
    """FLOPs of one step, forward and backward, as counted on ``num_steps`` steps.

    ``error`` is the standard error of ``flops``.
    """

    flops: float
    error: float
    num_steps: int

    def steps(self, budget: float) -> int:
        """Whole steps for a ``budget`` of FLOPs, as near to it as can be; at least one."""
        return max(1, round(budget / self.flops))


def step_cost(recipe: Recipe, data: TrainingData, num_steps: int = COUNTED_STEPS) -> StepCost:
    """What a step of this recipe costs, all passes of its module included (twins, false pairs).

    What is counted, ``counted_flops`` says.
    """
    module = new_model(recipe, data).train()
    batches = Batches(data, recipe.batch_size, recipe.seed)
    counts = torch.tensor([_count(module, batches[i]) for i in range(num_steps)]).double()
    error = counts.std().item() / math.sqrt(num_steps) if num_steps > 1 else 0.0
    return StepCost(counts.mean().item(), error, num_steps)


def _count(module: nn.Module, batch: dict[str, torch.Tensor]) -> float:
    counted = counted_flops(lambda: sum(module.losses(batch).values()))
    module.zero_grad()
    return counted


def with_steps(recipe: Recipe, cost: StepCost, budget: float) -> Recipe:
    """The recipe with as many steps as the budget buys; the warm-up takes at most a tenth."""
    steps = cost.steps(budget)
    return replace(recipe, steps=steps, warmup=min(recipe.warmup, steps // 10))
