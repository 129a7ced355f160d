"""The pre-norm transformer block and its parts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlab.nn.attention import Attention

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
}


class MLP(nn.Module):
    """Two linear layers with an activation between them, applied to each token alone."""

    def __init__(self, dim: int, hidden_dim: int, activation: str = "gelu", dropout: float = 0.0):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.activation = ACTIVATIONS[activation]()
        self.fc2 = nn.Linear(hidden_dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        """Same shape as ``x``."""
        hidden = self.dropout(self.activation(self.fc1(x)))
        return self.dropout(self.fc2(hidden))


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): in training, a sample skips the branch at ``rate``.

    The branches that stay are divided by ``1 - rate``, so the expected output does not change.
    """

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, branch: Float[Tensor, "batch ..."]) -> Float[Tensor, "batch ..."]:
        """``branch`` itself in eval mode or at rate 0."""
        if not self.training or self.rate == 0.0:
            return branch
        keep = 1.0 - self.rate
        per_sample = (branch.shape[0],) + (1,) * (branch.ndim - 1)
        return branch * branch.new_empty(per_sample).bernoulli_(keep) / keep

    def extra_repr(self) -> str:
        """Shown by ``print(model)``."""
        return f"rate={self.rate}"


class TransformerBlock(nn.Module):
    """Pre-norm block: ``x + MSA(LN(x))``, then ``x + MLP(LN(x))`` (ViT, equations 2 and 3).

    ``dropout`` falls on the output of the attention and after both layers of the MLP,
    ``attention_dropout`` on the attention weights, ``drop_path`` on whole branches.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        activation: str = "gelu",
        norm_eps: float = 1e-6,
        qkv_bias: bool = True,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attention = Attention(dim, num_heads, qkv_bias=qkv_bias, dropout=attention_dropout)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, mlp_dim, activation, dropout)
        self.dropout = nn.Dropout(dropout)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: Bool[Tensor, "#batch #heads #tokens #tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Same shape as ``x``; ``mask`` is True where a token may look at another."""
        attended = self.attention(self.norm1(x), mask=mask)
        x = x + self.drop_path(self.dropout(attended))
        return x + self.drop_path(self.mlp(self.norm2(x)))
