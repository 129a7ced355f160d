"""ALBEF: image and text are aligned by contrast before a transformer fuses them.

Li, Selvaraju, Gotmare, Joty, Xiong and Hoi 2021, "Align before Fuse: Vision and Language
Representation Learning with Momentum Distillation" (arXiv 2107.07651); the official code is
salesforce/ALBEF.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
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
from mmlab.models.vit import ViT, ViTConfig, tokens_of_each
from mmlab.nn import (
    ACTIVATIONS,
    AttentionMask,
    BertConfig,
    BertDecoder,
    BertEmbeddings,
    BertLanguageHead,
    ContrastHead,
    FeatureQueue,
    Grid,
    MomentumTwin,
    bert_block,
    find_head,
    init_bert,
    init_xavier,
    padding_mask,
    run_blocks,
    shared_checkpointing,
    valid_tokens,
)
from mmlab.objectives.masked_language import (
    IGNORED,
    MaskedTokens,
    distilled_masked_language_loss,
    mask_tokens,
    share_masked_loss,
)
from mmlab.objectives.matching import PairMatching, images_of_pairs, sample_negative_pairs
from mmlab.objectives.momentum_contrast import (
    Encoding,
    MomentumContrast,
    enqueue_contrast,
    momentum_contrast,
)

INITS = ("normal", "xavier")
HEADS = ("contrast", "match", "words", "classes", "answers")
PAD_ID = 0
"""The padding token of every vocabulary; its word vector does not learn."""


@dataclass(frozen=True)
class ALBEFConfig:
    """Everything that fixes the shape and the training behaviour of an ``ALBEF``.

    - ``image_size`` to ``mlp_dim`` are those of the image encoder, a ViT without head.
    - ``context_length``: rows of BERT's position table, the most tokens of a text.
    - ``text_depth`` blocks see the text alone, ``fusion_depth`` more also the image; together they
      are one BERT.
    - ``embed_dim``: width of the features that are compared.
    - ``temperature``: what similarities are divided by at first; it is learned.
    - ``num_images``: 2 for NLVR2, where each fusion block is there twice, once an image; the two
      share their keys and values.
    - ``heads``: which of ``"contrast"`` (the two projections and the temperature), ``"match"``
      (does the text fit the image?), ``"words"`` (masked words), ``"classes"`` (one of
      ``num_classes``; entailment, NLVR2) and ``"answers"`` (a decoder as deep as the fusion, which
      writes answers; VQA).
    - ``hidden_head``: the classes head has a hidden layer; the text assignment of NLVR2 has none.
    - ``text_norm_eps`` is for the norms of BERT.

    - ``init``: matrices start with a spread of 0.02, or with one that grows as the width shrinks
      (``"xavier"``): 0.02 is for wide models.

    A wrong value raises ValueError.
    """

    image_size: int = 256
    patch_size: int = 16
    num_channels: int = 3
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    vocab_size: int = 30522
    context_length: int = 512
    text_dim: int = 768
    text_depth: int = 6
    fusion_depth: int = 6
    text_num_heads: int = 12
    text_mlp_dim: int = 3072
    embed_dim: int = 256
    temperature: float = 0.07
    num_images: int = 1
    heads: tuple[str, ...] = ("contrast", "match", "words")
    num_classes: int = 0
    hidden_head: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-6
    text_norm_eps: float = 1e-12
    dropout: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "image_size", "patch_size", "num_channels", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "vocab_size", "context_length", "text_dim")
        check_integers(self, "text_depth", "fusion_depth", "text_num_heads", "text_mlp_dim")
        check_integers(self, "embed_dim")
        check_integers(self, "num_classes", minimum=0)
        check(self.num_images in (1, 2), "num_images", self.num_images, "1 or 2")
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "init", INITS)
        check_positive(self, "norm_eps", "text_norm_eps", "temperature")
        check_rates(self, "dropout")
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "dim", "num_heads")
        check_multiple(self, "text_dim", "text_num_heads")
        check_heads(self, HEADS, classifier="classes")

    @property
    def grid(self) -> Grid:
        """Patches per column and per row."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def vit(self) -> ViTConfig:
        """The image encoder."""
        shared = ("image_size", "patch_size", "num_channels", "dim", "depth", "num_heads")
        shared += ("mlp_dim", "activation", "norm_eps")
        settings = {name: getattr(self, name) for name in shared}
        return ViTConfig(num_classes=0, init="trunc_normal", **settings)

    @property
    def bert(self) -> BertConfig:
        """Text and fusion encoder as one BERT."""
        return BertConfig(
            vocab_size=self.vocab_size,
            dim=self.text_dim,
            depth=self.text_depth + self.num_images * self.fusion_depth,
            num_heads=self.text_num_heads,
            mlp_dim=self.text_mlp_dim,
            max_positions=self.context_length,
            activation=self.activation,
            norm_eps=self.text_norm_eps,
            dropout=self.dropout,
            attention_dropout=self.dropout,
        )


class ALBEFFeatures(NamedTuple):
    """Tokens of the text before fusion and after it, and of the image or images."""

    text: Float[Tensor, "batch tokens text_dim"]
    fused: Float[Tensor, "batch tokens text_dim"]
    images: tuple[Float[Tensor, "batch image_tokens dim"], ...]


class ALBEF(nn.Module):
    """Align before fuse (ALBEF, section 3.1).

    Images are floats, normalised with CLIP's mean and standard deviation. Texts are token numbers
    with 0 as padding; captions of the official weights begin with [CLS] and have no [SEP] at their
    end. Set ``model.activation_checkpointing = True`` to trade time for memory in training: the
    blocks are then recomputed during the backward pass. New weights come from PyTorch's global
    random state.
    """

    def __init__(self, config: ALBEFConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ViT(config.vit)
        self.text_encoder = FusionBert(config)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        if config.init == "xavier":
            self.apply(init_xavier)

    activation_checkpointing = shared_checkpointing("image_encoder", "text_encoder")

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        images: Float[Tensor, "batch ..."],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> ALBEFFeatures:
        """Tokens of texts and images, and of the text fused with the image.

        ``images`` is (batch, channels, height, width), with ``num_images=2`` (batch, 2, channels,
        height, width). ``text_valid`` is a tokenizer's attention mask; if None, all but token 0 is
        valid. ValueError if images or texts do not fit the configuration.
        """
        text = self.text_tokens(input_ids, text_valid)
        tokens, valid = self.image_tokens_of(images), valid_tokens(input_ids, text_valid)
        return ALBEFFeatures(text, self.fuse(text, tokens, valid), tokens)

    def image_tokens(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch image_tokens dim"]:
        """Class token and patches after the last norm of the image encoder."""
        return self.image_encoder.forward_tokens(images)

    def image_tokens_of(
        self, images: Float[Tensor, "batch ..."]
    ) -> tuple[Float[Tensor, "batch image_tokens dim"], ...]:
        """The tokens of each of the ``num_images`` images of a row; images as in ``forward``."""
        return tokens_of_each(self.image_encoder, images, self.config.num_images)

    def text_tokens(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens text_dim"]:
        """The text alone: BERT's embeddings and its first ``text_depth`` blocks."""
        valid = valid_tokens(input_ids, text_valid)
        return self.text_encoder.encode(input_ids, padding_mask(valid))

    def fuse(
        self,
        text_tokens: Float[Tensor, "batch tokens text_dim"],
        image_tokens: Sequence[Float[Tensor, "images image_tokens dim"]],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"],
        image_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens text_dim"]:
        """The last blocks, in which the text looks at the image, or at each image in turn.

        Text ``i`` looks at row ``image_rows[i]`` of the images, or at row ``i``; keys and values
        are computed once for each image.
        """
        mask = padding_mask(text_valid)
        return self.text_encoder.fuse(text_tokens, image_tokens, mask, image_rows)

    def encode_image(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """Image features of length 1, to compare with those of texts."""
        return self.image_features(self.image_tokens(images))

    def encode_text(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch embed_dim"]:
        """Text features of length 1; they know nothing of any image."""
        return self.text_features(self.text_tokens(input_ids, text_valid))

    def image_features(
        self, image_tokens: Float[Tensor, "batch image_tokens dim"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """The projected class token, of length 1. ValueError, here and below, without this head."""
        return F.normalize(self.head("contrast").image_projection(image_tokens[:, 0]), dim=-1)

    def text_features(
        self, text_tokens: Float[Tensor, "batch tokens text_dim"]
    ) -> Float[Tensor, "batch embed_dim"]:
        """The projected first token, of length 1."""
        return F.normalize(self.head("contrast").text_projection(text_tokens[:, 0]), dim=-1)

    def matching_logits(
        self, fused: Float[Tensor, "batch tokens text_dim"]
    ) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "the text fits the image", output 0 for "it does not"."""
        return self.head("match")(fused[:, 0])

    def word_logits(
        self, fused: Float[Tensor, "*batch text_dim"]
    ) -> Float[Tensor, "*batch vocab_size"]:
        """Scores of words at each fused token."""
        words = self.text_encoder.embeddings.word_embedding.weight
        return self.head("words")(fused, words)

    def class_logits(
        self, fused: Float[Tensor, "batch tokens text_dim"]
    ) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes."""
        return self.head("classes")(fused[:, 0])

    def answer_logits(
        self,
        answer_ids: Int[Tensor, "answers answer_tokens"],
        question: Float[Tensor, "questions tokens text_dim"],
        question_valid: Bool[Tensor, "questions tokens"] | Int[Tensor, "questions tokens"],
        answer_valid: Bool[Tensor, "answers answer_tokens"]
        | Int[Tensor, "answers answer_tokens"]
        | None = None,
        question_rows: Int64[Tensor, " answers"] | None = None,
    ) -> Float[Tensor, "answers answer_tokens vocab_size"]:
        """Scores of the next word after each of an answer's; ``question`` are its fused tokens.

        Answer ``i`` is one to row ``question_rows[i]`` of the questions, or to row ``i``; keys and
        values are computed once for each question.
        """
        valid = valid_tokens(answer_ids, answer_valid)
        mask = padding_mask(question_valid)
        mask = mask if question_rows is None else mask[question_rows]
        return self.head("answers")(answer_ids, valid, question, mask, question_rows)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """What similarities are divided by."""
        return self.head("contrast").temperature

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        return find_head(self, name)

    def resize_positions(self, image_size: int, variant: str = "bicubic") -> ALBEF:
        """Take images of ``image_size`` pixels from now on; returns the model itself.

        The positions are interpolated (see ``mmlab.nn.interpolate_positions``) into a new
        parameter: call this before making an optimiser.
        """
        self.config = replace(self.config, image_size=image_size)
        self.image_encoder.resize_positions(image_size, variant)
        return self


class FusionBert(nn.Module):
    """One BERT, whose first blocks see the text alone and whose last ones also the image.

    Block ``i`` has a cross-attention if ``i >= text_depth`` (``fusion_layer`` in the official
    ``xbert.py``).
    """

    def __init__(self, config: ALBEFConfig):
        super().__init__()
        self.text_depth = config.text_depth
        self.activation_checkpointing = False
        self.embeddings = BertEmbeddings(config.bert)
        crossing = [i >= config.text_depth for i in range(config.bert.depth)]
        blocks = (bert_block(config.bert, config.dim if c else None) for c in crossing)
        self.blocks = nn.ModuleList(blocks)
        if config.num_images == 2:
            for first, second in zip(*self._fusion_pairs(), strict=True):
                second.cross_attention.k_proj = first.cross_attention.k_proj
                second.cross_attention.v_proj = first.cross_attention.v_proj
        self.apply(init_bert)

    def _fusion_pairs(self) -> tuple[nn.ModuleList, nn.ModuleList]:
        return self.blocks[self.text_depth :: 2], self.blocks[self.text_depth + 1 :: 2]

    def encode(
        self, input_ids: Int[Tensor, "batch tokens"], mask: AttentionMask
    ) -> Float[Tensor, "batch tokens text_dim"]:
        """Embeddings and the blocks before fusion."""
        blocks, tokens = self.blocks[: self.text_depth], self.embeddings(input_ids)
        return run_blocks(blocks, tokens, mask, self.activation_checkpointing)

    def fuse(
        self,
        tokens: Float[Tensor, "batch tokens text_dim"],
        image_tokens: Sequence[Float[Tensor, "images image_tokens dim"]],
        mask: AttentionMask,
        image_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens text_dim"]:
        """The other blocks, each of which looks at the next image, in turn."""
        blocks = [
            partial(block, context=image_tokens[i % len(image_tokens)], context_rows=image_rows)
            for i, block in enumerate(self.blocks[self.text_depth :])
        ]
        return run_blocks(blocks, tokens, mask, self.activation_checkpointing)


def _words_head(config: ALBEFConfig) -> BertLanguageHead:
    return BertLanguageHead(config.bert).apply(init_bert)


def _classes_head(config: ALBEFConfig) -> nn.Module:
    last = nn.Linear(config.text_dim, config.num_classes)
    if not config.hidden_head:
        return last
    return nn.Sequential(nn.Linear(config.text_dim, config.text_dim), nn.ReLU(), last)


def _contrast_head(config: ALBEFConfig) -> ContrastHead:
    return ContrastHead(config.dim, config.text_dim, config.embed_dim, config.temperature)


def _answers_head(config: ALBEFConfig) -> BertDecoder:
    """It writes answers, looking at the fused question (``models/model_vqa.py``)."""
    return BertDecoder(replace(config.bert, depth=config.fusion_depth), config.text_dim)


_HEADS = {
    "contrast": _contrast_head,
    "match": lambda config: nn.Linear(config.text_dim, 2),
    "words": _words_head,
    "classes": _classes_head,
    "answers": _answers_head,
}


# The one published size (ALBEF, section 3.1): pre-trained at 256 pixels, fine-tuned at 384.
ALBEF_B_16 = ALBEFConfig()
ALBEF_B_16_RETRIEVAL = replace(ALBEF_B_16, image_size=384, heads=("contrast", "match"))
ALBEF_B_16_VQA = replace(ALBEF_B_16, image_size=384, heads=("answers",))
ALBEF_B_16_VE = replace(ALBEF_B_16, image_size=384, heads=("classes",), num_classes=3)
ALBEF_B_16_NLVR2 = replace(ALBEF_B_16_VE, num_classes=2, num_images=2)

# Ours, for 64-pixel scenes and CPU cores. Captions are word pieces of
# mmlab.datasets.train_wordpiece; give the vocabulary of your tokenizer:
# create_model("albef-mini", vocab_size=tokenizer.vocab_size).
ALBEF_MINI = ALBEFConfig(
    image_size=64,
    patch_size=8,
    dim=96,
    depth=3,
    num_heads=4,
    mlp_dim=384,
    vocab_size=4096,
    context_length=32,
    text_dim=96,
    text_depth=2,
    fusion_depth=2,
    text_num_heads=4,
    text_mlp_dim=384,
    embed_dim=64,
    dropout=0.0,
    init="xavier",
)


class ALBEFWords(NamedTuple):
    """One step's masked text, fused with the image by the network and by its twin.

    ``logits`` and ``momentum_logits`` are those of the masked tokens alone.
    """

    masked: MaskedTokens
    fused: Float[Tensor, "batch tokens text_dim"]
    momentum_fused: Float[Tensor, "batch tokens text_dim"]
    logits: Float[Tensor, "asked vocab_size"]
    momentum_logits: Float[Tensor, "asked vocab_size"]
    alpha: Float[Tensor, ""]

    def loss(self) -> Float[Tensor, ""]:
        """The masked-language loss with momentum distillation (ALBEF, equation 7)."""
        labels = self.masked.labels[self.masked.labels != IGNORED]
        return distilled_masked_language_loss(
            self.logits[None], labels[None], self.momentum_logits[None], self.alpha
        )


class ALBEFStep(NamedTuple):
    """All that one step of training computes; ``words`` is None without masked words."""

    contrast: MomentumContrast
    matching: PairMatching
    words: ALBEFWords | None

    def losses(self) -> dict[str, Tensor]:
        """The losses by name; their sum is the loss."""
        parts = {
            "contrastive": self.contrast,
            "matching": self.matching,
            "masked_words": self.words,
        }
        return {name: part.loss() for name, part in parts.items() if part is not None}


class ALBEFPretraining(nn.Module):
    """An ``ALBEF`` in pre-training (ALBEF, sections 3.2 and 3.3); ``network`` is the model.

    - ``queue_size``: features of earlier samples that the contrast sees beside the batch's own.
    - ``decay``, ``alpha``, ``ramp_steps``: of the momentum twin, see ``MomentumTwin``; the paper's
      alpha rises during the first epoch.
    - ``mask_id`` is the tokenizer's mask token, ``special_ids`` are never masked ([PAD], [CLS] and
      [SEP] of BERT's vocabulary).

    Every random choice is drawn from ``generator``, or from PyTorch's global random state.
    ValueError if the network lacks a head, or its vocabulary ends before ``mask_id``.
    """

    needed_heads = ("contrast", "match", "words")
    clamps_temperature = True
    knows_images = False
    """Whether samples tell which image they are of, so that an image may come up several times."""

    def __init__(
        self,
        network: ALBEF,
        queue_size: int = 65536,
        decay: float = 0.995,
        alpha: float = 0.4,
        ramp_steps: int = 0,
        mask_id: int = 103,
        special_ids: tuple[int, ...] = (PAD_ID, 101, 102),
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        for head in self.needed_heads:
            network.head(head)
        if "words" in self.needed_heads:
            below = f"from 0 to below vocab_size={network.config.vocab_size}"
            check(0 <= mask_id < network.config.vocab_size, "mask_id", mask_id, below)
        self.network = network
        unaveraged = ("heads.match", "heads.contrast.temperature")
        self.momentum = MomentumTwin(network, decay, alpha, ramp_steps, without=unaveraged)
        dim = network.config.embed_dim
        self.queue = FeatureQueue(queue_size, self.knows_images, images=dim, texts=dim)
        self.mask_id = mask_id
        self.special_ids = special_ids
        self.generator = generator

    def losses(self, batch: dict[str, Tensor], update: bool = True) -> dict[str, Tensor]:
        """Contrast with queue and soft targets, matching with hard negatives, masked words.

        ``batch`` has ``"images"``, ``"input_ids"`` and, where texts are padded with anything but 0,
        ``"attention_mask"``. What is otherwise drawn may be given: ``"negative_images"`` (for each
        text) and ``"negative_texts"`` (for each image) are rows of the batch, ``"masked_ids"`` and
        ``"labels"`` the masked text, with ``"masked_share"`` as in ``share_masked_loss``.

        A call is a step of training: the temperature is clamped, the twin moves, the queue takes
        the batch. ``update=False`` leaves all that as it is, to measure the losses of other data.
        """
        losses = self.step(batch, update).losses()
        return share_masked_loss(losses, batch)

    def step(self, batch: dict[str, Tensor], update: bool = True) -> ALBEFStep:
        """All that ``losses`` computes, in the order of the official code."""
        if update:
            if self.clamps_temperature:
                self.network.head("contrast").clamp_temperature()
            self.momentum.update(self.network)
        contrast = self.contrast(batch)
        if update:
            enqueue_contrast(self.queue, contrast, self._image_ids(batch))
        matching = self.match(batch, contrast)
        with_words = "words" in self.needed_heads
        words = self.predict_words(batch, contrast) if with_words else None
        return ALBEFStep(contrast, matching, words)

    def contrast(self, batch: dict[str, Tensor]) -> MomentumContrast:
        """Images and texts against the twin's features of this batch and of the queue."""
        own = self._encode(self.network, batch)
        with torch.no_grad():
            twin = self._encode(self.momentum.network, batch)
        settings = (self.network.temperature, self.momentum.weight(), self._image_ids(batch))
        return momentum_contrast(own, twin, self.queue, *settings)

    def match(self, batch: dict[str, Tensor], contrast: MomentumContrast) -> PairMatching:
        """The true pairs, and as many false ones of either kind, through the fusion blocks."""
        images, texts = contrast.image_tokens, contrast.text_tokens
        valid = valid_tokens(batch["input_ids"], batch.get("attention_mask"))
        wrong_images, wrong_texts = self._negatives(batch, contrast)
        images, image_rows = images_of_pairs(images, images, wrong_images)
        fused = self.network.fuse(
            torch.cat([texts, texts, texts[wrong_texts]]),
            (images,),
            torch.cat([valid, valid, valid[wrong_texts]]),
            image_rows,
        )
        return PairMatching(wrong_images, wrong_texts, fused, self.network.matching_logits(fused))

    def predict_words(self, batch: dict[str, Tensor], contrast: MomentumContrast) -> ALBEFWords:
        """The masked text with the image through all blocks, by the twin as well."""
        masked = self._masked(batch)
        valid = valid_tokens(batch["input_ids"], batch.get("attention_mask"))
        asked = masked.labels != IGNORED
        with torch.no_grad():
            teacher = self.momentum.network
            their_fused = _fuse_ids(teacher, masked.ids, contrast.momentum_images, valid)
            their_logits = teacher.word_logits(their_fused[asked])
        fused = _fuse_ids(self.network, masked.ids, contrast.image_tokens, valid)
        logits = self.network.word_logits(fused[asked])
        return ALBEFWords(masked, fused, their_fused, logits, their_logits, self.momentum.weight())

    def _encode(self, network: ALBEF, batch: dict[str, Tensor]) -> Encoding:
        images = network.image_tokens(batch["images"])
        texts = network.text_tokens(batch["input_ids"], batch.get("attention_mask"))
        return Encoding(images, texts, network.image_features(images), network.text_features(texts))

    def _image_ids(self, batch: dict[str, Tensor]) -> Int64[Tensor, " batch"] | None:
        return batch["image_ids"] if self.knows_images else None

    def _negatives(
        self, batch: dict[str, Tensor], contrast: MomentumContrast
    ) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
        """A wrong image for each text, then a wrong text for each image, drawn by similarity."""
        if "negative_images" in batch:
            return batch["negative_images"], batch["negative_texts"]
        count = len(contrast.belongs)
        tables = (contrast.text_to_image[:, :count], contrast.image_to_text[:, :count])
        return sample_negative_pairs(*tables, contrast.belongs, self.generator)

    def _masked(self, batch: dict[str, Tensor]) -> MaskedTokens:
        if "masked_ids" in batch:
            return MaskedTokens(batch["masked_ids"], batch["labels"])
        ids = batch["input_ids"]
        maskable = valid_tokens(ids, batch.get("attention_mask"))
        for special in self.special_ids:
            maskable = maskable & (ids != special)
        vocab_size = self.network.config.vocab_size
        return mask_tokens(ids, maskable, self.mask_id, vocab_size, generator=self.generator)


def _fuse_ids(
    network: ALBEF,
    ids: Int[Tensor, "batch tokens"],
    image_tokens: Float[Tensor, "batch image_tokens dim"],
    valid: Bool[Tensor, "batch tokens"],
) -> Float[Tensor, "batch tokens text_dim"]:
    """All blocks, from token numbers on."""
    return network.fuse(network.text_tokens(ids, valid), (image_tokens,), valid)
