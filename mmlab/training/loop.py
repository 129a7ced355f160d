"""The training loop: one for all systems.

A model to train is a module with ``losses(batch) -> dict[str, Tensor]``, whose sum is the loss, and
a ``network``, the part that is used afterwards. The loop needs to know nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch import Tensor, nn
from torch.optim import Optimizer

from mmlab.datasets.shards import State
from mmlab.training.batches import Batches, StreamedBatches
from mmlab.training.ema import make_average, update_average
from mmlab.training.optim import Rule, decays, make_optimizer
from mmlab.training.recipe import Recipe
from mmlab.training.schedules import rate_factor, set_rate
from mmlab.training.seeds import seed_everything

Figures = dict[str, float | int]
"""What a step tells: its number, the loss, the rate …"""

_STEP = 3


class TrainingError(RuntimeError):
    """A run that cannot go on; the message says at which step, and what to try."""


@dataclass
class TrainingState:
    """All that changes while training. ``step`` is the number of steps done.

    ``positions`` says where the batches of each process stand, as of the last checkpoint.
    ``metadata`` does not change: it is what the weights need beside themselves, for their file.
    Neither does ``frozen``, the fingerprint of weights that do not learn, once it is known, nor
    ``names_losses``: whether a step's only loss is told by its name as well.
    """

    model: nn.Module
    optimizer: Optimizer
    average: nn.Module | None = None
    step: int = 0
    positions: list[State] = field(default_factory=list)
    metadata: dict[str, str] = field(default_factory=dict)
    frozen: str | None = None
    names_losses: bool = False


class Losses(nn.Module):
    """Calls ``losses`` as ``forward``, which is what autocast and gradient averaging wrap."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses by name."""
        return self.model.losses(batch)


def make_state(
    model: nn.Module, recipe: Recipe, accelerator: Accelerator, rule: Rule = decays
) -> TrainingState:
    """The state before the first step, on the device of this process; ``rule`` is for the decay."""
    if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
        # Batch norms that see the whole batch; PyTorch has them for GPUs only.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    model = model.to(accelerator.device)
    betas = (0.9, recipe.beta2)
    optimizer = make_optimizer(model, recipe.lr, recipe.weight_decay, betas, recipe.eps, rule)
    average = make_average(model.network) if recipe.ema_decay else None
    return TrainingState(model, optimizer, average)


def train(
    state: TrainingState,
    batches: Batches | StreamedBatches,
    recipe: Recipe,
    accelerator: Accelerator,
    after_step: Callable[[Figures], None],
) -> None:
    """Take the steps that are left; ``after_step`` gets the figures of each.

    TrainingError if the loss or the gradient is no number: the step is then not taken.
    """
    model, optimizer = accelerator.prepare(Losses(state.model), state.optimizer)
    model.train()
    for batch in batches.loader(state.step, recipe.steps):
        seed_everything(recipe.seed, _STEP, state.step, accelerator.process_index)
        factor = rate_factor(
            recipe.schedule, state.step, recipe.steps, recipe.warmup, recipe.end_lr / recipe.lr
        )
        set_rate(optimizer, recipe.lr * factor)
        losses = model(send_to_device(batch, accelerator.device, non_blocking=True))
        accelerator.backward(sum(losses.values()))
        norm = accelerator.clip_grad_norm_(model.parameters(), recipe.clip_norm or math.inf)
        figures = _figures(losses, norm, recipe.lr * factor, accelerator, state.names_losses)
        figures |= _totals(batches.counts(), accelerator)
        check_finite(figures, state.step + 1)
        optimizer.step()
        optimizer.zero_grad()
        if state.average is not None:
            update_average(state.average, state.model.network, recipe.ema_decay)
        state.step += 1
        after_step({"step": state.step, **figures})


def _figures(
    losses: dict[str, Tensor], norm: Tensor, rate: float, accelerator: Accelerator, names: bool
) -> Figures:
    """The loss, its parts where there are several, averaged over the processes; rate and norm."""
    values = {"loss": sum(losses.values()), **(losses if names or len(losses) > 1 else {})}
    values = accelerator.reduce({k: v.detach().float() for k, v in values.items()}, "mean")
    numbers = {name: value.item() for name, value in values.items()}
    return {**numbers, "lr": rate, "gradient_norm": float(norm)}


def _totals(counts: dict[str, int], accelerator: Accelerator) -> Figures:
    """Counts of all processes together."""
    totals = {name: torch.tensor(n, device=accelerator.device) for name, n in counts.items()}
    return {name: total.item() for name, total in accelerator.reduce(totals, "sum").items()}


def check_finite(figures: Figures, step: int) -> None:
    """TrainingError, with what to try, if the loss or the gradient norm of a step is no number."""
    for name in ("loss", "gradient_norm"):
        if not math.isfinite(figures[name]):
            what = name.replace("_", " ")
            raise TrainingError(
                f"the {what} is {figures[name]} at step {step}; try a lower lr or a longer warmup"
            )
