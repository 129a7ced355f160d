"""ViLBERT: one transformer for words, one for regions, and co-attention where the two meet.

Lu, Batra, Parikh and Lee 2019, "ViLBERT: Pretraining Task-Agnostic Visiolinguistic Representations
for Vision-and-Language Tasks" (arXiv 1908.02265), and Lu et al. 2020, "12-in-1" (arXiv 1912.02315).
The official code of both is facebookresearch/vilbert-multi-task, ``vilbert/vilbert.py``. Its
"dynamic attention", off in all published configurations, is not here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
from mmlab.nn import (
    ACTIVATIONS,
    MLP,
    Attention,
    AttentionMask,
    BertClassifier,
    BertConfig,
    BertEmbeddings,
    BertLanguageHead,
    PostNormBlock,
    bert_block,
    find_head,
    init_bert,
    init_xavier,
    padding_mask,
    run_blocks,
)
from mmlab.nn.blocks import ContextMask
from mmlab.nn.region_locations import corner_area_locations
from mmlab.objectives.masked_language import IGNORED, asked_words_loss, mask_tokens
from mmlab.objectives.masked_region import (
    choose_regions,
    hide_regions,
    region_contrast_loss,
    region_distribution_loss,
    region_feature_loss,
)
from mmlab.objectives.matching import matching_loss, own_or_other

PRETRAINING_HEADS = ("words", "regions", "match")
TASK_HEADS = ("answer", "gqa", "pair", "rank", "entailment", "grounding", "word_scores")
HEADS = PRETRAINING_HEADS + TASK_HEADS
FUSIONS = ("mul", "sum")
REGION_TARGETS = ("classes", "features", "contrast")
INITS = ("normal", "xavier")
OBJECTIVES = (0, 1, 2)
LOCATION_DIM = 5
WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0, 1.0)
"""The location of the whole image, which stands before the regions."""

MASKED_SHARE, ZEROED_SHARE = 0.15, 0.9
"""How many words and regions are to be found again, and of how many of these regions the feature is
set to zero."""
FAR_SHARE = 0.7
"""How many false features of the contrast come from other images."""
PADDED_REGION = -10000.0
"""What is added to the grounding logit of padding."""


@dataclass(frozen=True)
class ViLBERTConfig:
    """Everything that fixes the shape and the training behaviour of a ``ViLBERT``.

    - ``dim``, ``depth``, ``num_heads``, ``mlp_dim``: the stream of words, a BERT; ``region_dim``,
      ``region_depth``, ``region_num_heads``, ``region_mlp_dim``: that of regions.
    - ``fusion_dim``, ``fusion_num_heads``: the width and heads of co-attention; both pooled vectors
      are ``fusion_dim`` wide.
    - ``text_connections``, ``region_connections``: before which block of each stream the first
      co-attention stands, the second, … Numbers may repeat, but not fall.
    - ``coattention=False`` leaves the co-attention out of the computation, not out of the weights:
      the streams do not meet before they are pooled.
    - ``fusion``: the two pooled vectors are multiplied (``"mul"``) or added (``"sum"``).
    - ``region_target``: what is predicted of a masked region: the detector's distribution over
      ``num_region_classes`` (with background, the first), the feature, or, by ``"contrast"``, which
      feature it was (the official ``visual_target`` 0, 1, 2).
    - ``context_length``: the most tokens of a text in training; ``max_positions`` the longest text.
    - ``num_tasks``: a table of task tokens (12-in-1: 20), 0 for none.
    - ``heads``: ``"words"``, ``"regions"`` (masked ones), ``"match"`` (is the text about the
      image?), ``"answer"`` (``num_classes``; VQA), ``"gqa"`` (``num_gqa_classes``), ``"pair"``
      (NLVR2), ``"rank"`` (retrieval, VCR), ``"entailment"`` (three classes), ``"grounding"`` (one
      score a region) and ``"word_scores"`` (one score a word).
    - ``init``: matrices start with a spread of 0.02, as published, or ``"xavier"``, with one that
      grows as the width shrinks, for narrow models.

    The official files have rates of dropout for each stream; all are 0.1, and here they are one.
    A wrong value raises ValueError.
    """

    vocab_size: int = 30522
    context_length: int = 36
    max_positions: int = 512
    num_types: int = 2
    num_tasks: int = 0
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    feature_dim: int = 2048
    num_region_classes: int = 1601
    region_dim: int = 1024
    region_depth: int = 6
    region_num_heads: int = 8
    region_mlp_dim: int = 1024
    fusion_dim: int = 1024
    fusion_num_heads: int = 8
    text_connections: tuple[int, ...] = (6, 7, 8, 9, 10, 11)
    region_connections: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    coattention: bool = True
    fusion: str = "mul"
    region_target: str = "classes"
    heads: tuple[str, ...] = PRETRAINING_HEADS
    num_classes: int = 0
    num_gqa_classes: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "context_length", "max_positions", "num_types")
        check_integers(self, "dim", "depth", "num_heads", "mlp_dim", "feature_dim")
        check_integers(self, "num_region_classes", "region_dim", "region_depth")
        check_integers(self, "region_num_heads", "region_mlp_dim", "fusion_dim", "fusion_num_heads")
        check_integers(self, "num_tasks", "num_classes", "num_gqa_classes", minimum=0)
        check_multiple(self, "dim", "num_heads")
        check_multiple(self, "region_dim", "region_num_heads")
        check_multiple(self, "fusion_dim", "fusion_num_heads")
        check_choice(self, "fusion", FUSIONS)
        check_choice(self, "region_target", REGION_TARGETS)
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "init", INITS)
        check_positive(self, "norm_eps")
        check_rates(self, "dropout", "attention_dropout")
        check_heads(self, HEADS, classifier="answer")
        check_heads(self, HEADS, classifier="gqa", size="num_gqa_classes")
        allowed = f"at most max_positions={self.max_positions}"
        fits = self.context_length <= self.max_positions
        check(fits, "context_length", self.context_length, allowed)
        _check_connections(self, "text_connections", "depth")
        _check_connections(self, "region_connections", "region_depth")
        pairs = len(self.text_connections) == len(self.region_connections)
        allowed = f"as many as region_connections={self.region_connections}"
        check(pairs, "text_connections", self.text_connections, allowed)

    @property
    def bert(self) -> BertConfig:
        """The stream of words."""
        return BertConfig.part_of(self)

    @property
    def region_outputs(self) -> int:
        """How many numbers are predicted of a masked region."""
        return self.num_region_classes if self.region_target == "classes" else self.feature_dim


def _check_connections(config: ViLBERTConfig, name: str, depth: str) -> None:
    places, limit = getattr(config, name), getattr(config, depth)
    right = isinstance(places, tuple) and all(type(p) is int and 0 <= p < limit for p in places)
    right = right and len(places) > 0 and list(places) == sorted(places)
    allowed = f"a tuple of numbers from 0 to below {depth}={limit} in rising order"
    check(right, name, places, allowed)


class ViLBERTFeatures(NamedTuple):
    """Both streams after their last block, and the vector of each.

    - ``text``: with a task token, this is token 1 and the words after [CLS] follow it.
    - ``regions``: one place for the whole image, then one for each region.
    - ``text_pooled``, ``region_pooled``: the first of each, through a linear layer and ReLU.
    - ``region_valid``: False on regions that only fill up the batch.
    """

    text: Float[Tensor, "batch tokens dim"]
    regions: Float[Tensor, "batch places region_dim"]
    text_pooled: Float[Tensor, "batch fusion_dim"]
    region_pooled: Float[Tensor, "batch fusion_dim"]
    region_valid: Bool[Tensor, "batch places"]


class RegionEmbeddings(nn.Module):
    """Feature and location, each through a linear layer, added, then one norm (section 2.2)."""

    def __init__(self, config: ViLBERTConfig):
        super().__init__()
        self.features = nn.Linear(config.feature_dim, config.region_dim)
        self.locations = nn.Linear(LOCATION_DIM, config.region_dim)
        self.norm = nn.LayerNorm(config.region_dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 5"],
    ) -> Float[Tensor, "batch regions region_dim"]:
        """Vectors of the regions; they have no order and no type."""
        return self.dropout(self.norm(self.features(features) + self.locations(locations)))


class CrossStreamBlock(nn.Module):
    """What one stream does in a co-attention: it looks at the other, then at itself token by token.

    The queries are its own, keys and values those of the other stream, ``context_dim`` wide.
    """

    def __init__(self, config: ViLBERTConfig, dim: int, mlp_dim: int, context_dim: int):
        super().__init__()
        head_dim = config.fusion_dim // config.fusion_num_heads
        self.attention = Attention(
            dim,
            config.fusion_num_heads,
            context_dim,
            dropout=config.attention_dropout,
            head_dim=head_dim,
        )
        self.norm1 = nn.LayerNorm(dim, eps=config.norm_eps)
        # All official files hold this layer ("q_dense") and no code calls it. It is kept, frozen,
        # so that they are loaded and written whole, and so that nobody waits for its gradient.
        self.unused = nn.Linear(config.fusion_dim, dim).requires_grad_(False)
        self.mlp = MLP(dim, mlp_dim, config.activation)
        self.norm2 = nn.LayerNorm(dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Float[Tensor, "batch context_tokens context_dim"],
        mask: AttentionMask | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Same shape as ``x``; ``mask`` is over the ``context``."""
        x = self.norm1(x + self.dropout(self.attention(x, context, mask)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class CoAttentionBlock(nn.Module):
    """Words look at regions while regions look at words (section 2.2, figure 2b)."""

    def __init__(self, config: ViLBERTConfig):
        super().__init__()
        widths = config.dim, config.region_dim
        self.text = CrossStreamBlock(config, widths[0], config.mlp_dim, widths[1])
        self.regions = CrossStreamBlock(config, widths[1], config.region_mlp_dim, widths[0])

    def forward(
        self,
        text: Float[Tensor, "batch tokens dim"],
        regions: Float[Tensor, "batch regions region_dim"],
        text_mask: AttentionMask | None = None,
        region_mask: ContextMask | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch regions region_dim"]]:
        """Both streams at once: each sees the other as it came in."""
        return self.text(text, regions, region_mask), self.regions(regions, text, text_mask)


class StreamPooler(nn.Module):
    """A linear layer and ReLU on the first token; the paper leaves them out."""

    def __init__(self, dim: int, fusion_dim: int):
        super().__init__()
        self.dense = nn.Linear(dim, fusion_dim)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch fusion_dim"]:
        """One vector a sequence, no entry below 0."""
        return F.relu(self.dense(x[:, 0]))


class ViLBERT(nn.Module):
    """Vision-and-Language BERT (ViLBERT, section 2.2).

    Two streams of BERT's blocks with co-attention between them. Regions come as features and
    locations (``corner_area_locations``), without the whole image, which the model adds. Set
    ``model.activation_checkpointing = True`` to trade time for memory in training. New weights come
    from PyTorch's global random state.
    """

    def __init__(self, config: ViLBERTConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.embeddings = BertEmbeddings(config.bert)
        tasks = config.num_tasks
        self.task_embedding = nn.Embedding(tasks, config.dim) if tasks else None
        self.region_embeddings = RegionEmbeddings(config)
        self.text_blocks = nn.ModuleList(bert_block(config.bert) for _ in range(config.depth))
        self.region_blocks = nn.ModuleList(
            _region_block(config) for _ in range(config.region_depth)
        )
        self.connections = nn.ModuleList(CoAttentionBlock(config) for _ in config.text_connections)
        self.text_pooler = StreamPooler(config.dim, config.fusion_dim)
        self.region_pooler = StreamPooler(config.region_dim, config.fusion_dim)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        if not config.coattention:
            self.connections.requires_grad_(False)
        self.apply(init_bert)
        if config.init == "xavier":
            self.apply(init_xavier)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 5"],
        text_valid: Bool[Tensor, "batch tokens"] | None = None,
        region_valid: Bool[Tensor, "batch regions"] | None = None,
        types: Int[Tensor, "batch tokens"] | None = None,
        task_ids: Int[Tensor, " batch"] | None = None,
        whole_feature: Float[Tensor, "batch feature_dim"] | None = None,
    ) -> ViLBERTFeatures:
        """Features of each pair of a text and the regions of an image.

        - ``text_valid``, ``region_valid``: False on padding, which nobody sees; None for none.
        - ``types``: the token types, all 0 if None; VCR has 1 on the answer.
        - ``task_ids``: the number of the task of each row, with ``num_tasks`` only.
        - ``whole_feature``: the feature of the whole image; if None, the mean of those of its valid
          regions, or zero if it has none. The code of 12-in-1 divides otherwise: by all regions
          that are not masked, padding included.

        ValueError for a text that is too long, and for task numbers that are missing, or given to a
        model without task tokens.
        """
        text = self.embed_text(input_ids, types, task_ids)
        if text_valid is not None and task_ids is not None:
            text_valid = F.pad(text_valid, (1, 0), value=True)
        regions = self.embed_regions(features, locations, region_valid, whole_feature)
        seen = _with_whole(region_valid, regions)
        masks = (
            None if text_valid is None else padding_mask(text_valid),
            None if region_valid is None else padding_mask(seen),
        )
        text, regions = self._encode(text, regions, *masks)
        pooled = self.text_pooler(text), self.region_pooler(regions)
        return ViLBERTFeatures(text, regions, *pooled, seen)

    def embed_text(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        types: Int[Tensor, "batch tokens"] | None = None,
        task_ids: Int[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch text_tokens dim"]:
        """BERT's embeddings; the task token comes in after [CLS], before the norm.

        It has no position: the words keep theirs.
        """
        if (task_ids is None) != (self.task_embedding is None):
            wanted = "must be given" if task_ids is None else "must be None"
            tasks = self.config.num_tasks
            raise ValueError(f"task_ids {wanted} for a model with num_tasks={tasks}")
        x = self.embeddings.sum(input_ids, types)
        if task_ids is not None:
            task = self.task_embedding(task_ids)[:, None]
            x = torch.cat([x[:, :1], task, x[:, 1:]], dim=1)
        return self.embeddings.dropout(self.embeddings.norm(x))

    def embed_regions(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 5"],
        region_valid: Bool[Tensor, "batch regions"] | None = None,
        whole_feature: Float[Tensor, "batch feature_dim"] | None = None,
    ) -> Float[Tensor, "batch 1+regions region_dim"]:
        """The whole image, then the regions; the arguments are those of ``forward``."""
        if whole_feature is None:
            whole_feature = mean_feature(features, region_valid)
        box = locations.new_tensor(WHOLE_IMAGE).expand(len(locations), 1, -1)
        return self.region_embeddings(
            torch.cat([whole_feature[:, None], features], dim=1),
            torch.cat([box, locations], dim=1),
        )

    def word_logits(self, features: ViLBERTFeatures) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of words at each text token. ValueError, here and below, without this head."""
        return self.words_at(features.text)

    def words_at(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Scores of words at ``tokens``, such as the masked ones alone."""
        return self.head("words")(tokens, self.embeddings.word_embedding.weight)

    def region_logits(self, features: ViLBERTFeatures) -> Float[Tensor, "batch places outputs"]:
        """Scores of classes, or a predicted feature, of the whole image and of each region."""
        return self.head("regions")(features.regions)

    def matching_logits(self, features: ViLBERTFeatures) -> Float[Tensor, "batch 2"]:
        """Output 0 is for "the text is about the image", output 1 for "it is not".

        That is the other way round than in all other models here; see ``matching_scores``.
        """
        return self.head("match")(self.fuse(features))

    def matching_scores(self, features: ViLBERTFeatures) -> Float[Tensor, " batch"]:
        """How well each text fits its image, above 0 where the matching head says it does."""
        fits, does_not = self.matching_logits(features).unbind(1)
        return fits - does_not

    def answer_logits(self, features: ViLBERTFeatures) -> Float[Tensor, "batch classes"]:
        """Scores of the answers of VQA."""
        return self.head("answer")(self.fuse(features))

    def gqa_logits(self, features: ViLBERTFeatures) -> Float[Tensor, "batch gqa_classes"]:
        """Scores of the answers of GQA."""
        return self.head("gqa")(self.fuse(features))

    def pair_logits(self, features: ViLBERTFeatures) -> Float[Tensor, "pairs 2"]:
        """Is the text true of two images? Rows 2n and 2n + 1 of the batch are those of text n.

        ValueError for an odd number of rows, where the official code gives the logits of matching.
        """
        head, fused = self.head("pair"), self.fuse(features)
        if len(fused) % 2:
            raise ValueError(f"features must be of pairs of images, got {len(fused)} rows")
        return head(fused.reshape(len(fused) // 2, -1))

    def rank_scores(self, features: ViLBERTFeatures) -> Float[Tensor, " batch"]:
        """One number a pair, the higher the better the text fits: retrieval, choices of VCR."""
        return self.head("rank")(self.fuse(features)).squeeze(-1)

    def entailment_logits(self, features: ViLBERTFeatures) -> Float[Tensor, "batch 3"]:
        """Scores of three classes: SNLI-VE, and the answers of GuessWhat."""
        return self.head("entailment")(self.fuse(features))

    def grounding_logits(self, features: ViLBERTFeatures) -> Float[Tensor, "batch places"]:
        """Is this the region that the text speaks of? The first is the whole image."""
        logits = self.head("grounding")(self.dropout(features.regions)).squeeze(-1)
        return logits + PADDED_REGION * ~features.region_valid

    def word_scores(self, features: ViLBERTFeatures) -> Float[Tensor, "batch tokens"]:
        """One number for each text token; no published task uses it."""
        return self.head("word_scores")(self.dropout(features.text)).squeeze(-1)

    def fuse(self, features: ViLBERTFeatures) -> Float[Tensor, "batch fusion_dim"]:
        """The vector of the pair, after dropout: product or sum of the two pooled vectors."""
        text, regions = features.text_pooled, features.region_pooled
        return self.dropout(text * regions if self.config.fusion == "mul" else text + regions)

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        return find_head(self, name)

    def _encode(
        self,
        text: Float[Tensor, "batch tokens dim"],
        regions: Float[Tensor, "batch places region_dim"],
        text_mask: AttentionMask | None,
        region_mask: ContextMask | None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch places region_dim"]]:
        """Both streams up to each connection, the connection, and what comes after the last."""
        config = self.config
        at, region_at = 0, 0
        places = zip(config.text_connections, config.region_connections, strict=True)
        for connection, (end, region_end) in zip(self.connections, places, strict=True):
            text = self._run(self.text_blocks, at, end, text, text_mask)
            regions = self._run(self.region_blocks, region_at, region_end, regions, region_mask)
            if config.coattention:
                text, regions = self._connect(connection, text, regions, text_mask, region_mask)
            at, region_at = end, region_end
        regions = self._run(self.region_blocks, region_at, None, regions, region_mask)
        return self._run(self.text_blocks, at, None, text, text_mask), regions

    def _run(
        self,
        blocks: nn.ModuleList,
        since: int,
        until: int | None,
        tokens: Tensor,
        mask: Tensor | None,
    ) -> Tensor:
        part = list(blocks)[since:until]
        return run_blocks(part, tokens, mask, self.activation_checkpointing)

    def _connect(
        self, connection: CoAttentionBlock, *streams: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(connection, *streams, use_reentrant=False)
        return connection(*streams)


def mean_feature(
    features: Float[Tensor, "batch regions feature_dim"],
    region_valid: Bool[Tensor, "batch regions"] | None = None,
) -> Float[Tensor, "batch feature_dim"]:
    """The mean over the valid regions, zero where there are none: the image as a whole.

    As in jiasenlu/vilbert_beta, ``vilbert/datasets/concept_cap_dataset.py``: a masked region adds
    its zeros and counts.
    """
    if region_valid is None:
        region_valid = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    total = features.masked_fill(~region_valid[..., None], 0.0).sum(1)
    return total / region_valid.sum(1, keepdim=True).clamp_min(1)


def _with_whole(
    region_valid: Bool[Tensor, "batch regions"] | None,
    regions: Float[Tensor, "batch places region_dim"],
) -> Bool[Tensor, "batch places"]:
    if region_valid is None:
        return torch.ones(regions.shape[:2], dtype=torch.bool, device=regions.device)
    return F.pad(region_valid, (1, 0), value=True)


def _region_block(config: ViLBERTConfig) -> PostNormBlock:
    return PostNormBlock(
        config.region_dim,
        config.region_num_heads,
        config.region_mlp_dim,
        activation=config.activation,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
        attention_dropout=config.attention_dropout,
    )


def _classifier(config: ViLBERTConfig, num_images: int, num_outputs: int) -> BertClassifier:
    sizes = (num_images * config.fusion_dim, 2 * config.fusion_dim, num_outputs)
    return BertClassifier(*sizes, config.activation, config.norm_eps)


def _region_classifier(config: ViLBERTConfig) -> BertClassifier:
    sizes = (config.region_dim, config.region_dim, config.region_outputs)
    return BertClassifier(*sizes, config.activation, config.norm_eps)


_HEADS: dict[str, Callable[[ViLBERTConfig], nn.Module]] = {
    "words": lambda config: BertLanguageHead(config.bert),
    "regions": _region_classifier,
    "match": lambda config: nn.Linear(config.fusion_dim, 2),
    "answer": lambda config: _classifier(config, 1, config.num_classes),
    "gqa": lambda config: _classifier(config, 1, config.num_gqa_classes),
    "pair": lambda config: _classifier(config, 2, 2),
    "rank": lambda config: nn.Linear(config.fusion_dim, 1),
    "entailment": lambda config: nn.Linear(config.fusion_dim, 3),
    "grounding": lambda config: nn.Linear(config.region_dim, 1),
    "word_scores": lambda config: nn.Linear(config.dim, 1),
}


def _connected(count: int, depth: int = 12) -> dict[str, object]:
    """``count`` co-attentions before the last ``count`` blocks of words and all of regions."""
    return {
        "region_depth": count,
        "text_connections": tuple(range(depth - count, depth)),
        "region_connections": tuple(range(count)),
    }


_LARGE = {"dim": 1024, "depth": 24, "num_heads": 16, "mlp_dim": 4096}

VILBERT_B_2 = ViLBERTConfig(**_connected(2))
VILBERT_B_4 = ViLBERTConfig(**_connected(4))
VILBERT_B_6 = ViLBERTConfig(**_connected(6))
VILBERT_B_8 = ViLBERTConfig(**_connected(8))
VILBERT_L_2 = ViLBERTConfig(**_LARGE, **_connected(2, depth=24))
VILBERT_L_4 = ViLBERTConfig(**_LARGE, **_connected(4, depth=24))
VILBERT_L_6 = ViLBERTConfig(**_LARGE, **_connected(6, depth=24))
# RoBERTa counts positions from 2; the official code computes those, and then uses 0, 1, … here too.
VILBERT_ROBERTA_B_6 = replace(VILBERT_B_6, vocab_size=50265, max_positions=514, num_types=1)
VILBERT_12_IN_1 = replace(
    VILBERT_B_6, heads=HEADS, num_classes=3129, num_gqa_classes=1533, num_tasks=20
)
VILBERT_MINI = ViLBERTConfig(
    vocab_size=1000,
    context_length=32,
    max_positions=32,
    dim=128,
    depth=2,
    num_heads=4,
    mlp_dim=512,
    feature_dim=64,
    num_region_classes=9,
    region_dim=128,
    region_num_heads=4,
    region_mlp_dim=128,
    fusion_dim=128,
    fusion_num_heads=4,
    **_connected(2, depth=2),
    dropout=0.0,
    attention_dropout=0.0,
    init="xavier",
)


class ViLBERTPretraining(nn.Module):
    """A ``ViLBERT`` in pre-training (sections 2.2 and 3.1); ``network`` is the model.

    ValueError if it lacks a head, or has task tokens, which came with fine-tuning on many tasks.
    """

    def __init__(self, network: ViLBERT):
        super().__init__()
        for name in PRETRAINING_HEADS:
            network.head(name)
        tasks = network.config.num_tasks
        check(tasks == 0, "num_tasks", tasks, "0 in pre-training")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """``"masked_words"``, ``"masked_regions"`` and ``"matching"``, to be added.

        ``batch`` is what ``vilbert_lesson`` gives. Without ``"matched"`` there is no matching.
        """
        network = self.network
        features = network(
            batch["input_ids"],
            batch["features"],
            batch["locations"],
            batch["attention_mask"],
            batch["region_valid"],
            batch.get("types"),
            whole_feature=batch.get("whole_feature"),
        )
        losses = {
            "masked_words": asked_words_loss(network.words_at, features.text, batch["labels"]),
            "masked_regions": self._masked_regions(features, batch),
        }
        if "matched" in batch:
            # Class 0 is the true pair: next-sentence prediction of BERT, where 0 is "is next".
            logits, mismatched = network.matching_logits(features), ~batch["matched"]
            losses["matching"] = matching_loss(logits, mismatched)
        return losses

    def _masked_regions(
        self, features: ViLBERTFeatures, batch: dict[str, Tensor]
    ) -> Float[Tensor, ""]:
        """The whole image is never asked for."""
        predicted, chosen = self.network.region_logits(features)[:, 1:], batch["masked_regions"]
        target = self.network.config.region_target
        if target == "classes":
            return region_distribution_loss(predicted, batch["class_distributions"], chosen)
        true = batch["region_features"]
        if target == "features":
            return region_feature_loss(predicted, true, chosen)
        return region_contrast_loss(predicted, true, chosen, batch["negative_regions"])


def vilbert_lesson(
    pairs: dict[str, Tensor],
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator | None = None,
    objective: int = 0,
    num_negatives: int = 0,
) -> dict[str, Tensor]:
    """A batch for ``ViLBERTPretraining`` from captions, captions of other images, and regions.

    ``pairs`` has ``"input_ids"``, ``"attention_mask"``, the same of other images as ``"other_ids"``
    and ``"other_mask"``, ``"features"``, ``"boxes"``, ``"image_sizes"``, ``"region_valid"`` and, if
    classes are to be predicted, ``"class_distributions"``.

    - Half of the captions give way to that of another image; the paper also speaks of other images,
      the official code changes captions only (and may hit the true one).
    - Each WordPiece is masked with probability 0.15, as in BERT; so is each region, whose feature
      is then zero in 9 of 10 cases. Its location stays.
    - ``objective`` is that of the official code. 0, all losses for all pairs: ViLBERT. 1, nothing
      to be found again in false pairs: 12-in-1. 2, no false pairs and no matching.
    - ``num_negatives`` false features for each region, for ``region_target="contrast"`` (official:
      128): ``"negative_regions"``, see ``draw_negative_regions``.

    Everything random comes from ``generator``. ValueError for another ``objective``.
    """
    check(objective in OBJECTIVES, "objective", objective, "0, 1 or 2")
    ids, valid = pairs["input_ids"], pairs["attention_mask"]
    batch: dict[str, Tensor] = {}
    if objective != 2:
        matched = torch.rand(len(ids), generator=generator) >= 0.5
        ids = own_or_other(matched, ids, pairs["other_ids"])
        valid = own_or_other(matched, valid, pairs["other_mask"])
        batch["matched"] = matched
    maskable = valid & ~torch.isin(ids, torch.tensor(special_ids))
    words = mask_tokens(ids, maskable, mask_id, vocab_size, MASKED_SHARE, generator=generator)
    features, region_valid = pairs["features"], pairs["region_valid"]
    chosen = choose_regions(region_valid, MASKED_SHARE, generator=generator)
    hidden = hide_regions(features, chosen, ZEROED_SHARE, generator=generator)
    labels = words.labels
    if objective == 1:
        labels = labels.masked_fill(~matched[:, None], IGNORED)
        chosen = chosen & matched[:, None]
    batch |= {
        "input_ids": words.ids,
        "attention_mask": valid,
        "labels": labels,
        "features": hidden,
        "locations": corner_area_locations(pairs["boxes"], pairs["image_sizes"]),
        "region_valid": region_valid,
        "masked_regions": chosen,
        "region_features": features,
    }
    if "class_distributions" in pairs:
        batch["class_distributions"] = pairs["class_distributions"]
    if num_negatives:
        batch["negative_regions"] = draw_negative_regions(region_valid, num_negatives, generator)
    return batch


def draw_negative_regions(
    region_valid: Bool[Tensor, "batch regions"],
    count: int,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, "batch regions count"]:
    """For each region ``count`` others, numbered row by row through the batch.

    Of 10 three are of the same image and seven of others; where an image has but one region, all
    are of others. Padding is not drawn, as it is in the official code. The numbers are those of
    this batch: a part of it needs a draw of its own. ValueError for a single image or one without
    regions.
    """
    rows, regions = region_valid.shape
    sizes = region_valid.sum(1)
    if rows < 2 or not sizes.all():
        raise ValueError("false features come from other images: all of two or more need regions")
    near = count - round(FAR_SHARE * count)
    # The valid places of each image come first in its order; rank is the way back.
    order = (~region_valid).to(torch.int8).argsort(dim=1, stable=True)
    rank = order.argsort(dim=1)
    shape = (rows, regions, count)
    own = torch.arange(rows)[:, None, None]
    image = (own + 1 + torch.randint(rows - 1, shape, generator=generator)) % rows
    luck = torch.rand(shape, generator=generator)
    far = image * regions + order[image, (luck * sizes[image]).long()]
    others = (sizes - 1)[:, None, None]
    place = (luck * others).long()
    # One step further from the region's own place on, so that it is not drawn itself.
    place = place + (place >= rank[..., None])
    inside = own * regions + order[own, place.clamp_max(regions - 1)]
    takes_near = (torch.arange(count) < near) & (others > 0)
    return torch.where(takes_near, inside, far)


BERT_PLACES = (
    ("embeddings.", "embeddings."),
    ("text_blocks.", "blocks."),
    ("heads.words.", "words."),
)
"""Where the parts of a pretrained BERT go (``start_from_bert``), the published beginning."""


def vilbert_decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay (0.01) falls on a parameter: on matrices and tables, positions too.

    As in the code of 12-in-1. The one before it, jiasenlu/vilbert_beta, has it the wrong way round:
    biases and norms decay there, matrices do not.
    """
    return parameter.ndim >= 2


def comes_from_bert(name: str) -> bool:
    """Whether a parameter starts from a pretrained BERT and learns at a tenth of the rate.

    Embeddings and text blocks do (``train_concap.py``); the rate is left to the caller. The words
    head starts from BERT's, too, but learns at the full rate. The official rule cuts twelve
    letters, ``module.bert.``, off each name, so that on a single GPU it finds nothing.
    """
    return name.startswith(("embeddings.", "text_blocks."))
