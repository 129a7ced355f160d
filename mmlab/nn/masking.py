"""Dropping tokens instead of hiding them, and the initialisation that goes with it.

MAE (He et al. 2021) and FLIP (Li et al. 2022) encode only the patches that a random mask leaves:
what is dropped takes no part in any block, and costs nothing there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.nn.attention import Attention


class PatchMask(NamedTuple):
    """One random choice of patches for each image of a batch; see ``random_masking``.

    - ``kept``: numbers of the kept patches, the one with the least noise first.
    - ``removed``: True where a patch was dropped.
    - ``restore``: for each patch its place in "the kept ones, then the others"; ``restore_patches``
      needs it.
    """

    kept: Int64[Tensor, "batch kept"]
    removed: Bool[Tensor, "batch patches"]
    restore: Int64[Tensor, "batch patches"]


def num_kept(num_patches: int, mask_ratio: float | int) -> int:
    """How many of ``num_patches`` stay: ``N (1 - ratio)``, cut to a whole number as in MAE's code.

    ValueError if the ratio is outside [0, 1) or leaves nothing.
    """
    kept = int(num_patches * (1 - mask_ratio)) if 0 <= mask_ratio < 1 else 0
    if kept < 1:
        raise ValueError(
            f"mask_ratio must be in [0, 1) and leave at least one of {num_patches} patches, "
            f"got {mask_ratio}"
        )
    return kept


def random_masking(noise: Float[Tensor, "batch patches"], mask_ratio: float) -> PatchMask:
    """Keep the patches with the least noise, each image its own (MAE, section 3, "Masking").

    ``noise`` is ``torch.rand(batch, patches)``; the caller draws it, from a generator of its own
    where the choice must be repeatable. Kept patches stay in the order of their noise: attention
    knows no order, and positions are added before. ValueError as in ``num_kept``.
    """
    order = noise.argsort(dim=1)
    restore = order.argsort(dim=1)
    kept = num_kept(noise.shape[1], mask_ratio)
    return PatchMask(kept=order[:, :kept], removed=restore >= kept, restore=restore)


def keep_patches(
    tokens: Float[Tensor, "batch tokens dim"],
    kept: Int64[Tensor, "batch kept"],
    num_prefix_tokens: int = 0,
) -> Float[Tensor, "batch visible dim"]:
    """The prefix tokens (class token), then the patches ``kept``; nothing is left of the others."""
    prefix, patches = tokens.tensor_split([num_prefix_tokens], dim=1)
    return torch.cat([prefix, _take(patches, kept)], dim=1)


def restore_patches(
    visible: Float[Tensor, "batch kept dim"],
    filling: Float[Tensor, "1 1 dim"],
    restore: Int64[Tensor, "batch patches"],
) -> Float[Tensor, "batch patches dim"]:
    """Put kept patches back in their places, and ``filling`` in the places of all others."""
    num_missing = restore.shape[1] - visible.shape[1]
    missing = filling.expand(len(visible), num_missing, -1)
    return _take(torch.cat([visible, missing], dim=1), restore)


def _take(
    tokens: Float[Tensor, "batch tokens dim"], places: Int64[Tensor, "batch places"]
) -> Float[Tensor, "batch places dim"]:
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def init_xavier(module: nn.Module) -> None:
    """Initialisation of MAE's blocks (``models_mae.py``) and FLIP's ("mae_jax_v2").

    Xavier-uniform matrices and zero biases, with queries, keys and values as one matrix. Use it as
    ``model.apply(init_xavier)``.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, Attention):
        init_joint_projections(module)


def init_joint_projections(attention: Attention) -> None:
    """Xavier-uniform queries, keys and values as one matrix, as ``nn.MultiheadAttention`` has them.

    Its fan out is three times the width, so their bound is smaller than for three matrices.
    """
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
        bound = math.sqrt(6 / (projection.in_features + 3 * projection.out_features))
        nn.init.uniform_(projection.weight, -bound, bound)
