"""LXMERT: an encoder of words, one of detected objects, and one in which each reads the other.

Tan and Bansal 2019, "LXMERT: Learning Cross-Modality Encoder Representations from Transformers"
(arXiv 1908.07490); the official code is airsplay/lxmert.
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
from mmlab.nn import (
    ACTIVATIONS,
    Attention,
    AttentionMask,
    BertClassifier,
    BertConfig,
    BertEmbeddings,
    BertLanguageHead,
    BertPooler,
    BertTransform,
    JointFeatures,
    bert_block,
    find_head,
    init_bert,
    init_xavier,
    padding_mask,
    run_blocks,
    share_layers,
)
from mmlab.nn.region_locations import corner_locations
from mmlab.objectives.masked_language import (
    IGNORED,
    asked_words_loss,
    mask_tokens,
    masked_language_loss,
)
from mmlab.objectives.masked_region import (
    choose_regions,
    hide_regions,
    smooth_region_feature_loss,
    weighted_region_label_loss,
)
from mmlab.objectives.matching import matching_loss

HEADS = ("words", "match", "regions", "answer")
INITS = ("normal", "xavier")
REGION_LOSSES = ("features", "classes", "attributes")
LOCATION_DIM = 4
MASKED_SHARE = 0.15
"""How many words and how many regions are to be predicted."""
ZEROED, REPLACED = 0.8, 0.1
"""Of the regions to be predicted, how many lose their feature, and how many get a wrong one."""
MISMATCHED_SHARE = 0.5


@dataclass(frozen=True)
class LXMERTConfig:
    """Everything that fixes the shape and the training behaviour of an ``LXMERT``.

    - ``text_depth``, ``region_depth``, ``cross_depth``: blocks of the language encoder, of the
      object-relationship encoder and of the cross-modality encoder; the last two may be 0.
    - ``shared_cross_attention``: words look at regions with the weights with which regions look at
      words. So has it the official code; the paper's formulas show two functions.
    - ``context_length``: the most tokens of a text in training; the table has ``max_positions``.
    - ``num_region_classes`` and ``num_attributes`` are the detector's, without a background.
    - ``heads``: which of ``"words"`` (masked words), ``"match"`` (does the text fit the image?),
      ``"regions"`` (masked regions: class, attribute, feature) and ``"answer"`` (``num_classes``
      answers about ``num_images`` images).
    - ``init``: matrices start with a spread of 0.02, as published (``"normal"``), or with one that
      grows as the width shrinks (``"xavier"``).

    A wrong value raises ValueError.
    """

    vocab_size: int = 30522
    context_length: int = 20
    max_positions: int = 512
    dim: int = 768
    text_depth: int = 9
    region_depth: int = 5
    cross_depth: int = 5
    num_heads: int = 12
    mlp_dim: int = 3072
    feature_dim: int = 2048
    num_region_classes: int = 1600
    num_attributes: int = 400
    heads: tuple[str, ...] = HEADS
    num_classes: int = 9500
    num_images: int = 1
    shared_cross_attention: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "context_length", "max_positions", "dim", "text_depth")
        check_integers(self, "region_depth", "cross_depth", "num_classes", minimum=0)
        check_integers(self, "num_heads", "mlp_dim", "feature_dim", "num_images")
        check_integers(self, "num_region_classes", "num_attributes")
        shared = self.shared_cross_attention
        check(isinstance(shared, bool), "shared_cross_attention", shared, "True or False")
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "init", INITS)
        check_positive(self, "norm_eps")
        check_rates(self, "dropout", "attention_dropout")
        check_multiple(self, "dim", "num_heads")
        check_heads(self, HEADS, classifier="answer")
        length, most = self.context_length, self.max_positions
        check(length <= most, "context_length", length, f"at most max_positions={most}")

    @property
    def bert(self) -> BertConfig:
        """The language encoder; all other blocks are of the same size."""
        return BertConfig.part_of(self, depth=self.text_depth)


class LXMERTEmbeddings(BertEmbeddings):
    """BERT's embeddings, whose first position and first type never learn.

    The official code makes all three tables with ``padding_idx=0``, then fills them with noise. So
    [CLS] has a random position and every token a random type, and no gradient ever changes them.
    A checkpoint expects that of its position 0; type 1 is never used.
    """

    def position_rows(self, start: int, end: int) -> Float[Tensor, "tokens dim"]:
        """The vectors of the positions; no gradient to position 0."""
        table = self.position_embedding.weight
        return F.embedding(torch.arange(start, end, device=table.device), table, padding_idx=0)

    def type_rows(self, types: Int[Tensor, "batch tokens"] | None) -> Float[Tensor, "*tokens dim"]:
        """The vectors of the types; no gradient to type 0, which all have if None."""
        table = self.type_embedding.weight
        types = torch.zeros(1, dtype=torch.int64, device=table.device) if types is None else types
        return F.embedding(types, table, padding_idx=0)


class RegionEmbeddings(nn.Module):
    """The mean of a normalised feature and a normalised box (LXMERT, section 2.1).

    As each of the two has a norm of its own, neither drowns the other, whatever its scale.
    """

    def __init__(self, config: LXMERTConfig):
        super().__init__()
        self.feature_projection = nn.Linear(config.feature_dim, config.dim)
        self.feature_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.location_projection = nn.Linear(LOCATION_DIM, config.dim)
        self.location_norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 4"],
    ) -> Float[Tensor, "batch regions dim"]:
        """Region vectors; ``locations`` are those of ``corner_locations``."""
        what = self.feature_norm(self.feature_projection(features))
        where = self.location_norm(self.location_projection(locations))
        return self.dropout((what + where) / 2)


class CrossAttention(nn.Module):
    """One sequence reads the other: ``LN(x + attention(x, context))``."""

    def __init__(self, config: LXMERTConfig):
        super().__init__()
        self.attention = Attention(config.dim, config.num_heads, dropout=config.attention_dropout)
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "batch queries dim"],
        context: Float[Tensor, "batch keys dim"],
        mask: AttentionMask | None = None,
    ) -> Float[Tensor, "batch queries dim"]:
        """Same shape as ``x``; ``mask`` over ``context`` as in ``AttentionMask``."""
        return self.norm(x + self.dropout(self.attention(x, context, mask)))


class CrossBlock(nn.Module):
    """Words and regions read each other, then themselves, then think (LXMERT, section 2.2).

    Both readings start from what the block was given. They are two modules, so that
    ``record_attention`` has a map of each; their weights are the same ones if
    ``shared_cross_attention``, and then stand in a state dict under both names.
    """

    def __init__(self, config: LXMERTConfig):
        super().__init__()
        self.text_to_regions = CrossAttention(config)
        self.regions_to_text = CrossAttention(config)
        if config.shared_cross_attention:
            share_layers(self.text_to_regions, self.regions_to_text)
        self.text_block = bert_block(config.bert)
        self.region_block = bert_block(config.bert)

    def forward(
        self,
        text: Float[Tensor, "batch tokens dim"],
        regions: Float[Tensor, "batch regions dim"],
        text_mask: Bool[Tensor, "batch 1 1 tokens"] | None = None,
        region_mask: Bool[Tensor, "batch 1 1 regions"] | None = None,
    ) -> tuple[Float[Tensor, "batch tokens dim"], Float[Tensor, "batch regions dim"]]:
        """Same shapes; masks say which words and which regions may be looked at."""
        words = self.text_to_regions(text, regions, region_mask)
        things = self.regions_to_text(regions, text, text_mask)
        return self.text_block(words, text_mask), self.region_block(things, region_mask)


class RegionPredictions(NamedTuple):
    """What a region is said to be: logits of its class and attribute, and its feature."""

    classes: Float[Tensor, "batch regions classes"]
    attributes: Float[Tensor, "batch regions attributes"]
    features: Float[Tensor, "batch regions feature_dim"]


class RegionsHead(nn.Module):
    """One transform, then a linear layer for each of the three (``BertVisualObjHead``)."""

    def __init__(self, config: LXMERTConfig):
        super().__init__()
        sizes = (config.dim, config.dim, config.activation, config.norm_eps)
        self.transform = BertTransform(*sizes)
        self.classes = nn.Linear(config.dim, config.num_region_classes)
        self.attributes = nn.Linear(config.dim, config.num_attributes)
        self.features = nn.Linear(config.dim, config.feature_dim)

    def forward(self, x: Float[Tensor, "batch regions dim"]) -> RegionPredictions:
        """Predictions for each region."""
        x = self.transform(x)
        return RegionPredictions(self.classes(x), self.attributes(x), self.features(x))


def _answer_head(config: LXMERTConfig) -> BertClassifier:
    """As wide as two pooled vectors; its activation is GELU whatever the blocks have."""
    pooled, hidden = config.dim * config.num_images, 2 * config.dim
    return BertClassifier(pooled, hidden, config.num_classes, "gelu", config.norm_eps)


_HEADS = {
    "words": lambda config: BertLanguageHead(config.bert),
    "match": lambda config: nn.Linear(config.dim, 2),
    "regions": RegionsHead,
    "answer": _answer_head,
}


class LXMERT(nn.Module):
    """Two encoders, and one across them (LXMERT, section 2.2 and figure 1).

    The pooled vector comes from [CLS] of the words, which by then has read the regions. Set
    ``model.activation_checkpointing = True`` to trade time for memory in training. New weights come
    from PyTorch's global random state.
    """

    def __init__(self, config: LXMERTConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.text_embeddings = LXMERTEmbeddings(config.bert)
        self.region_embeddings = RegionEmbeddings(config)
        self.text_blocks = nn.ModuleList(bert_block(config.bert) for _ in range(config.text_depth))
        self.region_blocks = nn.ModuleList(
            bert_block(config.bert) for _ in range(config.region_depth)
        )
        self.cross_blocks = nn.ModuleList(CrossBlock(config) for _ in range(config.cross_depth))
        self.pooler = BertPooler(config.dim)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        self.apply(init_bert)
        if config.init == "xavier":
            self.apply(init_xavier)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 4"],
        text_valid: Bool[Tensor, "batch tokens"] | None = None,
        region_valid: Bool[Tensor, "batch regions"] | None = None,
    ) -> JointFeatures:
        """Words, regions and the vector of the pair.

        ``locations`` are ``corner_locations(boxes, image_sizes)``; ``text_valid`` and
        ``region_valid`` are False on padding, None where there is none. ValueError for a text that
        is too long, and for regions of another width, or of none.
        """
        self._check_regions(features, locations)
        text_mask = None if text_valid is None else padding_mask(text_valid)
        region_mask = None if region_valid is None else padding_mask(region_valid)
        saving = self.activation_checkpointing
        text = self.text_embeddings(input_ids)
        text = run_blocks(self.text_blocks, text, text_mask, saving)
        regions = self.region_embeddings(features, locations)
        regions = run_blocks(self.region_blocks, regions, region_mask, saving)
        for block in self.cross_blocks:
            text, regions = self._cross(block, text, regions, text_mask, region_mask)
        return JointFeatures(text, regions, self.pooler(text))

    def word_logits(self, features: JointFeatures) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of words at each text token. ValueError, here and below, without this head."""
        return self.words_at(features.text)

    def words_at(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Scores of words at ``tokens``, such as the masked ones alone."""
        return self.head("words")(tokens, self.text_embeddings.word_embedding.weight)

    def matching_logits(self, features: JointFeatures) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "the text fits the image", output 0 for "it does not"."""
        return self.head("match")(features.pooled)

    def region_predictions(self, features: JointFeatures) -> RegionPredictions:
        """Class, attribute and feature of each region."""
        return self.head("regions")(features.regions)

    def answer_logits(self, *features: JointFeatures) -> Float[Tensor, "batch classes"]:
        """Scores of the answers; takes the features of each of the ``num_images`` images."""
        head = self.head("answer")
        count, given = self.config.num_images, len(features)
        if given != count:
            raise ValueError(f"features must be given for num_images={count} images, got {given}")
        return head(torch.cat([f.pooled for f in features], dim=-1))

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        return find_head(self, name)

    def _cross(self, block: CrossBlock, *inputs: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.activation_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _check_regions(self, features: Tensor, locations: Tensor) -> None:
        wide = self.config.feature_dim
        if features.shape[-1] != wide or features.shape[1] == 0:
            raise ValueError(
                f"features must have shape (batch, regions, {wide}) with at least one region, got "
                f"{tuple(features.shape)}"
            )
        if locations.shape != (*features.shape[:2], LOCATION_DIM):
            raise ValueError(
                f"locations must have shape {(*features.shape[:2], LOCATION_DIM)}, got "
                f"{tuple(locations.shape)}; corner_locations makes them"
            )


# The one published size, "LXR955" (LXMERT, section 4.2), and its fine-tuned forms.
LXMERT_B = LXMERTConfig()
LXMERT_B_VQA = replace(LXMERT_B, heads=("answer",), num_classes=3129)
LXMERT_B_GQA = replace(LXMERT_B, heads=("answer",), num_classes=1842)
LXMERT_B_NLVR2 = replace(LXMERT_B, heads=("answer",), num_classes=2, num_images=2)

# Ours, for scenes as the toy detector tells them: eight shapes; eight colors and four textures.
LXMERT_MINI = LXMERTConfig(
    vocab_size=1000,
    context_length=32,
    max_positions=32,
    dim=128,
    text_depth=2,
    region_depth=2,
    cross_depth=2,
    num_heads=4,
    mlp_dim=512,
    feature_dim=64,
    num_region_classes=8,
    num_attributes=12,
    heads=("words", "match", "regions"),
    num_classes=0,
    dropout=0.0,
    attention_dropout=0.0,
    init="xavier",
)


class LXMERTPretraining(nn.Module):
    """An ``LXMERT`` in pre-training (LXMERT, section 3.1); ``network`` is the model.

    All losses come from one forward pass, and all have weight 1. ``region_losses`` are those of
    ``"features"``, ``"classes"`` and ``"attributes"`` that are wanted; ``region_weight`` is what
    the official code calls the visual normaliser, one over the share of masked regions
    (``transformers`` rounds it to 6.67). Masked regions and answers are learnt if the network has a
    head for them. The paper asks questions only in the second half of its epochs, its code in all
    of them; ``start_from_lxmert`` goes on from a network without the head.

    ValueError if there is no head for words or for matching, or for an unknown loss.
    """

    def __init__(
        self,
        network: LXMERT,
        region_losses: Sequence[str] = REGION_LOSSES,
        region_weight: float | int = 1 / MASKED_SHARE,
    ):
        super().__init__()
        network.head("words")
        network.head("match")
        allowed = "some of " + ", ".join(map(repr, REGION_LOSSES))
        check(set(region_losses) <= set(REGION_LOSSES), "region_losses", region_losses, allowed)
        self.network = network
        self.region_losses = tuple(region_losses)
        self.region_weight = region_weight

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masked words, matching, three losses of regions, answers; see ``lxmert_lesson``.

        - ``masked_words``: cross-entropy, mean over the masked words of all pairs, false ones too.
        - ``matching``: cross-entropy, mean over the pairs.
        - ``masked_region_features``: see ``smooth_region_feature_loss``.
        - ``masked_region_classes`` and ``masked_region_attributes``: see
          ``weighted_region_label_loss``. The weight is the detector's confidence, so that regions
          that were not masked count as well, in the code, not in the paper.
        - ``answers``: cross-entropy, mean over the questions that have an answer.
        """
        network = self.network
        features = pair_features(network, batch)
        losses = {
            "masked_words": asked_words_loss(network.words_at, features.text, batch["labels"]),
            "matching": matching_loss(network.matching_logits(features), batch["matched"]),
        }
        if "regions" in network.heads:
            predictions = network.region_predictions(features)
            named = {name: self._region_loss(name, predictions, batch) for name in REGION_LOSSES}
            losses |= {f"masked_region_{name}": named[name] for name in self.region_losses}
        if "answer" in network.heads:
            logits = network.answer_logits(features)
            losses["answers"] = masked_language_loss(logits[:, None], batch["answers"][:, None])
        return losses

    def _region_loss(
        self, name: str, predictions: RegionPredictions, batch: dict[str, Tensor]
    ) -> Float[Tensor, ""]:
        valid = _valid_regions(batch)
        if name == "features":
            loss = smooth_region_feature_loss(
                predictions.features, batch["true_features"], batch["chosen"], valid
            )
        elif name == "classes":
            labels, weights = batch["classes"][..., None], batch["confidences"][..., None]
            loss = weighted_region_label_loss(predictions.classes, labels, weights, valid)
        else:
            labels, weights = batch["attributes"], batch["attribute_confidences"]
            loss = weighted_region_label_loss(predictions.attributes, labels, weights, valid)
        return self.region_weight * loss


def lxmert_decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay (0.01) falls on a parameter: on every one, biases and norms too.

    So it does in the official pre-training, which even shrinks the rows that have no gradient.
    """
    return True


def pair_features(network: LXMERT, batch: dict[str, Tensor]) -> JointFeatures:
    """The features of a batch; ``"attention_mask"`` and ``"region_valid"`` may be missing."""
    return network(
        batch["input_ids"],
        batch["features"],
        batch["locations"],
        batch.get("attention_mask"),
        batch.get("region_valid"),
    )


def _valid_regions(batch: dict[str, Tensor]) -> Bool[Tensor, "batch regions"]:
    features = batch["features"]
    everywhere = torch.ones(features.shape[:2], dtype=torch.bool, device=features.device)
    return batch.get("region_valid", everywhere)


# What a batch learns


def lxmert_lesson(
    pairs: dict[str, Tensor],
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator | None = None,
    question_share: float | int = 1 / 3,
) -> dict[str, Tensor]:
    """Draw everything random of LXMERT's pre-training from raw pairs (``lxmert_pretrain.py``).

    Its data are captions and questions mixed: with ``question_share`` a row's text is its question.
    Half of the texts are replaced by one of the same kind that belongs to another image, the
    caption ``"other_ids"`` or the question of another row. Then words are masked, single tokens,
    and regions: of the chosen ones most lose their feature, some get that of a random region of
    another row. Boxes are never hidden.

    Returns, besides ``"locations"``, ``"region_valid"`` and what the detector told,

    - ``"input_ids"``, ``"attention_mask"``: texts with hidden words; ``"labels"``: the true ones;
    - ``"features"`` with hidden regions; ``"true_features"``; ``"chosen"``: which to predict;
    - ``"matched"``: whether the text belongs to the image;
    - ``"answers"``: ``IGNORED`` where the text is no question or belongs to another image.

    In a batch of one row no question is replaced, and regions are replaced by others of its own.
    ValueError if ``question_share`` is no share.
    """
    check(0 <= question_share <= 1, "question_share", question_share, "in [0, 1]")
    count = len(pairs["input_ids"])
    matched = torch.rand(count, generator=generator) >= MISMATCHED_SHARE
    asks = torch.rand(count, generator=generator) < question_share
    matched |= asks & (count == 1)
    ids, valid = _texts(pairs, matched, asks, generator)
    words = valid & ~torch.isin(ids, torch.tensor(list(special_ids), dtype=ids.dtype))
    masked = mask_tokens(ids, words, mask_id, vocab_size, MASKED_SHARE, generator=generator)
    told = ("region_valid", "classes", "confidences", "attributes", "attribute_confidences")
    return {
        "input_ids": masked.ids,
        "attention_mask": valid,
        "labels": masked.labels,
        "matched": matched,
        "answers": _answers(pairs, generator).masked_fill(~(asks & matched), IGNORED),
        "locations": corner_locations(pairs["boxes"], pairs["image_sizes"]),
        **_hidden_regions(pairs, generator),
        **{name: pairs[name] for name in told},
    }


def _texts(
    pairs: dict[str, Tensor],
    matched: Bool[Tensor, " batch"],
    asks: Bool[Tensor, " batch"],
    generator: torch.Generator | None,
) -> tuple[Int64[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """The text of each row: its caption or question, or one of another image."""
    strangers = _another_row(len(matched), generator)
    kinds = [
        (pairs["input_ids"], pairs["attention_mask"], matched & ~asks),
        (pairs["other_ids"], pairs["other_mask"], ~matched & ~asks),
        (pairs["question_ids"], pairs["question_mask"], matched & asks),
        (pairs["question_ids"][strangers], pairs["question_mask"][strangers], ~matched & asks),
    ]
    longest = max(ids.shape[1] for ids, _, _ in kinds)
    ids = torch.zeros(len(matched), longest, dtype=torch.int64)
    valid = torch.zeros(len(matched), longest, dtype=torch.bool)
    for own_ids, own_valid, rows in kinds:
        ids[rows, : own_ids.shape[1]] = own_ids[rows]
        valid[rows, : own_ids.shape[1]] = own_valid[rows].bool()
    longest = int(valid.sum(1).max())
    return ids[:, :longest], valid[:, :longest]


def _another_row(count: int, generator: torch.Generator | None) -> Int64[Tensor, " batch"]:
    step = torch.randint(max(1, count - 1), (count,), generator=generator) + 1
    return (torch.arange(count) + step) % count


def _answers(
    pairs: dict[str, Tensor], generator: torch.Generator | None
) -> Int64[Tensor, " batch"]:
    """The right answers; with ``"scores"`` one of several, drawn in proportion to its score."""
    if "scores" not in pairs:
        return pairs["answers"]
    scores = pairs["scores"]
    none = scores.sum(1) == 0
    drawn = torch.multinomial(scores + none[:, None], 1, generator=generator)[:, 0]
    return drawn.masked_fill(none, IGNORED)


def _hidden_regions(
    pairs: dict[str, Tensor], generator: torch.Generator | None
) -> dict[str, Tensor]:
    features, valid = pairs["features"], pairs["region_valid"]
    chosen = choose_regions(valid, MASKED_SHARE, generator=generator)
    strangers = features.flatten(0, 1)[_regions_of_others(valid, generator)]
    hidden = hide_regions(features, chosen, ZEROED, REPLACED, strangers, generator)
    return {"features": hidden, "true_features": features, "chosen": chosen}


def _regions_of_others(
    valid: Bool[Tensor, "batch regions"], generator: torch.Generator | None
) -> Int64[Tensor, "batch regions"]:
    """For each region a random one of the other rows; numbers count over the whole batch."""
    count, regions = valid.shape
    others = ~torch.eye(count, dtype=torch.bool) | (count == 1)
    weights = others.repeat_interleave(regions, dim=1) & valid.flatten()
    return torch.multinomial(weights.float(), regions, replacement=True, generator=generator)
