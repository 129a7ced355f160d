"""Looking into models: attention maps and costs."""

from mmlab.analysis.attention import AttentionMaps, attention_weights, record_attention
from mmlab.analysis.cost import block_macs, count_parameters, vit_macs

__all__ = [
    "AttentionMaps",
    "attention_weights",
    "block_macs",
    "count_parameters",
    "record_attention",
    "vit_macs",
]
