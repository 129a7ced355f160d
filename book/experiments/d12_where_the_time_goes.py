"""D12: where a vision-language model spends its time: backbone, suppression of boxes, patches, words, Transformer.

Question. Region models take about 900 ms for a picture and its text, ViLT about 15 ms (table 6, a P40 GPU with a Xeon
E5-2650). Where does the time go? Which of these shares hold on a CPU?

Set-up. The parts, at published sizes with random weights, one picture and one text at a time, one thread, no gradients:

- *backbone*: the convolutions of a ResNet-101 (that of CLIP, with its averaging) at 384 x 640 pixels, the size of ViLT's own
  pictures; region models take 800 x 1,333, more than four times as many pixels, and pay as much more;
- *NMS, class by class*: greedy non-maximum suppression of 300 boxes for each of 1,600 classes in turn, at an overlap of
  0.3. The boxes are drawn around 30 objects;  *NMS, all classes at once*: the same in one batch;
  *NMS, once*: for all classes together, on each box's best class;
- *patches*: ViLT's projection of 240 patches (384 x 640);  *words*: its embedding of 40 word pieces;
- *Transformer*: ViLT's 12 blocks on 281 tokens;  *Transformer, regions*: the same on 96, 36 regions and 60 words.

Each part runs twice in turn and the faster counts, in seconds of the processor. Five seeds draw pictures, words and boxes.
Only ratios are judged: seconds depend on the machine.

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds:

- *Patches cost next to nothing* (VLT-01, VLT-04): Transformer over patches. Confirmed if the interval lies above 20.
- *Words cost next to nothing* (VLT-01): Transformer over words. Confirmed if the interval lies above 100.
- *The backbone costs more than the Transformer* (VLT-20): backbone over Transformer. Confirmed above 1, refuted below.
- *So does NMS* (VLT-01, VLT-20): class by class over Transformer. Confirmed above 1, refuted below.
- *NMS is the largest bar* (VLT-20): class by class over backbone. Confirmed above 1, refuted below.
- *It depends on how NMS is written* (VLT-20): class by class over all at once. Confirmed above 2, refuted below.
- *Fusion is a small share of a region model* (FND-23): Transformer on regions over itself, backbone and NMS (class by class)
  together. Confirmed if the interval lies below 5 %.

What this scale cannot tell. The paper's shares are a GPU's, which does many multiplications at once and the steps of NMS one after
another; ours are those of one thread. The heads that run on every box, the proposals and their own NMS are left out, so the region model is dearer than here.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Bool, Float
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataclasses import replace

from mmlab.models.clip import CLIP_RN101
from mmlab.models.clip_resnet import CLIPResNet
from mmlab.models.vilt import VILT_B_32, ViLT
from mmlab.nn import run_blocks
from mmlab.training.seeds import generator

from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    interval,
    main,
    verdict,
)

IMAGE_SIZE = (384, 640)
NUM_BOXES, NUM_OBJECTS, NUM_CLASSES, OVERLAP = 300, 30, 1600, 0.3
NUM_WORDS, VILT_TOKENS, REGION_TOKENS = 40, 281, 96
ROUNDS = 2
BACKBONE, PATCHES, WORDS = "backbone", "patches", "words"
TRANSFORMER, SHORT = "Transformer", "Transformer, regions"
EACH, BATCHED, ONCE = (
    "NMS, class by class",
    "NMS, all classes at once",
    "NMS, once",
)

Boxes = Float[Tensor, "boxes 4"]
Overlaps = Float[Tensor, "boxes boxes"]


@lru_cache(maxsize=1)
def networks() -> tuple[CLIPResNet, ViLT]:
    """The backbone and ViLT; what their weights are makes no difference to the time."""
    torch.manual_seed(0)
    config = CLIP_RN101
    backbone = CLIPResNet(config.stages, config.dim, config.embed_dim, 1)
    vilt = ViLT(replace(VILT_B_32, heads=()))
    return backbone.eval(), vilt.eval()


def draw_boxes(seed: int) -> tuple[Boxes, Float[Tensor, "boxes classes"]]:
    """Boxes around some objects, and how probable each class is for each box."""
    draws = generator(seed)
    centers = torch.rand(NUM_OBJECTS, 2, generator=draws)
    sizes = 0.05 + 0.3 * torch.rand(NUM_OBJECTS, 2, generator=draws)
    rows = torch.arange(NUM_BOXES) % NUM_OBJECTS
    moved = centers[rows] + 0.2 * sizes[rows] * torch.randn(
        NUM_BOXES, 2, generator=draws
    )
    boxes = torch.cat(
        [moved - sizes[rows] / 2, moved + sizes[rows] / 2], 1
    )
    logits = 2 * torch.randn(NUM_BOXES, NUM_CLASSES, generator=draws)
    return boxes, logits.softmax(1)


def overlaps(boxes: Boxes) -> Overlaps:
    """Intersection over union of all pairs."""
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clamp_min(0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return shared / (areas[:, None] + areas - shared)


def suppress(
    overlap: Overlaps, scores: Float[Tensor, " boxes"]
) -> Bool[Tensor, " boxes"]:
    """Greedy: the best box stays, those that overlap it go; then the best of the rest."""
    kept = torch.zeros_like(scores, dtype=torch.bool)
    order = scores.argsort(descending=True)
    while len(order):
        best = order[0]
        kept[best] = True
        order = order[overlap[best, order] <= OVERLAP]
        order = order[order != best]
    return kept


def suppress_each(
    overlap: Overlaps, scores: Float[Tensor, "boxes classes"]
) -> Bool[Tensor, "boxes classes"]:
    """One class after the other."""
    return torch.stack([suppress(overlap, s) for s in scores.T], 1)


def suppress_at_once(
    overlap: Overlaps, scores: Float[Tensor, "boxes classes"]
) -> Bool[Tensor, "boxes classes"]:
    """All classes side by side, from the best box of each to its worst."""
    order = scores.T.argsort(1, descending=True)
    classes = torch.arange(len(order))
    near = overlap > OVERLAP
    gone = torch.zeros_like(order, dtype=torch.bool)
    kept = torch.zeros_like(gone)
    for boxes in order.T:
        stays = ~gone[classes, boxes]
        kept[classes, boxes] = stays
        gone |= near[boxes] & stays[:, None]
    return kept.T


def parts(seed: int) -> dict[str, Callable[[], Tensor]]:
    """Name → what to time."""
    backbone, vilt = networks()
    draws = generator(seed)
    image = torch.randn(1, 3, *IMAGE_SIZE, generator=draws)
    size = VILT_B_32.vocab_size
    ids = torch.randint(size, (1, NUM_WORDS), generator=draws)
    boxes, scores = draw_boxes(seed)
    overlap = overlaps(boxes)

    def transformer(num_tokens: int) -> Callable[[], Tensor]:
        shape = (1, num_tokens, VILT_B_32.dim)
        tokens = torch.randn(shape, generator=draws)
        return lambda: vilt.norm(run_blocks(vilt.blocks, tokens))

    return {
        BACKBONE: lambda: backbone.forward_map(image),
        EACH: lambda: suppress_each(overlap, scores),
        BATCHED: lambda: suppress_at_once(overlap, scores),
        ONCE: lambda: suppress(overlap, scores.amax(1)),
        PATCHES: lambda: vilt.patch_embedding(image),
        WORDS: lambda: vilt.embed_text(ids),
        TRANSFORMER: transformer(VILT_TOKENS),
        SHORT: transformer(REGION_TOKENS),
    }


@torch.no_grad()
def seconds(work: Callable[[], Tensor]) -> float:
    """Processor time of one call; short work is repeated, as the clock is coarse."""
    started = time.process_time()
    calls = 0
    while calls == 0 or time.process_time() - started < 0.02:
        work()
        calls += 1
    return (time.process_time() - started) / calls


def run(condition: str, seed: int) -> dict[str, float]:
    """Milliseconds of each part."""
    work = parts(seed)
    turns = [
        {name: seconds(part) for name, part in work.items()}
        for _ in range(ROUNDS)
    ]
    return {
        name: 1000 * min(turn[name] for turn in turns) for name in work
    }


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    parts = figures[CONDITION]

    def over(first: str, second: str) -> list[float]:
        return [
            a / b
            for a, b in zip(parts[first], parts[second], strict=True)
        ]

    shares = [
        short / (short + backbone + nms)
        for short, backbone, nms in zip(
            parts[SHORT], parts[BACKBONE], parts[EACH], strict=True
        )
    ]
    return [
        _more(
            ("VLT-01", "VLT-04"),
            "The Transformer costs more than 20 times as much as the patch projection.",
            over(TRANSFORMER, PATCHES),
            20,
        ),
        _more(
            ("VLT-01",),
            "The Transformer costs more than 100 times as much as embedding the words.",
            over(TRANSFORMER, WORDS),
            100,
        ),
        _more(
            ("VLT-20",),
            "The convolutional backbone costs more than the Transformer.",
            over(BACKBONE, TRANSFORMER),
            1,
        ),
        _more(
            ("VLT-01", "VLT-20"),
            "NMS, class by class, costs more than the Transformer.",
            over(EACH, TRANSFORMER),
            1,
        ),
        _more(
            ("VLT-20",),
            "NMS, class by class, is the largest bar, above the backbone.",
            over(EACH, BACKBONE),
            1,
        ),
        _more(
            ("VLT-20",),
            "NMS costs more than twice as much class by class as for all classes at once.",
            over(EACH, BATCHED),
            2,
        ),
        _share(shares),
    ]


def _more(
    claims: tuple[str, ...],
    statement: str,
    ratios: list[float],
    bound: int,
) -> Finding:
    about = interval(ratios)
    return Finding(
        claims,
        statement,
        f"Confirmed: the interval of the ratio lies above {bound}. Refuted: below.",
        verdict(
            about.low > bound, undecided=about.low <= bound <= about.high
        ),
        f"the ratio is {about}.",
        about,
    )


def _share(shares: list[float]) -> Finding:
    about = interval(shares)
    return Finding(
        ("FND-23",),
        "Fusion takes less than 5 % of the time of a region model.",
        "Confirmed: the interval lies below 5 %. Refuted: above.",
        verdict(
            about.high < 0.05, undecided=about.low <= 0.05 <= about.high
        ),
        f"{about.mean:.1%} [{about.low:.1%}, {about.high:.1%}].",
        about,
    )


CONDITION = "one thread"
EXPERIMENT = Experiment(
    name="d12_where_the_time_goes",
    title="Time of backbone, NMS, patch projection, words and Transformer on a CPU",
    claims=("VLT-01", "VLT-04", "VLT-20", "FND-23"),
    conditions=(CONDITION,),
    run=run,
    judge=judge,
    config={
        "backbone": "ResNet-101 of CLIP, 384 x 640",
        "NMS": "300 boxes, 1,600 classes, overlap 0.3",
        "patches": "240 of 32 x 32",
        "Transformer": "12 blocks of width 768; 281 or 96 tokens",
        "figures": "milliseconds of the processor, the faster of two turns",
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
