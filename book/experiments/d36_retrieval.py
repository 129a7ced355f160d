"""D36, first half: retrieval with a dual encoder, and what a joint encoder would cost.

Question. A dual encoder reads every picture and every text once and compares vectors; a joint encoder reads
every pair. How well does a small dual encoder find the partner as the gallery grows, and how do runs,
multiplications and time compare? What a joint encoder finds is not asked here: that half waits for a model that
has been trained to match (ALBEF).

Set-up. A small CLIP (as in D16) learns from 8,000 scenes of 32 pixels with one to four shapes and
their detailed captions, cut after 24 tokens, in 250 steps of 64 pairs. Galleries of 100, 300 and 1,000
new pairs. The joint encoder is a ViLT of the same width with as many blocks as both towers together, at random
weights: its answers mean nothing, its cost is that of a trained one. It reads 256 pairs; the time of
all pairs is computed from that. Both are timed on one thread, one after the other, best of three.
Time is reported as a ratio only. A seed draws pictures, weights and batches.

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds:

- *Runs* (FND-08): counted by a hook on each tower. Confirmed if, for every gallery of N pairs and every seed,
  the pictures' tower reads N pictures and the texts' tower N texts; else refuted.
- *Cost* (FND-11, VMO-03): time of all pairs by the joint encoder, divided by the dual encoder's. Confirmed that the
  dual encoder is faster if the interval at the largest gallery lies above 1, refuted if below. And
  the ratio at the largest gallery divided by that at the smallest: confirmed to grow if above 1.
- *Retrieval* (DST-18): R@1 from picture to text minus chance at the largest gallery; confirmed above zero.
  And R@1 at the smallest minus at the largest gallery: confirmed above zero that a larger gallery is harder.

What this scale cannot tell. Two pairs of blocks of width 64 are no model anyone would use. At such sizes
the fixed cost of a call weighs much, and the ratios of time say nothing of a large model; the ratio of
multiplications can be computed for any.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlab.analysis.cost import (
    block_macs,
    clip_image_macs,
    clip_text_macs,
)
from mmlab.datasets import scenes
from mmlab.models.clip import CLIP
from mmlab.models.vilt import ViLT, ViLTConfig
from mmlab.tasks.retrieval import retrieval

from experiments.d16_zero_shot import (
    CONFIG,
    CONTEXT,
    IMAGE_SIZE,
    image_features,
    pair_loss,
    text_features,
    token_ids,
)
from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    interval,
    main,
    points,
    verdict,
)
from experiments.training import Pictures, fit, prepare

GALLERIES = (100, 300, 1000)
NUM_PAIRS, STEPS, BATCH_SIZE, LR = 8000, 250, 64, 2e-3
TIMED_PAIRS = 256
JOINT = ViLTConfig(
    image_size=IMAGE_SIZE,
    patch_size=CONFIG.patch_size,
    dim=CONFIG.dim,
    depth=CONFIG.depth + CONFIG.text_depth,
    num_heads=CONFIG.num_heads,
    mlp_dim=CONFIG.mlp_dim,
    vocab_size=CONFIG.vocab_size,
    context_length=CONTEXT,
    heads=("match",),
    dropout=0.0,
)


def pairs(num: int, split: str, seed: int) -> tuple[Pictures, list[str]]:
    """Scenes and their detailed captions."""
    data = scenes(num, split, image_size=IMAGE_SIZE, seed=seed)
    return data.images(), data.captions("en", "detailed")


@lru_cache(maxsize=1)
def trained(seed: int) -> CLIP:
    """The dual encoder of a seed."""
    images, texts = pairs(NUM_PAIRS, "train", seed)
    torch.manual_seed(seed)
    loss = partial(pair_loss, token_ids(texts))
    rows = torch.arange(NUM_PAIRS)
    return fit(
        CLIP(CONFIG),
        images,
        rows,
        STEPS,
        LR,
        seed,
        BATCH_SIZE,
        loss=loss,
    )


class Counter:
    """How many examples a module has read, by a hook on it."""

    def __init__(self, module: nn.Module):
        self.read = 0
        self.hook = module.register_forward_pre_hook(self._count)

    def _count(self, module: nn.Module, given: tuple) -> None:
        self.read += len(given[0])

    def __enter__(self) -> Counter:
        return self

    def __exit__(self, *error: object) -> None:
        self.hook.remove()


@torch.no_grad()
def rank_all(model: CLIP, images: Pictures, texts: Sequence[str]):
    """Every picture against every text, by one run each and a product."""
    return image_features(model, images) @ text_features(model, texts).T


@torch.no_grad()
def match(
    model: ViLT, images: Pictures, ids: Int64[Tensor, "pairs tokens"]
) -> Tensor:
    """Pairs through the joint encoder, 64 at a time."""
    parts = zip(ids.split(64), prepare(images).split(64), strict=True)
    return torch.cat(
        [model.matching_logits(model(i, x)) for i, x in parts]
    )


def seconds(work: Callable[[], object]) -> float:
    """The best of three, after one to warm up."""
    work()
    times = []
    for _ in range(3):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def pair_macs() -> int:
    """Multiplications of one pair through the joint encoder, the small head left out."""
    num_patches = (JOINT.image_size // JOINT.patch_size) ** 2
    values = JOINT.num_channels * JOINT.patch_size**2
    tokens = CONTEXT + 1 + num_patches
    blocks = JOINT.depth * block_macs(tokens, JOINT.dim, JOINT.mlp_dim)
    return num_patches * values * JOINT.dim + blocks


def dual_macs(num: int) -> int:
    """Multiplications of the dual encoder for ``num`` pictures and as many texts."""
    towers = clip_image_macs(CONFIG) + clip_text_macs(CONFIG, CONTEXT)
    return num * towers + num**2 * CONFIG.embed_dim


def condition_name(num: int) -> str:
    """How a condition is called: ``"gallery of 100"``."""
    return f"gallery of {num}"


def run(condition: str, seed: int) -> dict[str, float]:
    """Recalls, what the towers read, and the joint encoder's cost as a multiple of the dual one's."""
    num = int(condition.removeprefix("gallery of "))
    model = trained(seed)
    images, texts = pairs(num, "test", seed)
    with (
        Counter(model.image_encoder) as pictures,
        Counter(model.text_encoder) as sentences,
    ):
        features = (
            image_features(model, images),
            text_features(model, texts),
        )
    ids = torch.arange(num)
    found = retrieval(*features, ids, ids)
    return {
        "image to text R@1": found.image_to_text.recall[1],
        "image to text R@10": found.image_to_text.recall[10],
        "text to image R@1": found.text_to_image.recall[1],
        "text to image R@10": found.text_to_image.recall[10],
        "pictures read": pictures.read,
        "texts read": sentences.read,
        "pairs": num**2,
        "multiplications, joint / dual": num**2
        * pair_macs()
        / dual_macs(num),
        "time, joint / dual": time_ratio(model, images, texts),
    }


def time_ratio(
    model: CLIP, images: Pictures, texts: Sequence[str]
) -> float:
    """Time of all pairs by the joint encoder over the dual encoder's, side by side."""
    joint = ViLT(JOINT).eval()
    rows = torch.arange(TIMED_PAIRS) % len(images)
    ids = token_ids([texts[row] for row in rows])
    some = images[rows]
    one_pair = seconds(lambda: match(joint, some, ids)) / TIMED_PAIRS
    dual = seconds(lambda: rank_all(model, images, texts))
    return len(images) * len(texts) * one_pair / dual


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    small, large = (
        figures[condition_name(num)]
        for num in (GALLERIES[0], GALLERIES[-1])
    )
    most = GALLERIES[-1]
    faster = interval(large["time, joint / dual"])
    growth = interval(
        [
            b / a
            for a, b in zip(
                small["time, joint / dual"],
                large["time, joint / dual"],
                strict=True,
            )
        ]
    )
    above = interval([r - 1 / most for r in large["image to text R@1"]])
    harder = interval(
        [
            a - b
            for a, b in zip(
                small["image to text R@1"],
                large["image to text R@1"],
                strict=True,
            )
        ]
    )
    return [
        _runs(figures),
        Finding(
            ("FND-11", "VMO-03"),
            f"For {most:,} pictures and {most:,} texts the dual encoder is faster than a joint one.",
            "Confirmed: the interval of the ratio of times lies above 1. Refuted: below.",
            _against(1, faster),
            f"All pairs by the joint encoder take {_times(faster)} as long.",
            faster,
        ),
        Finding(
            ("FND-11", "VMO-03"),
            "Its advantage grows with the gallery.",
            "Confirmed: the ratio at the largest gallery, divided by that at the smallest, lies above 1. "
            "Refuted: below.",
            _against(1, growth),
            f"From {GALLERIES[0]} to {most:,} pairs the ratio grows {_times(growth)}.",
            growth,
        ),
        Finding(
            ("DST-18",),
            f"A picture finds its text among {most:,} more often than by chance.",
            "Confirmed: the interval of R@1 minus chance lies above zero. Refuted: below.",
            _against(0, above),
            f"R@1 minus chance: {points(above)}.",
            above,
        ),
        Finding(
            ("DST-18",),
            "In a larger gallery the partner is found less often.",
            "Confirmed: the interval of R@1 in the smallest minus in the largest gallery lies above zero. "
            "Refuted: below.",
            _against(0, harder),
            f"R@1 among {GALLERIES[0]} minus among {most:,}: {points(harder)}.",
            harder,
        ),
    ]


def _runs(figures: Figures) -> Finding:
    once = all(
        read == num
        for num in GALLERIES
        for tower in ("pictures read", "texts read")
        for read in figures[condition_name(num)][tower]
    )
    return Finding(
        ("FND-08",),
        "A dual encoder reads each picture and each text once, however many pairs they make.",
        "Confirmed: the counts of both towers are N in every gallery and seed. Refuted otherwise.",
        verdict(once),
        "; ".join(
            f"{num:,} pictures and {num:,} texts: {2 * num:,} runs for {num**2:,} pairs"
            for num in GALLERIES
        )
        + ".",
    )


def _against(value: float, about) -> str:
    return verdict(
        about.low > value, undecided=about.low <= value <= about.high
    )


def _times(about) -> str:
    return (
        f"{about.mean:,.0f} times [{about.low:,.0f}, {about.high:,.0f}]"
    )


EXPERIMENT = Experiment(
    name="d36_retrieval",
    title="Retrieval with a dual encoder as the gallery grows, and the cost of a joint one",
    claims=("FND-08", "FND-11", "VMO-03", "DST-18"),
    conditions=tuple(map(condition_name, GALLERIES)),
    run=run,
    judge=judge,
    config={
        "dual encoder": "CLIP: 32 px, patch 8, convolutional stem, 2 blocks of width 64 on either side",
        "joint encoder": "ViLT: 32 px, patch 8, 4 blocks of width 64, random weights",
        "training pairs": NUM_PAIRS,
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "rate": LR,
        "pairs timed": TIMED_PAIRS,
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
