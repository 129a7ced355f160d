"""Looking into models: attention maps, position tables, patch filters, attributions and costs."""

from mmlab.analysis.attention import AttentionMaps, attention_weights, record_attention
from mmlab.analysis.attributions import (
    completeness_gap,
    integrated_gradients,
    occlusion,
    patch_occlusion,
)
from mmlab.analysis.cost import block_macs, count_parameters, parameters_by_part, vit_macs
from mmlab.analysis.distance import (
    attention_distance,
    attention_distances,
    patch_distances,
    query_distances,
)
from mmlab.analysis.grad_cam import grad_cam
from mmlab.analysis.patch_filters import PatchFilters, patch_filters
from mmlab.analysis.positions import grid_structure, position_similarity, spearman
from mmlab.analysis.reconstruct import Reconstruction, reconstruct
from mmlab.analysis.rollout import attention_rollout

__all__ = [
    "AttentionMaps",
    "PatchFilters",
    "Reconstruction",
    "attention_distance",
    "attention_distances",
    "attention_rollout",
    "attention_weights",
    "block_macs",
    "completeness_gap",
    "count_parameters",
    "grad_cam",
    "grid_structure",
    "integrated_gradients",
    "occlusion",
    "parameters_by_part",
    "patch_distances",
    "patch_filters",
    "patch_occlusion",
    "position_similarity",
    "query_distances",
    "reconstruct",
    "record_attention",
    "spearman",
    "vit_macs",
]
