"""Multi-head attention (Vaswani et al. 2017, section 3.2)."""

from __future__ import annotations

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

AttentionMask = (
    Bool[Tensor, "#batch #heads #queries #keys"] | Float[Tensor, "#batch #heads #queries #keys"]
)
"""True where a query may look at a key; or numbers that are added to the scores before the softmax,
such as a relative position bias, with -inf where a key is hidden."""

KeysAndValues = tuple[
    Float[Tensor, "batch heads _keys head_dim"], Float[Tensor, "batch heads _keys head_dim"]
]
"""What attention looks at, projected and cut into heads."""


class DotProductAttention(nn.Module):
    """``softmax(q k^T / sqrt(head_dim)) v`` by PyTorch's fused kernel; it has no parameters.

    It is a module of its own so that ``mmlab.record_attention`` can see its inputs.
    """

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.dropout = dropout

    def forward(
        self,
        queries: Float[Tensor, "batch heads queries head_dim"],
        keys: Float[Tensor, "batch heads keys head_dim"],
        values: Float[Tensor, "batch heads keys head_dim"],
        mask: AttentionMask | None = None,
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """Weighted values. See ``AttentionMask`` for ``mask``."""
        dropout = self.dropout if self.training else 0.0
        return F.scaled_dot_product_attention(queries, keys, values, mask, dropout_p=dropout)


class Attention(nn.Module):
    """Multi-head attention with its four projections.

    Self-attention by default. With ``context`` in the call it is cross-attention: the queries come
    from ``x``, the keys and values from ``context`` (``context_dim`` wide). ``head_dim`` is
    ``dim / num_heads`` unless given. ``key_bias=False`` leaves out only the bias of the keys, as
    BEiT does: it adds one number to all scores of a query, which the softmax takes away again.
    ``dropout`` falls on the attention weights while training.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        context_dim: int | None = None,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        head_dim: int | None = None,
        key_bias: bool = True,
    ):
        super().__init__()
        if head_dim is None and dim % num_heads:
            raise ValueError(f"dim must be a multiple of num_heads={num_heads}, got {dim}")
        inner_dim = num_heads * (head_dim or dim // num_heads)
        context_dim = context_dim or dim
        self.num_heads = num_heads
        self.q_proj = nn.Linear(dim, inner_dim, bias=qkv_bias)
        self.k_proj = nn.Linear(context_dim, inner_dim, bias=qkv_bias and key_bias)
        self.v_proj = nn.Linear(context_dim, inner_dim, bias=qkv_bias)
        self.dot_product = DotProductAttention(dropout)
        self.out_proj = nn.Linear(inner_dim, dim)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "contexts keys context_dim"] | None = None,
        mask: AttentionMask | None = None,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Attend from ``x`` to ``context`` (to ``x`` itself if None) as ``mask`` allows.

        With ``context_rows``, row ``i`` of ``x`` looks at ``context[context_rows[i]]``; keys and
        values are computed once for each context.
        """
        keys, values = self.keys_and_values(x if context is None else context)
        if context_rows is not None:
            keys, values = keys[context_rows], values[context_rows]
        return self.attend(x, (keys, values), mask)

    def keys_and_values(self, context: Float[Tensor, "batch keys context_dim"]) -> KeysAndValues:
        """All that attention needs of ``context``; a decoder keeps it from step to step."""
        return self._split_heads(self.k_proj(context)), self._split_heads(self.v_proj(context))

    def attend(
        self,
        x: Float[Tensor, "batch queries dim"],
        keys_and_values: KeysAndValues,
        mask: AttentionMask | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Attend from ``x`` to keys and values that are computed already."""
        attended = self.dot_product(self._split_heads(self.q_proj(x)), *keys_and_values, mask)
        return self.out_proj(rearrange(attended, "b heads t d -> b t (heads d)"))

    def _split_heads(
        self, x: Float[Tensor, "batch tokens inner_dim"]
    ) -> Float[Tensor, "batch heads tokens head_dim"]:
        return rearrange(x, "b t (heads d) -> b heads t d", heads=self.num_heads)
