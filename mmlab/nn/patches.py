"""From images to patch tokens: cutting, linear embedding, convolutional stem."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn


def patchify(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Float[Tensor, "batch patches values"]:
    """Cut images into flattened square patches, row by row (ViT, section 3.1).

    The values of a patch are ordered (channel, row, column), like a convolution kernel, so
    ``patchify(images, P) @ conv.weight.flatten(1).T + conv.bias`` equals the strided convolution.
    ValueError if ``patch_size`` does not divide height and width.
    """
    _check_divisible(images.shape[-2:], patch_size)
    pattern = "b c (rows p) (columns q) -> b (rows columns) (c p q)"
    return rearrange(images, pattern, p=patch_size, q=patch_size)


def unpatchify(
    patches: Float[Tensor, "batch patches values"], patch_size: int, grid: tuple[int, int]
) -> Float[Tensor, "batch channels height width"]:
    """Put the patches of ``patchify`` back together; ``grid`` is (rows, columns)."""
    pattern = "b (rows columns) (c p q) -> b c (rows p) (columns q)"
    return rearrange(patches, pattern, rows=grid[0], columns=grid[1], p=patch_size, q=patch_size)


class PatchEmbedding(nn.Module):
    """Map every patch linearly to ``dim`` values (ViT, equation 1).

    A convolution whose stride is its kernel size does the cutting and the matrix product at once.
    """

    def __init__(self, patch_size: int, dim: int, num_channels: int = 3, bias: bool = True):
        super().__init__()
        self.patch_size = patch_size
        self.projection = nn.Conv2d(num_channels, dim, patch_size, stride=patch_size, bias=bias)

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Patch tokens, row by row; ValueError if the patch size does not divide the image."""
        _check_divisible(images.shape[-2:], self.patch_size)
        return self.projection(images).flatten(2).transpose(1, 2)


class ConvStem(nn.Module):
    """Stride-2 convolutions in place of the patch projection.

    Xiao et al. 2021, "Early Convolutions Help Transformers See Better".

    ``log2(patch_size)`` 3x3 convolutions double the width up to ``dim``, each with batch norm and
    GELU (the paper: ReLU); a 1x1 convolution ends the stem. Same tokens as ``PatchEmbedding``, but
    neighbouring patches overlap; the paper finds training far more stable.
    """

    def __init__(self, patch_size: int, dim: int, num_channels: int = 3):
        super().__init__()
        self.patch_size = patch_size
        widths = conv_stem_widths(patch_size, dim)
        self.layers = nn.Sequential(*map(self._stage, [num_channels, *widths[:-1]], widths))
        self.projection = nn.Conv2d(dim, dim, kernel_size=1)

    @staticmethod
    def _stage(in_channels: int, out_channels: int) -> nn.Sequential:
        # The batch norm brings its own shift, so the convolution needs no bias.
        conv = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.GELU())

    def forward(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch patches dim"]:
        """Patch tokens, row by row; ValueError if the patch size does not divide the image."""
        _check_divisible(images.shape[-2:], self.patch_size)
        return self.projection(self.layers(images)).flatten(2).transpose(1, 2)


def conv_stem_widths(patch_size: int, dim: int) -> list[int]:
    """Channels after each stride-2 stage of a ``ConvStem``; ValueError if the sizes do not fit."""
    num_stages = patch_size.bit_length() - 1
    if patch_size != 2**num_stages or num_stages < 1:
        raise ValueError(f"patch_size must be a power of two for a conv stem, got {patch_size}")
    halvings = 2 ** (num_stages - 1)
    if dim % halvings:
        raise ValueError(
            f"dim must be a multiple of {halvings} for a conv stem with patch_size={patch_size}, "
            f"got {dim}"
        )
    return [dim // 2**stage for stage in reversed(range(num_stages))]


def _check_divisible(image_size: tuple[int, int], patch_size: int) -> None:
    height, width = image_size
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"patch_size must divide the image: got {patch_size} for {height} x {width} pixels"
        )
