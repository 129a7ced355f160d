"""The two transformer blocks, pre-norm (ViT) and post-norm (BERT), and their parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlab.nn.attention import Attention, AttentionMask, KeysAndValues


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, OpenAI's approximation of GELU (openai/CLIP, ``model.py``)."""

    def forward(self, x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Same shape as ``x``."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_tanh": partial(nn.GELU, approximate="tanh"),
    "quick_gelu": QuickGELU,
    "relu": nn.ReLU,
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
        mask: AttentionMask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Same shape as ``x``; ``mask`` as in ``AttentionMask``."""
        attended = self.attention(self.norm1(x), mask=mask)
        x = x + self.drop_path(self.dropout(attended))
        return x + self.drop_path(self.mlp(self.norm2(x)))


def run_blocks(
    blocks: Iterable[Callable[..., Tensor]],
    tokens: Float[Tensor, "batch tokens dim"],
    mask: AttentionMask | None = None,
    checkpointing: bool = False,
) -> Float[Tensor, "batch tokens dim"]:
    """Blocks one after another; ``checkpointing`` computes them again in the backward pass.

    That trades time for memory (Chen et al. 2016): what a block computes inside is not kept.
    """
    for block in blocks:
        if checkpointing and torch.is_grad_enabled():
            tokens = checkpoint(block, tokens, mask, use_reentrant=False)
        else:
            tokens = block(tokens, mask)
    return tokens


def shared_checkpointing(*parts: str) -> property:
    """``activation_checkpointing`` of a model: the switch of the named submodules, all at once.

    A model may lack some of them (None), but not the first.
    """

    def is_on(model: nn.Module) -> bool:
        """Whether the blocks are computed again during the backward pass."""
        return getattr(model, parts[0]).activation_checkpointing

    def switch(model: nn.Module, wanted: bool) -> None:
        for part in parts:
            if getattr(model, part) is not None:
                getattr(model, part).activation_checkpointing = wanted

    return property(is_on, switch)


ContextMask = (
    Bool[Tensor, "#batch #heads #queries #context_tokens"]
    | Float[Tensor, "#batch #heads #queries #context_tokens"]
)
"""An ``AttentionMask`` over the tokens of another sequence."""


class PostNormBlock(nn.Module):
    """BERT's block: ``LN(x + attention(x))``, then ``LN(x + MLP(x))`` (Vaswani et al. 2017; BERT).

    With ``context_dim`` it has a cross-attention between the two, as BERT's decoder, ALBEF and BLIP
    have; a call without ``context`` passes it by. ``dropout`` falls on the output of each branch,
    ``attention_dropout`` on the attention weights.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_dim: int,
        context_dim: int | None = None,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ):
        super().__init__()
        self.attention = Attention(dim, num_heads, dropout=attention_dropout)
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        crosses = context_dim is not None
        self.cross_attention = (
            Attention(dim, num_heads, context_dim, dropout=attention_dropout) if crosses else None
        )
        self.cross_norm = nn.LayerNorm(dim, eps=norm_eps) if crosses else None
        self.mlp = MLP(dim, mlp_dim, activation)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: AttentionMask | None = None,
        context: Float[Tensor, "contexts context_tokens context_dim"] | None = None,
        context_mask: ContextMask | None = None,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Same shape as ``x``; masks as in ``AttentionMask``, ``context_rows`` as in ``Attention``.

        ValueError if ``context`` is given to a block without cross-attention.
        """
        x = self.norm1(x + self.dropout(self.attention(x, mask=mask)))
        if context is not None:
            x = self.attend_to(x, context, context_mask, context_rows)
        return self.norm2(x + self.dropout(self.mlp(x)))

    def attend_to(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Float[Tensor, "contexts context_tokens context_dim"],
        context_mask: ContextMask | None = None,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """The cross-attention alone: ``LN(x + attention(x, context))``."""
        if self.cross_attention is None:
            raise ValueError("context was given to a block that has no cross-attention")
        attended = self.cross_attention(x, context, context_mask, context_rows)
        return self.cross_norm(x + self.dropout(attended))

    def extend(
        self,
        x: Float[Tensor, "batch new_tokens dim"],
        past: KeysAndValues | None,
        context: KeysAndValues,
        mask: AttentionMask | None = None,
        context_mask: ContextMask | None = None,
    ) -> tuple[Float[Tensor, "batch new_tokens dim"], KeysAndValues]:
        """What ``forward`` gives for new tokens at the end of a text, without the tokens before.

        ``past`` are keys and values of those before (None at the beginning), ``context`` those of
        the cross-attention. Also returns keys and values of all tokens, the next ``past``.
        """
        x, own = self.attend_after(past, x, mask)
        attended = self.cross_attention.attend(x, context, context_mask)
        x = self.cross_norm(x + self.dropout(attended))
        return self.norm2(x + self.dropout(self.mlp(x))), own

    def attend_after(
        self,
        past: KeysAndValues | None,
        x: Float[Tensor, "batch new_tokens dim"],
        mask: AttentionMask | None = None,
    ) -> tuple[Float[Tensor, "batch new_tokens dim"], KeysAndValues]:
        """The self-attention alone of new tokens, as in ``extend``; also the next ``past``."""
        own = self.attention.keys_and_values(x)
        if past is not None:
            own = tuple(torch.cat(parts, dim=2) for parts in zip(past, own, strict=True))
        return self.norm1(x + self.dropout(self.attention.attend(x, own, mask))), own


def share_layers(source: nn.Module, target: nn.Module, but: tuple[str, ...] = ()) -> None:
    """Give ``target`` the layers of ``source`` that stand at the same place in both.

    From then on they have one set of weights. Layers are modules with parameters of their own, such
    as a ``Linear``; attention itself stays two modules, so that each can be watched alone. Paths in
    which one of the names ``but`` occurs are left apart.
    """
    places = dict(source.named_modules())
    for path, layer in list(target.named_modules()):
        owns = next(layer.parameters(recurse=False), None) is not None
        if owns and path in places and not set(but) & set(path.split(".")):
            target.set_submodule(path, places[path])
