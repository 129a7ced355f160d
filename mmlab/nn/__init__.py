"""The building blocks that the models share."""

from mmlab.nn.attention import Attention, AttentionMask, DotProductAttention
from mmlab.nn.bert import (
    BertConfig,
    BertEmbeddings,
    BertLanguageHead,
    BertPooler,
    bert_block,
    init_bert,
)
from mmlab.nn.blocks import (
    ACTIVATIONS,
    MLP,
    DropPath,
    PostNormBlock,
    QuickGELU,
    TransformerBlock,
    run_blocks,
    shared_checkpointing,
)
from mmlab.nn.masking import (
    PatchMask,
    init_joint_projections,
    init_xavier,
    keep_patches,
    num_kept,
    random_masking,
    restore_patches,
)
from mmlab.nn.masks import causal_mask, padding_mask, prefix_mask
from mmlab.nn.momentum import FeatureQueue, MomentumTwin, make_average, update_average
from mmlab.nn.patches import ConvStem, PatchEmbedding, conv_stem_widths, patchify, unpatchify
from mmlab.nn.positions import INTERPOLATIONS, Grid, interpolate_positions, sincos_positions

__all__ = [
    "ACTIVATIONS",
    "INTERPOLATIONS",
    "MLP",
    "Attention",
    "AttentionMask",
    "BertConfig",
    "BertEmbeddings",
    "BertLanguageHead",
    "BertPooler",
    "ConvStem",
    "DotProductAttention",
    "DropPath",
    "FeatureQueue",
    "Grid",
    "MomentumTwin",
    "PatchEmbedding",
    "PatchMask",
    "PostNormBlock",
    "QuickGELU",
    "TransformerBlock",
    "bert_block",
    "causal_mask",
    "conv_stem_widths",
    "init_bert",
    "init_joint_projections",
    "init_xavier",
    "interpolate_positions",
    "keep_patches",
    "make_average",
    "num_kept",
    "padding_mask",
    "patchify",
    "prefix_mask",
    "random_masking",
    "restore_patches",
    "run_blocks",
    "shared_checkpointing",
    "sincos_positions",
    "unpatchify",
    "update_average",
]
