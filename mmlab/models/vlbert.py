"""VL-BERT: every element of the sequence has a visual part, words included.

Su, Zhu, Cao, Li, Lu, Wei and Dai 2019, "VL-BERT: Pre-training of Generic Visual-Linguistic
Representations" (ICLR 2020, arXiv 1908.08530); the official code is jackroos/VL-BERT.

It is VisualBERT's trunk with other embeddings. What differs: a word's visual part is the whole
image, a region's is its feature and its box, as sines and cosines; regions have one learned word,
[IMG]; the sequence ends with [END]; there are three types; all regions share the position behind
the text; the visual parts go through norms of their own, whose gain starts at 0, so that training
begins with BERT. It predicts masked words and the classes of masked regions, and never whether text
and image match, which the paper found to do harm.

What is left out:

- the detector. Where it is trained along, the official code hides a region by blackening its pixels
  before the detector sees them. Ours starts from given features, as the official ``prec``
  configurations do: a learned vector hides a feature, and the whole image's is made without it.
- the linear layers that the official code puts before the norms where features are not as wide as
  the model; in its configurations for pre-training they are.
- checkpoint tables, and the heads of VCR and RefCOCO+.

What is otherwise than in the official code: pre-training has no pooler there, here the trunk keeps
one that nothing trains; and the tokens of a chosen word draw one by one whether they become [MASK],
a random word, or stay, where there all of them meet one fate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
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
from mmlab.models.visualbert import join_texts, last_words
from mmlab.nn import (
    ACTIVATIONS,
    BertClassifier,
    BertConfig,
    BertEmbeddings,
    BertLanguageHead,
    SingleStream,
    find_head,
    init_bert,
    init_xavier,
    shared_checkpointing,
)
from mmlab.nn.region_locations import corner_locations, sinusoidal_locations
from mmlab.objectives.masked_language import asked_words_loss, mask_tokens
from mmlab.objectives.masked_region import choose_regions, region_soft_class_loss

HEADS = ("words", "regions", "answer")
INITS = ("normal", "xavier")
NUM_TYPES, REGION_TYPE = 3, 2
"""Two texts and the image."""

HIDDEN_SHARE = 0.9
"""Of the regions that are asked for; the rest keeps its feature."""


@dataclass(frozen=True)
class VLBERTConfig:
    """Everything that fixes the shape and the training behaviour of a ``VLBERT``.

    - ``context_length``: the most tokens that data should give; ``max_positions``: rows of the
      table of positions. A text needs one for each token and two more, for regions and [END].
    - ``feature_dim``: width of the regions' features; ``location_dim``: of the sines and cosines
      that a box becomes, a multiple of 8.
    - ``num_region_classes``: classes of the detector, background included.
    - ``heads``: which of ``"words"``, ``"regions"`` (classes of masked regions) and ``"answer"``
      (one of ``num_classes``, from a [MASK] behind the question).
    - ``visual_gain``: what the gains of the visual norms start with.
    - ``init``: matrices start with a spread of 0.02, as published, or with one that grows as the
      width shrinks (``"xavier"``): 0.02 is for wide models.

    A wrong value raises ValueError.
    """

    vocab_size: int = 30522
    context_length: int = 64
    max_positions: int = 512
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    feature_dim: int = 2048
    location_dim: int = 2048
    num_region_classes: int = 1601
    heads: tuple[str, ...] = ("words", "regions")
    num_classes: int = 0
    visual_gain: float | int = 0.0
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "context_length", "max_positions", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "feature_dim", "location_dim")
        check_integers(self, "num_region_classes")
        check_integers(self, "num_classes", minimum=0)
        fits = self.context_length + 2 <= self.max_positions
        longest = f"at most max_positions={self.max_positions} less 2"
        check(fits, "context_length", self.context_length, longest)
        check(self.location_dim % 8 == 0, "location_dim", self.location_dim, "a multiple of 8")
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


class VLBERTFeatures(NamedTuple):
    """Words, regions and [END] after the last block, and the pooled vector (from [CLS]).

    The first region is the whole image. ``answer`` is the last token before the final [SEP].
    """

    text: Float[Tensor, "batch tokens dim"]
    regions: Float[Tensor, "batch regions dim"]
    end: Float[Tensor, "batch dim"]
    pooled: Float[Tensor, "batch dim"]
    answer: Float[Tensor, "batch dim"]


class VisualEmbedding(nn.Module):
    """From a feature and a box to the visual part of an element (VL-BERT, section 3.2)."""

    def __init__(self, config: VLBERTConfig):
        super().__init__()
        self.location_dim = config.location_dim
        self.dropout = nn.Dropout(config.dropout)
        self.projection = nn.Linear(config.location_dim + config.feature_dim, config.dim)

    def forward(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 4"],
    ) -> Float[Tensor, "batch regions dim"]:
        """``locations`` are corners in shares of the image."""
        whole = torch.ones_like(locations[:, 0, :2])
        sines = sinusoidal_locations(locations, whole, self.location_dim)
        return self.projection(self.dropout(torch.cat([sines, features], dim=-1))).relu()


class VLBERT(nn.Module):
    """Words, regions and [END] in one BERT (VL-BERT, section 3.2).

    Set ``model.activation_checkpointing = True`` to trade time for memory in training. New weights
    come from PyTorch's global random state.
    """

    def __init__(self, config: VLBERTConfig):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config.bert)
        self.visual_embedding = VisualEmbedding(config)
        norms = (nn.LayerNorm(config.dim, eps=config.norm_eps) for _ in range(2))
        self.word_visual_norm, self.region_visual_norm = norms
        self.region_token, self.hidden_region_token, self.end_token, self.no_image = (
            nn.Parameter(torch.empty(config.dim)) for _ in range(4)
        )
        self.hidden_feature = nn.Parameter(torch.zeros(config.feature_dim))
        self.trunk = SingleStream(config.bert)
        self.dropout = nn.Dropout(config.dropout)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        self._init()

    activation_checkpointing = shared_checkpointing("trunk")

    def _init(self) -> None:
        self.apply(init_bert)
        if self.config.init == "xavier":
            self.apply(init_xavier)
        for token in (self.region_token, self.hidden_region_token, self.end_token, self.no_image):
            nn.init.normal_(token, std=0.02)
        for norm in (self.word_visual_norm, self.region_visual_norm):
            nn.init.constant_(norm.weight, self.config.visual_gain)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        features: Float[Tensor, "batch regions feature_dim"] | None = None,
        locations: Float[Tensor, "batch regions 4"] | None = None,
        text_valid: Bool[Tensor, "batch tokens"] | None = None,
        region_valid: Bool[Tensor, "batch regions"] | None = None,
        types: Int[Tensor, "batch tokens"] | None = None,
        hidden_regions: Bool[Tensor, "batch regions"] | None = None,
    ) -> VLBERTFeatures:
        """Features of each pair of a text and the regions of an image, or of a text alone.

        - ``features``, ``locations``: the whole image, then the regions (see
          ``with_whole_image``); both None, or no regions, for text alone.
        - ``text_valid``, ``region_valid``: False on padding; None where nothing is padded.
        - ``hidden_regions``: True where a learned vector stands for the feature.

        ValueError for a text that is too long, features without locations or of another width.
        """
        self._check(input_ids, features, locations)
        visual, whole = self._visual(input_ids, features, locations, hidden_regions)
        lengths = torch.full_like(input_ids[:, 0], input_ids.shape[1])
        lengths = lengths if text_valid is None else text_valid.sum(1)
        text = self.embeddings.sum(input_ids, types) + self.word_visual_norm(whole)
        image = self._image(visual, lengths, hidden_regions)
        both = self.embeddings.dropout(self.embeddings.norm(torch.cat([text, image], dim=1)))
        text, image = both.tensor_split([text.shape[1]], dim=1)
        # [END] is there for every image and every text.
        found = None if region_valid is None else F.pad(region_valid, (0, 1), value=True)
        text, image, pooled = self.trunk(text, image, text_valid, found)
        answer = last_words(text, text_valid)
        return VLBERTFeatures(text, image[:, :-1], image[:, -1], pooled, answer)

    def _visual(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        features: Float[Tensor, "batch regions feature_dim"] | None,
        locations: Float[Tensor, "batch regions 4"] | None,
        hidden: Bool[Tensor, "batch regions"] | None,
    ) -> tuple[Float[Tensor, "batch found dim"], Float[Tensor, "batch 1 dim"]]:
        """The visual parts of regions, and that of words: the first region's, the whole image."""
        if features is None or not features.shape[1]:
            nothing = self.no_image.new_zeros(len(input_ids), 0, self.config.dim)
            return nothing, self.no_image.expand(len(input_ids), 1, -1)
        if hidden is not None:
            features = torch.where(hidden[..., None], self.hidden_feature, features)
        visual = self.visual_embedding(features, locations)
        return visual, visual[:, :1]

    def _image(
        self,
        visual: Float[Tensor, "batch regions dim"],
        lengths: Int[Tensor, " batch"],
        hidden: Bool[Tensor, "batch regions"] | None,
    ) -> Float[Tensor, "batch regions+1 dim"]:
        """Regions at the position behind the text, and [END] at the next, before the norm."""
        positions = self.embeddings.position_embedding
        words = self.region_token
        if hidden is not None:
            words = torch.where(hidden[..., None], self.hidden_region_token, words)
        regions = words + self.region_visual_norm(visual) + positions(lengths)[:, None]
        end = (self.end_token + positions(lengths + 1))[:, None]
        kind = self.embeddings.type_embedding.weight[REGION_TYPE]
        return torch.cat([regions, end], dim=1) + kind

    def word_logits(self, features: VLBERTFeatures) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of words at each text token. ValueError, here and below, without this head."""
        return self.words_at(features.text)

    def words_at(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """The same of any tokens: only those that are asked for, in training."""
        return self.head("words")(tokens, self.embeddings.word_embedding.weight)

    def region_logits(self, features: VLBERTFeatures) -> Float[Tensor, "batch regions classes"]:
        """Scores of the detector's classes, background first, for each region."""
        return self.head("regions")(features.regions)

    def answer_logits(self, features: VLBERTFeatures) -> Float[Tensor, "batch classes"]:
        """Scores of the answers, from the [MASK] behind a question as ``ask`` makes it."""
        head = self.head("answer")
        return head.decoder(self.dropout(head.transform(features.answer)))

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        return find_head(self, name)

    def _check(self, ids: Tensor, features: Tensor | None, locations: Tensor | None) -> None:
        longest = self.config.max_positions - 2
        if ids.shape[1] > longest:
            raise ValueError(f"a text may have {longest} tokens, this one has {ids.shape[1]}")
        if (features is None) != (locations is None):
            raise ValueError("features and locations must be given together")
        wanted = self.config.feature_dim
        if features is not None and features.shape[-1] != wanted:
            width = features.shape[-1]
            raise ValueError(f"features must be feature_dim={wanted} numbers wide, got {width}")


def _regions_head(config: VLBERTConfig) -> nn.Sequential:
    """Unlike other heads of BERT's kind it has no norm (``VisualLinguisticBertMVRCHead``)."""
    return nn.Sequential(
        nn.Linear(config.dim, config.dim),
        ACTIVATIONS[config.activation](),
        nn.Linear(config.dim, config.num_region_classes),
    )


_HEADS = {
    "words": lambda config: BertLanguageHead(config.bert),
    "regions": _regions_head,
    "answer": lambda c: BertClassifier(c.dim, c.dim, c.num_classes, c.activation, c.norm_eps),
}

# As in cfgs/pretrain/*_prec_*.yaml and cfgs/vqa. No count of parameters was published that we know.
VLBERT_B = VLBERTConfig()
VLBERT_L = replace(VLBERT_B, dim=1024, depth=24, num_heads=16, mlp_dim=4096)
VLBERT_B_VQA = replace(VLBERT_B, heads=("answer",), num_classes=3129)
VLBERT_L_VQA = replace(VLBERT_L, heads=("answer",), num_classes=3129)

# Ours, for scenes, the toy detector (eight shapes and the background) and CPU cores.
VLBERT_MINI = VLBERTConfig(
    vocab_size=1000,
    context_length=32,
    max_positions=40,
    dim=128,
    depth=4,
    num_heads=4,
    mlp_dim=512,
    feature_dim=64,
    location_dim=64,
    num_region_classes=9,
    dropout=0.0,
    attention_dropout=0.0,
    init="xavier",
)


def with_whole_image(
    features: Float[Tensor, "batch regions feature_dim"],
    boxes: Float[Tensor, "batch regions 4"],
    image_sizes: Float[Tensor, "batch 2"],
    region_valid: Bool[Tensor, "batch regions"],
    hidden: Bool[Tensor, "batch regions"] | None = None,
) -> tuple[
    Float[Tensor, "batch more feature_dim"],
    Float[Tensor, "batch more 4"],
    Bool[Tensor, "batch more"],
]:
    """Features, locations and mask with the whole image before the regions.

    Its feature is the mean of the others, without those that are ``hidden``: words would see them
    through it otherwise. Its box ends at the last pixel, as in ``conceptual_captions.py``.
    """
    seen = region_valid if hidden is None else region_valid & ~hidden
    count = seen.sum(1, keepdim=True).clamp_min(1)
    mean = (features * seen[..., None]).sum(1) / count
    # Of boxes in shares of an image of size (1, 1) there is no last pixel.
    end = torch.where(image_sizes > 1, image_sizes - 1, image_sizes)
    whole = torch.cat([torch.zeros_like(end), end], dim=1)
    boxes = torch.cat([whole[:, None], boxes], dim=1)
    features = torch.cat([mean[:, None], features], dim=1)
    return features, corner_locations(boxes, image_sizes), _before(region_valid, True)


def _before(regions: Bool[Tensor, "batch regions"], image: bool) -> Bool[Tensor, "batch more"]:
    """A mask of regions with the whole image's entry before it."""
    return F.pad(regions, (1, 0), value=image)


def ask(
    question_ids: Int64[Tensor, "batch tokens"],
    question_mask: Bool[Tensor, "batch tokens"],
    mask_id: int,
    sep_id: int,
) -> dict[str, Tensor]:
    """``[CLS] question [SEP] [MASK] [SEP]``, mask and types: VQA asks for a masked word."""
    answer = question_ids.new_tensor([question_ids[0, 0], mask_id, sep_id]).expand(
        len(question_ids), -1
    )
    valid = torch.ones_like(answer, dtype=torch.bool)
    ids, mask, types = join_texts(question_ids, question_mask, answer, valid)
    return {"input_ids": ids, "attention_mask": mask, "types": types}


def vlbert_lesson(
    pairs: dict[str, Tensor],
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """What is random in pre-training (VL-BERT, section 3.3), from raw pairs.

    15 % of the words are masked, whole words with ``"word_ids"``; 15 % of the regions are asked
    for, and nine tenths of these hidden. Text without images (``"corpus_ids"``, ``"corpus_mask"``,
    ``"corpus_word_ids"``), if there, is masked alike. The result is what ``VLBERTPretraining``
    takes.
    """

    def masked(prefix: str, ids: str, mask: str) -> dict[str, Tensor]:
        special = torch.tensor(list(special_ids), device=pairs[ids].device)
        maskable = pairs[mask] & ~torch.isin(pairs[ids], special)
        words = pairs.get(f"{prefix}word_ids")
        drawn = mask_tokens(
            pairs[ids], maskable, mask_id, vocab_size, word_ids=words, generator=generator
        )
        return {ids: drawn.ids, mask: pairs[mask], f"{prefix}labels": drawn.labels}

    valid = pairs["region_valid"]
    asked = choose_regions(valid, generator=generator)
    luck = torch.rand(asked.shape, generator=generator, device=generator.device)
    hidden = asked & (luck.to(asked.device) < HIDDEN_SHARE)
    named = ("features", "boxes", "image_sizes")
    features, locations, valid = with_whole_image(*(pairs[n] for n in named), valid, hidden)
    batch = masked("", "input_ids", "attention_mask") | {
        "features": features,
        "locations": locations,
        "region_valid": valid,
        "hidden_regions": _before(hidden, False),
        "asked_regions": _before(asked, False),
        "region_targets": F.pad(pairs["class_distributions"], (0, 0, 1, 0)),
    }
    return batch | (masked("corpus_", "corpus_ids", "corpus_mask") if "corpus_ids" in pairs else {})


def _features_of(network: VLBERT, batch: dict[str, Tensor]) -> VLBERTFeatures:
    names = ("features", "locations", "attention_mask", "region_valid", "types", "hidden_regions")
    return network(batch["input_ids"], *(batch.get(name) for name in names))


class VLBERTPretraining(nn.Module):
    """A ``VLBERT`` in pre-training (VL-BERT, section 3.3); ``network`` is the model.

    ValueError if it lacks a ``"words"`` or a ``"regions"`` head.
    """

    def __init__(self, network: VLBERT):
        super().__init__()
        network.head("words")
        network.head("regions")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masked words, masked regions, and masked words of text alone if ``batch`` has some.

        ``batch`` is what ``vlbert_lesson`` gives.
        """
        features = _features_of(self.network, batch)
        losses = {
            "masked_words": self._masked_words(features, batch["labels"]),
            "masked_regions": region_soft_class_loss(
                self.network.region_logits(features),
                batch["region_targets"],
                batch["asked_regions"],
            ),
        }
        if "corpus_ids" in batch:
            text = self.network(batch["corpus_ids"], text_valid=batch["corpus_mask"])
            losses["masked_corpus_words"] = self._masked_words(text, batch["corpus_labels"])
        return losses

    def _masked_words(
        self, features: VLBERTFeatures, labels: Int64[Tensor, "batch tokens"]
    ) -> Float[Tensor, ""]:
        return asked_words_loss(self.network.words_at, features.text, labels)


class VLBERTQuestionAnswering(nn.Module):
    """A ``VLBERT`` with an ``"answer"`` head learning to answer questions (section 4.2.2)."""

    def __init__(self, network: VLBERT):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy with ``"scores"``, how right each answer is, summed over answers.

        The texts are those of ``ask``, features, locations and mask those of ``with_whole_image``.
        """
        logits, scores = (
            self.network.answer_logits(_features_of(self.network, batch)),
            batch["scores"],
        )
        loss = F.binary_cross_entropy_with_logits(logits, scores) * scores.shape[1]
        return {"answers": loss}
