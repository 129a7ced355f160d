"""OSCAR and VinVL (OSCAR+): the detector's object names stand as text between words and regions.

Li et al. 2020, "Oscar: Object-Semantics Aligned Pre-training for Vision-Language Tasks" (arXiv
2004.06165), and Zhang et al. 2021, "VinVL: Revisiting Visual Representations in Vision-Language
Models" (arXiv 2101.00529); the official code of both is microsoft/Oscar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
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
from mmlab.models.vilt import WordsHead, inner_words
from mmlab.nn import (
    ACTIVATIONS,
    AttentionMask,
    BertConfig,
    BertEmbeddings,
    JointFeatures,
    SingleStream,
    causal_mask,
    find_head,
    init_bert,
    init_xavier,
    shared_checkpointing,
)
from mmlab.nn.region_locations import corner_size_locations
from mmlab.objectives.masked_language import asked_words_loss, mask_tokens

HEADS = ("words", "match", "answer")
INITS = ("normal", "xavier")
LOCATION_DIM = 6
"""Numbers of ``corner_size_locations``."""

MASKED_SHARE = 0.15
ORIGINAL, WRONG_TAGS, WRONG_WORDS = range(3)
"""Labels of the contrastive loss. 0 is the *true* pair: UNITER and LXMERT have it the other way."""

VISIBLE = ("CLR", "CL", "CR", "LR")
"""Which of caption (C), tags (L, for labels) and regions (R) see each other, in ``part_mask``."""


@dataclass(frozen=True)
class OscarConfig:
    """Everything that fixes the shape and the training behaviour of an ``Oscar``.

    - ``context_length``: the most tokens of words and tags together; ``max_positions``: rows of the
      position table, which only text uses.
    - ``feature_dim``: numbers of a region's feature, without the six of its location.
    - ``heads``: which of ``"words"`` (masked words and tags, captions), ``"match"`` (original or
      polluted, ``num_contrast_classes`` outputs) and ``"answer"`` (``num_classes`` answers; VQA,
      GQA, retrieval and, with ``num_images=2``, NLVR2).
    - ``classifier_dim``: width of the hidden layer of the answer head, 0 for none.
    - ``image_norm``: regions are normalised once they are as wide as words (OSCAR+).
    - ``tied_words``: the last matrix of the words head is the table of word vectors; OSCAR untied
      it when it learnt to write captions, VinVL did not.
    - ``init``: matrices start with a spread of 0.02, as published (``"normal"``), or with one that
      grows as the width shrinks (``"xavier"``): in a narrow model 0.02 is very little.

    A wrong value raises ValueError.
    """

    vocab_size: int = 30522
    context_length: int = 35
    max_positions: int = 512
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    feature_dim: int = 2048
    heads: tuple[str, ...] = ("words", "match")
    num_contrast_classes: int = 2
    num_classes: int = 0
    num_images: int = 1
    classifier_dim: int = 0
    image_norm: bool = False
    tied_words: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-12
    image_norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "context_length", "max_positions", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "feature_dim", "num_images")
        check_integers(self, "num_classes", "classifier_dim", minimum=0)
        contrast = self.num_contrast_classes
        check(contrast in (2, 3), "num_contrast_classes", contrast, "2 or 3")
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "init", INITS)
        check_positive(self, "norm_eps", "image_norm_eps")
        check_rates(self, "dropout", "attention_dropout")
        check_multiple(self, "dim", "num_heads")
        check_heads(self, HEADS, classifier="answer")
        length, allowed = self.context_length, f"at most max_positions={self.max_positions}"
        check(length <= self.max_positions, "context_length", length, allowed)

    @property
    def bert(self) -> BertConfig:
        """The parts that come from BERT."""
        return BertConfig.part_of(self)


class Oscar(nn.Module):
    """BERT over ``[words | tags | padding | regions]`` (OSCAR, section 3).

    Words and tags are one text with two token types, see ``append_tags``. Regions have neither a
    position nor a type; in OSCAR not even a norm. Set ``activation_checkpointing = True`` to trade
    time for memory in training.
    """

    activation_checkpointing = shared_checkpointing("trunk")

    def __init__(self, config: OscarConfig):
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config.bert)
        self.region_embedding = nn.Linear(config.feature_dim + LOCATION_DIM, config.dim)
        norm = nn.LayerNorm(config.dim, eps=config.image_norm_eps) if config.image_norm else None
        self.image_norm = norm
        self.dropout = nn.Dropout(config.dropout)
        self.trunk = SingleStream(config.bert)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        self.apply(init_bert)
        if config.init == "xavier":
            self.apply(init_xavier)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 6"],
        text_valid: Bool[Tensor, "batch tokens"] | None = None,
        region_valid: Bool[Tensor, "batch regions"] | None = None,
        token_types: Int[Tensor, "batch tokens"] | None = None,
        mask: AttentionMask | None = None,
    ) -> JointFeatures:
        """Features of each pair of a text and an image; without regions it is a BERT.

        - ``locations``: those of ``corner_size_locations``.
        - ``token_types``: 0 on words, the first [SEP] and padding, 1 on tags and the last [SEP].
        - ``mask`` over the whole sequence restricts further who sees whom: see ``caption_mask`` and
          ``part_mask``. A file's (batch, length, length) mask is ``mask[:, None].bool()`` here.

        ValueError for a text longer than ``max_positions`` or features of another length.
        """
        text = self.embeddings(input_ids, token_types)
        regions = self.embed_regions(features, locations)
        return self.trunk(text, regions, text_valid, region_valid, mask)

    def embed_regions(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 6"],
    ) -> Float[Tensor, "batch regions dim"]:
        """Feature and location as one vector, made as wide as a word."""
        if features.shape[-1] != self.config.feature_dim:
            wanted = f"feature_dim={self.config.feature_dim} numbers a region"
            raise ValueError(f"features must have {wanted}, got {features.shape[-1]}")
        x = self.region_embedding(torch.cat([features, locations], dim=-1))
        return self.dropout(x if self.image_norm is None else self.image_norm(x))

    def word_logits(self, features: JointFeatures) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of words at each word and tag. ValueError, here and below, without this head."""
        return self.words_at(features.text)

    def region_word_logits(self, features: JointFeatures) -> Float[Tensor, "batch regions vocab"]:
        """The same at each region: no loss looks at these, but the official code computes them."""
        return self.words_at(features.regions)

    def words_at(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Scores of words at any token vectors."""
        return self.head("words")(tokens, self.embeddings.word_embedding.weight)

    def matching_logits(self, features: JointFeatures) -> Float[Tensor, "batch classes"]:
        """Output 0 is for "original"; 1 for wrong tags (or answers), 2 for wrong words."""
        return self.head("match")(features.pooled)

    def answer_logits(self, *features: JointFeatures) -> Float[Tensor, "batch classes"]:
        """Scores of the answers; takes the features of each of the ``num_images`` images."""
        head, count, given = self.head("answer"), self.config.num_images, len(features)
        if given != count:
            raise ValueError(f"features must be given for num_images={count} images, got {given}")
        return head(torch.cat([f.pooled for f in features], dim=-1))

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        return find_head(self, name)


class LinearClassifier(nn.Module):
    """Dropout and one layer: VQA, GQA, retrieval (``ImageBertForSequenceClassification``)."""

    def __init__(self, config: OscarConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.dropout)
        self.linear = nn.Linear(config.num_images * config.dim, config.num_classes)

    def forward(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """Logits over the answers."""
        return self.linear(self.dropout(pooled))


class HiddenClassifier(nn.Module):
    """The same with a hidden layer: NLVR2, on the two pooled vectors in a row.

    (``ImageBertForMultipleChoice``.) Its norm is there for two images with ``image_norm`` only, as
    in the official code, although it has nothing to do with regions.
    """

    def __init__(self, config: OscarConfig):
        super().__init__()
        hidden, normed = config.classifier_dim, config.image_norm and config.num_images > 1
        self.dropout = nn.Dropout(config.dropout)
        self.fc1 = nn.Linear(config.num_images * config.dim, hidden)
        self.activation = nn.ReLU()
        self.norm = nn.LayerNorm(hidden, eps=config.norm_eps) if normed else None
        self.fc2 = nn.Linear(hidden, config.num_classes)

    def forward(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """Logits over the answers."""
        x = self.activation(self.fc1(self.dropout(pooled)))
        return self.fc2(x if self.norm is None else self.norm(x))


_HEADS = {
    "words": lambda config: WordsHead(config.bert, config.tied_words),
    "match": lambda config: nn.Linear(config.dim, config.num_contrast_classes),
    "answer": lambda c: HiddenClassifier(c) if c.classifier_dim else LinearClassifier(c),
}


# Published sizes (OSCAR, section 3; VinVL, section 3), and their fine-tuned forms with the sizes of
# the commands in MODEL_ZOO.md and VinVL_MODEL_ZOO.md of microsoft/Oscar.
OSCAR_B = OscarConfig()
OSCAR_L = replace(OSCAR_B, dim=1024, depth=24, num_heads=16, mlp_dim=4096)
OSCAR_PLUS_B = replace(OSCAR_B, image_norm=True, num_contrast_classes=3)
OSCAR_PLUS_L = replace(OSCAR_L, image_norm=True, num_contrast_classes=3)

_VQA = {"heads": ("answer",), "num_classes": 3129, "context_length": 128}
_NLVR2 = {"heads": ("answer",), "num_classes": 2, "num_images": 2, "context_length": 55}
_RETRIEVAL = {"heads": ("answer",), "num_classes": 2, "context_length": 70}
_CAPTIONS = {"heads": ("words",), "context_length": 70}
OSCAR_B_VQA = replace(OSCAR_B, **_VQA)
OSCAR_L_VQA = replace(OSCAR_L, **_VQA)
OSCAR_B_NLVR2 = replace(OSCAR_B, **_NLVR2, classifier_dim=3 * 768)
OSCAR_L_NLVR2 = replace(OSCAR_L, **_NLVR2, classifier_dim=2 * 1024)
OSCAR_B_RETRIEVAL = replace(OSCAR_B, **_RETRIEVAL)
OSCAR_L_RETRIEVAL = replace(OSCAR_L, **_RETRIEVAL)
OSCAR_B_CAPTIONING = replace(OSCAR_B, **_CAPTIONS)
OSCAR_L_CAPTIONING = replace(OSCAR_L, **_CAPTIONS)
OSCAR_PLUS_B_VQA = replace(OSCAR_PLUS_B, **_VQA)
OSCAR_PLUS_L_VQA = replace(OSCAR_PLUS_L, **_VQA)
OSCAR_PLUS_B_NLVR2 = replace(OSCAR_PLUS_B, **_NLVR2, classifier_dim=3 * 768)
OSCAR_PLUS_L_NLVR2 = replace(OSCAR_PLUS_L, **_NLVR2, classifier_dim=2 * 1024)
OSCAR_PLUS_B_RETRIEVAL = replace(OSCAR_PLUS_B, **_RETRIEVAL)
OSCAR_PLUS_L_RETRIEVAL = replace(OSCAR_PLUS_L, **_RETRIEVAL)
OSCAR_PLUS_B_CAPTIONING = replace(OSCAR_PLUS_B, **_CAPTIONS)
OSCAR_PLUS_L_CAPTIONING = replace(OSCAR_PLUS_L, **_CAPTIONS)

# Ours, for the regions of the toy detector.
OSCAR_MINI = OscarConfig(
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


# One text of words and tags


class TaggedText(NamedTuple):
    """``[CLS] words [SEP] tags [SEP]`` and padding, as the network takes it."""

    ids: Int64[Tensor, "batch tokens"]
    valid: Bool[Tensor, "batch tokens"]
    types: Int64[Tensor, "batch tokens"]


class Words(NamedTuple):
    """A text without special tokens, its padding behind it."""

    ids: Int64[Tensor, "batch words"]
    valid: Bool[Tensor, "batch words"]


def append_tags(
    input_ids: Int64[Tensor, "batch tokens"],
    text_valid: Bool[Tensor, "batch tokens"],
    tag_ids: Int64[Tensor, "batch tags"],
    tag_valid: Bool[Tensor, "batch tags"],
    context_length: int | None = None,
) -> TaggedText:
    """A tokenizer's ``[CLS] words [SEP]`` with tags behind it.

    Tags are the object names as word pieces without special tokens, one after the other; names that
    are there twice stay twice. A row without tags gets no second [SEP]. What is longer than
    ``context_length`` loses tokens at the end of words or tags, always of the longer of the two
    (``_truncate_seq_pair`` of the official code); None keeps all.
    """
    words = words_of_text(input_ids, text_valid)
    tags = Words(tag_ids, tag_valid.bool())
    return join_texts(words, tags, *special_tokens(input_ids, text_valid), context_length)


def words_of_text(
    input_ids: Int64[Tensor, "batch tokens"], valid: Bool[Tensor, "batch tokens"]
) -> Words:
    """A tokenizer's text without its [CLS] and [SEP]."""
    inner = inner_words(valid.bool())[:, 1:]
    return Words(input_ids[:, 1:] * inner, inner)


def join_texts(
    first: Words,
    second: Words,
    cls_ids: Int64[Tensor, " batch"],
    sep_ids: Int64[Tensor, " batch"],
    context_length: int | None = None,
) -> TaggedText:
    """``[CLS] first [SEP] second [SEP]``; the rest as in ``append_tags``."""
    counts = first.valid.sum(1), second.valid.sum(1)
    if context_length is not None:
        counts = _truncated(*counts, context_length)
    first_end = (1 + counts[0])[:, None]
    second_end = first_end + (counts[1] + (counts[1] > 0))[:, None]
    place = torch.arange(int(second_end.max()) + 1, device=first.ids.device).expand(
        len(first.ids), -1
    )
    # Every token is looked up in one row: [CLS], [SEP], padding, the first text, the second.
    source = torch.cat([_marks(cls_ids, sep_ids), first.ids, second.ids], dim=1)
    lookup = torch.where(place <= first_end, place + 2, place - first_end + 2 + first.ids.shape[1])
    lookup = lookup.masked_fill(place == 0, 0)
    lookup = lookup.masked_fill((place == first_end) | (place == second_end), 1)
    lookup = lookup.masked_fill(place > second_end, 2)
    valid = place <= second_end
    types = (place > first_end) & valid
    return TaggedText(source.gather(1, lookup), valid, types.long())


def _marks(cls_ids: Tensor, sep_ids: Tensor) -> Int64[Tensor, "batch 3"]:
    return torch.stack([cls_ids, sep_ids, torch.zeros_like(cls_ids)], dim=1)


def _truncated(
    first: Int64[Tensor, " batch"], second: Int64[Tensor, " batch"], context_length: int
) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
    """How many words of each text stay: as if one by one were taken from the longer.

    Of two equally long ones the second loses.
    """
    room = context_length - 2 - (second > 0).long()
    second = torch.minimum(second, torch.maximum(room - first, room // 2))
    return torch.minimum(first, room - second), second


def special_tokens(
    input_ids: Int64[Tensor, "batch tokens"], valid: Bool[Tensor, "batch tokens"]
) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
    """[CLS] and [SEP]: the first and the last token of each text."""
    last = valid.sum(1, keepdim=True) - 1
    return input_ids[:, 0], input_ids.gather(1, last)[:, 0]


# Who sees whom


def caption_mask(
    caption: Bool[Tensor, "batch tokens"],
    tags: Bool[Tensor, "batch tokens"],
    regions: Bool[Tensor, "batch regions"],
) -> Bool[Tensor, "batch 1 length length"]:
    """The sequence-to-sequence mask with which OSCAR learns to write (section 4).

    A caption's token sees itself, those before it, all tags and all regions; tags and regions see
    each other and never the caption. ``caption`` and ``tags`` say of every token of the text which
    it is; neither is padding, which sees nobody. A comment in the official ``run_captioning.py``
    says that captions do not see the image; its mask lets them.
    """
    writing, context = _whole(caption, torch.zeros_like(regions)), _whole(tags, regions)
    before = causal_mask(writing.shape[1], writing.device)
    own = _between(writing, writing) & before
    return own | _between(writing | context, context)


def part_mask(
    caption: Bool[Tensor, "batch tokens"],
    tags: Bool[Tensor, "batch tokens"],
    regions: Bool[Tensor, "batch regions"],
    visible: str = "CLR",
) -> Bool[Tensor, "batch 1 length length"]:
    """Caption, tags and regions each see themselves; parts in ``visible`` also each other.

    For what happens to retrieval if two parts never meet (OSCAR, section 5; ``att_mask_type`` of
    ``run_retrieval.py``). ValueError if ``visible`` is none of ``VISIBLE``.
    """
    check(visible in VISIBLE, "visible", visible, "one of " + ", ".join(map(repr, VISIBLE)))
    no_text, no_regions = torch.zeros_like(tags), torch.zeros_like(regions)
    parts = {"C": (caption, no_regions), "L": (tags, no_regions), "R": (no_text, regions)}
    places = {name: _whole(*part) for name, part in parts.items()}
    meeting = [(part, part) for part in parts]
    for one, other in combinations(visible, 2):
        meeting += [(one, other), (other, one)]
    seen = [_between(places[query], places[key]) for query, key in meeting]
    return torch.stack(seen).any(0)


def _whole(
    text: Bool[Tensor, "batch tokens"], regions: Bool[Tensor, "batch regions"]
) -> Bool[Tensor, "batch length"]:
    return torch.cat([text, regions], dim=1)


def _between(
    queries: Bool[Tensor, "batch length"], keys: Bool[Tensor, "batch length"]
) -> Bool[Tensor, "batch 1 length length"]:
    return queries[:, None, :, None] & keys[:, None, None, :]


# Pre-training


@dataclass(frozen=True)
class Pollution:
    """How pretraining spoils half of its triples (words, tags, image); the names are the official.

    - ``textb_sample_mode``: what wrong tags are. 0: tags *or the caption* of another image, one as
      often as the other (OSCAR as published in code; its paper says tags); 1: tags of another
      image (OSCAR+); 2: the answer to a question about another image.
    - ``texta_false_prob``: the share of all triples whose words are wrong instead of their tags.
      Between 0 and 0.5 they are a third class (OSCAR+: 0.25); at 0.5 only words are ever wrong.
    - ``mask_loss_for_unmatched``: wrong tags are masked and asked for, too.
    - ``use_tags=False`` leaves the tags out; then only words can be wrong.

    A wrong value raises ValueError.
    """

    textb_sample_mode: int = 0
    texta_false_prob: float = 0.0
    mask_loss_for_unmatched: bool = True
    use_tags: bool = True

    def __post_init__(self) -> None:
        mode = self.textb_sample_mode
        check(mode in (0, 1, 2), "textb_sample_mode", mode, "0, 1 or 2")
        wrong = self.texta_false_prob
        check(0 <= wrong <= 0.5, "texta_false_prob", wrong, "from 0 to 0.5")
        check(self.use_tags or wrong == 0.5, "texta_false_prob", wrong, "0.5 without tags")

    @property
    def num_classes(self) -> int:
        """The ``num_contrast_classes`` of a network that learns so."""
        return 3 if 0 < self.texta_false_prob < 0.5 else 2


OSCAR_POLLUTION = Pollution()
OSCAR_PLUS_POLLUTION = Pollution(textb_sample_mode=1, texta_false_prob=0.25)


def oscar_lesson(
    pairs: Mapping[str, Tensor],
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator,
    *,
    pollution: Pollution = OSCAR_POLLUTION,
    context_length: int | None = None,
    question_share: float = 0.0,
) -> dict[str, Tensor]:
    """One batch of pretraining, for ``OscarPretraining``; all that is random comes from here.

    ``pairs`` are captions, tags and regions of images, and captions and tags of other images
    (``other_ids`` …); the image is never exchanged. A share ``question_share`` of the documents is
    a question and its answer in place of caption and tags (VinVL, section 3): they need
    ``"answer_ids"`` and ``"answer_mask"``, an answer's word pieces, and ``"other_question_ids"``,
    ``"other_answer_ids"`` with their masks; so does sample mode 2, of the last. Every word piece of
    both texts but ``special_ids`` is masked with probability 0.15, also where it is wrong; of the
    image nothing is.

    ValueError names an entry that is missing, or a wrong share.
    """
    check(0 <= question_share < 1, "question_share", question_share, "in [0, 1)")
    batch = len(pairs["input_ids"])
    own = _document(pairs, "", _flip(batch, question_share, generator))
    other = _document(pairs, "other_", _flip(batch, question_share, generator))
    kind = _draw_kinds(batch, pollution, generator)
    first = _exchange(own[0], other[0], kind == WRONG_WORDS)
    wrong_tags = _wrong_tags(pairs, other, pollution, generator)
    second = _exchange(own[1], wrong_tags, kind == WRONG_TAGS)
    if not pollution.use_tags:
        second = Words(second.ids[:, :0], second.valid[:, :0])
    special = special_tokens(pairs["input_ids"], pairs["attention_mask"])
    text = join_texts(first, second, *special, context_length)
    maskable = text.valid & ~torch.isin(text.ids, torch.tensor(special_ids))
    if not pollution.mask_loss_for_unmatched:
        maskable &= ~((kind == WRONG_TAGS)[:, None] & (text.types == 1))
    masked = mask_tokens(text.ids, maskable, mask_id, vocab_size, MASKED_SHARE, generator=generator)
    return {
        **text_entries(text._replace(ids=masked.ids)),
        "labels": masked.labels,
        "pollution": kind.clamp(max=pollution.num_classes - 1),
        **lesson_regions(pairs),
    }


def lesson_regions(pairs: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The regions of raw pairs, or with the prefix ``"other_"`` of other images, with locations."""
    boxes, sizes = pairs[f"{prefix}boxes"], pairs[f"{prefix}image_sizes"]
    return {
        "features": pairs[f"{prefix}features"],
        "locations": corner_size_locations(boxes, sizes),
        "region_valid": pairs[f"{prefix}region_valid"],
    }


def text_entries(text: TaggedText) -> dict[str, Tensor]:
    """What a batch calls the parts of its text."""
    return {"input_ids": text.ids, "attention_mask": text.valid, "token_types": text.types}


def _flip(batch: int, share: float | int, generator: torch.Generator) -> Bool[Tensor, " batch"]:
    return torch.rand(batch, generator=generator) < share


def _draw_kinds(
    batch: int, pollution: Pollution, generator: torch.Generator
) -> Int64[Tensor, " batch"]:
    """0: original; 1: wrong tags; 2: wrong words, also where these are the only other class."""
    dice = torch.rand(batch, generator=generator)
    wrong_words = dice < pollution.texta_false_prob
    return torch.where(dice >= 0.5, ORIGINAL, torch.where(wrong_words, WRONG_WORDS, WRONG_TAGS))


def _document(
    pairs: Mapping[str, Tensor], prefix: str, asks: Bool[Tensor, " batch"]
) -> tuple[Words, Words]:
    """Caption and tags of each image, or where it ``asks`` a question and its answer."""
    caption = ("other_ids", "other_mask") if prefix else ("input_ids", "attention_mask")
    texts = words_of_text(*_entry(pairs, *caption)), _words(pairs, f"{prefix}tag")
    if not asks.any():
        return texts
    question = words_of_text(*_entry(pairs, f"{prefix}question_ids", f"{prefix}question_mask"))
    answer = _words(pairs, f"{prefix}answer")
    return _exchange(texts[0], question, asks), _exchange(texts[1], answer, asks)


def _wrong_tags(
    pairs: Mapping[str, Tensor],
    other: tuple[Words, Words],
    pollution: Pollution,
    generator: torch.Generator,
) -> Words:
    if pollution.textb_sample_mode == 2:
        return _words(pairs, "other_answer")
    if pollution.textb_sample_mode == 1:
        return other[1]
    return _exchange(other[1], other[0], _flip(len(other[0].ids), 0.5, generator))


def _words(pairs: Mapping[str, Tensor], name: str) -> Words:
    ids, valid = _entry(pairs, f"{name}_ids", f"{name}_mask")
    return Words(ids, valid.bool())


def _entry(pairs: Mapping[str, Tensor], *names: str) -> tuple[Tensor, ...]:
    for name in names:
        if name not in pairs:
            raise ValueError(f"pairs must have {name!r} for this lesson; it has {sorted(pairs)}")
    return tuple(pairs[name] for name in names)


def _exchange(text: Words, other: Words, rows: Bool[Tensor, " batch"]) -> Words:
    """``other`` in the given rows."""
    width = max(text.ids.shape[1], other.ids.shape[1])
    both = [[F.pad(t, (0, width - t.shape[1])) for t in words] for words in (other, text)]
    return Words(*(torch.where(rows[:, None], *pair) for pair in zip(*both, strict=True)))


def batch_features(
    network: Oscar, batch: Mapping[str, Tensor], mask: AttentionMask | None = None
) -> JointFeatures:
    """Features of a batch of the lessons; ``"tag_ids"``, if there, are put behind the text first.

    That text is cut at the network's ``context_length``. ``"token_types"`` may be missing where
    there is only one type.
    """
    text = tagged_text(batch, network.config.context_length)
    regions = batch["features"], batch["locations"]
    return network(text.ids, *regions, text.valid, batch["region_valid"], text.types, mask)


def tagged_text(batch: Mapping[str, Tensor], context_length: int | None = None) -> TaggedText:
    """The text of a batch, with its tags; cut as in ``append_tags`` if these are put there now."""
    ids, valid = batch["input_ids"], batch["attention_mask"].bool()
    if "tag_ids" in batch:
        return append_tags(ids, valid, batch["tag_ids"], batch["tag_mask"], context_length)
    types = batch.get("token_types")
    return TaggedText(ids, valid, torch.zeros_like(ids) if types is None else types)


class OscarPretraining(nn.Module):
    """An ``Oscar`` in pre-training (OSCAR, section 3; VinVL, section 3); ``network`` is it.

    ValueError if it lacks a ``"words"`` or a ``"match"`` head.
    """

    def __init__(self, network: Oscar):
        super().__init__()
        network.head("words")
        network.head("match")
        self.network = network

    def losses(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``masked_words``, over words and tags alike, and ``matching``, the contrastive loss.

        ``batch`` is that of ``oscar_lesson``: ``"labels"`` are -100 where nothing is asked (the
        official files: -1, and more of them, on regions), ``"pollution"`` is 0 for originals.
        Both losses see the same spoiled and masked text in one forward pass; both weigh 1.
        """
        features = batch_features(self.network, batch)
        words_at, matching = self.network.words_at, self.network.matching_logits(features)
        return {
            "masked_words": asked_words_loss(words_at, features.text, batch["labels"]),
            "matching": F.cross_entropy(matching, batch["pollution"]),
        }
