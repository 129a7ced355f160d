"""The parts of BERT that vision-and-language models are built from.

Devlin et al. 2018 (arXiv 1810.04805). The blocks are ``PostNormBlock``; each model stacks them in
its own way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from mmlab.nn.attention import AttentionMask, KeysAndValues
from mmlab.nn.blocks import ACTIVATIONS, ContextMask, PostNormBlock, run_blocks
from mmlab.nn.masks import causal_mask, padding_mask


@dataclass(frozen=True)
class BertConfig:
    """The sizes of a BERT trunk; the defaults are those of bert-base-uncased.

    ``num_types=0`` leaves the token-type table out. Models that hold one check it as a part of
    their own configuration; wrong values raise ValueError here.
    """

    vocab_size: int = 30522
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    max_positions: int = 512
    num_types: int = 2
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "depth", "num_heads", "mlp_dim", "max_positions"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}")
        if type(self.num_types) is not int or self.num_types < 0:
            raise ValueError(f"num_types must be a whole number >= 0, got {self.num_types!r}")
        if self.dim % self.num_heads:
            raise ValueError(
                f"dim must be a multiple of num_heads={self.num_heads}, got {self.dim}"
            )
        if self.activation not in ACTIVATIONS:
            known = ", ".join(map(repr, ACTIVATIONS))
            raise ValueError(f"activation must be one of {known}, got {self.activation!r}")
        for name in ("dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)!r}")

    @classmethod
    def part_of(cls, config: object, **others: object) -> BertConfig:
        """The BERT in a model: the fields of its ``config`` that have the same names.

        ``others`` are those that it calls differently, or that are not its to choose.
        """
        names = {field.name for field in fields(cls)}
        same = {name: value for name, value in vars(config).items() if name in names}
        return cls(**{**same, **others})


def bert_block(config: BertConfig, context_dim: int | None = None) -> PostNormBlock:
    """One block of a trunk; with ``context_dim`` it also attends to another sequence."""
    return PostNormBlock(
        config.dim,
        config.num_heads,
        config.mlp_dim,
        context_dim,
        config.activation,
        config.norm_eps,
        config.dropout,
        config.attention_dropout,
    )


class BertEmbeddings(nn.Module):
    """Word, position and type vectors, added, normalised, dropped out (BERT, figure 2)."""

    def __init__(self, config: BertConfig):
        super().__init__()
        self.word_embedding = nn.Embedding(config.vocab_size, config.dim, padding_idx=0)
        self.position_embedding = nn.Embedding(config.max_positions, config.dim)
        self.type_embedding = (
            nn.Embedding(config.num_types, config.dim) if config.num_types else None
        )
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        ids: Int[Tensor, "batch tokens"],
        types: Int[Tensor, "batch tokens"] | None = None,
        start: int = 0,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Token vectors; ``types`` are all 0 if None, ``start`` is the first token's position.

        ValueError if the text is longer than the position table.
        """
        return self.dropout(self.norm(self.sum(ids, types, start)))

    def sum(
        self,
        ids: Int[Tensor, "batch tokens"],
        types: Int[Tensor, "batch tokens"] | None = None,
        start: int = 0,
    ) -> Float[Tensor, "batch tokens dim"]:
        """The sum alone, for models that add more before the norm."""
        end = start + ids.shape[1]
        longest = self.position_embedding.num_embeddings
        if end > longest:
            raise ValueError(f"a text may have {longest} tokens, this one has {end}")
        x = self.word_embedding(ids) + self.position_rows(start, end)
        return x if self.type_embedding is None else x + self.type_rows(types)

    def position_rows(self, start: int, end: int) -> Float[Tensor, "tokens dim"]:
        """The vectors of the positions from ``start`` to before ``end``."""
        return self.position_embedding.weight[start:end]

    def type_rows(self, types: Int[Tensor, "batch tokens"] | None) -> Float[Tensor, "*tokens dim"]:
        """The vectors of the types; that of type 0 if None."""
        return self.type_embedding.weight[0] if types is None else self.type_embedding(types)


class BertPooler(nn.Module):
    """A linear layer and tanh on the first token: the vector of the whole sequence."""

    def __init__(self, dim: int):
        super().__init__()
        self.dense = nn.Linear(dim, dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch dim"]:
        """One vector a sequence, entries in (-1, 1)."""
        return torch.tanh(self.dense(x[:, 0]))


class BertLanguageHead(nn.Module):
    """From token vectors to scores of words: linear, activation, norm, then the word table.

    The last matrix is the table of word vectors itself, passed at each call, so the two are tied by
    construction; only its bias lives here.
    """

    def __init__(self, config: BertConfig):
        super().__init__()
        self.dense = nn.Linear(config.dim, config.dim)
        self.activation = ACTIVATIONS[config.activation]()
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(
        self, x: Float[Tensor, "*batch dim"], words: Float[Tensor, "vocab dim"]
    ) -> Float[Tensor, "*batch vocab"]:
        """Logits over the vocabulary; ``words`` is ``embeddings.word_embedding.weight``."""
        return F.linear(self.norm(self.activation(self.dense(x))), words, self.bias)


class BertTrunk(nn.Module):
    """BERT's embeddings and ``blocks``, which may have a cross-attention (see ``bert_block``)."""

    def __init__(self, config: BertConfig, blocks: Iterable[PostNormBlock]):
        super().__init__()
        self.activation_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.blocks = nn.ModuleList(blocks)
        self.apply(init_bert)

    def encode(
        self,
        ids: Int[Tensor, "batch tokens"],
        mask: AttentionMask | None = None,
        context: Float[Tensor, "contexts context_tokens context_dim"] | None = None,
        context_mask: ContextMask | None = None,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Tokens after all blocks; without ``context`` cross-attentions are passed by.

        ``context_rows`` as in ``Attention``.
        """
        looks = {"context": context, "context_mask": context_mask, "context_rows": context_rows}
        blocks = [partial(block, **looks) for block in self.blocks]
        return run_blocks(blocks, self.embeddings(ids), mask, self.activation_checkpointing)


class BertDecoder(BertTrunk):
    """Writes a text word by word, looking at another sequence, ``context_dim`` wide.

    Every block has a cross-attention; ``words`` gives scores of the next word.
    """

    def __init__(self, config: BertConfig, context_dim: int):
        super().__init__(config, (bert_block(config, context_dim) for _ in range(config.depth)))
        self.words = BertLanguageHead(config).apply(init_bert)

    def forward(
        self,
        ids: Int[Tensor, "batch tokens"],
        valid: Bool[Tensor, "batch tokens"],
        context: Float[Tensor, "contexts context_tokens context_dim"],
        context_mask: ContextMask | None = None,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of the next word; a token sees those before it and the whole context.

        ``context_rows`` as in ``Attention``; ``context_mask`` is that of each row of ``ids``.
        """
        return self.word_logits(self.read(ids, valid, context, context_mask, context_rows))

    def read(
        self,
        ids: Int[Tensor, "batch tokens"],
        valid: Bool[Tensor, "batch tokens"],
        context: Float[Tensor, "contexts context_tokens context_dim"],
        context_mask: ContextMask | None = None,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """The tokens from which ``word_logits`` guesses the next words; as in ``forward``."""
        mask = causal_mask(ids.shape[1], ids.device) & padding_mask(valid)
        return self.encode(ids, mask, context, context_mask, context_rows)

    def word_logits(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Scores of words after each token."""
        return self.words(tokens, self.embeddings.word_embedding.weight)


class BertWriting:
    """A ``BertDecoder`` in the middle of writing: it computes each token once.

    It keeps the keys and values of all blocks, of the text so far and of ``context``. See
    ``mmlab.nn.decoding`` for what it is asked to do.
    """

    def __init__(
        self,
        decoder: BertDecoder,
        context: Float[Tensor, "rows context_tokens context_dim"],
        context_valid: Bool[Tensor, "rows context_tokens"] | None = None,
    ):
        self.decoder = decoder
        self.length = 0
        self.past: list[KeysAndValues | None] = [None] * len(decoder.blocks)
        self.context = [block.cross_attention.keys_and_values(context) for block in decoder.blocks]
        self.context_mask = None if context_valid is None else padding_mask(context_valid)

    def next(self, ids: Int[Tensor, "rows new_tokens"]) -> Float[Tensor, "rows vocab"]:
        """Scores of the word after ``ids``, which come after all that it was given before."""
        tokens = self.decoder.embeddings(ids, start=self.length)
        self.length += ids.shape[1]
        mask = causal_mask(self.length, ids.device)[:, :, -ids.shape[1] :]
        for i, block in enumerate(self.decoder.blocks):
            known = (self.past[i], self.context[i], mask, self.context_mask)
            tokens, self.past[i] = block.extend(tokens, *known)
        return self.decoder.word_logits(tokens[:, -1])

    def repeat(self, times: int) -> None:
        """Each row ``times`` times, next to each other."""
        self.past = [_each(pair, times) for pair in self.past]
        self.context = [_each(pair, times) for pair in self.context]
        if self.context_mask is not None:
            self.context_mask = self.context_mask.repeat_interleave(times, 0)

    def select(self, rows: Int64[Tensor, " rows"]) -> None:
        """Go on from these rows; each must look at the same context as the row it replaces."""
        self.past = [(keys[rows], values[rows]) for keys, values in self.past]


def _each(pair: tuple[Tensor, Tensor], times: int) -> tuple[Tensor, Tensor]:
    return pair[0].repeat_interleave(times, 0), pair[1].repeat_interleave(times, 0)


def init_bert(module: nn.Module, std: float = 0.02) -> None:
    """BERT's initialisation: N(0, 0.02) for tables and matrices, zero biases, norms of one.

    The vector of the padding token (id 0) starts at zero, as in every implementation. Apply it as
    ``model.apply(init_bert)``.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=std)
        if module.padding_idx is not None:
            with torch.no_grad():
                module.weight[module.padding_idx].zero_()
    elif isinstance(module, nn.LayerNorm):
        nn.init.ones_(module.weight)
        nn.init.zeros_(module.bias)
