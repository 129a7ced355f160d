"""EfficientNet-Lite0: a small convolutional network that has seen a million photographs.

Tan and Le 2019, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks" (arXiv
1905.11946), in the form for phones: no squeeze-and-excitation, ReLU6 for swish
(tensorflow/tpu, ``models/official/efficientnet/lite``). Here it is an image encoder that a BLIP-2
can be frozen around: its trained weights come in a package (see ``mmlab.hub.frozen_parts``).
"""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

CELL = 32
"""Pixels of the image, in either direction, to one of the grid that comes out."""
DIM = 320
"""Channels of that grid."""
NUM_CLASSES, LAST_DIM = 1000, 1280
_NORM_EPS = 1e-3


class Stage(NamedTuple):
    """``repeats`` blocks, of which the first strides; inside they are ``expand`` times as wide."""

    expand: int
    dim: int
    repeats: int
    stride: int
    kernel_size: int


STEM_DIM = 32
STAGES = (
    Stage(1, 16, 1, 1, 3),
    Stage(6, 24, 2, 2, 3),
    Stage(6, 40, 2, 2, 5),
    Stage(6, 80, 3, 2, 3),
    Stage(6, 112, 3, 1, 5),
    Stage(6, 192, 4, 2, 5),
    Stage(6, DIM, 1, 1, 3),
)


class ConvNorm(nn.Module):
    """A convolution without bias, a batch norm, and ReLU6 unless ``is_linear``.

    Padded as TensorFlow does ("SAME"): with a stride, more at the right and at the bottom.
    """

    def __init__(
        self,
        dim: int,
        out_dim: int,
        kernel_size: int = 1,
        stride: int = 1,
        groups: int = 1,
        is_linear: bool = False,
    ):
        super().__init__()
        self.kernel_size, self.stride, self.is_linear = kernel_size, stride, is_linear
        self.conv = nn.Conv2d(dim, out_dim, kernel_size, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(out_dim, eps=_NORM_EPS)

    def forward(
        self, x: Float[Tensor, "batch dim height width"]
    ) -> Float[Tensor, "batch out_dim out_height out_width"]:
        """The grid, coarser by the stride."""
        above, below = self._padding(x.shape[2])
        left, right = self._padding(x.shape[3])
        x = self.norm(self.conv(F.pad(x, (left, right, above, below))))
        return x if self.is_linear else F.relu6(x)

    def _padding(self, size: int) -> tuple[int, int]:
        needed = (-(-size // self.stride) - 1) * self.stride + self.kernel_size - size
        before = max(needed, 0) // 2
        return before, max(needed, 0) - before


class InvertedResidual(nn.Module):
    """Wider, each channel by itself, narrow again; added to what came in where shapes allow it.

    Sandler et al. 2018, "MobileNetV2" (arXiv 1801.04381), section 3.3.
    """

    def __init__(self, dim: int, out_dim: int, expand: int, kernel_size: int, stride: int):
        super().__init__()
        wide = expand * dim
        self.expand = ConvNorm(dim, wide) if expand > 1 else None
        self.depthwise = ConvNorm(wide, wide, kernel_size, stride, groups=wide)
        self.project = ConvNorm(wide, out_dim, is_linear=True)
        self.is_residual = stride == 1 and dim == out_dim

    def forward(
        self, x: Float[Tensor, "batch dim height width"]
    ) -> Float[Tensor, "batch out_dim out_height out_width"]:
        """The grid, coarser by the stride."""
        wide = x if self.expand is None else self.expand(x)
        out = self.project(self.depthwise(wide))
        return x + out if self.is_residual else out


class EfficientNetLite0(nn.Module):
    """Images into a grid of tokens, and into 1,000 classes of ImageNet where it has a head.

    Images are floats of any size, normalised with a mean and deviation of 0.5. ``patch_size`` is
    how many of their pixels one token stands for: they are enlarged until these fill a cell of 32
    pixels. ValueError if it is none of 1 to 32.
    """

    def __init__(self, patch_size: int = CELL, num_classes: int = NUM_CLASSES):
        super().__init__()
        if not 1 <= patch_size <= CELL:
            raise ValueError(f"patch_size must be 1 to {CELL}, got {patch_size}")
        self.scale = CELL / patch_size
        # Nothing here is recomputed in a backward pass; BLIP-2 asks all its parts.
        self.activation_checkpointing = False
        self.stem = ConvNorm(3, STEM_DIM, 3, 2)
        self.blocks = nn.Sequential(*_blocks())
        self.last = ConvNorm(DIM, LAST_DIM) if num_classes else None
        self.head = nn.Linear(LAST_DIM, num_classes) if num_classes else None

    def forward(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch num_classes"]:
        """Logits; ValueError without a head."""
        if self.head is None:
            raise ValueError("this EfficientNet has no head; it was made with num_classes=0")
        return self.head(self.last(self.grid(images)).mean((2, 3)))

    def grid(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch 320 rows columns"]:
        """What stands before the layers of the classifier."""
        if self.scale != 1:
            images = F.interpolate(images, scale_factor=self.scale, mode="bilinear")
        return self.blocks(self.stem(images))

    def forward_tokens(
        self, images: Float[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch tokens 320"]:
        """The cells of the grid, row by row. There is no class token."""
        return self.grid(images).flatten(2).transpose(1, 2)


def _blocks() -> list[InvertedResidual]:
    blocks, dim = [], STEM_DIM
    for stage in STAGES:
        for repeat in range(stage.repeats):
            stride = stage.stride if repeat == 0 else 1
            given = (stage.expand, stage.kernel_size, stride)
            blocks.append(InvertedResidual(dim, stage.dim, *given))
            dim = stage.dim
    return blocks
