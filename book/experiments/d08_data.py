"""D08: how much data does a ViT need before it beats a convolutional network?

Question. Trained on ImageNet's 1.3 million pictures alone, ViT stays a few points below ResNets of its
size; trained on 14 to 300 million it is ahead (sections 1 and 4.3). The reason offered is that it
must learn what a convolution has built in: locality and translation equivariance. DeiT (Touvron et
al. 2020) closes the gap with augmentation and with a convolutional teacher.

Set-up. Colour of the largest object (8 classes) in scenes of 32 pixels; 500 to 32,000 training
pictures; always 400 steps of 32, so more data is more variety and not more training. A CNN of five
3 x 3 convolutions and a ViT with patches of 8 pixels, of about equal parameters and equal
multiplications (``costs`` counts them). Both also with *augmentation* (random mirror images and
quarter turns, which leave the answer as it is); the ViT also *distilled* as in DeiT (half of its loss
is to name what the CNN of the same seed and data names); and a *small* and a *large* ViT. Five seeds;
a seed draws pictures, weights and batches. Learning rates were chosen by a pilot on 4,000 pictures.

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds, paired:

- *CNN ahead on few pictures* (VIT-15, VIT-16): CNN minus ViT at 500 pictures. Confirmed if the
  interval lies above zero, refuted if below.
- *Data close the gap* (VIT-17): the gap at 500 pictures minus the gap at 32,000. Confirmed if its
  interval lies above zero, refuted if below.
- *Where the curves cross* (VIT-20), for plain, augmented and distilled training (distilled: against the
  plain CNN, its teacher). An arm crosses between the largest size at which the CNN is ahead and the
  first one from which on the ViT is ahead, each by an interval without zero. The note's claim is one
  threshold for all. Confirmed if all arms cross and their ranges of sizes overlap; refuted if two
  ranges do not overlap, or if one arm crosses and in another the CNN is still ahead at the largest
  size; else no difference seen.
- *Help* (VIT-20): augmentation and distillation, each against the plain ViT at 500 pictures, one
  finding each. Confirmed if the interval lies above zero, refuted if below.
- *Larger models need more data* (VIT-21): (large minus small ViT at 32,000) minus (large minus small at
  500). Confirmed if the interval lies above zero, refuted if below. And all sizes gain from data:
  confirmed if for each ViT the interval of 32,000 minus 500 pictures lies above zero, else refuted.

What this scale cannot tell. 400 steps are 12,800 pictures seen: the largest set is not even seen once,
and a model may be short of training and not of data. The paper trains hundreds of times longer where
data are many. So a crossing that is absent here refutes nothing about 300 million pictures. Scenes
have sharp edges and flat colours, which suit both learners.
"""

from __future__ import annotations

import sys
from functools import lru_cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Generator, Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlab.analysis import count_parameters, vit_macs
from mmlab.datasets.transforms import random_flip
from mmlab.models.vit import ViT, ViTConfig

from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    interval,
    main,
    verdict,
)
from experiments.training import (
    Batch,
    Labels,
    Pictures,
    accuracy,
    colour_task,
    cross_entropy,
    fit,
)

SIZES = (500, 1500, 4000, 12000, 32000)
LEARNERS = (
    "CNN",
    "ViT",
    "CNN, augmented",
    "ViT, augmented",
    "ViT, distilled",
    "ViT, small",
    "ViT, large",
)
ARMS = {
    "plain": ("CNN", "ViT"),
    "augmented": ("CNN, augmented", "ViT, augmented"),
    "distilled": ("CNN", "ViT, distilled"),
}
STEPS, BATCH_SIZE = 400, 32
RATES = {"CNN": 4e-3, "ViT": 8e-3, "ViT, large": 2e-3}
WIDTHS = (12, 24, 32, 32, 32)
VIT = ViTConfig(
    image_size=32,
    patch_size=8,
    dim=32,
    depth=3,
    num_heads=4,
    mlp_dim=64,
    num_classes=8,
)
SHAPES = {
    "ViT, small": {"dim": 16, "depth": 2, "mlp_dim": 32},
    "ViT, large": {"dim": 64, "depth": 3, "mlp_dim": 128},
}


class SmallCNN(nn.Module):
    """Five convolutions, three of them with stride 2, the mean over the picture, a linear head."""

    def __init__(self):
        super().__init__()
        inputs = (3, *WIDTHS)
        strides = (2, 2, 2, 1, 1)
        layers = zip(inputs, WIDTHS, strides, strict=False)
        self.layers = nn.Sequential(
            *(self._layer(*sizes) for sizes in layers)
        )
        self.head = nn.Linear(WIDTHS[-1], 8)

    @staticmethod
    def _layer(inputs: int, outputs: int, stride: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        )

    def forward(self, images: Batch) -> Float[Tensor, "batch classes"]:
        """Logits."""
        return self.head(self.layers(images).mean(dim=(2, 3)))


def cnn_macs() -> int:
    """Multiplications of one 32-pixel picture through ``SmallCNN``."""
    inputs, sides = (3, *WIDTHS), (16, 8, 4, 4, 4)
    layers = zip(inputs, WIDTHS, sides, strict=False)
    return (
        sum(9 * a * b * side**2 for a, b, side in layers)
        + 8 * (WIDTHS[-1])
    )


def new_model(learner: str) -> nn.Module:
    """Fresh weights, from PyTorch's global random state."""
    if learner.startswith("CNN"):
        return SmallCNN()
    return ViT(vit_config(learner))


def vit_config(learner: str) -> ViTConfig:
    """The middle size, but for the learners of ``SHAPES``."""
    return ViTConfig(**{**vars(VIT), **SHAPES.get(learner, {})})


def costs() -> dict[str, tuple[int, int]]:
    """Parameters and multiplications a picture, by learner."""
    return {
        learner: (
            count_parameters(new_model(learner)),
            cnn_macs()
            if learner == "CNN"
            else vit_macs(vit_config(learner)),
        )
        for learner in ("CNN", "ViT", "ViT, small", "ViT, large")
    }


def turn_and_mirror(images: Pictures, generator: Generator) -> Pictures:
    """One of the eight symmetries of the square for each picture."""
    images = random_flip(images, generator=generator)
    images = random_flip(images.mT, generator=generator).mT
    transposed = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(transposed[:, None, None, None], images.mT, images)


def hard_distillation(
    teacher: nn.Module,
    model: nn.Module,
    images: Batch,
    labels: Labels,
) -> Float[Tensor, ""]:
    """Half the loss is the label, half the teacher's answer (DeiT, equation 3), on one head."""
    with torch.no_grad():
        answers = teacher(images).argmax(dim=-1)
    logits = model(images)
    by_label = F.cross_entropy(logits, labels)
    return (by_label + F.cross_entropy(logits, answers)) / 2


@lru_cache(maxsize=len(SIZES))
def trained_cnn(num: int, seed: int) -> nn.Module:
    """The CNN of a size and a seed: a learner itself, and the teacher."""
    torch.manual_seed(seed)
    data = colour_task(num, "train", seed)
    return fit(SmallCNN(), *data, STEPS, RATES["CNN"], seed, BATCH_SIZE)


def trained(learner: str, num: int, seed: int) -> nn.Module:
    """Any learner after its training on ``num`` pictures."""
    if learner == "CNN":
        return trained_cnn(num, seed)
    loss = cross_entropy
    if learner == "ViT, distilled":
        loss = partial(hard_distillation, trained_cnn(num, seed))
    torch.manual_seed(seed)
    return fit(
        new_model(learner),
        *colour_task(num, "train", seed),
        STEPS,
        RATES.get(learner, RATES[learner[:3]]),
        seed,
        BATCH_SIZE,
        turn_and_mirror if learner.endswith("augmented") else None,
        loss,
    )


def condition_name(learner: str, num: int) -> str:
    """How a condition is called: ``"ViT, augmented, 4000 pictures"``."""
    return f"{learner}, {num} pictures"


def run(condition: str, seed: int) -> dict[str, float]:
    """Accuracies from 0 to 1."""
    learner, size = condition.removesuffix(" pictures").rsplit(", ", 1)
    num = int(size)
    model = trained(learner, num, seed)
    images, labels = colour_task(num, "train", seed)
    return {
        "train": accuracy(model, images[:500], labels[:500]),
        "test": accuracy(model, *colour_task(2000, "test", seed)),
    }


def gap(figures: Figures, arm: str, num: int) -> list[float]:
    """Accuracy of the CNN minus the ViT's, by seed."""
    cnn, vit = (
        figures[condition_name(learner, num)]["test"]
        for learner in ARMS[arm]
    )
    return [a - b for a, b in zip(cnn, vit, strict=True)]


def crossing(figures: Figures, arm: str) -> tuple[int, int] | None:
    """The sizes between which the ViT passes the CNN; None if that is not seen.

    The first is the largest at which the CNN is ahead (0 if it never is), the second the smallest
    after it at which the ViT is, both by an interval that leaves out zero.
    """
    leads = {num: interval(gap(figures, arm, num)) for num in SIZES}
    cnn_ahead = [num for num in SIZES if leads[num].low > 0]
    last = max(cnn_ahead, default=0)
    vit_ahead = [
        num for num in SIZES if num > last and leads[num].high < 0
    ]
    return (last, min(vit_ahead)) if vit_ahead else None


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    few, many = SIZES[0], SIZES[-1]

    def test(learner: str, num: int) -> list[float]:
        return figures[condition_name(learner, num)]["test"]

    def gain(learner: str) -> list[float]:
        return _minus(test(learner, many), test(learner, few))

    return [
        _positive(
            ("VIT-15", "VIT-16"),
            f"On {few} pictures the CNN is ahead of the ViT.",
            gap(figures, "plain", few),
            "CNN minus ViT",
        ),
        _positive(
            ("VIT-17",),
            f"From {few} to {many:,} pictures the CNN's lead shrinks.",
            _minus(
                gap(figures, "plain", few), gap(figures, "plain", many)
            ),
            "Lead lost",
        ),
        _crossings(figures),
        *(
            _positive(
                ("VIT-20",),
                f"On {few} pictures the {help} ViT is ahead of the plain one.",
                _minus(test(f"ViT, {help}", few), test("ViT", few)),
                f"{help.capitalize()} minus plain",
            )
            for help in ("augmented", "distilled")
        ),
        _positive(
            ("VIT-21",),
            "The large ViT gains more from more pictures than the small one.",
            _minus(gain("ViT, large"), gain("ViT, small")),
            f"Gain from {few} to {many:,} pictures, large minus small",
        ),
        _all_gain(
            {
                name: gain(name)
                for name in ("ViT, small", "ViT", "ViT, large")
            }
        ),
    ]


def _minus(first: list[float], second: list[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def _points(estimate) -> str:
    return (
        f"{100 * estimate.mean:+.1f} points "
        f"[{100 * estimate.low:+.1f}, {100 * estimate.high:+.1f}]"
    )


def _positive(
    claims: tuple[str, ...],
    statement: str,
    values: list[float],
    what: str,
) -> Finding:
    estimate = interval(values)
    return Finding(
        claims,
        statement,
        "Confirmed: the interval lies above zero. Refuted: below zero.",
        verdict(estimate.low > 0, undecided=estimate.holds_zero),
        f"{what}: {_points(estimate)}.",
        estimate,
    )


def _crossings(figures: Figures) -> Finding:
    ranges = {arm: crossing(figures, arm) for arm in ARMS}
    crossed = [sizes for sizes in ranges.values() if sizes]
    overlap = max((low for low, _ in crossed), default=0) < min(
        (high for _, high in crossed), default=1
    )
    behind = any(
        interval(gap(figures, arm, SIZES[-1])).low > 0 for arm in ARMS
    )
    one = len(crossed) == len(ARMS) and overlap
    several = bool(crossed) and (not overlap or behind)
    return Finding(
        ("VIT-20",),
        "There is one number of pictures from which the ViT is ahead, however it is trained.",
        "Confirmed: all arms cross, and their ranges overlap. Refuted: two ranges do not overlap, or one "
        "arm crosses while in another the CNN is ahead at the largest size.",
        verdict(one, undecided=not one and not several),
        " ".join(_arm_told(figures, arm, ranges[arm]) for arm in ARMS),
    )


def _arm_told(
    figures: Figures, arm: str, sizes: tuple[int, int] | None
) -> str:
    leads = ", ".join(
        _points(interval(gap(figures, arm, num))) for num in SIZES
    )
    where = (
        f"crosses between {sizes[0]:,} and {sizes[1]:,} pictures"
        if sizes
        else "no crossing seen"
    )
    return f"{arm.capitalize()}: {where} (CNN minus ViT {leads})."


def _all_gain(gains: dict[str, list[float]]) -> Finding:
    estimates = {name: interval(gain) for name, gain in gains.items()}
    return Finding(
        ("VIT-21",),
        "Each of the three ViTs gains from more pictures.",
        "Confirmed: for each the interval of the gain lies above zero. Refuted otherwise.",
        verdict(all(e.low > 0 for e in estimates.values())),
        "; ".join(
            f"{name}: {_points(e)}" for name, e in estimates.items()
        )
        + ".",
    )


EXPERIMENT = Experiment(
    name="d08_data",
    title="A CNN and a ViT from 500 to 32,000 pictures, with augmentation and distillation",
    claims=("VIT-15", "VIT-16", "VIT-17", "VIT-20", "VIT-21"),
    conditions=tuple(
        condition_name(learner, num)
        for num in SIZES
        for learner in LEARNERS
    ),
    run=run,
    judge=judge,
    config={
        "task": "colour of the largest object, 32 px, 8 classes",
        "training pictures": list(SIZES),
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "rates": RATES,
        "ViT": "patch 8; dim 32, depth 3 (small: 16 and 2, large: 64 and 3); 4 heads",
        "CNN": f"3 x 3 convolutions of widths {list(WIDTHS)}",
        "optimiser": "AdamW, weight decay 0.05, warm-up 10 %, cosine, gradient norm 1",
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
