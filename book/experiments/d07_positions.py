"""D07: what are position embeddings worth, and does their form matter?

Question. Without positions a ViT sees a bag of patches. The paper's table 8 (ViT-B/16, 5-shot
ImageNet) gives 61.4 % without, 64.2 % with a learned 1-D table, 64.0 % with a learned 2-D one. It
adds positions to the patches, finds that neighbours in the picture get similar vectors (figure 7),
and interpolates the table when the resolution changes (section 3.2).

Set-up. A tiny ViT (48 wide, 2 blocks, patches of 4 pixels, 8 x 8 of them) on two tasks of 32-pixel
pictures. *Left-right*: does the red shape stand left of the blue one? Twins hold the same patches in
other places and have opposite answers, so a bag of patches is at 50 % exactly. *Emoji*: the group of
a symbol (9 classes), trained on three styles and tested on a fourth. Five forms of position: none;
learned 1-D (a row for each token); learned 2-D (half a vector for the row, half for the column, as in
appendix D.4); fixed sines and cosines; and *concatenated*: 16 of the 48 entries of a token hold its
learned position, the other 32 its pixels, where all others are added. Left-right is run with two of
the forms, none and 1-D; ``run`` takes the others too. Five seeds; a seed draws the
weights, the batches and the scenes, the same for all forms. Models with a 1-D table are also tested,
untrained for it, on pictures of 48 pixels, with the table *interpolated*, or *kept*: its rows stay
with the same place in the sequence and the new tokens at the end get fresh rows, N(0, 0.02).

Rules, fixed after a pilot with one seed and before the run; intervals are 95 %, over seeds:

- *None is lower* (emoji; VIT-25): confirmed if the interval of 1-D minus none lies above zero.
- *None is at chance* (left-right; VIT-25): confirmed if every seed has exactly 50 % without positions
  and the interval of 1-D lies above 90 %; else refuted.
- *The form hardly matters* (emoji; VIT-25, VIT-07): 2-D, sine-cosine and concatenated against 1-D, one
  finding each. Confirmed if the interval of the difference lies within one point, refuted if it
  leaves out zero and reaches beyond, else no difference seen: too few data to call them the same.
  One point is less than half the paper's gain from having positions at all.
- *Neighbours are similar* (VIT-06, both tasks): mean cosine similarity of the rows of neighbours minus
  that of patches more than half the width apart. Confirmed if the interval lies above zero.
- *Interpolate* (VIT-09, both tasks): at 48 pixels, interpolated minus kept. Confirmed if the interval
  lies above zero.

What this scale cannot tell. The tables have 250 or 400 steps to learn, the paper's many thousands: a smooth
map over the grid is not to be expected. Five seeds resolve differences of a few points, the paper's
differences between forms are 0.2. And no model is fine-tuned at the new resolution, as the paper's are.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from mmlab.analysis import (
    count_parameters,
    grid_structure,
    patch_distances,
    position_similarity,
)
from mmlab.datasets import emoji, scenes
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
from experiments.training import Labels, Pictures, accuracy, fit

TASKS = ("left-right", "emoji")
FORMS = (
    "none",
    "learned 1-D",
    "learned 2-D",
    "sine-cosine",
    "concatenated",
)
STEPS = {"left-right": 400, "emoji": 250}
LR, BATCH_SIZE, CONCATENATED_DIM, MARGIN = 4e-3, 32, 16, 0.01
BASE = ViTConfig(
    image_size=32,
    patch_size=4,
    dim=48,
    depth=2,
    num_heads=4,
    mlp_dim=96,
)


class GridPositionViT(ViT):
    """A ViT with a learned table for rows and one for columns, half a vector each."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        rows, columns = config.grid
        self.row_positions = small_table(rows, config.dim // 2)
        self.column_positions = small_table(columns, config.dim // 2)

    def embed(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Both halves are added to the patches; the class token gets none."""
        tokens = super().embed(images)
        rows, columns = self.config.grid
        by_row = self.row_positions.repeat_interleave(columns, dim=0)
        by_column = self.column_positions.repeat(rows, 1)
        table = torch.cat([by_row, by_column], dim=1)
        return tokens + nn.functional.pad(table, (0, 0, 1, 0))


class ConcatenatingViT(ViT):
    """A ViT whose tokens are pixels and position side by side, not their sum."""

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        convolution = self.patch_embedding.projection
        kept = config.dim - CONCATENATED_DIM
        convolution.weight = nn.Parameter(
            convolution.weight[:kept].detach().clone()
        )
        convolution.bias = nn.Parameter(
            convolution.bias[:kept].detach().clone()
        )
        self.class_token = nn.Parameter(torch.zeros(1, 1, kept))
        self.side_positions = small_table(
            config.num_tokens, CONCATENATED_DIM
        )

    def embed(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """Positions fill the last entries of each token."""
        tokens = super().embed(images)
        positions = self.side_positions.expand(len(tokens), -1, -1)
        return torch.cat([tokens, positions], dim=2)


def small_table(rows: int, dim: int) -> nn.Parameter:
    """Learned vectors that start small, as ViT's positions do."""
    return nn.Parameter(0.02 * torch.randn(rows, dim))


def make_model(form: str, num_classes: int) -> ViT:
    """The tiny ViT with one of ``FORMS``."""
    plain = {"learned 1-D": "learned", "sine-cosine": "sincos2d"}
    kinds = {
        "learned 2-D": GridPositionViT,
        "concatenated": ConcatenatingViT,
    }
    settings = {
        **vars(BASE),
        "num_classes": num_classes,
        "positions": plain.get(form, "none"),
    }
    return kinds.get(form, ViT)(ViTConfig(**settings))


@lru_cache(maxsize=8)
def pictures(
    task: str, purpose: str, seed: int, image_size: int = 32
) -> tuple[Pictures, Labels]:
    """Pictures and labels of a task, to ``"train"`` or to ``"test"``."""
    if task == "emoji":
        styles = {"vendors": "fluent"} if purpose == "test" else {}
        data = emoji("train", image_size=image_size, **styles)
        return data.images(), data.targets("group")[0]
    data = scenes(
        2000 if purpose == "test" else 8000,
        split=purpose,
        image_size=image_size,
        seed=seed,
        layout="left_right",
    )
    return data.images(), data.targets("left_right")[0]


def run(condition: str, seed: int) -> dict[str, float]:
    """Accuracies from 0 to 1; for a 1-D table also what it has learned, and other resolutions."""
    task, form = condition.split(", ")
    data_seed = seed if task == "left-right" else 0
    images, labels = pictures(task, "train", data_seed)
    torch.manual_seed(seed)
    model = make_model(form, 9 if task == "emoji" else 2)
    fit(model, images, labels, STEPS[task], LR, seed, BATCH_SIZE)
    figures = {
        "test": accuracy(model, *pictures(task, "test", data_seed)),
        "parameters": count_parameters(model, trainable_only=True),
    }
    if form == "learned 1-D":
        figures |= similarities(model.position_embedding.detach())
        figures |= at_48_pixels(
            model, pictures(task, "test", data_seed, 48), seed
        )
    return figures


def similarities(
    table: Float[Tensor, "1 tokens dim"],
) -> dict[str, float]:
    """Cosine similarities of the rows: of neighbours, of distant patches, and their order."""
    similarity = position_similarity(table, BASE.grid)
    distances = patch_distances(BASE.grid, 1)
    flat = similarity.reshape(distances.shape)
    others = flat.masked_fill(distances == 0, -2.0)
    nearest = distances.gather(1, others.argmax(dim=1)[:, None])
    return {
        "similarity of neighbours": flat[distances == 1].mean().item(),
        "similarity of distant": flat[distances > BASE.grid[0] / 2]
        .mean()
        .item(),
        "most similar is adjacent": (nearest < 1.5).float().mean().item(),
        "grid structure": grid_structure(similarity),
    }


def at_48_pixels(
    model: ViT, test: tuple[Pictures, Labels], seed: int
) -> dict[str, float]:
    """Accuracy on larger pictures, with the table kept as it is and interpolated."""
    table = model.position_embedding.detach().clone()
    model.resize_positions(48)
    figures = {"48 px, interpolated": accuracy(model, *test)}
    torch.manual_seed(seed)
    kept = 0.02 * torch.randn_like(model.position_embedding)
    kept[:, : table.shape[1]] = table
    model.position_embedding = nn.Parameter(kept)
    return figures | {"48 px, kept": accuracy(model, *test)}


def judge(figures: Figures) -> list[Finding]:
    """The rules of the docstring."""
    return [
        _none_is_lower(figures),
        _none_is_at_chance(figures),
        *(_same_as_1d(figures, form) for form in FORMS[2:]),
        *(_neighbours_are_similar(figures, task) for task in TASKS),
        *(_interpolation_helps(figures, task) for task in TASKS),
    ]


def _above_zero(
    claims: tuple[str, ...],
    statement: str,
    first: list[float],
    second: list[float],
    measured: str,
) -> Finding:
    gap = difference(first, second)
    return Finding(
        claims,
        statement,
        "Confirmed: the interval of the difference lies above zero. Refuted: below zero.",
        verdict(gap.low > 0, undecided=gap.holds_zero),
        measured.format(
            first=interval(first), second=interval(second), gap=gap
        ),
        gap,
    )


def _none_is_lower(figures: Figures) -> Finding:
    return _above_zero(
        ("VIT-25",),
        "Emoji: a ViT without positions is less accurate than one with a learned 1-D table.",
        figures["emoji, learned 1-D"]["test"],
        figures["emoji, none"]["test"],
        "Accuracy {first} with, {second} without; difference {gap}.",
    )


def _none_is_at_chance(figures: Figures) -> Finding:
    without = figures["left-right, none"]["test"]
    learned = interval(figures["left-right, learned 1-D"]["test"])
    return Finding(
        ("VIT-25",),
        "Left-right: without positions a ViT is at chance, with learned ones it solves the task.",
        "Confirmed: every seed without positions has 50 % exactly, and the interval of the learned "
        "1-D table lies above 90 %. Refuted otherwise.",
        verdict(set(without) == {0.5} and learned.low > 0.9),
        f"Accuracy without {min(without):.3g} to {max(without):.3g}; with {learned}.",
        learned,
    )


def _same_as_1d(figures: Figures, form: str) -> Finding:
    first = figures[f"emoji, {form}"]["test"]
    second = figures["emoji, learned 1-D"]["test"]
    gap = difference(first, second)
    within = gap.low >= -MARGIN and gap.high <= MARGIN
    return Finding(
        ("VIT-07",) if form == "concatenated" else ("VIT-25",),
        f"Emoji: positions {form} and learned 1-D, added, are within one point.",
        "Confirmed: the interval of the difference lies within ±1 point. Refuted: it leaves out zero "
        "and reaches beyond a point.",
        verdict(within, undecided=not within and gap.holds_zero),
        f"Accuracy {interval(first)} against {interval(second)}; difference {gap}.",
        gap,
    )


def _neighbours_are_similar(figures: Figures, task: str) -> Finding:
    table = figures[f"{task}, learned 1-D"]
    return _above_zero(
        ("VIT-06",),
        f"{task.capitalize()}: learned positions of neighbours are more similar than of distant patches.",
        table["similarity of neighbours"],
        table["similarity of distant"],
        "Cosine similarity {first} of neighbours, {second} more than half the width apart; "
        "difference {gap}.",
    )


def _interpolation_helps(figures: Figures, task: str) -> Finding:
    model = figures[f"{task}, learned 1-D"]
    return _above_zero(
        ("VIT-09",),
        f"{task.capitalize()}: at 1.5 times the resolution, an interpolated table beats one that is kept.",
        model["48 px, interpolated"],
        model["48 px, kept"],
        "Accuracy {first} interpolated, {second} kept; difference {gap}. At the resolution of "
        f"training: {interval(model['test'])}.",
    )


EXPERIMENT = Experiment(
    name="d07_positions",
    title="Position embeddings: none, learned 1-D, learned 2-D, sine-cosine, concatenated",
    claims=("VIT-06", "VIT-07", "VIT-09", "VIT-25"),
    conditions=(
        "left-right, none",
        "left-right, learned 1-D",
        *(f"emoji, {form}" for form in FORMS),
    ),
    run=run,
    judge=judge,
    config={
        "tasks": "left-right scenes (2 classes); emoji groups (9 classes), tested on the style fluent",
        "model": "ViT: 32 px, patch 4, dim 48, depth 2, 4 heads, MLP 96",
        "steps": STEPS,
        "batch size": BATCH_SIZE,
        "rate": LR,
        "optimiser": "AdamW, weight decay 0.05, warm-up 10 %, cosine, gradient norm 1",
    },
)

if __name__ == "__main__":
    main(EXPERIMENT)
