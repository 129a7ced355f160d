"""VisualBERT: the features of regions stand behind the words of a BERT, and that is all.

Li, Yatskar, Yin, Hsieh and Chang 2019, "VisualBERT: A Simple and Performant Baseline for Vision and
Language" (arXiv 1908.03557); the official code is uclanlp/visualbert, folder ``visualbert``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

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
    BertConfig,
    BertEmbeddings,
    BertLanguageHead,
    JointFeatures,
    SingleStream,
    bert_block,
    find_head,
    init_bert,
    init_xavier,
    run_blocks,
    shared_checkpointing,
)
from mmlab.nn.region_locations import corner_size_locations
from mmlab.nn.single_stream import joint_mask
from mmlab.objectives.masked_language import asked_words_loss, mask_tokens
from mmlab.objectives.matching import matching_loss, own_or_other

HEADS = ("words", "match", "answer", "grounding")
ANSWER_FROM = ("last_word", "pooled")
INITS = ("normal", "xavier")
NUM_TYPES = 2
"""Of tokens (caption a, caption b) and of regions (image one, image two of NLVR2)."""

PAD_ID = 0
"""As in BERT. ``VisualBertConfig`` of transformers has 1, with which the row of ``[unused0]`` stays
zero and is not trained; what the network computes of given weights is the same."""

SECOND_CAPTION_RATE = 0.5


@dataclass(frozen=True)
class VisualBERTConfig:
    """Everything that fixes the shape and the training behaviour of a ``VisualBERT``.

    - ``context_length``: the most tokens that data should give; ``max_positions``: rows of the
      tables of positions, more than which no text may have.
    - ``feature_dim``: width of the regions' features, with the six numbers of ``append_locations``
      where they are appended.
    - ``heads``: which of ``"words"`` (masked words), ``"match"`` (is the second caption one of the
      image?), ``"answer"`` (``num_classes`` answers) and ``"grounding"`` (which region does a word
      mean?).
    - ``answer_from``: the answer is read from the last token before [SEP] (``"last_word"``, VQA) or
      from the pooled vector (``"pooled"``: NLVR2, and VCR, whose one class is the score of a
      choice).
    - ``late_fusion``: the paper's ablation without early fusion (``bypass_transformer``): words run
      through all blocks alone, regions join them in one block more.
    - ``init``: matrices start with a spread of 0.02, as published, or with one that grows as the
      width shrinks (``"xavier"``): 0.02 is for wide models.

    A wrong value raises ValueError.
    """

    vocab_size: int = 30522
    context_length: int = 128
    max_positions: int = 512
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    feature_dim: int = 2048
    heads: tuple[str, ...] = ("words", "match")
    num_classes: int = 0
    answer_from: str = "last_word"
    late_fusion: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "context_length", "max_positions", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "feature_dim")
        check_integers(self, "num_classes", minimum=0)
        longest = f"at most max_positions={self.max_positions}"
        check(
            self.context_length <= self.max_positions,
            "context_length",
            self.context_length,
            longest,
        )
        check_choice(self, "answer_from", ANSWER_FROM)
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "init", INITS)
        check_positive(self, "norm_eps")
        check_rates(self, "dropout", "attention_dropout")
        check_multiple(self, "dim", "num_heads")
        check_heads(self, HEADS, classifier="answer")

    @property
    def bert(self) -> BertConfig:
        """The BERT that regions are put into."""
        return BertConfig.part_of(self, num_types=NUM_TYPES)


class VisualBERTFeatures(NamedTuple):
    """Words and regions after the last block.

    - ``pooled``: the first token, [CLS], through a linear layer and tanh.
    - ``last_word``: the last token before the final [SEP].
    """

    text: Float[Tensor, "batch tokens dim"]
    regions: Float[Tensor, "batch regions dim"]
    pooled: Float[Tensor, "batch dim"]
    last_word: Float[Tensor, "batch dim"]


class RegionEmbeddings(nn.Module):
    """A region's feature through a linear layer, plus rows of tables of its own."""

    def __init__(self, config: VisualBERTConfig):
        super().__init__()
        self.projection = nn.Linear(config.feature_dim, config.dim)
        self.type_embedding = nn.Embedding(NUM_TYPES, config.dim)
        # Only row 0 is read: regions have no order. The files have as many rows as for text.
        self.position_embedding = nn.Embedding(config.max_positions, config.dim)

    def forward(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        types: Int[Tensor, "batch regions"] | None = None,
    ) -> Float[Tensor, "batch regions dim"]:
        """The sum before the norm."""
        # Type 0 unless told otherwise, as in the official code. transformers takes 1, with which
        # the same weights give other outputs.
        table = self.type_embedding
        kind = table.weight[0] if types is None else table(types)
        return self.projection(features) + self.position_embedding.weight[0] + kind


class GroundingHead(nn.Module):
    """One head of attention that stops at its scores (``FlickrAttention``)."""

    def __init__(self, dim: int, head_dim: int):
        super().__init__()
        self.query = nn.Linear(dim, head_dim)
        self.key = nn.Linear(dim, head_dim)
        # Computes nothing and learns nothing; the files have it.
        self.value = nn.Linear(dim, head_dim)

    def forward(
        self,
        words: Float[Tensor, "batch phrases dim"],
        regions: Float[Tensor, "batch regions dim"],
        region_valid: Bool[Tensor, "batch regions"] | None = None,
    ) -> Float[Tensor, "batch phrases regions"]:
        """Scores; those of regions that are not valid are the least number there is."""
        queries, keys = self.query(words), self.key(regions)
        scores = queries @ keys.mT / queries.shape[-1] ** 0.5
        if region_valid is None:
            return scores
        # No -inf: a target of 0 times that would be NaN.
        return scores.masked_fill(~region_valid[:, None], torch.finfo(scores.dtype).min)


class VisualBERT(nn.Module):
    """Words and regions in one BERT (VisualBERT, section 3.2).

    Words and regions are added up from tables of their own and share one norm. Nothing tells where
    a region is. Set ``model.activation_checkpointing = True`` to trade time for memory in training.
    New weights come from PyTorch's global random state.
    """

    def __init__(self, config: VisualBERTConfig):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config.bert)
        self.region_embeddings = RegionEmbeddings(config)
        self.trunk = SingleStream(config.bert)
        self.late_block = bert_block(config.bert) if config.late_fusion else None
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        self.apply(init_bert)
        if config.init == "xavier":
            self.apply(init_xavier)
        special_visual_initialize(self)

    activation_checkpointing = shared_checkpointing("trunk")

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        features: Float[Tensor, "batch regions feature_dim"] | None = None,
        text_valid: Bool[Tensor, "batch tokens"] | None = None,
        region_valid: Bool[Tensor, "batch regions"] | None = None,
        types: Int[Tensor, "batch tokens"] | None = None,
        region_types: Int[Tensor, "batch regions"] | None = None,
        alignment: Int[Tensor, "batch regions words"] | None = None,
    ) -> VisualBERTFeatures:
        """Features of each pair of a text and the regions of an image.

        - ``features``: None or no regions for text alone; it is a BERT then.
        - ``text_valid``, ``region_valid``: False on padding; None where nothing is padded.
        - ``types``, ``region_types``: rows of the tables of types, 0 if None.
        - ``alignment``: places of the words that a region is mentioned by, filled up with -1 (VCR).
          The mean of the words' positions is added to the region.

        ValueError for a text that is too long and for features of another width.
        """
        if features is None:
            features = self._no_regions(input_ids)
        self._check_features(features)
        text = self.embeddings.sum(input_ids, types)
        regions = self.region_embeddings(features, region_types)
        if alignment is not None:
            table = self.embeddings.position_embedding.weight
            regions = regions + mean_positions(table, alignment)
        both = self.embeddings.dropout(self.embeddings.norm(torch.cat([text, regions], dim=1)))
        text, regions = both.tensor_split([text.shape[1]], dim=1)
        # As in the official code, text alone passes by the block where regions would join it.
        late = self.config.late_fusion and regions.shape[1] > 0
        fuse = self._fuse_late if late else self.trunk
        fused = fuse(text, regions, text_valid, region_valid)
        return VisualBERTFeatures(*fused, last_word=last_words(fused.text, text_valid))

    def _fuse_late(
        self,
        text: Float[Tensor, "batch tokens dim"],
        regions: Float[Tensor, "batch regions dim"],
        text_valid: Bool[Tensor, "batch tokens"] | None,
        region_valid: Bool[Tensor, "batch regions"] | None,
    ) -> JointFeatures:
        """The text alone through the trunk, then both through one block more."""
        text = self.trunk(text, regions[:, :0], text_valid).text
        mask = joint_mask(text, regions, text_valid, region_valid)
        both = torch.cat([text, regions], dim=1)
        both = run_blocks([self.late_block], both, mask, self.activation_checkpointing)
        text, regions = both.tensor_split([text.shape[1]], dim=1)
        return JointFeatures(text, regions, self.trunk.pooler(both))

    def word_logits(self, features: VisualBERTFeatures) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of words at each text token. ValueError, here and below, without this head."""
        return self.words_at(features.text)

    def words_at(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """The same of any tokens: only those that are asked for, in training."""
        return self.head("words")(tokens, self.embeddings.word_embedding.weight)

    def matching_logits(self, features: VisualBERTFeatures) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "both captions are about the image"."""
        return self.head("match")(features.pooled)

    def answer_logits(self, features: VisualBERTFeatures) -> Float[Tensor, "batch classes"]:
        """Scores of the answers, from the last word or the pooled vector (``answer_from``)."""
        return self.head("answer")(self.dropout(getattr(features, self.config.answer_from)))

    def grounding_logits(
        self,
        features: VisualBERTFeatures,
        places: Int64[Tensor, "batch phrases"],
        region_valid: Bool[Tensor, "batch regions"] | None = None,
    ) -> Float[Tensor, "batch phrases regions"]:
        """Scores of the regions for the tokens at ``places``; -1 fills rows up."""
        head = self.head("grounding")
        rows = places.clamp_min(0)[..., None].expand(-1, -1, features.text.shape[-1])
        return head(features.text.gather(1, rows), features.regions, region_valid)

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        return find_head(self, name)

    def _no_regions(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch 0 feature_dim"]:
        weight = self.region_embeddings.projection.weight
        return weight.new_zeros(len(ids), 0, self.config.feature_dim)

    def _check_features(self, features: Float[Tensor, "batch regions width"]) -> None:
        wanted, width = self.config.feature_dim, features.shape[-1]
        if width != wanted:
            raise ValueError(f"features must be feature_dim={wanted} numbers wide, got {width}")


def mean_positions(
    table: Float[Tensor, "positions dim"], alignment: Int[Tensor, "batch regions words"]
) -> Float[Tensor, "batch regions dim"]:
    """The mean row of the words that a region is aligned with; 0 for one that has none."""
    aligned = alignment >= 0
    total = (table[alignment.clamp_min(0)] * aligned[..., None]).sum(2)
    return total / aligned.sum(2, keepdim=True).clamp_min(1)


def last_words(
    text: Float[Tensor, "batch tokens dim"], valid: Bool[Tensor, "batch tokens"] | None = None
) -> Float[Tensor, "batch dim"]:
    """The last token before the final [SEP], where VQA reads its answer: place ``length - 2``."""
    if valid is None:
        return text[:, max(text.shape[1] - 2, 0)]
    places = (valid.sum(1) - 2).clamp_min(0)
    return text.gather(1, places[:, None, None].expand(-1, 1, text.shape[-1])).squeeze(1)


def append_locations(
    features: Float[Tensor, "batch regions feature_dim"],
    boxes: Float[Tensor, "batch regions 4"],
    image_sizes: Float[Tensor, "batch 2"],
) -> Float[Tensor, "batch regions widened_dim"]:
    """Features with the box in six numbers behind them, as for Flickr30k: 2048 + 6."""
    return torch.cat([features, corner_size_locations(boxes, image_sizes)], dim=-1)


@torch.no_grad()
def special_visual_initialize(model: VisualBERT) -> None:
    """Start the regions' tables of types and positions as copies of the text's.

    New models have it done. Do it again after loading a BERT into ``model.embeddings``: the copy is
    meant for BERT's tables (``special_intialize`` in the official code). In transformers the copies
    that the constructor makes do not survive its own initialisation.
    """
    for name in ("type_embedding", "position_embedding"):
        source, copy = (getattr(p, name) for p in (model.embeddings, model.region_embeddings))
        copy.weight.copy_(source.weight)


_HEADS = {
    "words": lambda config: BertLanguageHead(config.bert),
    "match": lambda config: nn.Linear(config.dim, 2),
    "answer": lambda config: nn.Linear(config.dim, config.num_classes),
    "grounding": lambda config: GroundingHead(config.dim, config.dim // config.num_heads),
}


# One published size; the width of the features is that of each task's detector.
VISUALBERT_B_VQA_COCO = VisualBERTConfig()
VISUALBERT_B_NLVR2_COCO = replace(VISUALBERT_B_VQA_COCO, feature_dim=1024)
VISUALBERT_B_VCR_COCO = replace(VISUALBERT_B_VQA_COCO, feature_dim=512)
VISUALBERT_B_FLICKR_COCO = replace(VISUALBERT_B_VQA_COCO, feature_dim=2048 + 6)
# The same after fine-tuning.
VISUALBERT_B_VQA = replace(VISUALBERT_B_VQA_COCO, heads=("answer",), num_classes=3129)
VISUALBERT_B_NLVR2 = replace(
    VISUALBERT_B_NLVR2_COCO, heads=("answer",), num_classes=2, answer_from="pooled"
)
VISUALBERT_B_VCR = replace(
    VISUALBERT_B_VCR_COCO, heads=("answer",), num_classes=1, answer_from="pooled"
)
VISUALBERT_B_FLICKR = replace(VISUALBERT_B_FLICKR_COCO, heads=("words", "match", "grounding"))

# Ours, for scenes, the toy detector and CPU cores; two captions make one text. Give the vocabulary
# of your tokenizer: create_model("visualbert-mini", vocab_size=tokenizer.vocab_size).
VISUALBERT_MINI = VisualBERTConfig(
    vocab_size=1000,
    context_length=64,
    max_positions=64,
    dim=128,
    depth=4,
    num_heads=4,
    mlp_dim=512,
    feature_dim=64,
    dropout=0.0,
    attention_dropout=0.0,
    init="xavier",
)


def join_texts(
    first: Int64[Tensor, "batch tokens"],
    first_valid: Bool[Tensor, "batch tokens"],
    second: Int64[Tensor, "batch more_tokens"],
    second_valid: Bool[Tensor, "batch more_tokens"],
) -> tuple[
    Int64[Tensor, "batch joined"], Bool[Tensor, "batch joined"], Int64[Tensor, "batch joined"]
]:
    """``[CLS] a [SEP] b [SEP]`` of two texts that both begin with [CLS]; its mask and its types.

    Padding is moved to the end, and cut where no row needs the place.
    """
    ids = torch.cat([first, second[:, 1:]], dim=1)
    valid = torch.cat([first_valid, second_valid[:, 1:]], dim=1)
    types = torch.cat([torch.zeros_like(first), torch.ones_like(second[:, 1:])], dim=1)
    order = (~valid).long().argsort(dim=1, stable=True)[:, : int(valid.sum(1).max())]
    ids, valid, types = (part.gather(1, order) for part in (ids, valid, types))
    return ids.masked_fill(~valid, PAD_ID), valid, types.masked_fill(~valid, 0)


def visualbert_lesson(
    pairs: dict[str, Tensor],
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator,
    locations: bool = False,
) -> dict[str, Tensor]:
    """What is random in pre-training on captions (VisualBERT, section 3.3), from raw pairs.

    The text is a caption of the image, then another one of it (``"second_ids"``) or, in half of the
    rows, one of another image (``"other_ids"``). Single tokens of both are masked; regions never
    are. With ``locations`` boxes are appended to the features. The result is what
    ``VisualBERTPretraining`` takes.
    """
    count, device = len(pairs["input_ids"]), pairs["input_ids"].device
    luck = torch.rand(count, generator=generator, device=generator.device).to(device)
    matched = luck < SECOND_CAPTION_RATE
    second, second_valid = (
        own_or_other(matched, pairs[f"second_{part}"], pairs[f"other_{part}"])
        for part in ("ids", "mask")
    )
    ids, valid, types = join_texts(
        pairs["input_ids"], pairs["attention_mask"], second, second_valid
    )
    special = torch.tensor(list(special_ids), device=device)
    maskable = valid & ~torch.isin(ids, special)
    masked = mask_tokens(ids, maskable, mask_id, vocab_size, generator=generator)
    features = pairs["features"]
    if locations:
        features = append_locations(features, pairs["boxes"], pairs["image_sizes"])
    return {
        "input_ids": masked.ids,
        "attention_mask": valid,
        "types": types,
        "labels": masked.labels,
        "matched": matched,
        "features": features,
        "region_valid": pairs["region_valid"],
    }


def features_of(network: VisualBERT, batch: dict[str, Tensor]) -> VisualBERTFeatures:
    """The network's features of a batch; entries that it lacks are None."""
    names = ("features", "attention_mask", "region_valid", "types", "region_types", "alignment")
    return network(batch["input_ids"], *(batch.get(name) for name in names))


class VisualBERTPretraining(nn.Module):
    """A ``VisualBERT`` in pre-training (VisualBERT, section 3.3); ``network`` is the model.

    ValueError if it has no ``"words"`` head.
    """

    def __init__(self, network: VisualBERT):
        super().__init__()
        network.head("words")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masked words and, if ``batch`` has ``"matched"``, whether the second caption fits.

        ``batch`` is what ``visualbert_lesson`` gives, and may have ``"region_types"`` and
        ``"alignment"``. Pre-training on the text of a task has no ``"matched"``.
        """
        network, labels = self.network, batch["labels"]
        features = features_of(network, batch)
        losses = {"masked_words": asked_words_loss(network.words_at, features.text, labels)}
        if "matched" in batch:
            # 1 is a match, as in the released heads, though the official code passes it as
            # ``is_random_next`` and transformers documents 0 for it.
            logits = network.matching_logits(features)
            losses["matching"] = matching_loss(logits, batch["matched"])
        return losses
