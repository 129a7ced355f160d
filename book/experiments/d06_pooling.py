"""D06: does it matter how a ViT reads out its picture?

Question. ViT reads the picture from a class token (section 3.1). Appendix D.3 reports that the mean
of all patch tokens serves as well, and that a first bad result with the mean came from the learning
rate alone. The head is an MLP in pre-training and one linear layer in fine-tuning.

Set-up. A tiny ViT (48 wide, 3 blocks, patches of 8 pixels) learns the colour of the largest object in
scenes of 32 pixels, with 8 classes, from 8,000 pictures, in 200 steps of 32. Three read-outs, six
learning rates a factor 2 apart, five seeds. A seed draws the pictures, the weights and the batches,
the same for all conditions, so differences are taken seed by seed. The rate of each read-out is
chosen by the mean accuracy on 2,000 validation pictures, and compared on 2,000 test pictures.

Rules, fixed after a pilot with one seed and before the run:

- *Same accuracy* (class token against average; linear against MLP head): confirmed if the whole 95 %
  interval of the difference lies within one point, the margin of the ledger; refuted if it leaves
  out zero and reaches beyond a point; else no difference seen, and the data are too few to call it
  the same.
- *Different rates* (class token against average): the ratio of the two best rates of each seed, as a
  number of doublings. Confirmed if its interval leaves out zero, refuted if it holds zero and lies within
  one doubling, the step of the grid; else no difference seen.

What this scale cannot tell. With 16 patches and 200 steps the read-out has little to do: what holds
for 12 layers and long pre-training need not show here. The MLP head is tried in training from scratch, and
not where the paper uses it, before a transfer to another task.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path

import torch

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlab.analysis import count_parameters
from mmlab.models.vit import ViT, ViTConfig

from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    difference,
    interval,
    main,
    verdict,
)
from experiments.training import accuracy, colour_task, fit

READOUTS = {
    "class token": {"pool": "class_token"},
    "average": {"pool": "average"},
    "class token, MLP head": {"pool": "class_token", "pre_logits": True},
}
RATES = {
    "5e-4": 5e-4,
    "1e-3": 1e-3,
    "2e-3": 2e-3,
    "4e-3": 4e-3,
    "8e-3": 8e-3,
    "1.6e-2": 1.6e-2,
}
STEPS, BATCH_SIZE, NUM_IMAGES = 200, 32, 8000
MARGIN = 0.01


def condition_name(readout: str, rate: str) -> str:
    """How a condition is called: ``"class token, lr 1e-3"``."""
    return f"{readout}, lr {rate}"


def tiny_vit(readout: str) -> ViT:
    """The network with one of ``READOUTS``."""
    config = ViTConfig(
        image_size=32,
        patch_size=8,
        dim=48,
        depth=3,
        num_heads=4,
        mlp_dim=96,
        num_classes=8,
        **READOUTS[readout],
    )
    return ViT(config)


def run(condition: str, seed: int) -> dict[str, float]:
    """Accuracies from 0 to 1, and the number of parameters."""
    readout, rate = condition.split(", lr ")
    images, labels = colour_task(NUM_IMAGES, "train", seed)
    torch.manual_seed(seed)
    model = tiny_vit(readout)
    fit(model, images, labels, STEPS, RATES[rate], seed, BATCH_SIZE)
    return {
        "validation": accuracy(
            model, *colour_task(2000, "validation", seed)
        ),
        "test": accuracy(model, *colour_task(2000, "test", seed)),
        "parameters": count_parameters(model),
    }


def best_rate(figures: Figures, readout: str) -> str:
    """The rate with the best mean accuracy on validation pictures."""
    return max(
        RATES,
        key=lambda rate: sum(
            figures[condition_name(readout, rate)]["validation"]
        ),
    )


def best_rates_by_seed(figures: Figures, readout: str) -> list[float]:
    """The best rate of each seed alone, in doublings (base-2 logarithm)."""
    columns = [
        figures[condition_name(readout, rate)]["validation"]
        for rate in RATES
    ]
    logs = [math.log2(rate) for rate in RATES.values()]
    best = [
        max(range(len(logs)), key=lambda i: scores[i])
        for scores in zip(*columns, strict=True)
    ]
    return [logs[i] for i in best]


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    return [
        _same_accuracy(
            figures,
            ("VIT-05", "VIT-11", "FLP-12"),
            "class token",
            "average",
            "Class token and average of the patches are within one point when each has its own best rate.",
        ),
        _different_rates(figures),
        _same_accuracy(
            figures,
            ("VIT-08", "VIT-26"),
            "class token",
            "class token, MLP head",
            "A linear head and an MLP head are within one point when each has its own best rate.",
        ),
    ]


def _same_accuracy(
    figures: Figures,
    claims: tuple[str, ...],
    first: str,
    second: str,
    statement: str,
) -> Finding:
    rates = [best_rate(figures, readout) for readout in (first, second)]
    names = [
        condition_name(readout, rate)
        for readout, rate in zip((first, second), rates, strict=True)
    ]
    tests = [figures[name]["test"] for name in names]
    gap = difference(*tests)
    within = gap.low >= -MARGIN and gap.high <= MARGIN
    means = [interval(test).mean for test in tests]
    return Finding(
        claims,
        statement,
        "Confirmed: the interval of the difference lies within ±1 point. Refuted: it leaves out zero "
        "and reaches beyond a point.",
        verdict(within, undecided=not within and gap.holds_zero),
        f"{names[0]}: {means[0]:.1%}; {names[1]}: {means[1]:.1%}; difference "
        f"{100 * gap.mean:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}].",
        gap,
    )


def _different_rates(figures: Figures) -> Finding:
    doublings = difference(
        best_rates_by_seed(figures, "average"),
        best_rates_by_seed(figures, "class token"),
    )
    same = doublings.low > -1 and doublings.high < 1
    return Finding(
        ("VIT-11",),
        "Class token and average of the patches have their best accuracy at different rates.",
        "Confirmed: the interval of the ratio of the best rates, in doublings, leaves out zero. "
        "Refuted: it holds zero and lies within one doubling.",
        verdict(
            not doublings.holds_zero,
            undecided=doublings.holds_zero and not same,
        ),
        f"The average's best rate is {doublings.mean:+.1f} doublings from the class token's "
        f"[{doublings.low:+.1f}, {doublings.high:+.1f}]; by the mean over seeds "
        f"{best_rate(figures, 'average')} against {best_rate(figures, 'class token')}.",
        doublings,
    )


EXPERIMENT = Experiment(
    name="d06_pooling",
    title="Class token or average, linear or MLP head, over six learning rates",
    claims=("VIT-05", "VIT-08", "VIT-11", "VIT-26", "FLP-12"),
    conditions=tuple(
        condition_name(readout, rate)
        for readout in READOUTS
        for rate in RATES
    ),
    run=run,
    judge=judge,
    config={
        "task": "colour of the largest object, 32 px, 8 classes",
        "model": "ViT: patch 8, dim 48, depth 3, 4 heads, MLP 96",
        "training pictures": NUM_IMAGES,
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "rates": list(RATES.values()),
        "optimiser": "AdamW, weight decay 0.05, warm-up 10 %, cosine, gradient norm 1",
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
