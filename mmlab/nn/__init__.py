"""The building blocks that the models share."""

from mmlab.nn.attention import Attention, AttentionMask, DotProductAttention
from mmlab.nn.bert import (
    BertConfig,
    BertDecoder,
    BertEmbeddings,
    BertLanguageHead,
    BertPooler,
    BertTrunk,
    BertWriting,
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
    share_layers,
    shared_checkpointing,
)
from mmlab.nn.contrast import TEMPERATURES, ContrastHead
from mmlab.nn.decoding import beam_search, nucleus_filter, sample_text
from mmlab.nn.heads import BertClassifier, BertTransform, find_head
from mmlab.nn.masking import (
    PatchMask,
    init_joint_projections,
    init_xavier,
    keep_patches,
    num_kept,
    random_masking,
    restore_patches,
)
from mmlab.nn.masks import causal_mask, padding_mask, prefix_mask, valid_tokens
from mmlab.nn.momentum import FeatureQueue, MomentumTwin, make_average, update_average
from mmlab.nn.patches import ConvStem, PatchEmbedding, conv_stem_widths, patchify, unpatchify
from mmlab.nn.positions import INTERPOLATIONS, Grid, interpolate_positions, sincos_positions
from mmlab.nn.single_stream import JointFeatures, SingleStream

__all__ = [
    "ACTIVATIONS",
    "INTERPOLATIONS",
    "MLP",
    "TEMPERATURES",
    "Attention",
    "AttentionMask",
    "BertClassifier",
    "BertConfig",
    "BertDecoder",
    "BertEmbeddings",
    "BertLanguageHead",
    "BertPooler",
    "BertTransform",
    "BertTrunk",
    "BertWriting",
    "ContrastHead",
    "ConvStem",
    "DotProductAttention",
    "DropPath",
    "FeatureQueue",
    "Grid",
    "JointFeatures",
    "MomentumTwin",
    "PatchEmbedding",
    "PatchMask",
    "PostNormBlock",
    "QuickGELU",
    "SingleStream",
    "TransformerBlock",
    "beam_search",
    "bert_block",
    "causal_mask",
    "conv_stem_widths",
    "find_head",
    "init_bert",
    "init_joint_projections",
    "init_xavier",
    "interpolate_positions",
    "keep_patches",
    "make_average",
    "nucleus_filter",
    "num_kept",
    "padding_mask",
    "patchify",
    "prefix_mask",
    "random_masking",
    "restore_patches",
    "run_blocks",
    "sample_text",
    "share_layers",
    "shared_checkpointing",
    "sincos_positions",
    "unpatchify",
    "update_average",
    "valid_tokens",
]
