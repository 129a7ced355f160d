"""D05, third part: where the LayerNorm of a block stands, in twelve blocks without a warm-up.

Three networks start from the same weights and see the same pictures; only the norms differ:
before each branch (ViT), after each sum (BERT), or none at all. The rate is constant from the
first step on, so nothing makes up for a bad start.
"""

from __future__ import annotations

import math
import sys
from functools import cache
from pathlib import Path

import torch
import torch.nn.functional as F
from mmlab import datasets
from mmlab.models.vit import ViT, ViTConfig
from mmlab.nn import PostNormBlock
from torch import nn
from torch.optim import AdamW

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments import protocol
from experiments.training import prepare

NORMS = ("pre", "post", "none")
# The middle one is where the question is put; the others show how much hangs on it.
RATES = (3e-4, 1e-3, 3e-3)
STEPS, LAST, BATCH = 160, 20, 64
# A loss beyond this, or none at all (NaN), is written down as this.
CAP = 10.0
CONFIG = ViTConfig(
    image_size=48,
    patch_size=12,
    dim=64,
    depth=12,
    num_heads=4,
    mlp_dim=256,
    num_classes=9,
)
CHANCE = math.log(CONFIG.num_classes)


@cache
def pictures():
    """Emoji in three styles, and the group of each."""
    emoji = datasets.emoji(split="train")
    labels, groups = emoji.targets("group")
    assert len(groups) == CONFIG.num_classes
    return prepare(emoji.images()), labels


def post_norm(block: nn.Module) -> PostNormBlock:
    """The same weights with the norms after the sums."""
    moved = PostNormBlock(
        CONFIG.dim,
        CONFIG.num_heads,
        CONFIG.mlp_dim,
        norm_eps=CONFIG.norm_eps,
    )
    moved.load_state_dict(block.state_dict())
    return moved


def network(norm: str, seed: int) -> ViT:
    """A ViT whose blocks have their norms before, after, or nowhere."""
    torch.manual_seed(seed)
    model = ViT(CONFIG)
    if norm == "post":
        model.blocks = nn.ModuleList(map(post_norm, model.blocks))
    if norm == "none":
        model.norm = nn.Identity()
        for block in model.blocks:
            block.norm1, block.norm2 = nn.Identity(), nn.Identity()
    return model


def losses(norm: str, rate: float, seed: int, steps: int) -> list[float]:
    """The loss of each step, at most ``CAP``."""
    images, labels = pictures()
    model = network(norm, seed)
    optimizer = AdamW(
        model.parameters(), rate, weight_decay=0.05, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(steps):
        rows = torch.randint(len(images), (BATCH,), generator=generator)
        loss = F.cross_entropy(model(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        value = loss.item()
        values.append(min(value, CAP) if math.isfinite(value) else CAP)
    return values


def name(norm: str, rate: float) -> str:
    return f"{norm} {rate:g}"


def run(condition: str, seed: int) -> dict[str, float]:
    """Mean loss of the last steps, and the worst loss of all."""
    norm, rate = condition.split()
    values = losses(norm, float(rate), seed, STEPS)
    return {"loss": sum(values[-LAST:]) / LAST, "worst": max(values)}


def best(figures: protocol.Figures, norm: str) -> list[float]:
    """The losses at the rate whose mean loss is lowest."""
    candidates = [figures[name(norm, rate)]["loss"] for rate in RATES]
    return min(candidates, key=sum)


def judge(figures: protocol.Figures) -> list[protocol.Finding]:
    """Three statements; the rules were written before the run."""
    at = {n: figures[name(n, RATES[1])]["loss"] for n in NORMS}
    same = protocol.difference(at["pre"], at["post"])
    own = protocol.difference(best(figures, "pre"), best(figures, "post"))
    guess = protocol.interval([loss - CHANCE for loss in at["none"]])
    return [
        protocol.Finding(
            ("VIT-13",),
            f"At a rate of {RATES[1]:g}, without warm-up, pre-norm learns faster than post-norm.",
            "the loss of pre minus that of post lies below zero, interval included",
            protocol.verdict(same.high < 0, same.holds_zero),
            f"loss of pre minus post {same}",
            same,
        ),
        protocol.Finding(
            ("VIT-13",),
            "Each at the best of its three rates, pre-norm still learns faster than post-norm.",
            "the same, with the rate of the lowest mean loss for each",
            protocol.verdict(own.high < 0, own.holds_zero),
            f"loss of pre minus post {own}",
            own,
        ),
        protocol.Finding(
            ("VIT-13",),
            f"Without any norm, twelve blocks do not train at a rate of {RATES[1]:g}.",
            "the loss lies above that of guessing, ln 9, interval included",
            protocol.verdict(guess.low > 0, guess.holds_zero),
            f"loss minus that of guessing {guess}",
            guess,
        ),
    ]


EXPERIMENT = protocol.Experiment(
    name="d05_norm",
    title="Pre-norm, post-norm and no norm in twelve blocks",
    claims=("VIT-13",),
    conditions=tuple(name(n, rate) for rate in RATES for n in NORMS),
    run=run,
    judge=judge,
    config={
        "depth": CONFIG.depth,
        "dim": CONFIG.dim,
        "steps": STEPS,
        "batch": BATCH,
        "rates": list(RATES),
        "warm-up": 0,
        "loss": f"mean of the last {LAST} steps, each at most {CAP:g}",
    },
)

if __name__ == "__main__":
    protocol.main(EXPERIMENT)
