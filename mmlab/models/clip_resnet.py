"""CLIP's ResNet: three small convolutions at the bottom, no aliasing, attention at the top.

Radford et al. 2021, section 2.4; the official code is openai/CLIP (``clip/model.py``).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlab.nn import DotProductAttention

EXPANSION = 4
"""How much wider the outside of a bottleneck is than its inside."""
HEAD_DIM = 64


class CLIPResNet(nn.Module):
    """A ResNet-D (He et al. 2019) with anti-aliased strides (Zhang 2019) and attention pooling.

    ``stages`` are the numbers of bottlenecks, ``width`` the width inside those of the first stage.
    The last feature map has 1/32 of the image's resolution and ``32 width`` channels; with one more
    token, its mean, it makes ``num_tokens``.
    """

    def __init__(
        self,
        stages: tuple[int, ...],
        width: int,
        embed_dim: int,
        num_tokens: int,
        num_channels: int = 3,
    ):
        super().__init__()
        self.activation_checkpointing = False
        self.stem = ResNetStem(num_channels, width)
        widths = [width * 2**stage for stage in range(len(stages))]
        in_channels = [width, *(EXPANSION * inside for inside in widths[:-1])]
        strides = [1, *(2 for _ in stages[1:])]
        self.stages = nn.ModuleList(map(_stage, in_channels, widths, strides, stages))
        self.pool = AttentionPool(EXPANSION * widths[-1], embed_dim, num_tokens)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """Image features; there is no projection after them."""
        return self.pool(self.forward_map(images))

    def forward_map(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim rows columns"]:
        """The last feature map."""
        x = self.stem(images)
        for block in (block for stage in self.stages for block in stage):
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


def _stage(in_channels: int, width: int, stride: int, num_blocks: int) -> nn.ModuleList:
    outside = EXPANSION * width
    first = Bottleneck(in_channels, width, stride)
    return nn.ModuleList([first, *(Bottleneck(outside, width) for _ in range(num_blocks - 1))])


class ResNetStem(nn.Module):
    """Three 3x3 convolutions, the first of stride 2, and a 2x2 average: 1/4 of the resolution."""

    def __init__(self, num_channels: int, width: int):
        super().__init__()
        half = width // 2
        self.conv1 = nn.Conv2d(num_channels, half, 3, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(half)
        self.conv2 = nn.Conv2d(half, half, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(half)
        self.conv3 = nn.Conv2d(half, width, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(width)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim rows columns"]:
        """A map of ``width`` channels."""
        x = F.relu(self.norm1(self.conv1(images)))
        x = F.relu(self.norm2(self.conv2(x)))
        x = F.relu(self.norm3(self.conv3(x)))
        return F.avg_pool2d(x, 2)


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolution beside a shortcut; a stride is an average, not a skip.

    The shortcut has a convolution of its own where the shape changes. The last norm starts at zero,
    so that a fresh block is its shortcut.
    """

    def __init__(self, in_channels: int, width: int, stride: int = 1):
        super().__init__()
        outside = EXPANSION * width
        self.stride = stride
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.norm3 = nn.BatchNorm2d(outside)
        nn.init.zeros_(self.norm3.weight)
        changes = stride > 1 or in_channels != outside
        self.shortcut = nn.Conv2d(in_channels, outside, 1, bias=False) if changes else None
        self.shortcut_norm = nn.BatchNorm2d(outside) if changes else None

    def forward(
        self, x: Float[Tensor, "batch in_dim rows columns"]
    ) -> Float[Tensor, "batch out_dim out_rows out_columns"]:
        """A map ``4 width`` deep and ``stride`` times smaller."""
        inner = F.relu(self.norm1(self.conv1(x)))
        inner = F.relu(self.norm2(self.conv2(inner)))
        inner = self.norm3(self.conv3(F.avg_pool2d(inner, self.stride)))
        if self.shortcut is not None:
            x = self.shortcut_norm(self.shortcut(F.avg_pool2d(x, self.stride)))
        return F.relu(x + inner)


class AttentionPool(nn.Module):
    """A feature map to one vector: its mean asks all its cells (CLIP, section 2.4).

    The mean is also one of the tokens that are asked. ``mmlab.record_attention`` sees one row of
    weights a head.
    """

    def __init__(self, dim: int, embed_dim: int, num_tokens: int):
        super().__init__()
        self.num_heads = dim // HEAD_DIM
        self.position_embedding = nn.Parameter(torch.zeros(1, num_tokens, dim))
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.dot_product = DotProductAttention()
        self.out_proj = nn.Linear(dim, embed_dim)
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.out_proj):
            nn.init.normal_(projection.weight, std=dim**-0.5)
        nn.init.normal_(self.position_embedding, std=dim**-0.5)

    def forward(
        self, x: Float[Tensor, "batch dim rows columns"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """One vector an image."""
        cells = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([cells.mean(dim=1, keepdim=True), cells], dim=1)
        tokens = tokens + self.position_embedding
        query = self._split_heads(self.q_proj(tokens[:, :1]))
        keys = self._split_heads(self.k_proj(tokens))
        values = self._split_heads(self.v_proj(tokens))
        return self.out_proj(self.dot_product(query, keys, values, None).flatten(1))

    def _split_heads(
        self, x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return rearrange(x, "b t (heads d) -> b heads t d", heads=self.num_heads)
