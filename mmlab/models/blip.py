"""BLIP: one text transformer that understands and writes, in three roles with shared weights.

Li, Li, Xiong and Hoi 2022, "BLIP: Bootstrapping Language-Image Pre-training for Unified
Vision-Language Understanding and Generation" (arXiv 2201.12086); the official code is
salesforce/BLIP.
"""

from __future__ import annotations

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
from mmlab.models.vit import ViT, ViTConfig, tokens_of_each
from mmlab.nn import (
    ACTIVATIONS,
    Attention,
    BertConfig,
    BertDecoder,
    BertTrunk,
    BertWriting,
    ContrastHead,
    FeatureQueue,
    Grid,
    MomentumTwin,
    PostNormBlock,
    bert_block,
    init_xavier,
    padding_mask,
    share_layers,
    shared_checkpointing,
    valid_tokens,
)
from mmlab.nn.blocks import ContextMask
from mmlab.objectives.language_modeling import NextWords, sequence_labels
from mmlab.objectives.matching import PairMatching, images_of_pairs, sample_negative_pairs
from mmlab.objectives.momentum_contrast import (
    Encoding,
    MomentumContrast,
    enqueue_contrast,
    momentum_contrast,
)

INITS = ("normal", "xavier")
HEADS = ("contrast", "match", "words", "classes", "answers")
DECODING = ("words", "answers")
"""The heads that a decoder belongs to."""
SHARING = {
    "all": (),
    "all_but_self_attention": ("attention", "norm1"),
    "all_but_cross_attention": ("cross_attention", "cross_norm"),
    "none": None,
}
"""How encoder and decoder share weights → the parts of a block that each has for itself."""
NEGATIVE_FLOOR = 1e-4
"""What pre-training adds to the probability of every negative."""
LABEL_SMOOTHING = 0.1


@dataclass(frozen=True)
class BLIPConfig:
    """Everything that fixes the shape and the training behaviour of a ``BLIP``.

    - ``image_size`` to ``mlp_dim`` and ``drop_path`` are those of the image encoder, a ViT without
      head.
    - ``vocab_size`` counts [DEC] and [ENC], which are the last two tokens, in this order.
    - ``context_length``: rows of the position table, the most tokens of a text.
    - ``embed_dim``: width of the features that are compared.
    - ``temperature``: what similarities are divided by at first; it is learned. With None there is
      none: a model that only compares can do without.
    - ``num_images``: 2 for NLVR2, where each block has a cross-attention for each image. Their
      results are averaged, and from block ``merge_from`` on merged by a linear layer.
    - ``heads``: which of ``"contrast"`` (the two projections and the temperature), ``"match"``
      (does the text fit the image?), ``"words"`` (a decoder that describes images), ``"classes"``
      (one of ``num_classes``; NLVR2) and ``"answers"`` (a decoder that answers questions). With
      ``"words"`` alone there is no text encoder.
    - ``sharing`` of weights between encoder and the decoder of ``"words"``: ``"all"``,
      ``"all_but_self_attention"`` (the paper's choice), ``"all_but_cross_attention"`` or
      ``"none"``. A decoder of answers shares nothing.
    - ``text_norm_eps`` is for the norms of the text transformer.

    - ``init``: matrices start with a spread of 0.02, or with one that grows as the width shrinks
      (``"xavier"``): 0.02 is for wide models.

    A wrong value raises ValueError.
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    vocab_size: int = 30524
    context_length: int = 512
    text_dim: int = 768
    text_depth: int = 12
    text_num_heads: int = 12
    text_mlp_dim: int = 3072
    embed_dim: int = 256
    temperature: float | None = 0.07
    num_images: int = 1
    merge_from: int = 6
    heads: tuple[str, ...] = ("contrast", "match", "words")
    sharing: str = "all_but_self_attention"
    num_classes: int = 0
    activation: str = "gelu"
    norm_eps: float = 1e-6
    text_norm_eps: float = 1e-12
    dropout: float = 0.1
    drop_path: float = 0.0
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "image_size", "patch_size", "num_channels", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "context_length", "text_dim", "text_depth")
        check_integers(self, "text_num_heads", "text_mlp_dim", "embed_dim")
        check_integers(self, "vocab_size", minimum=3)
        check_integers(self, "num_classes", "merge_from", minimum=0)
        check(self.num_images in (1, 2), "num_images", self.num_images, "1 or 2")
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "init", INITS)
        check_choice(self, "sharing", tuple(SHARING))
        check_positive(self, "norm_eps", "text_norm_eps")
        if self.temperature is not None:
            check_positive(self, "temperature")
        check_rates(self, "dropout", "drop_path")
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "dim", "num_heads")
        check_multiple(self, "text_dim", "text_num_heads")
        check_heads(self, HEADS, classifier="classes")
        self._check_decoder()

    def _check_decoder(self) -> None:
        decoding = set(self.heads) & set(DECODING)
        one = "with at most one of 'words' and 'answers'"
        check(len(decoding) < 2, "heads", self.heads, one)
        alone = "1 with a decoder, which looks at one image"
        check(not decoding or self.num_images == 1, "num_images", self.num_images, alone)

    @property
    def decoder_id(self) -> int:
        """[DEC], the first token of a text that is written."""
        return self.vocab_size - 2

    @property
    def encoder_id(self) -> int:
        """[ENC], the first token of a text that is read with an image."""
        return self.vocab_size - 1

    @property
    def grid(self) -> Grid:
        """Patches per column and per row."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def vit(self) -> ViTConfig:
        """The image encoder."""
        shared = ("image_size", "patch_size", "num_channels", "dim", "depth", "num_heads")
        shared += ("mlp_dim", "activation", "norm_eps", "drop_path")
        settings = {name: getattr(self, name) for name in shared}
        return ViTConfig(num_classes=0, init="trunc_normal", **settings)

    @property
    def bert(self) -> BertConfig:
        """The text transformer, in each of its roles."""
        return BertConfig(
            vocab_size=self.vocab_size,
            dim=self.text_dim,
            depth=self.text_depth,
            num_heads=self.text_num_heads,
            mlp_dim=self.text_mlp_dim,
            max_positions=self.context_length,
            num_types=0,
            activation=self.activation,
            norm_eps=self.text_norm_eps,
            dropout=self.dropout,
            attention_dropout=self.dropout,
        )


class BLIPFeatures(NamedTuple):
    """Tokens of the text alone, of the text grounded in the image, and of the image or images."""

    text: Float[Tensor, "batch tokens text_dim"]
    grounded: Float[Tensor, "batch tokens text_dim"]
    images: tuple[Float[Tensor, "batch image_tokens dim"], ...]


class BLIP(nn.Module):
    """A ViT and the multimodal mixture of encoder and decoder, MED (BLIP, section 3.1).

    The text transformer has three roles, told apart by the first token. With [CLS] it is a text
    encoder, which passes the cross-attentions by; with [ENC], which takes the place of [CLS], an
    encoder that looks at the image; with [DEC] a decoder, whose tokens see only those before them.
    The two encoders are one module, ``text_encoder``; ``text_decoder`` has self-attentions of its
    own and shares all else (see ``BLIPConfig.sharing``).

    Images are floats, normalised with CLIP's mean and standard deviation. Texts are token numbers
    with 0 as padding, from [CLS] to [SEP]: each role puts its own token in the first place. Set
    ``model.activation_checkpointing = True`` to trade time for memory in training: the blocks are
    then recomputed during the backward pass. New weights come from PyTorch's global random state.
    """

    def __init__(self, config: BLIPConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ViT(config.vit)
        # The encoder stands first: shared weights go by its names where only one name is listed.
        self.text_encoder = _text_encoder(config)
        self.text_decoder = _text_decoder(config)
        apart = SHARING[config.sharing]
        if self.text_encoder is not None and "words" in config.heads and apart is not None:
            share_layers(self.text_encoder, self.text_decoder, but=apart)
        made = [name for name in config.heads if name not in DECODING]
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in made})
        if config.init == "xavier":
            self.apply(init_xavier)

    activation_checkpointing = shared_checkpointing("image_encoder", "text_encoder", "text_decoder")

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        images: Float[Tensor, "batch ..."],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> BLIPFeatures:
        """What both encoders make of texts and images.

        ``images`` is (batch, channels, height, width), with ``num_images=2`` (batch, 2, channels,
        height, width). ``text_valid`` is a tokenizer's attention mask; if None, all but token 0 is
        valid. ValueError if images or texts do not fit the configuration, or if there is no text
        encoder.
        """
        text = self.text_tokens(input_ids, text_valid)
        tokens = self.image_tokens_of(images)
        return BLIPFeatures(text, self.ground(input_ids, tokens, text_valid), tokens)

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
        """The text alone: no cross-attention, and the first token stays as it is ([CLS])."""
        mask = padding_mask(valid_tokens(input_ids, text_valid))
        return self._encoder().encode(input_ids, mask)

    def ground(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        image_tokens: tuple[Float[Tensor, "images image_tokens dim"], ...],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
        image_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens text_dim"]:
        """The text, with [ENC] first, looking at the image, or at both images, in each block.

        Text ``i`` looks at row ``image_rows[i]`` of the images, or at row ``i``; keys and values
        are computed once for each image.
        """
        mask = padding_mask(valid_tokens(input_ids, text_valid))
        ids = _beginning_with(self.config.encoder_id, input_ids)
        images = torch.cat(image_tokens, dim=1)
        return self._encoder().encode(ids, mask, images, context_rows=image_rows)

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
        self, grounded: Float[Tensor, "batch tokens text_dim"]
    ) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "the text fits the image", output 0 for "it does not"."""
        return self.head("match")(grounded[:, 0])

    def class_logits(
        self, grounded: Float[Tensor, "batch tokens text_dim"]
    ) -> Float[Tensor, "batch num_classes"]:
        """Scores of the classes."""
        return self.head("classes")(grounded[:, 0])

    def word_logits(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        image_tokens: Float[Tensor, "batch image_tokens dim"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch tokens vocab_size"]:
        """Scores of the next word after each token of a text that describes the image."""
        return self._write("words", input_ids, text_valid, image_tokens)

    def asked_word_logits(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        image_tokens: Float[Tensor, "batch image_tokens dim"],
        asked: Bool[Tensor, "batch tokens"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "asked vocab_size"]:
        """``word_logits`` after the tokens ``asked``, row by row, and nowhere else."""
        decoder, valid = self.head("words"), valid_tokens(input_ids, text_valid)
        ids = _beginning_with(self.config.decoder_id, input_ids)
        return decoder.word_logits(decoder.read(ids, valid, image_tokens)[asked])

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
        """Scores of the next word of an answer; ``question`` are its grounded tokens.

        Answer ``i`` is one to row ``question_rows[i]`` of the questions, or to row ``i``; keys and
        values are computed once for each question.
        """
        mask = padding_mask(question_valid)
        mask = mask if question_rows is None else mask[question_rows]
        return self._write("answers", answer_ids, answer_valid, question, mask, question_rows)

    def _write(
        self,
        head: str,
        ids: Int[Tensor, "batch tokens"],
        valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None,
        context: Float[Tensor, "contexts context_tokens context_dim"],
        context_mask: ContextMask | None = None,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens vocab_size"]:
        valid = valid_tokens(ids, valid)
        ids = _beginning_with(self.config.decoder_id, ids)
        return self.head(head)(ids, valid, context, context_mask, context_rows)

    def start_writing(
        self,
        context: Float[Tensor, "rows context_tokens context_dim"],
        context_valid: Bool[Tensor, "rows context_tokens"] | None = None,
    ) -> BertWriting:
        """The decoder, ready for ``mmlab.nn.beam_search`` or ``sample_text``.

        ``context`` are the tokens of an image, or those of a grounded question. What it is given to
        read must begin with ``config.decoder_id``. ValueError without a decoder.
        """
        if self.text_decoder is None:
            raise ValueError(f"this BLIP has no decoder; it has heads={self.config.heads}")
        return BertWriting(self.text_decoder, context, context_valid)

    @property
    def temperature(self) -> Float[Tensor, ""]:
        """What similarities are divided by; ValueError if there is none."""
        temperature = self.head("contrast").temperature
        if temperature is None:
            raise ValueError("this BLIP has no temperature; it was made with temperature=None")
        return temperature

    def head(self, name: str) -> nn.Module:
        """The head called ``name``, for words and answers the decoder; ValueError if none."""
        if name not in self.config.heads:
            raise ValueError(f"this BLIP has no {name!r} head; it has heads={self.config.heads}")
        return self.text_decoder if name in DECODING else self.heads[name]

    def _encoder(self) -> BertTrunk:
        if self.text_encoder is None:
            raise ValueError(f"this BLIP has no text encoder; it has heads={self.config.heads}")
        return self.text_encoder

    def resize_positions(self, image_size: int, variant: str = "bicubic") -> BLIP:
        """Take images of ``image_size`` pixels from now on; returns the model itself.

        The positions are interpolated (see ``mmlab.nn.interpolate_positions``) into a new
        parameter: call this before making an optimiser.
        """
        self.config = replace(self.config, image_size=image_size)
        self.image_encoder.resize_positions(image_size, variant)
        return self


class PairBlock(PostNormBlock):
    """A block that looks at two images at once (``models/nlvr_encoder.py``).

    Each has a cross-attention of its own. The results are averaged, or put side by side and merged
    by a linear layer, before the residual connection; between them there is no activation.
    """

    def __init__(self, config: BertConfig, context_dim: int, merges: bool):
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
        second = Attention(
            config.dim, config.num_heads, context_dim, dropout=config.attention_dropout
        )
        self.cross_attention = nn.ModuleList([self.cross_attention, second])
        self.merge = nn.Linear(2 * config.dim, config.dim) if merges else None

    def attend_to(
        self,
        x: Float[Tensor, "batch tokens dim"],
        context: Float[Tensor, "contexts context_tokens context_dim"],
        context_mask: ContextMask | None = None,
        context_rows: Int64[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Both cross-attentions; ``context`` is the tokens of one image, then of the other."""
        images = context.chunk(2, dim=1)
        looks = [
            attention(x, image, context_rows=context_rows)
            for attention, image in zip(self.cross_attention, images, strict=True)
        ]
        both = sum(looks) / 2 if self.merge is None else self.merge(torch.cat(looks, dim=-1))
        return self.cross_norm(x + self.dropout(both))


def _text_encoder(config: BLIPConfig) -> BertTrunk | None:
    """No text encoder where there is nothing but a decoder of captions."""
    if config.heads == ("words",):
        return None
    places = range(config.text_depth)
    if config.num_images == 1:
        blocks = (bert_block(config.bert, config.dim) for _ in places)
    else:
        blocks = (PairBlock(config.bert, config.dim, i >= config.merge_from) for i in places)
    return BertTrunk(config.bert, blocks)


def _text_decoder(config: BLIPConfig) -> BertDecoder | None:
    """Captions look at the image, answers at the grounded question."""
    if "answers" in config.heads:
        return BertDecoder(config.bert, config.text_dim)
    return BertDecoder(config.bert, config.dim) if "words" in config.heads else None


def _contrast_head(config: BLIPConfig) -> ContrastHead:
    return ContrastHead(config.dim, config.text_dim, config.embed_dim, config.temperature)


def _classes_head(config: BLIPConfig) -> nn.Module:
    last = nn.Linear(config.text_dim, config.num_classes)
    return nn.Sequential(nn.Linear(config.text_dim, config.text_dim), nn.ReLU(), last)


_HEADS = {
    "contrast": _contrast_head,
    "match": lambda config: nn.Linear(config.text_dim, 2),
    "classes": _classes_head,
}


def _beginning_with(first_id: int, ids: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
    """The same texts in another role: only the first token is another."""
    first = torch.full_like(ids[:, :1], first_id)
    return torch.cat([first, ids[:, 1:]], dim=1)


# The published sizes (BLIP, section 4.1): pre-trained at 224 pixels, fine-tuned at 384, questions
# at 480. The text transformer is BERT-base in both.
BLIP_B_16 = BLIPConfig()
BLIP_B_16_RETRIEVAL = replace(BLIP_B_16, image_size=384, heads=("contrast", "match"))
BLIP_B_16_CAPTIONING = replace(BLIP_B_16, image_size=384, heads=("words",))
BLIP_B_16_VQA = replace(BLIP_B_16, image_size=480, heads=("answers",), drop_path=0.1)
# The class of the official code takes 480 pixels unless told otherwise; its recipe trains at 384.
BLIP_B_16_NLVR2 = replace(
    BLIP_B_16, image_size=480, heads=("classes",), num_classes=2, num_images=2, drop_path=0.1
)
BLIP_L_16 = replace(BLIP_B_16, dim=1024, depth=24, num_heads=16, mlp_dim=4096, drop_path=0.1)
BLIP_L_16_RETRIEVAL = replace(BLIP_L_16, image_size=384, heads=("contrast", "match"))
BLIP_L_16_CAPTIONING = replace(BLIP_L_16, image_size=384, heads=("words",))
BLIP_L_16_VQA = replace(BLIP_L_16, image_size=480, heads=("answers",))

# Ours, for 64-pixel scenes and CPU cores. Captions are word pieces of
# mmlab.datasets.train_wordpiece, with [DEC] and [ENC] added after the last; give the vocabulary of
# your tokenizer: create_model("blip-mini", vocab_size=tokenizer.vocab_size).
BLIP_MINI = BLIPConfig(
    image_size=64,
    patch_size=8,
    dim=96,
    depth=3,
    num_heads=4,
    mlp_dim=384,
    vocab_size=4096,
    context_length=32,
    text_dim=96,
    text_depth=3,
    text_num_heads=4,
    text_mlp_dim=384,
    embed_dim=64,
    dropout=0.0,
    init="xavier",
)


class BLIPStep(NamedTuple):
    """All that one step of training computes; ``words`` is None where nothing is written."""

    contrast: MomentumContrast
    matching: PairMatching
    words: NextWords | None

    def losses(self) -> dict[str, Tensor]:
        """The losses by name; their sum is the loss."""
        parts = {
            "contrastive": self.contrast,
            "matching": self.matching,
            "language_modeling": self.words,
        }
        return {name: part.loss() for name, part in parts.items() if part is not None}


class Candidates(NamedTuple):
    """Where negatives come from: images, texts, and how similar the batch's own are to them.

    ``belongs`` says which of them are no negatives of a row.
    """

    image_tokens: Float[Tensor, "items image_tokens dim"]
    input_ids: Int[Tensor, "items tokens"]
    text_valid: Bool[Tensor, "items tokens"]
    text_to_image: Float[Tensor, "batch items"]
    image_to_text: Float[Tensor, "batch items"]
    belongs: Bool[Tensor, "batch items"]


class BLIPPretraining(nn.Module):
    """A ``BLIP`` in pre-training (BLIP, section 3.2); ``network`` is the model.

    - ``queue_size``: features of earlier samples that the contrast sees beside the batch's own.
    - ``decay``, ``alpha``, ``ramp_steps``: of the momentum twin, see ``MomentumTwin``; alpha rises
      during the first two epochs (``pretrain.py``), in ALBEF during the first.
    - ``label_smoothing`` is for the words.

    Every random choice is drawn from ``generator``, or from PyTorch's global random state.
    ValueError if the network lacks a head.
    """

    needed_heads = ("contrast", "match", "words")
    negative_floor = NEGATIVE_FLOOR
    knows_images = False
    """Whether samples tell which image they are of, so that an image may come up several times."""

    def __init__(
        self,
        network: BLIP,
        queue_size: int = 57600,
        decay: float = 0.995,
        alpha: float = 0.4,
        ramp_steps: int = 0,
        label_smoothing: float = LABEL_SMOOTHING,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        for head in self.needed_heads:
            network.head(head)
        _ = network.temperature  # ValueError if there is none
        self.network = network
        # The twin's encoder follows the shared weights, which the decoder teaches as well.
        unaveraged = ("heads.match", "heads.contrast.temperature", "text_decoder")
        self.momentum = MomentumTwin(network, decay, alpha, ramp_steps, without=unaveraged)
        dim = network.config.embed_dim
        self.queue = FeatureQueue(queue_size, self.knows_images, images=dim, texts=dim)
        self.label_smoothing = label_smoothing
        self.generator = generator

    def losses(self, batch: dict[str, Tensor], update: bool = True) -> dict[str, Tensor]:
        """Contrast with queue and soft targets, matching with hard negatives, captioning.

        ``batch`` has ``"images"``, ``"input_ids"`` (from [CLS] to [SEP]) and, where texts are
        padded with anything but 0, ``"attention_mask"``. What is otherwise drawn may be given:
        ``"negative_images"`` (for each text) and ``"negative_texts"`` (for each image) are rows of
        the batch.

        A call is a step of training: the temperature is clamped, the twin moves, the queue takes
        the batch. ``update=False`` leaves all that as it is, to measure the losses of other data.
        """
        return self.step(batch, update).losses()

    def step(self, batch: dict[str, Tensor], update: bool = True) -> BLIPStep:
        """All that ``losses`` computes, in the order of the official code."""
        if update:
            self.network.head("contrast").clamp_temperature()
            self.momentum.update(self.network)
        contrast = self.contrast(batch)
        if update:
            enqueue_contrast(self.queue, contrast, self._image_ids(batch))
        matching = self.match(batch, contrast)
        writes = "words" in self.needed_heads
        words = self.write(batch, contrast.image_tokens) if writes else None
        return BLIPStep(contrast, matching, words)

    def contrast(self, batch: dict[str, Tensor]) -> MomentumContrast:
        """Images and texts against the twin's features of this batch and of the queue."""
        own = self._encode(self.network, batch)
        with torch.no_grad():
            twin = self._encode(self.momentum.network, batch)
        settings = (self.network.temperature, self.momentum.weight(), self._image_ids(batch))
        return momentum_contrast(own, twin, self.queue, *settings)

    def match(self, batch: dict[str, Tensor], contrast: MomentumContrast) -> PairMatching:
        """The true pairs, and as many false ones of either kind, through the grounded encoder.

        Unlike ALBEF, whose text blocks are done by now, all blocks see wrong texts anew.
        """
        images, ids = contrast.image_tokens, batch["input_ids"]
        valid = valid_tokens(ids, batch.get("attention_mask"))
        items = self.candidates(batch, contrast)
        wrong_images, wrong_texts = self._negatives(batch, items)
        images, image_rows = images_of_pairs(images, items.image_tokens, wrong_images)
        grounded = self.network.ground(
            torch.cat([ids, ids, items.input_ids[wrong_texts]]),
            (images,),
            torch.cat([valid, valid, items.text_valid[wrong_texts]]),
            image_rows,
        )
        logits = self.network.matching_logits(grounded)
        return PairMatching(wrong_images, wrong_texts, grounded, logits)

    def candidates(self, batch: dict[str, Tensor], contrast: MomentumContrast) -> Candidates:
        """Negatives come from the batch, by the similarities with the twin's features."""
        ids, count = batch["input_ids"], len(contrast.belongs)
        return Candidates(
            contrast.image_tokens,
            ids,
            valid_tokens(ids, batch.get("attention_mask")),
            contrast.text_to_image[:, :count],
            contrast.image_to_text[:, :count],
            contrast.belongs,
        )

    def write(
        self, batch: dict[str, Tensor], image_tokens: Float[Tensor, "batch image_tokens dim"]
    ) -> NextWords:
        """Each caption, word by word, from its image; padding is not to be predicted."""
        ids = batch["input_ids"]
        valid = valid_tokens(ids, batch.get("attention_mask"))
        logits = self.network.word_logits(ids, image_tokens, valid)
        return NextWords(sequence_labels(ids, valid), logits, self.label_smoothing)

    def _encode(self, network: BLIP, batch: dict[str, Tensor]) -> Encoding:
        images = network.image_tokens(batch["images"])
        texts = network.text_tokens(batch["input_ids"], batch.get("attention_mask"))
        return Encoding(images, texts, network.image_features(images), network.text_features(texts))

    def _image_ids(self, batch: dict[str, Tensor]) -> Int64[Tensor, " batch"] | None:
        return batch["image_ids"] if self.knows_images else None

    def _negatives(
        self, batch: dict[str, Tensor], items: Candidates
    ) -> tuple[Int64[Tensor, " batch"], Int64[Tensor, " batch"]]:
        """A wrong image for each text, then a wrong text for each image, drawn by similarity."""
        if "negative_images" in batch:
            return batch["negative_images"], batch["negative_texts"]
        tables = (items.text_to_image, items.image_to_text, items.belongs)
        return sample_negative_pairs(*tables, self.generator, self.negative_floor)
