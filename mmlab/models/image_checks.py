"""What models check of the images they are given."""

from __future__ import annotations

from torch import Tensor


def check_images(images: Tensor, num_channels: int, image_size: int) -> None:
    """A batch of square float images of the size that the model has positions for."""
    if not images.is_floating_point():
        raise ValueError(
            f"images must be floating point, got {images.dtype}; convert and normalise them "
            "with mmlab.datasets.transforms first"
        )
    expected = (num_channels, image_size, image_size)
    if tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"images must have shape (batch, {', '.join(map(str, expected))}), got "
            f"{tuple(images.shape)}; resize the images, or the model with "
            "model.resize_positions(image_size)"
        )
