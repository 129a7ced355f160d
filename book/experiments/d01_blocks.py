"""D01: the four blocks of a single-stream network's attention, and what each is good for.

A small single-stream Transformer answers "what color is the left shape?" about scenes of two shapes.
Its joint attention has four blocks: words → words, words → patches, patches → words and patches →
patches (who looks → who is looked at). We measure how much attention falls into each, hide one
block at a time in the trained network, and train networks that never had the block.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from mmlab import datasets
from mmlab.analysis import record_attention
from mmlab.analysis.families import BLOCKS, block_mass, hide_blocks
from mmlab.datasets.scenes import COLORS, Scene
from mmlab.datasets.transforms import to_float
from mmlab.nn import PatchEmbedding, TransformerBlock
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import OneCycleLR

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from experiments.protocol import (
    Experiment,
    Figures,
    Finding,
    difference,
    interval,
    main,
    verdict,
)

CONFIG = {
    "image_size": 32,
    "patch_size": 8,
    "dim": 48,
    "num_heads": 4,
    "mlp_dim": 192,
    "depth": 2,
    "train_images": 3000,
    "test_images": 1000,
    "batch": 64,
    "steps": 1000,
    "learning_rate": 2e-3,
    "question": "[CLS] what color is the SIDE shape",
}
SIDES = ("left", "right", "upper", "lower")
WORDS = ("[CLS]", "what", "color", "is", "the", "shape")
VOCABULARY = (*WORDS, *SIDES)
QUESTION = ("[CLS]", "what", "color", "is", "the", None, "shape")
NUM_WORDS = len(QUESTION)
NUM_PATCHES = (CONFIG["image_size"] // CONFIG["patch_size"]) ** 2
ALL = "all blocks"


def name_of(block: tuple[str, str]) -> str:
    """ "words → patches": who looks at whom."""
    return " → ".join(block)


CONDITIONS = {
    ALL: None,
    **{f"trained without {name_of(b)}": b for b in BLOCKS},
}


class SingleStream(nn.Module):
    """Words and patches in one sequence; the first word's output answers with a color."""

    def __init__(self) -> None:
        super().__init__()
        dim, tokens = CONFIG["dim"], NUM_WORDS + NUM_PATCHES
        self.words = nn.Embedding(len(VOCABULARY), dim)
        self.patches = PatchEmbedding(CONFIG["patch_size"], dim)
        self.positions = nn.Parameter(torch.randn(1, tokens, dim) * 0.5)
        sizes = dim, CONFIG["num_heads"], CONFIG["mlp_dim"]
        self.blocks = nn.ModuleList(
            TransformerBlock(*sizes) for _ in range(CONFIG["depth"])
        )
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, len(COLORS))

    def forward(
        self,
        questions: Int64[Tensor, "batch words"],
        images: Float[Tensor, "batch 3 height width"],
        mask: Bool[Tensor, "1 1 tokens tokens"] | None = None,
    ) -> Float[Tensor, "batch colors"]:
        """Logits of the colors; ``mask`` is True where a token may look."""
        sequence = [self.words(questions), self.patches(images)]
        tokens = torch.cat(sequence, dim=1) + self.positions
        for block in self.blocks:
            tokens = block(tokens, mask)
        return self.head(self.norm(tokens[:, 0]))


class Data:
    """Images of two shapes; which sides tell them apart, and the color on each side."""

    def __init__(self, split: str, num_images: int, seed: int):
        scenes = datasets.scenes(
            num_images,
            split,
            CONFIG["image_size"],
            seed,
            num_objects=(2, 2),
        )
        self.images = 2 * to_float(scenes.images()) - 1
        truth = torch.tensor([sides(s) for s in scenes.scenes])
        self.first_side, *colors = truth.unbind(dim=1)
        self.colors = torch.stack(colors, dim=1)

    def ask(
        self,
        rows: Int64[Tensor, " batch"],
        generator: torch.Generator,
    ) -> tuple[Int64[Tensor, "batch words"], Int64[Tensor, " batch"]]:
        """One of the two questions for each image, with its answer."""
        other = torch.randint(2, (len(rows),), generator=generator)
        ids = [VOCABULARY.index(w) if w else 0 for w in QUESTION]
        questions = torch.tensor(ids).repeat(len(rows), 1)
        side = self.first_side[rows] + other
        questions[:, QUESTION.index(None)] = side + len(WORDS)
        return questions, self.colors[rows, other]


def sides(scene: Scene) -> tuple[int, int, int]:
    """The first of the two sides that tell the shapes apart, and the color on each of the two."""
    one, two = scene.objects
    apart = [
        abs(a - b) for a, b in zip(one.center, two.center, strict=True)
    ]
    axis = apart.index(max(apart))  # 0 across, 1 down
    first, second = sorted((one, two), key=lambda o: o.center[axis])
    return 2 * axis, COLORS.index(first.color), COLORS.index(second.color)


def mask_without(
    block: tuple[str, str] | None,
) -> Bool[Tensor, "1 1 tokens tokens"] | None:
    """The mask that hides one block; None if there is none to hide."""
    return block and hide_blocks(NUM_WORDS, NUM_PATCHES, block)


def train(
    model: SingleStream,
    data: Data,
    mask: Tensor | None,
    generator: torch.Generator,
) -> None:
    """All steps; the rate warms up, then falls to zero."""
    steps, rate = CONFIG["steps"], CONFIG["learning_rate"]
    optimizer = AdamW(model.parameters(), rate, fused=True)
    schedule = OneCycleLR(optimizer, rate, total_steps=steps)
    for _ in range(steps):
        rows = torch.randint(
            len(data.images), (CONFIG["batch"],), generator=generator
        )
        questions, answers = data.ask(rows, generator)
        logits = model(questions, data.images[rows], mask)
        loss = F.cross_entropy(logits, answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


class Examination:
    """One question about each test image, the same in every examination of a seed."""

    def __init__(self, data: Data, seed: int):
        generator = torch.Generator().manual_seed(1000 + seed)
        rows = torch.arange(len(data.images))
        self.images = data.images
        self.questions, self.answers = data.ask(rows, generator)

    @torch.no_grad()
    def accuracy(self, model: SingleStream, mask: Tensor | None) -> float:
        """Share of right answers."""
        logits = model(self.questions, self.images, mask)
        right = logits.argmax(-1) == self.answers
        return right.float().mean().item()

    @torch.no_grad()
    def attention(self, model: SingleStream) -> dict[str, float]:
        """Mean share of each block in each layer, and how far any row's sum is from 1."""
        with record_attention(model) as maps:
            model(self.questions, self.images)
        figures = {}
        for layer, attention in enumerate(maps.values(), start=1):
            mass = block_mass(attention, NUM_WORDS).mean(dim=(0, 1))
            shares = mass.flatten().tolist()
            for block, share in zip(BLOCKS, shares, strict=True):
                figures[f"layer {layer}, {name_of(block)}"] = share
        sums = torch.stack([m.sum(-1) for m in maps.values()])
        return figures | {"row error": (sums - 1).abs().max().item()}


def run(condition: str, seed: int) -> dict[str, float]:
    """Train one network and examine it."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model, block = SingleStream(), CONDITIONS[condition]
    train_data = Data("train", CONFIG["train_images"], seed)
    test_data = Data("test", CONFIG["test_images"], seed)
    train(model, train_data, mask_without(block), generator)
    model.eval()
    examination = Examination(test_data, seed)
    figures = {
        "accuracy": examination.accuracy(model, mask_without(block))
    }
    if condition == ALL:
        figures |= examination.attention(model)
        for hidden in BLOCKS:
            figures[f"{name_of(hidden)} hidden"] = examination.accuracy(
                model, mask_without(hidden)
            )
    return figures


def judge(figures: Figures) -> list[Finding]:
    """The rules, written after a pilot with seed 100 and before the run."""
    found = [_rows(figures[ALL])]
    for block in BLOCKS:
        found.append(_hidden(figures[ALL], name_of(block)))
    for block in BLOCKS:
        found.append(_never_had(figures, name_of(block)))
    return found


def _rows(figures: dict[str, list[float]]) -> Finding:
    shares = [
        min(v) for k, v in figures.items() if k.startswith("layer ")
    ]
    error, least = max(figures["row error"]), min(shares)
    return Finding(
        claims=("FND-02", "FND-12"),
        statement="Every token shares its attention out over words and patches together, and uses all four blocks.",
        rule="In every layer and seed each row sums to 1 within 1e-5, and each block has more than 1 % of its rows' attention.",
        verdict=verdict(error < 1e-5 and least > 0.01),
        measured=f"largest deviation {error:.0e}, smallest share {least:.1%}",
    )


def _hidden(figures: dict[str, list[float]], block: str) -> Finding:
    loss = difference(figures["accuracy"], figures[f"{block} hidden"])
    left = interval(figures[f"{block} hidden"])
    return Finding(
        claims=("FND-12",),
        statement=f"A trained single-stream network relies on {block}.",
        rule="Hiding the block at test time lowers the accuracy: the 95 % interval of the loss lies above 0.",
        verdict=verdict(loss.low > 0, loss.holds_zero),
        measured=f"accuracy left {left}, lost {loss}",
        estimate=loss,
    )


def _never_had(figures: Figures, block: str) -> Finding:
    without = figures[f"trained without {block}"]["accuracy"]
    loss = difference(figures[ALL]["accuracy"], without)
    return Finding(
        claims=("FND-12",),
        statement=f"In {CONFIG['steps']} steps a single-stream network does not learn this task as well without {block}.",
        rule="Trained without the block it is less accurate: the 95 % interval of the loss lies above 0.",
        verdict=verdict(loss.low > 0, loss.holds_zero),
        measured=f"accuracy {interval(without)}, lost {loss}",
        estimate=loss,
    )


EXPERIMENT = Experiment(
    name="d01_blocks",
    title="The four blocks of single-stream attention",
    claims=("FND-02", "FND-12"),
    conditions=tuple(CONDITIONS),
    run=run,
    judge=judge,
    config=CONFIG,
)

if __name__ == "__main__":
    main(EXPERIMENT)
