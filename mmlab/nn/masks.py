"""Attention masks: True where a query may look at a key.

Every mask has four dimensions and broadcasts to ``(batch, heads, queries, keys)``, so masks combine
with ``&`` and ``|``.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor


def causal_mask(
    num_tokens: int, device: torch.device | str | None = None
) -> Bool[Tensor, "1 1 queries keys"]:
    """Each token sees itself and the tokens before it."""
    position = torch.arange(num_tokens, device=device)
    return (position[None, :] <= position[:, None])[None, None]


def prefix_mask(
    prefix_lengths: Int[Tensor, " batch"], num_tokens: int
) -> Bool[Tensor, "batch 1 queries keys"]:
    """Each token sees the whole prefix; after the prefix it sees as in ``causal_mask``.

    ``prefix_lengths`` counts the prefix tokens of each sequence (UniLM, Dong et al. 2019:
    the sequence-to-sequence mask).
    """
    position = torch.arange(num_tokens, device=prefix_lengths.device)
    in_prefix = position < prefix_lengths[:, None]
    return in_prefix[:, None, None, :] | causal_mask(num_tokens, prefix_lengths.device)


def padding_mask(
    valid: Bool[Tensor, "batch keys"] | Int[Tensor, "batch keys"],
) -> Bool[Tensor, "batch 1 1 keys"]:
    """Nobody sees padding. ``valid`` is a tokenizer's attention mask: 1 or True on real tokens."""
    return valid.bool()[:, None, None, :]


def valid_tokens(
    ids: Int[Tensor, "batch tokens"],
    valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    pad_id: int = 0,
) -> Bool[Tensor, "batch tokens"]:
    """A tokenizer's attention mask as booleans; if there is none, all but padding is valid."""
    return ids != pad_id if valid is None else valid.bool()
