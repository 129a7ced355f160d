"""BLIP-2: a small transformer with learned queries between a frozen image encoder and the words.

Li, Li, Savarese and Hoi 2023, "BLIP-2: Bootstrapping Language-Image Pre-training with Frozen Image
Encoders and Large Language Models" (arXiv 2301.12597); the official code is salesforce/LAVIS
(``lavis/models/blip2_models``). Here is the first stage, which teaches the queries to find in the
image what texts speak of; the second, with a language model, is ``mmlab.models.blip2_language``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from mmlab.models.checks import (
    check,
    check_choice,
    check_heads,
    check_integers,
    check_multiple,
    check_positive,
    check_rates,
)
from mmlab.models.clip import CLIPConfig, CLIPImageEncoder
from mmlab.models.efficientnet import DIM, EfficientNetLite0
from mmlab.models.image_checks import check_images
from mmlab.models.vit import STEMS, VIT_MINI, ViT, ViTConfig
from mmlab.nn import (
    ACTIVATIONS,
    MLP,
    AttentionMask,
    BertConfig,
    BertEmbeddings,
    BertLanguageHead,
    ContrastHead,
    Grid,
    PostNormBlock,
    init_bert,
    init_xavier,
    interpolate_positions,
    padding_mask,
    prefix_mask,
    shared_checkpointing,
    valid_tokens,
)
from mmlab.nn.attention import KeysAndValues
from mmlab.objectives.contrastive import (
    gather_with_gradient,
    own_places,
    soft_contrastive_loss,
)
from mmlab.objectives.language_modeling import NextWords, sequence_labels
from mmlab.objectives.matching import PairMatching, images_of_pairs, sample_negative_pairs

HEADS = ("contrast", "match", "words", "prefix")
INITS = ("normal", "xavier")
IMAGE_ENCODERS = ("eva", "clip", "vit", "efficientnet")
LABEL_SMOOTHING = 0.1
"""Of the contrast and of the words."""

Past = Sequence[KeysAndValues]
"""Keys and values of all blocks: what later tokens need of those before them."""


@dataclass(frozen=True)
class BLIP2Config:
    """Everything that fixes the shape and the training behaviour of a ``BLIP2``.

    - ``image_encoder``: ``"eva"``, EVA-CLIP's ViT, whose keys have no bias; ``"clip"``, CLIP's;
      ``"vit"``, a ViT of ours. The first two come without their last norm, and in the published
      sizes without their last block. ``image_size`` to ``stem`` are its sizes, ``activation`` and
      ``norm_eps`` its own, too; ``stem`` is ``"linear"`` but in a ``"vit"``. An ``"efficientnet"``,
      Lite0, has ``dim`` 320 and tokens of ``patch_size`` pixels; the other sizes mean nothing.
    - ``freeze_images``: the image encoder does not learn, and stays in evaluation mode.
    - ``num_queries``: how many vectors the image is boiled down to.
    - ``cross_every``: blocks 0, ``cross_every``, 2 ``cross_every``, … look at the image.
    - ``vocab_size`` counts [DEC], which is the last token.
    - ``context_length``: rows of the position table, the most tokens of a text; queries have none.
    - ``text_dim`` to ``text_mlp_dim`` are the sizes of the Q-Former, a BERT.
    - ``embed_dim``: width of the features that are compared.
    - ``temperature``: what similarities are divided by at first; it is learned. With None there is
      none: a model that only compares can do without.
    - ``heads``: which of ``"contrast"``, ``"match"``, ``"words"`` (stage 1) and ``"prefix"`` (stage
      2: the queries become ``prefix_dim`` wide, for a language model). With no other than the last
      the Q-Former reads no text, and has nothing for it.
    - ``image_norm_eps`` is for the norm after the image encoder, ``text_norm_eps`` for those of the
      Q-Former.
    - ``init``: matrices of Q-Former and heads start with a spread of 0.02, or with one that grows
      as the width shrinks (``"xavier"``): 0.02 is for wide models.

    A wrong value raises ValueError.
    """

    image_encoder: str = "eva"
    freeze_images: bool = True
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    dim: int = 1408
    depth: int = 39
    num_heads: int = 16
    mlp_dim: int = 6144
    stem: str = "linear"
    num_queries: int = 32
    cross_every: int = 2
    vocab_size: int = 30523
    context_length: int = 512
    text_dim: int = 768
    text_depth: int = 12
    text_num_heads: int = 12
    text_mlp_dim: int = 3072
    embed_dim: int = 256
    temperature: float | None = 0.07
    heads: tuple[str, ...] = ("contrast", "match", "words")
    prefix_dim: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-6
    image_norm_eps: float = 1e-5
    text_norm_eps: float = 1e-12
    dropout: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "image_size", "patch_size", "num_channels", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "num_queries", "cross_every")
        check_integers(self, "context_length", "text_dim", "text_depth", "text_num_heads")
        check_integers(self, "text_mlp_dim", "embed_dim")
        check_integers(self, "vocab_size", minimum=2)
        check_integers(self, "prefix_dim", minimum=0)
        check_choice(self, "image_encoder", IMAGE_ENCODERS)
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "init", INITS)
        check_choice(self, "stem", tuple(STEMS) if self.image_encoder == "vit" else ("linear",))
        check_positive(self, "norm_eps", "image_norm_eps", "text_norm_eps")
        if self.temperature is not None:
            check_positive(self, "temperature")
        check_rates(self, "dropout")
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "dim", "num_heads")
        if self.image_encoder == "efficientnet":
            check(self.dim == DIM, "dim", self.dim, f"{DIM} with an efficientnet")
        check_multiple(self, "text_dim", "text_num_heads")
        check_heads(self, HEADS, classifier="prefix", size="prefix_dim")

    @property
    def reads_text(self) -> bool:
        """Whether the Q-Former has what texts need."""
        return bool(set(self.heads) - {"prefix"})

    @property
    def decoder_id(self) -> int:
        """[DEC], the first token of a text that is written."""
        return self.vocab_size - 1

    @property
    def grid(self) -> Grid:
        """Patches per column and per row."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def bert(self) -> BertConfig:
        """The Q-Former, but for what only queries have."""
        return BertConfig(
            vocab_size=self.vocab_size,
            dim=self.text_dim,
            depth=self.text_depth,
            num_heads=self.text_num_heads,
            mlp_dim=self.text_mlp_dim,
            max_positions=self.context_length,
            num_types=0,
            norm_eps=self.text_norm_eps,
            dropout=self.dropout,
            attention_dropout=self.dropout,
        )


# Who sees whom, in a sequence of queries and text (BLIP-2, figure 2).


def bidirectional_mask(
    num_queries: int, text_valid: Bool[Tensor, "batch tokens"]
) -> Bool[Tensor, "batch 1 1 keys"]:
    """Matching: all see all, but padding."""
    return padding_mask(F.pad(text_valid, (num_queries, 0), value=True))


def unimodal_mask(
    num_queries: int, text_valid: Bool[Tensor, "batch tokens"]
) -> Bool[Tensor, "batch 1 rows keys"]:
    """Contrast: queries see queries, text sees text."""
    places = torch.arange(num_queries + text_valid.shape[1], device=text_valid.device)
    is_text = places >= num_queries
    return (is_text[:, None] == is_text) & bidirectional_mask(num_queries, text_valid)


def multimodal_causal_mask(
    num_queries: int, text_valid: Bool[Tensor, "batch tokens"]
) -> Bool[Tensor, "batch 1 rows keys"]:
    """Writing: queries see queries, each token of the text sees them and the text up to itself."""
    lengths = torch.tensor([num_queries], device=text_valid.device)
    causal = prefix_mask(lengths, num_queries + text_valid.shape[1])
    return causal & bidirectional_mask(num_queries, text_valid)


class QFormerBlock(PostNormBlock):
    """BERT's block for queries and text in one sequence (LAVIS, ``Qformer.py``).

    The self-attention is common to both. Then queries may look at the image, and each kind has an
    MLP of its own: ``query_mlp`` and ``query_norm``, ``mlp`` and ``norm2``.
    """

    def __init__(self, config: BertConfig, context_dim: int | None, reads_text: bool):
        super().__init__(
            config.dim,
            config.num_heads,
            config.mlp_dim,
            context_dim,
            config.activation,
            config.norm_eps,
            config.dropout,
            config.attention_dropout,
        )
        self.query_mlp = MLP(config.dim, config.mlp_dim, config.activation)
        self.query_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        if not reads_text:
            self.mlp = self.norm2 = None

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: AttentionMask | None = None,
        context: Float[Tensor, "contexts context_tokens context_dim"] | None = None,
        num_queries: int = 0,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Same shape as ``x``, whose first ``num_queries`` tokens are queries.

        ``context_rows`` as in ``Attention``.
        """
        return self.extend(x, None, context, mask, num_queries, context_rows)[0]

    def extend(
        self,
        x: Float[Tensor, "batch new_tokens dim"],
        past: KeysAndValues | None,
        context: Float[Tensor, "contexts context_tokens context_dim"] | None = None,
        mask: AttentionMask | None = None,
        num_queries: int = 0,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch new_tokens dim"], KeysAndValues]:
        """The same for tokens that come after those whose keys and values are ``past``.

        Also returns the keys and values of all of them. Without queries ``context`` is not needed.
        """
        x, seen = self.attend_after(past, x, mask)
        queries, text = x.tensor_split([num_queries], dim=1)
        parts = [self._query_rows(queries, context, context_rows)] if num_queries else []
        if text.shape[1]:
            parts.append(self.norm2(text + self.dropout(self.mlp(text))))
        return torch.cat(parts, dim=1), seen

    def _query_rows(
        self,
        queries: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "contexts context_tokens context_dim"] | None,
        context_rows: Int64[Tensor, " batch"] | None,
    ) -> Float[Tensor, "batch queries dim"]:
        if self.cross_attention is not None:
            queries = self.attend_to(queries, context, context_rows=context_rows)
        return self.query_norm(queries + self.dropout(self.query_mlp(queries)))


class QueryOutput(NamedTuple):
    """Queries that have seen an image, and what a text needs to look at them in each block."""

    tokens: Float[Tensor, "batch queries text_dim"]
    past: list[KeysAndValues]


class QFormer(nn.Module):
    """The querying transformer (BLIP-2, section 3.1).

    Learned ``queries`` take from the image what texts speak of; a text sees the image only through
    them. New weights come from PyTorch's global random state; the queries' MLPs start as those of
    the text.
    """

    def __init__(self, config: BLIP2Config):
        super().__init__()
        self.num_queries = config.num_queries
        self.activation_checkpointing = False
        self.queries = nn.Parameter(torch.empty(1, config.num_queries, config.text_dim))
        self.embeddings = BertEmbeddings(config.bert)
        crossing = [i % config.cross_every == 0 for i in range(config.text_depth)]
        blocks = (
            QFormerBlock(config.bert, config.dim if crosses else None, config.reads_text)
            for crosses in crossing
        )
        self.blocks = nn.ModuleList(blocks)
        self._init(config.reads_text, config.init)

    def _init(self, reads_text: bool, init: str) -> None:
        self.apply(init_bert)
        if init == "xavier":
            self.apply(init_xavier)
        # Zeros, as in transformers, would make all queries one for ever.
        nn.init.normal_(self.queries, std=0.02)
        if not reads_text:
            self.embeddings.word_embedding = self.embeddings.position_embedding = None
            return
        for block in self.blocks:
            block.query_mlp.load_state_dict(block.mlp.state_dict())
            block.query_norm.load_state_dict(block.norm2.state_dict())

    def forward(
        self,
        context: Float[Tensor, "contexts image_tokens dim"],
        input_ids: Int[Tensor, "batch tokens"],
        mask: AttentionMask,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch sequence text_dim"]:
        """Queries and text in one pass; ``mask`` is one of the three above, or another.

        ``context_rows`` as in ``Attention``.
        """
        queries = self.queries.expand(len(input_ids), -1, -1)
        tokens = torch.cat([queries, self._text(input_ids)], dim=1)
        return self._run(tokens, mask, context, self.num_queries, context_rows=context_rows)[0]

    def look(self, context: Float[Tensor, "batch image_tokens dim"]) -> QueryOutput:
        """The queries alone: what they find in the image."""
        queries = self.queries.expand(len(context), -1, -1)
        return QueryOutput(*self._run(queries, None, context, self.num_queries))

    def read(
        self, input_ids: Int[Tensor, "batch tokens"], mask: AttentionMask
    ) -> Float[Tensor, "batch tokens text_dim"]:
        """The text alone."""
        return self._run(self._text(input_ids), mask)[0]

    def write(
        self,
        input_ids: Int[Tensor, "batch new_tokens"],
        past: Past,
        mask: AttentionMask,
        start: int = 0,
    ) -> tuple[Float[Tensor, "batch new_tokens text_dim"], list[KeysAndValues]]:
        """The text, or a part that begins at position ``start``, after what ``past`` is of.

        Also returns the next ``past``. With the causal mask's rows of the text this equals
        ``forward``: queries never see the text there, so they can be computed before.
        """
        return self._run(self._text(input_ids, start), mask, past=past)

    def _text(
        self, input_ids: Int[Tensor, "batch tokens"], start: int = 0
    ) -> Float[Tensor, "batch tokens text_dim"]:
        if self.embeddings.word_embedding is None:
            raise ValueError("this Q-Former reads no text; its only head is 'prefix', or none")
        return self.embeddings.sum(input_ids, start=start)

    def _run(
        self,
        tokens: Float[Tensor, "batch tokens text_dim"],
        mask: AttentionMask | None,
        context: Float[Tensor, "contexts image_tokens dim"] | None = None,
        num_queries: int = 0,
        past: Past | None = None,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens text_dim"], list[KeysAndValues]]:
        """The norm of the embeddings, which queries get as well, and all blocks."""
        tokens, seen = self.embeddings.dropout(self.embeddings.norm(tokens)), []
        for block, before in zip(self.blocks, past or [None] * len(self.blocks), strict=True):
            given = (tokens, before, context, mask, num_queries, context_rows)
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens, own = checkpoint(block.extend, *given, use_reentrant=False)
            else:
                tokens, own = block.extend(*given)
            seen.append(own)
        return tokens, seen


class BLIP2Features(NamedTuple):
    """Tokens of images, of queries and text alone, and of both together (queries first)."""

    images: Float[Tensor, "batch image_tokens dim"]
    queries: Float[Tensor, "batch queries text_dim"]
    text: Float[Tensor, "batch tokens text_dim"]
    fused: Float[Tensor, "batch sequence text_dim"]


class BLIP2(nn.Module):
    """A frozen image encoder, a trainable norm, the Q-Former and its heads (BLIP-2, section 3).

    Images are floats, normalised with CLIP's mean and standard deviation. Texts are token numbers
    with 0 as padding, from [CLS] to [SEP]. The image encoder may be kept in half precision:
    ``model.image_encoder.half()``. Set ``model.activation_checkpointing = True`` to trade time for
    memory in training: the blocks are then recomputed during the backward pass. New weights come
    from PyTorch's global random state.
    """

    def __init__(self, config: BLIP2Config):
        super().__init__()
        self.config = config
        self.image_encoder = _IMAGE_ENCODERS[config.image_encoder](config)
        self.image_norm = nn.LayerNorm(config.dim, eps=config.image_norm_eps)
        self.qformer = QFormer(config)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        if config.init == "xavier":
            self.heads.apply(init_xavier)
        if config.freeze_images:
            freeze(self.image_encoder)

    activation_checkpointing = shared_checkpointing("image_encoder", "qformer")

    @property
    def frozen(self) -> tuple[str, ...]:
        """What the names of the weights that never change begin with.

        Checkpoints of a run leave these out, as the official ones do (LAVIS, ``runner_base.py``).
        """
        return ("image_encoder.",) if self.config.freeze_images else ()

    def train(self, mode: bool = True) -> BLIP2:
        """As in every module, but a frozen image encoder stays in evaluation mode."""
        super().train(mode)
        if self.config.freeze_images:
            self.image_encoder.eval()
        return self

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        images: Float[Tensor, "batch channels height width"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> BLIP2Features:
        """What the Q-Former makes of images and texts, apart and together.

        ``text_valid`` is a tokenizer's attention mask; if None, all but token 0 is valid.
        ValueError if images or texts do not fit the configuration.
        """
        images = self.image_tokens(images)
        text = self.text_tokens(input_ids, text_valid)
        fused = self.fuse(input_ids, images, text_valid)
        return BLIP2Features(images, self.qformer.look(images).tokens, text, fused)

    def image_tokens(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch image_tokens dim"]:
        """Class token and patches after the image encoder and the norm that learns."""
        check_images(images, self.config.num_channels, self.config.image_size)
        half = next(self.image_encoder.parameters()).dtype
        tokens = self.image_encoder.forward_tokens(images.to(half))
        return self.image_norm(tokens.to(self.image_norm.weight.dtype))

    def text_tokens(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens text_dim"]:
        """The text alone."""
        return self.qformer.read(input_ids, padding_mask(valid_tokens(input_ids, text_valid)))

    def fuse(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        image_tokens: Float[Tensor, "images image_tokens dim"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
        image_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch sequence text_dim"]:
        """Queries and text, all of which see all.

        Those with text ``i`` look at row ``image_rows[i]`` of the images, or at row ``i``; keys and
        values are computed once for each image.
        """
        valid = valid_tokens(input_ids, text_valid)
        mask = bidirectional_mask(self.config.num_queries, valid)
        return self.qformer(image_tokens, input_ids, mask, image_rows)

    def encode_image(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch queries embed_dim"]:
        """Features of length 1, one for each query, to compare with those of texts."""
        return self.image_features(self.qformer.look(self.image_tokens(images)).tokens)

    def encode_text(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch embed_dim"]:
        """Text features of length 1; they know nothing of any image."""
        return self.text_features(self.text_tokens(input_ids, text_valid))

    def image_features(
        self, queries: Float[Tensor, "batch queries text_dim"]
    ) -> Float[Tensor, "batch queries embed_dim"]:
        """Each query, projected, of length 1. ValueError, here and below, without this head."""
        return F.normalize(self.head("contrast").image_projection(queries), dim=-1)

    def text_features(
        self, text_tokens: Float[Tensor, "batch tokens text_dim"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """The projected first token, of length 1."""
        return F.normalize(self.head("contrast").text_projection(text_tokens[:, 0]), dim=-1)

    def matching_logits(
        self, fused: Float[Tensor, "batch tokens text_dim"]
    ) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "the text fits the image"; the mean of what all queries say."""
        return self.head("match")(fused[:, : self.config.num_queries]).mean(1)

    def word_logits(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        past: Past,
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens vocab_size"]:
        """Scores of the next word after each token of a text that describes the image.

        The text gets [DEC] in the place of [CLS]; ``past`` is that of ``qformer.look``.
        """
        valid = valid_tokens(input_ids, text_valid)
        first = torch.full_like(input_ids[:, :1], self.config.decoder_id)
        ids = torch.cat([first, input_ids[:, 1:]], dim=1)
        num_queries = self.config.num_queries
        mask = multimodal_causal_mask(num_queries, valid)[:, :, num_queries:]
        return self.words(self.qformer.write(ids, past, mask)[0])

    def words(self, tokens: Float[Tensor, "*batch text_dim"]) -> Float[Tensor, "*batch vocab_size"]:
        """Scores of words after each token."""
        return self.head("words")(tokens, self.qformer.embeddings.word_embedding.weight)

    def prefix(
        self, image_tokens: Float[Tensor, "batch image_tokens dim"]
    ) -> Float[Tensor, "batch queries prefix_dim"]:
        """The queries as words of a language model (BLIP-2, section 3.2)."""
        return self.head("prefix")(self.qformer.look(image_tokens).tokens)

    def start_writing(
        self, image_tokens: Float[Tensor, "batch image_tokens dim"]
    ) -> QFormerWriting:
        """The Q-Former, ready for ``mmlab.nn.beam_search`` or ``sample_text``.

        What it is given to read must begin with ``config.decoder_id``. ValueError without the head
        of words.
        """
        self.head("words")
        return QFormerWriting(self, image_tokens)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """What similarities are divided by; ValueError if there is none."""
        temperature = self.head("contrast").temperature
        if temperature is None:
            raise ValueError("this BLIP-2 has no temperature; it was made with temperature=None")
        return temperature

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        if name not in self.heads:
            raise ValueError(f"this BLIP-2 has no {name!r} head; it has heads={self.config.heads}")
        return self.heads[name]

    def resize_positions(self, image_size: int, variant: str = "bicubic") -> BLIP2:
        """Take images of ``image_size`` pixels from now on; returns the model itself.

        The positions are interpolated (see ``mmlab.nn.interpolate_positions``) into a new
        parameter: call this before making an optimiser. The official code takes ``"bicubic"`` for
        EVA's encoder and ``"bicubic_aligned"`` for CLIP's.
        """
        new, encoder = replace(self.config, image_size=image_size), self.image_encoder
        if isinstance(encoder, EfficientNetLite0):
            pass  # it has no positions, and takes any size
        elif isinstance(encoder, ViT):
            encoder.resize_positions(image_size, variant)
        else:
            old = encoder.position_embedding
            table = interpolate_positions(old.detach(), self.config.grid, new.grid, variant)
            encoder.position_embedding = nn.Parameter(table.clone(), old.requires_grad)
        self.config = new
        return self


class QFormerWriting:
    """A ``BLIP2`` in the middle of writing: it computes each token once.

    See ``mmlab.nn.decoding`` for what it is asked to do.
    """

    def __init__(self, model: BLIP2, image_tokens: Float[Tensor, "rows image_tokens dim"]):
        self.model = model
        self.past = model.qformer.look(image_tokens).past
        self.length = 0

    def next(self, ids: Int[Tensor, "rows new_tokens"]) -> Float[Tensor, "rows vocab"]:
        """Scores of the word after ``ids``, which come after all that it was given before."""
        start, self.length = self.length, self.length + ids.shape[1]
        valid = torch.ones(1, self.length, dtype=torch.bool, device=ids.device)
        mask = multimodal_causal_mask(self.model.config.num_queries, valid)
        tokens, self.past = self.model.qformer.write(
            ids, self.past, mask[:, :, -ids.shape[1] :], start
        )
        return self.model.words(tokens[:, -1])

    def repeat(self, times: int) -> None:
        """Each row ``times`` times, next to each other."""
        self.past = [
            (keys.repeat_interleave(times, 0), values.repeat_interleave(times, 0))
            for keys, values in self.past
        ]

    def select(self, rows: Int64[Tensor, " rows"]) -> None:
        """Go on from these rows."""
        self.past = [(keys[rows], values[rows]) for keys, values in self.past]


def freeze(module: nn.Module) -> nn.Module:
    """No gradient, hence no state of an optimiser, and evaluation mode; returns the module."""
    return module.requires_grad_(False).eval()


def start_from_vit(model: BLIP2, vit: ViT) -> None:
    """Give ``model``, whose image encoder is a ViT of ours, the weights of a trained one.

    A classifier it may have is left out. ValueError if the two are of different shapes.
    """
    theirs = {key: t for key, t in vit.state_dict().items() if not key.startswith("head.")}
    own = model.image_encoder.state_dict()
    if {key: t.shape for key, t in theirs.items()} != {key: t.shape for key, t in own.items()}:
        raise ValueError("the image encoder of the BLIP-2 and the ViT must have the same shape")
    model.image_encoder.load_state_dict(theirs)


def start_from_blip2(model: BLIP2, pretrained: BLIP2) -> None:
    """Give ``model`` all that it has in common with a trained BLIP-2, as stage 2 does with stage 1.

    Heads that only one of the two has stay fresh, or are left out, and so does what the Q-Former of
    ``pretrained`` has for texts where ``model`` reads none. ValueError for any other difference.
    """
    theirs, own = pretrained.state_dict(), model.state_dict()
    fitting = {key for key in own.keys() & theirs.keys() if own[key].shape == theirs[key].shape}
    spare = [key for key in theirs.keys() - own.keys() if model.config.reads_text]
    differing = [*(own.keys() - fitting), *(theirs.keys() & own.keys() - fitting), *spare]
    unfit = sorted(key for key in differing if not key.startswith("heads."))
    if unfit:
        raise ValueError(f"the two BLIP-2s must have the same shape; they differ in {unfit[0]!r}")
    model.load_state_dict(own | {key: theirs[key] for key in fitting})


# Image encoders. What BLIP-2 does not need of them is taken away.


def _eva_encoder(config: BLIP2Config) -> ViT:
    encoder = ViT(_vit_config(config))
    encoder.norm = nn.Identity()
    for block in encoder.blocks:
        block.attention.k_proj.bias = None
    return encoder


def _clip_encoder(config: BLIP2Config) -> CLIPImageEncoder:
    settings = {name: getattr(config, name) for name in (*_SIZES, "activation", "norm_eps")}
    encoder = CLIPImageEncoder(CLIPConfig(**settings))
    encoder.norm = nn.Identity()
    for table in (encoder.class_token, encoder.position_embedding):
        nn.init.normal_(table, std=config.dim**-0.5)
    return encoder


_SIZES = (
    "image_size",
    "patch_size",
    "num_channels",
    "dim",
    "depth",
    "num_heads",
    "mlp_dim",
)


def _vit_config(config: BLIP2Config) -> ViTConfig:
    settings = {name: getattr(config, name) for name in (*_SIZES, "activation", "norm_eps", "stem")}
    return ViTConfig(num_classes=0, init="trunc_normal", **settings)


_IMAGE_ENCODERS = {
    "eva": _eva_encoder,
    "clip": _clip_encoder,
    "vit": lambda config: ViT(_vit_config(config)),
    "efficientnet": lambda config: EfficientNetLite0(config.patch_size, num_classes=0),
}
_HEADS = {
    "contrast": lambda config: ContrastHead(
        config.text_dim, config.text_dim, config.embed_dim, config.temperature
    ),
    "match": lambda config: nn.Linear(config.text_dim, 2),
    "words": lambda config: BertLanguageHead(config.bert).apply(init_bert),
    "prefix": lambda config: nn.Linear(config.text_dim, config.prefix_dim),
}


# The published sizes (BLIP-2, section 4 and table 1): pre-trained at 224 pixels, fine-tuned at 364
# with an image encoder that learns.
BLIP2_G_14 = BLIP2Config()
BLIP2_L_14 = replace(
    BLIP2_G_14,
    image_encoder="clip",
    dim=1024,
    depth=23,
    mlp_dim=4096,
    activation="quick_gelu",
    norm_eps=1e-5,
)
BLIP2_G_14_RETRIEVAL = replace(BLIP2_G_14, image_size=364, freeze_images=False)
BLIP2_G_14_OPT_2_7B = replace(BLIP2_G_14, heads=("prefix",), prefix_dim=2560)
BLIP2_G_14_OPT_6_7B = replace(BLIP2_G_14, heads=("prefix",), prefix_dim=4096)
BLIP2_G_14_FLAN_T5_XL = replace(BLIP2_G_14, heads=("prefix",), prefix_dim=2048)
BLIP2_G_14_FLAN_T5_XXL = replace(BLIP2_G_14, heads=("prefix",), prefix_dim=4096)
BLIP2_L_14_OPT_2_7B = replace(BLIP2_L_14, heads=("prefix",), prefix_dim=2560)

# Ours, for CPU cores. The image encoder is "vit-mini", whose weights fit:
# model.image_encoder.load_state_dict(vit_mini.state_dict()) without its head. Captions are word
# pieces of mmlab.datasets.train_wordpiece, with [DEC] added after the last; give the vocabulary of
# your tokenizer: create_model("blip2-mini", vocab_size=tokenizer.vocab_size).
BLIP2_MINI = BLIP2Config(
    image_encoder="vit",
    **{name: getattr(VIT_MINI, name) for name in (*_SIZES, "stem", "activation", "norm_eps")},
    num_queries=8,
    vocab_size=4096,
    context_length=32,
    text_dim=128,
    text_depth=4,
    text_num_heads=4,
    text_mlp_dim=512,
    embed_dim=64,
    dropout=0.0,
    init="xavier",
)


class QueryContrast(NamedTuple):
    """One step's alignment: tokens, features, similarities over temperature.

    Columns of the tables are the images and texts of all processes, ``image_tokens`` and the rest
    those of this one. ``past`` is what a text needs of the queries; ``belongs`` says which columns
    are no negatives of a row.
    """

    image_tokens: Float[Tensor, "batch image_tokens dim"]
    queries: Float[Tensor, "batch queries text_dim"]
    past: list[KeysAndValues]
    text_tokens: Float[Tensor, "batch tokens text_dim"]
    image_features: Float[Tensor, "batch queries embed_dim"]
    text_features: Float[Tensor, "batch embed_dim"]
    image_to_text: Float[Tensor, "batch all"]
    text_to_image: Float[Tensor, "batch all"]
    belongs: Bool[Tensor, "batch all"]
    label_smoothing: float

    def loss(self) -> Float[Tensor, ""]:
        """The image-text contrastive loss, with smoothed labels (BLIP-2, section 3.1)."""
        truth = self.belongs.float()
        truth = truth / truth.sum(1, keepdim=True)
        targets = (1 - self.label_smoothing) * truth + self.label_smoothing / truth.shape[1]
        return soft_contrastive_loss(self.image_to_text, self.text_to_image, targets, targets)


class BLIP2Step(NamedTuple):
    """All that one step of training computes."""

    contrast: QueryContrast
    matching: PairMatching
    words: NextWords

    def losses(self) -> dict[str, Tensor]:
        """The losses by name; their sum is the loss."""
        return {
            "contrastive": self.contrast.loss(),
            "matching": self.matching.loss(),
            "language_modeling": self.words.loss(),
        }


class BLIP2Pretraining(nn.Module):
    """A ``BLIP2`` in the first stage of pre-training (BLIP-2, section 3.1).

    ``network`` is the model. There is neither twin nor queue: where the image encoder is frozen,
    large batches fit. Negatives come from all processes, whose texts must be equally long. Each
    process's rows meet the features of all as constants, its own included, as in the official code:
    so the gradient of the contrast is that of the rows alone.

    Every random choice is drawn from ``generator``, or from PyTorch's global random state.
    ValueError if the network lacks a head.
    """

    knows_images = False
    """Whether samples tell which image they are of, so that an image may come up several times."""

    def __init__(
        self,
        network: BLIP2,
        label_smoothing: float = LABEL_SMOOTHING,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        for head in ("match", "words"):
            network.head(head)
        _ = network.temperature  # ValueError if there is none
        self.network = network
        self.label_smoothing = label_smoothing
        self.generator = generator

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Contrast, matching with hard negatives, captioning.

        ``batch`` has ``"images"``, ``"input_ids"`` (from [CLS] to [SEP]) and, where texts are
        padded with anything but 0, ``"attention_mask"``. What is otherwise drawn may be given:
        ``"negative_images"`` (for each text) and ``"negative_texts"`` (for each image) are rows of
        the batch of all processes.
        """
        return self.step(batch).losses()

    def step(self, batch: dict[str, Tensor]) -> BLIP2Step:
        """All that ``losses`` computes, in the order of the official code."""
        contrast = self.contrast(batch)
        return BLIP2Step(contrast, self.match(batch, contrast), self.write(batch, contrast.past))

    def contrast(self, batch: dict[str, Tensor]) -> QueryContrast:
        """Queries alone and texts alone; a text counts as like an image as its likest query is."""
        network = self.network
        images = network.image_tokens(batch["images"])
        queries, past = network.qformer.look(images)
        text = network.text_tokens(batch["input_ids"], batch.get("attention_mask"))
        image_features, text_features = network.image_features(queries), network.text_features(text)
        all_images, all_texts = (
            gather_with_gradient(features.detach()) for features in (image_features, text_features)
        )
        return QueryContrast(
            images,
            queries,
            past,
            text,
            image_features,
            text_features,
            query_similarity(image_features, all_texts) / network.temperature,
            query_similarity(all_images, text_features).T / network.temperature,
            self._belongs(batch),
            self.label_smoothing,
        )

    def match(self, batch: dict[str, Tensor], contrast: QueryContrast) -> PairMatching:
        """The true pairs, and as many false ones of either kind, queries and text together."""
        images, ids = contrast.image_tokens, batch["input_ids"]
        valid = valid_tokens(ids, batch.get("attention_mask"))
        wrong_images, wrong_texts = self._negatives(batch, contrast)
        images, image_rows = images_of_pairs(images, gather_with_gradient(images), wrong_images)
        fused = self.network.fuse(
            torch.cat([ids, ids, gather_with_gradient(ids)[wrong_texts]]),
            images,
            torch.cat([valid, valid, gather_with_gradient(valid)[wrong_texts]]),
            image_rows,
        )
        logits = self.network.matching_logits(fused)
        return PairMatching(wrong_images, wrong_texts, fused, logits)

    def write(self, batch: dict[str, Tensor], past: Past) -> NextWords:
        """Each caption, word by word, from the queries; padding is not to be predicted."""
        ids = batch["input_ids"]
        valid = valid_tokens(ids, batch.get("attention_mask"))
        logits = self.network.word_logits(ids, past, valid)
        return NextWords(sequence_labels(ids, valid), logits, self.label_smoothing)

    def _belongs(self, batch: dict[str, Tensor]) -> Bool[Tensor, "batch all"]:
        ids = batch["input_ids"]
        own = batch["image_ids"] if self.knows_images else own_places(len(ids), ids.device)
        return own[:, None] == gather_with_gradient(own)

    def _negatives(
        self, batch: dict[str, Tensor], contrast: QueryContrast
    ) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
        """A wrong image for each text, then a wrong text for each image, drawn by similarity."""
        if "negative_images" in batch:
            return batch["negative_images"], batch["negative_texts"]
        tables = (contrast.text_to_image, contrast.image_to_text, contrast.belongs)
        return sample_negative_pairs(*tables, self.generator)


class BLIP2Retrieval(BLIP2Pretraining):
    """A ``BLIP2`` learning retrieval: the same three losses (BLIP-2, section 4.4).

    ``batch`` also has ``"image_ids"``: captions of one image share its number. All of them are
    right answers of the contrast, and none is a negative of matching.
    """

    knows_images = True


def query_similarity(
    image_features: Float[Tensor, "images queries embed_dim"],
    text_features: Float[Tensor, "texts embed_dim"],
) -> Float[Tensor, "images texts"]:
    """The dot product of each text with the query of each image that it is most like."""
    return torch.einsum("iqd,td->itq", image_features, text_features).max(-1).values
