"""D10: how far do heads look, and where does the class token's attention end up?

Question. The paper's figure 7 (right) finds that the mean attention distance grows with depth, and that
some heads look across most of the picture already in the first layer; figure 6 shows, by attention
rollout, that the class token attends to what matters for the class.

Set-up. A tiny ViT (48 wide, 4 blocks of 4 heads, patches of 4 pixels) learns the colour of the largest
object in scenes of 32 pixels, in 300 steps of 32 from 8,000 pictures. It is measured on 200 test
pictures, before training and after. Distances are in pixels between the centres of patches, a patch
counting as its own neighbour at distance 0; uniform attention gives 16.5 pixels on this grid. Rollout
is the class token's row, over the patches, scaled to sum to 1; the box is that of the largest object.
Five seeds; a seed draws pictures, weights and batches.

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds:

- *Grows with depth* (VIT-22, VIT-23): the slope of a straight line through the mean distances of the
  four trained layers, in pixels a layer. Confirmed if the interval lies above zero, refuted if below.
- *Some first-layer heads look far* (VIT-23): the longest mean distance of a head of layer 1. Confirmed if
  the interval lies above 16 pixels, half the width of the picture, refuted if below. Beware: uniform
  attention passes this bar too, so the untrained model's figure stands beside it.
- *Some first-layer heads look near* (VIT-23): the shortest one, trained minus untrained. Confirmed if the
  interval lies below zero, refuted if above: training, not the architecture, makes heads local.
- *Rollout finds the object* (VIT-24): the trained share of rollout in the box minus the box's share of the
  area. Confirmed if the interval lies above zero, refuted if below; and the same against the
  untrained model.

What this scale cannot tell. The largest object fills an eighth of the picture or so and a patch a sixty-fourth:
'near' and 'far' are a factor of a few apart. To name the largest object, a model must compare all of
them, so its attention has a reason to stay wide. And rollout multiplies attention only; it knows
nothing of values and MLPs.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlab.analysis import (
    attention_distances,
    attention_rollout,
    record_attention,
)
from mmlab.datasets import scenes
from mmlab.datasets.example import Box
from mmlab.models.vit import ViT, ViTConfig
from mmlab.nn import patchify

from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    difference,
    interval,
    main,
    verdict,
)
from experiments.training import (
    Pictures,
    accuracy,
    colour_task,
    fit,
    prepare,
)

CONDITIONS = ("untrained", "trained")
STEPS, BATCH_SIZE, LR = 300, 32, 4e-3
NUM_IMAGES, NUM_TEST = 8000, 200
CONFIG = ViTConfig(
    image_size=32,
    patch_size=4,
    dim=48,
    depth=4,
    num_heads=4,
    mlp_dim=96,
    num_classes=8,
)


def make_model(condition: str, seed: int) -> ViT:
    """The tiny ViT, with fresh weights or with trained ones."""
    torch.manual_seed(seed)
    model = ViT(CONFIG)
    if condition == "untrained":
        return model.eval()
    data = colour_task(NUM_IMAGES, "train", seed)
    return fit(model, *data, STEPS, LR, seed, BATCH_SIZE)


@lru_cache(maxsize=2)
def pictures_with_boxes(
    seed: int,
) -> tuple[Pictures, Float[Tensor, "num patches"]]:
    """Test pictures, and which share of each patch lies in the box of the largest object."""
    examples = list(scenes(NUM_TEST, "test", image_size=32, seed=seed))
    boxes = torch.stack(
        [
            box_mask(max((r.box for r in e.regions), key=area))
            for e in examples
        ]
    )
    covered = patchify(boxes[:, None], CONFIG.patch_size).mean(dim=-1)
    return torch.stack([e.image for e in examples]), covered


def area(box: Box) -> float:
    """In square pixels."""
    x0, y0, x1, y1 = box
    return (x1 - x0) * (y1 - y0)


def box_mask(box: Box) -> Float[Tensor, "height width"]:
    """The share of each pixel of a 32-pixel picture that lies in the box."""
    pixel = torch.arange(32)

    def inside(low: float, high: float) -> Float[Tensor, " pixels"]:
        return (pixel + 1).clamp(max=high) - pixel.clamp(min=low)

    x0, y0, x1, y1 = box
    rows, columns = inside(y0, y1), inside(x0, x1)
    return rows.clamp(min=0)[:, None] * columns.clamp(min=0)


def run(condition: str, seed: int) -> dict[str, float]:
    """Distances in pixels by layer and head (both from 1), and shares from 0 to 1."""
    model = make_model(condition, seed)
    images, covered = pictures_with_boxes(seed)
    with torch.no_grad(), record_attention(model) as maps:
        model(prepare(images))
    distances = attention_distances(maps, CONFIG.grid, CONFIG.patch_size)
    rollout = attention_rollout(maps)[:, 0, 1:]
    rollout = rollout / rollout.sum(dim=-1, keepdim=True)
    figures = {
        f"distance, layer {layer} head {head}": value.item()
        for layer, heads in enumerate(distances, start=1)
        for head, value in enumerate(heads, start=1)
    }
    return figures | {
        "pixels per layer": slope(distances.mean(dim=1)),
        "longest of layer 1": distances[0].max().item(),
        "shortest of layer 1": distances[0].min().item(),
        "rollout in box": (rollout * covered).sum(-1).mean().item(),
        "area of box": covered.mean().item(),
        "test": accuracy(model, *colour_task(2000, "test", seed)),
    }


def slope(values: Float[Tensor, " layers"]) -> float:
    """Of the least-squares line through ``values``, one step apart."""
    steps = torch.arange(len(values)) - (len(values) - 1) / 2
    return ((steps * values).sum() / (steps**2).sum()).item()


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    trained, untrained = figures["trained"], figures["untrained"]
    half = CONFIG.image_size / 2
    longest = interval(trained["longest of layer 1"])
    near = difference(
        trained["shortest of layer 1"], untrained["shortest of layer 1"]
    )
    deeper = interval(trained["pixels per layer"])
    box = interval(trained["area of box"])
    in_box = trained["rollout in box"]
    above_area = difference(in_box, trained["area of box"])
    above_untrained = difference(in_box, untrained["rollout in box"])
    above_zero = (
        "Confirmed: the interval lies above zero. Refuted: below zero."
    )
    return [
        Finding(
            ("VIT-22", "VIT-23"),
            "The mean attention distance of the trained model grows with depth.",
            above_zero,
            verdict(deeper.low > 0, undecided=deeper.holds_zero),
            f"{deeper} pixels a layer; untrained {interval(untrained['pixels per layer'])}.",
            deeper,
        ),
        Finding(
            ("VIT-23",),
            "A head of the first layer looks further than half the picture's width on average.",
            f"Confirmed: the interval of the longest lies above {half:.0f} pixels. Refuted: below.",
            verdict(
                longest.low > half,
                undecided=longest.low <= half <= longest.high,
            ),
            f"{longest} pixels; untrained {interval(untrained['longest of layer 1'])}.",
            longest,
        ),
        Finding(
            ("VIT-23",),
            "Training makes a head of the first layer look nearer than any untrained one.",
            "Confirmed: the interval of trained minus untrained, the shortest head of each, lies below "
            "zero. Refuted: above zero.",
            verdict(near.high < 0, undecided=near.holds_zero),
            f"{interval(trained['shortest of layer 1'])} pixels trained, "
            f"{interval(untrained['shortest of layer 1'])} untrained; difference {near}.",
            near,
        ),
        Finding(
            ("VIT-24",),
            "The rollout of the class token lies in the box of the largest object more than by its area.",
            above_zero,
            verdict(above_area.low > 0, undecided=above_area.holds_zero),
            f"{interval(in_box)} of the rollout in {box} of the area; difference {above_area}.",
            above_area,
        ),
        Finding(
            ("VIT-24",),
            "The rollout of the class token lies in that box more than before training.",
            above_zero,
            verdict(
                above_untrained.low > 0,
                undecided=above_untrained.holds_zero,
            ),
            f"{interval(in_box)} trained, {interval(untrained['rollout in box'])} untrained; "
            f"difference {above_untrained}.",
            above_untrained,
        ),
    ]


EXPERIMENT = Experiment(
    name="d10_attention_distance",
    title="Attention distance by layer and head, and rollout in the object's box",
    claims=("VIT-22", "VIT-23", "VIT-24"),
    conditions=CONDITIONS,
    run=run,
    judge=judge,
    config={
        "task": "colour of the largest object, 32 px, 8 classes",
        "model": "ViT: patch 4, dim 48, depth 4, 4 heads, MLP 96",
        "training pictures": NUM_IMAGES,
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "rate": LR,
        "optimiser": "AdamW, weight decay 0.05, warm-up 10 %, cosine, gradient norm 1",
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
