"""D15: what the factor on the cosines does for CLIP: fixed, learned, and learned without a limit.

Question. CLIP multiplies its cosines by exp(t), learns t from a start of ln(1 / 0.07), and clips the
factor at 100 "to prevent training instability" (section 2.5). What does each of the three do?

Set-up. Two towers as small as can be, so that thousands of steps are cheap: an MLP with one hidden layer on
the pixels (16 x 16), and the mean of the vectors of the word pieces. They learn emoji of three vendors with their
English names, 400 steps of 128 pairs. They are tested on Fluent, a fourth vendor: how often is a drawing's own
name among the first five of all names? The factor is fixed at 1, at 1 / 0.07 or at 100, or learned from 1 / 0.07
and clipped at 100. Adam moves a parameter by about its rate a step, so in so few steps a learned t
hardly gets anywhere: two more conditions let it move 30 times as fast, clipped and free. A seed draws weights and batches,
the same for all conditions, so differences are taken seed by seed.

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds, paired:

- *A factor is needed*: learned minus fixed at 1. Confirmed above zero, refuted below.
- *Learning it helps*: learned minus fixed at its own start; and learned fast minus the same. Confirmed above
  zero, refuted below, else no difference seen.
- *It grows*: the last factor, learned, minus its start. Confirmed above zero, refuted below.
- *The limit is reached*: the last factor of the fast, free condition minus 100. Confirmed above zero, refuted below.
- *The limit helps*: fast and clipped minus fast and free. Confirmed above zero, refuted below.

What this scale cannot tell. These towers have no attention and no depth. The instability that the clip prevents was met in trainings of many thousand
steps with batches of 32,768. That a short training does without a limit says nothing about those.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch.nn.functional as F
from jaxtyping import Float, Int64
from mmlab.datasets import Tokenizer, emoji, train_wordpiece
from mmlab.models.clip import INITIAL_SCALE, MAX_SCALE
from mmlab.objectives.contrastive import contrastive_loss
from mmlab.tasks.retrieval import ranks
from mmlab.training.schedules import rate_factor, set_rate
from mmlab.training.seeds import generator
from torch import Tensor, nn
from torch.optim import Adam, AdamW

from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    difference,
    interval,
    main,
    verdict,
)
from experiments.training import Batch, Pictures, prepare

STEPS, BATCH_SIZE, LR = 400, 128, 2e-3
FAST = 30
IMAGE_SIZE, CONTEXT = 16, 16
HIDDEN, EMBED_DIM = 256, 64


@dataclass(frozen=True)
class Temperature:
    """Where the factor starts, how fast it moves (0: not at all), and its upper limit."""

    start: float = INITIAL_SCALE
    speed: float = 1.0
    limit: float = MAX_SCALE


TEMPERATURES = {
    "fixed at 1": Temperature(1.0, speed=0),
    "fixed at 14.3": Temperature(speed=0),
    "fixed at 100": Temperature(MAX_SCALE, speed=0),
    "learned": Temperature(),
    "fast, clipped": Temperature(speed=FAST),
    "fast, free": Temperature(speed=FAST, limit=math.inf),
}
MEASURE, LAST = "R@5 on Fluent", "last factor"


class Towers(nn.Module):
    """The smallest dual encoder: pixels through an MLP, word pieces through their mean."""

    def __init__(self, tokenizer: Tokenizer, start: float):
        super().__init__()
        self.image_encoder = nn.Sequential(
            nn.Flatten(),
            nn.Linear(3 * IMAGE_SIZE**2, HIDDEN),
            nn.GELU(),
            nn.Linear(HIDDEN, EMBED_DIM),
        )
        self.text_encoder = nn.EmbeddingBag(
            tokenizer.vocab_size,
            EMBED_DIM,
            mode="mean",
            padding_idx=tokenizer.pad_id,
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(start)))

    def forward(
        self, images: Batch, input_ids: Int64[Tensor, "batch tokens"]
    ) -> Float[Tensor, ""]:
        """The loss of a batch of pairs."""
        return contrastive_loss(
            self.image_encoder(images),
            self.text_encoder(input_ids),
            self.logit_scale.exp(),
        )


@lru_cache
def pairs() -> tuple[Pictures, Int64[Tensor, "num tokens"], Tokenizer]:
    """Pictures to train on and the tokens of their names; what cuts the names."""
    data = emoji("train", image_size=IMAGE_SIZE)
    names = data.captions("en")
    tokenizer = train_wordpiece(list(dict.fromkeys(names)), 1500)
    ids = tokenizer(names, CONTEXT, "max_length").input_ids
    return data.images(), ids, tokenizer


def train(
    temperature: Temperature, seed: int
) -> tuple[Towers, list[float], list[float]]:
    """The trained towers, and the loss and the factor after each step."""
    images, ids, tokenizer = pairs()
    torch.manual_seed(seed)
    model = Towers(tokenizer, temperature.start)
    towers = [*model.image_encoder.parameters()]
    towers += model.text_encoder.parameters()
    optimizer = AdamW(towers, weight_decay=0.05, fused=True)
    # The factor has an optimiser of its own, for its own rate.
    of_factor = Adam([model.logit_scale])
    draws, losses, factors = generator(seed), [], []
    for step in range(STEPS):
        rate = LR * rate_factor("cosine", step, STEPS, STEPS // 10)
        set_rate(optimizer, rate)
        set_rate(of_factor, rate * temperature.speed)
        rows = torch.randint(len(images), (BATCH_SIZE,), generator=draws)
        loss = model(prepare(images[rows]), ids[rows])
        model.zero_grad()
        loss.backward()
        optimizer.step()
        of_factor.step()
        model.logit_scale.data.clamp_(0, math.log(temperature.limit))
        losses.append(loss.item())
        factors.append(model.logit_scale.exp().item())
    return model.eval(), losses, factors


@torch.no_grad()
def recall(model: Towers, vendor: str) -> float:
    """Share of the drawings whose own name is among the first five of all names."""
    data = emoji("train", vendor, image_size=IMAGE_SIZE)
    tokenizer = pairs()[2]
    ids = tokenizer(data.captions("en"), CONTEXT, "max_length").input_ids
    images = F.normalize(
        model.image_encoder(prepare(data.images())), dim=1
    )
    texts = F.normalize(model.text_encoder(ids), dim=1)
    own = torch.arange(len(data))
    return (ranks(images, texts, own, own) <= 5).float().mean().item()


def run(condition: str, seed: int) -> dict[str, float]:
    """R@5 on the unseen vendor and on a seen one, the last loss and the last factor."""
    model, losses, factors = train(TEMPERATURES[condition], seed)
    return {
        MEASURE: recall(model, "fluent"),
        "R@5 on Noto": recall(model, "noto"),
        "last loss": sum(losses[-20:]) / 20,
        LAST: factors[-1],
    }


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    return [
        _better(
            figures,
            "A learned factor does better than none.",
            "learned",
            "fixed at 1",
        ),
        _better(
            figures,
            "A learned factor does better than one fixed at its start.",
            "learned",
            "fixed at 14.3",
        ),
        _better(
            figures,
            "A factor that learns fast does better than one fixed at its start.",
            "fast, clipped",
            "fixed at 14.3",
        ),
        _above(
            figures,
            "A learned factor grows.",
            "learned",
            INITIAL_SCALE,
        ),
        _above(
            figures,
            "A factor that learns fast passes 100 where nothing stops it.",
            "fast, free",
            MAX_SCALE,
        ),
        _better(
            figures,
            "The limit of 100 helps a factor that learns fast.",
            "fast, clipped",
            "fast, free",
        ),
    ]


def _better(
    figures: Figures, statement: str, first: str, second: str
) -> Finding:
    gap = difference(figures[first][MEASURE], figures[second][MEASURE])
    means = [
        interval(figures[name][MEASURE]).mean for name in (first, second)
    ]
    return Finding(
        ("CLP-10",),
        statement,
        "Confirmed: the interval of the difference lies above zero. Refuted: below.",
        verdict(gap.low > 0, undecided=gap.holds_zero),
        f"{MEASURE}, {first}: {means[0]:.1%}, {second}: {means[1]:.1%}; difference "
        f"{100 * gap.mean:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}].",
        gap,
    )


def _above(
    figures: Figures, statement: str, condition: str, bound: float
) -> Finding:
    last = figures[condition][LAST]
    gap = interval([value - bound for value in last])
    return Finding(
        ("CLP-10",),
        statement,
        "Confirmed: the interval of the last factor lies above the bound. Refuted: below.",
        verdict(gap.low > 0, undecided=gap.holds_zero),
        f"last factor, {condition}: {interval(last)}, against {bound:.3g}.",
        gap,
    )


EXPERIMENT = Experiment(
    name="d15_temperature",
    title="CLIP's factor on cosines: fixed, learned, clipped and free",
    claims=("CLP-10",),
    conditions=tuple(TEMPERATURES),
    run=run,
    judge=judge,
    config={
        "task": "emoji of three vendors and their English names, 16 px; test on Fluent",
        "model": "an MLP on pixels (256 hidden), the mean of word pieces, 64 shared",
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "rate": LR,
        "rate of the factor": "the same, or 30 times as high",
        "optimiser": "AdamW, weight decay 0.05, warm-up 10 %, cosine",
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
