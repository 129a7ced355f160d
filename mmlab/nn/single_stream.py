"""One BERT over words and regions: the trunk that the single-stream models share.

VisualBERT, UNITER, OSCAR, Unicoder-VL and VL-BERT differ in how a region becomes a vector, not in
what happens to the vectors then.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlab.nn.attention import AttentionMask
from mmlab.nn.bert import BertConfig, BertPooler, bert_block
from mmlab.nn.blocks import run_blocks
from mmlab.nn.masks import padding_mask


class JointFeatures(NamedTuple):
    """Words and regions after the last block, and the vector of the pair (from [CLS])."""

    text: Float[Tensor, "batch tokens dim"]
    regions: Float[Tensor, "batch regions dim"]
    pooled: Float[Tensor, "batch dim"]


class SingleStream(nn.Module):
    """BERT's blocks and pooler over ``[words | regions]``.

    Set ``activation_checkpointing = True`` to trade time for memory in training.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.activation_checkpointing = False
        self.blocks = nn.ModuleList(bert_block(config) for _ in range(config.depth))
        self.pooler = BertPooler(config.dim)

    def forward(
        self,
        text: Float[Tensor, "batch tokens dim"],
        regions: Float[Tensor, "batch regions dim"],
        text_valid: Bool[Tensor, "batch tokens"] | None = None,
        region_valid: Bool[Tensor, "batch regions"] | None = None,
        mask: AttentionMask | None = None,
    ) -> JointFeatures:
        """Embedded words and regions, through all blocks.

        Nobody sees what is not valid; None where nothing is padded. ``mask`` over the whole
        sequence restricts further who sees whom. A batch may have no regions: it is a BERT then.
        """
        x = run_blocks(
            self.blocks,
            torch.cat([text, regions], dim=1),
            joint_mask(text, regions, text_valid, region_valid, mask),
            self.activation_checkpointing,
        )
        words, found = x.tensor_split([text.shape[1]], dim=1)
        return JointFeatures(words, found, self.pooler(x))


def joint_mask(
    text: Float[Tensor, "batch tokens dim"],
    regions: Float[Tensor, "batch regions dim"],
    text_valid: Bool[Tensor, "batch tokens"] | None = None,
    region_valid: Bool[Tensor, "batch regions"] | None = None,
    mask: AttentionMask | None = None,
) -> AttentionMask | None:
    """Who sees whom in ``[words | regions]``, as in ``SingleStream``; None if all see all."""
    if text_valid is None and region_valid is None:
        return mask
    parts = ((text, text_valid), (regions, region_valid))
    valid = [_all_valid(x) if own is None else own.bool() for x, own in parts]
    padding = padding_mask(torch.cat(valid, dim=1))
    return padding if mask is None else padding & mask


def _all_valid(x: Float[Tensor, "batch tokens dim"]) -> Bool[Tensor, "batch tokens"]:
    return torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
