"""What BERT's descendants put on top of token vectors and pooled vectors."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from mmlab.nn.blocks import ACTIVATIONS


class BertTransform(nn.Module):
    """Linear, activation, norm: what comes before the last matrix of BERT's heads."""

    def __init__(
        self, in_dim: int, out_dim: int, activation: str = "gelu", norm_eps: float = 1e-12
    ):
        super().__init__()
        self.dense = nn.Linear(in_dim, out_dim)
        self.activation = ACTIVATIONS[activation]()
        self.norm = nn.LayerNorm(out_dim, eps=norm_eps)

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch out_dim"]:
        """Vectors of width ``out_dim``."""
        return self.norm(self.activation(self.dense(x)))


class BertClassifier(nn.Module):
    """A transform, then a linear layer: masked regions from tokens, answers from pooled vectors.

    Note the order, activation before norm; ViLT's head for answers has it the other way round.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dim: int,
        num_outputs: int,
        activation: str = "gelu",
        norm_eps: float = 1e-12,
    ):
        super().__init__()
        self.transform = BertTransform(in_dim, hidden_dim, activation, norm_eps)
        self.decoder = nn.Linear(hidden_dim, num_outputs)

    def forward(self, x: Float[Tensor, "*batch in_dim"]) -> Float[Tensor, "*batch outputs"]:
        """Logits, or features where these are predicted."""
        return self.decoder(self.transform(x))


def find_head(model: nn.Module, name: str) -> nn.Module:
    """The head called ``name`` of a model with ``heads``; ValueError that tells which it has."""
    if name not in model.heads:
        own, heads = type(model).__name__, model.config.heads
        raise ValueError(f"this {own} has no {name!r} head; it has heads={heads}")
    return model.heads[name]
