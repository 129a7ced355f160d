"""The short training loop of the ViT experiments, on pictures that lie in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, UInt8
from mmlab.datasets import scenes, transforms
from mmlab.training.optim import make_optimizer
from mmlab.training.schedules import rate_factor, set_rate
from mmlab.training.seeds import generator
from torch import Generator, Tensor, nn

Pictures = UInt8[Tensor, "num 3 height width"]
Labels = Int64[Tensor, " num"]
Batch = Float[Tensor, "batch 3 height width"]
Augment = Callable[[Pictures, Generator], Pictures]
Loss = Callable[[nn.Module, Batch, Labels], Float[Tensor, ""]]


@lru_cache(maxsize=8)
def colour_task(
    num: int, split: str, seed: int
) -> tuple[Pictures, Labels]:
    """``num`` scenes of 32 pixels, labelled with the colour of the largest object (8 classes).

    Kept once drawn, as the conditions of one seed share them.
    """
    data = scenes(num, split=split, image_size=32, seed=seed)
    return data.images(), data.targets("largest_color")[0]


def prepare(images: Pictures) -> Batch:
    """Values from -1 to 1, as the original ViT has them."""
    return transforms.normalize(
        images, transforms.VIT_MEAN, transforms.VIT_STD
    )


def cross_entropy(
    model: nn.Module, images: Batch, labels: Labels
) -> Float[Tensor, ""]:
    """The usual loss; others take the same arguments."""
    return F.cross_entropy(model(images), labels)


def fit(
    model: nn.Module,
    images: Pictures,
    labels: Labels,
    steps: int,
    lr: float,
    seed: int,
    batch_size: int = 64,
    augment: Augment | None = None,
    loss: Loss = cross_entropy,
) -> nn.Module:
    """Train ``model`` and return it: AdamW, a warm-up over a tenth of the steps, then a cosine.

    The gradient is cut to length 1, as in the paper's runs on ImageNet. Batches are drawn with
    replacement and depend on ``seed`` alone, so two models with one seed see the same pictures.
    """
    optimizer = make_optimizer(model, lr, weight_decay=0.05)
    draws = generator(seed)
    model.train()
    for step in range(steps):
        factor = rate_factor("cosine", step, steps, steps // 10)
        set_rate(optimizer, lr * factor)
        rows = torch.randint(len(images), (batch_size,), generator=draws)
        batch = (
            images[rows]
            if augment is None
            else augment(images[rows], draws)
        )
        optimizer.zero_grad()
        loss(model, prepare(batch), labels[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Pictures, labels: Labels) -> float:
    """Share of the pictures that ``model`` names rightly, from 0 to 1."""
    model.eval()
    right = 0
    for batch, truth in zip(
        images.split(250), labels.split(250), strict=True
    ):
        guess = model(prepare(batch)).argmax(dim=-1)
        right += (guess == truth).sum().item()
    return right / len(images)
