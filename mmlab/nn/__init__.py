"""The building blocks that the models share."""

from mmlab.nn.attention import Attention, DotProductAttention
from mmlab.nn.blocks import ACTIVATIONS, MLP, DropPath, TransformerBlock
from mmlab.nn.masks import causal_mask, padding_mask, prefix_mask
from mmlab.nn.patches import ConvStem, PatchEmbedding, conv_stem_widths, patchify, unpatchify
from mmlab.nn.positions import INTERPOLATIONS, Grid, interpolate_positions, sincos_positions

__all__ = [
    "ACTIVATIONS",
    "INTERPOLATIONS",
    "MLP",
    "Attention",
    "ConvStem",
    "DotProductAttention",
    "DropPath",
    "Grid",
    "PatchEmbedding",
    "TransformerBlock",
    "causal_mask",
    "conv_stem_widths",
    "interpolate_positions",
    "padding_mask",
    "patchify",
    "prefix_mask",
    "sincos_positions",
    "unpatchify",
]
