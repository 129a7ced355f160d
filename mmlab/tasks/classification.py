"""Classification: labelled images to train on, and the accuracy on them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor, nn

from mmlab import datasets
from mmlab.datasets import Emoji, Scenes
from mmlab.datasets.emoji import TRAINING_VENDORS
from mmlab.datasets.scenes.world import MAX_OBJECTS
from mmlab.datasets.transforms import (
    VIT_MEAN,
    VIT_STD,
    crop_and_resize,
    normalize,
    sample_crop_boxes,
)

CROP_SCALE = (0.7, 1.0)
"""Least and greatest share of an image's area that a random crop shows."""


@dataclass(frozen=True)
class LabelledImages:
    """Images of a data set with one label each; ``augment`` crops and flips them in training."""

    dataset: Emoji | Scenes
    labels: Int64[Tensor, " num"]
    classes: tuple[str, ...]
    augment: bool = False

    def __len__(self) -> int:
        return len(self.labels)

    def batch(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        """``{"images", "labels"}`` of ``rows[share]``, values in [-1, 1] as the original ViT's.

        Crops and flips are drawn for all ``rows``, whatever the share.
        """
        images = self.dataset.images(rows[share])
        if self.augment:
            images = _augment(images, len(rows), share, generator)
        return {"images": normalize(images, VIT_MEAN, VIT_STD), "labels": self.labels[rows[share]]}


def _augment(images: Tensor, num_rows: int, share: slice, generator: Generator) -> Tensor:
    height, width = images.shape[-2:]
    boxes = sample_crop_boxes(num_rows, height, width, CROP_SCALE, generator=generator)[share]
    flipped = (torch.rand(num_rows, generator=generator) < 0.5)[share, None, None, None]
    images = crop_and_resize(images, boxes, (height, width))
    return torch.where(flipped, images.flip(-1), images)


def emoji_images(
    image_size: int,
    target: str = "",
    split: str = "train",
    vendors: str | tuple[str, ...] = TRAINING_VENDORS,
    augment: bool = False,
) -> LabelledImages:
    """Emoji labelled with their ``group`` or another target of ``Emoji.targets``."""
    dataset = datasets.emoji(split, vendors, image_size=image_size)
    labels, classes = dataset.targets(target or "group")
    return LabelledImages(dataset, labels, classes, augment)


def scene_images(
    image_size: int,
    target: str = "",
    split: str = "train",
    num_images: int = 1000,
    seed: int = 0,
    most_objects: int = MAX_OBJECTS,
) -> LabelledImages:
    """Scenes labelled with their ``largest_shape`` or another target of ``Scenes.targets``.

    They are never cropped or flipped: new ones cost little, and a flip turns left into right.
    """
    target = target or "largest_shape"
    layout = "left_right" if target == "left_right" else "free"
    shown = {"num_objects": (1, most_objects), "layout": layout}
    dataset = datasets.scenes(num_images, split, image_size, seed=seed, **shown)
    labels, classes = dataset.targets(target)
    return LabelledImages(dataset, labels, classes)


@torch.no_grad()
def predict(
    network: nn.Module, data: LabelledImages, batch_size: int = 256
) -> Float[Tensor, "num classes"]:
    """Logits of all images, none of them cropped or flipped; the network's mode is restored."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    try:
        parts = [
            network(normalize(data.dataset.images(rows), VIT_MEAN, VIT_STD).to(device)).cpu()
            for rows in torch.arange(len(data)).split(batch_size)
        ]
    finally:
        network.train(training)
    return torch.cat(parts)


@dataclass(frozen=True)
class Accuracy:
    """Shares of images: named rightly, and right for who always names the commonest class."""

    accuracy: float
    commonest_class: float
    num_images: int
    num_classes: int


def accuracy(network: nn.Module, data: LabelledImages) -> Accuracy:
    """How often the largest logit is that of the label."""
    right = predict(network, data).argmax(-1) == data.labels
    commonest = data.labels.bincount().max().item() / len(data)
    return Accuracy(right.float().mean().item(), commonest, len(data), len(data.classes))
