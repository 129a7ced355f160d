"""BLIP after pre-training: retrieval, captions, questions, pairs of images.

Li et al. 2022 (arXiv 2201.12086), section 5; the losses as in salesforce/BLIP (``models``). Each
task builds only what it needs of the model, and encoder and decoder share nothing any more. Answers
from a list are ranked by ``rank_answers``.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from mmlab.models.albef_tasks import rank_answers
from mmlab.models.blip import (
    BLIP,
    LABEL_SMOOTHING,
    BLIPConfig,
    BLIPPretraining,
    Candidates,
)
from mmlab.models.checks import check
from mmlab.nn import beam_search, sample_text, valid_tokens
from mmlab.objectives.contrastive import gather_with_gradient
from mmlab.objectives.language_modeling import (
    next_words_loss,
    sequence_labels,
    sequence_losses,
)
from mmlab.objectives.masked_language import IGNORED
from mmlab.objectives.momentum_contrast import MomentumContrast

__all__ = [
    "BLIPCaptioning",
    "BLIPClassification",
    "BLIPQuestionAnswering",
    "BLIPRetrieval",
    "blip_answerer",
    "blip_captioner",
    "blip_classifier",
    "blip_retriever",
    "class_logits",
    "generate_answers",
    "generate_captions",
    "match_probabilities",
    "rank_answers",
    "sample_captions",
]

SEP_ID = 102
"""[SEP] of BERT's vocabulary, with which every text ends."""


# From a pretrained model to one for a task.


def blip_retriever(model: BLIP) -> BLIP:
    """A BLIP for retrieval: the encoders of the pretrained ``model`` without its decoder.

    A model without a temperature, such as one from transformers, gets a fresh one.
    """
    temperature = model.config.temperature or BLIPConfig.temperature
    config = replace(model.config, heads=("contrast", "match"), temperature=temperature)
    return _continued(config, model.state_dict())


def blip_captioner(model: BLIP) -> BLIP:
    """A BLIP that describes images: the decoder of the pretrained ``model`` without its encoder."""
    return _continued(replace(model.config, heads=("words",)), model.state_dict())


def blip_answerer(model: BLIP) -> BLIP:
    """A BLIP that answers questions: encoder and decoder of ``model``, no longer shared.

    The pretrained decoder looked at the image, this one looks at the question: keys and values of
    its cross-attentions start afresh where the two are not equally wide (ViT-L).
    """
    state = dict(model.state_dict())
    if model.config.dim != model.config.text_dim:
        wide = (".cross_attention.k_proj.weight", ".cross_attention.v_proj.weight")
        state = {
            key: tensor
            for key, tensor in state.items()
            if not (key.startswith("text_decoder.") and key.endswith(wide))
        }
    return _continued(replace(model.config, heads=("answers",)), state)


def blip_classifier(model: BLIP, num_classes: int, num_images: int = 1) -> BLIP:
    """A BLIP with a fresh classes head: NLVR2 with ``num_images=2``.

    Both cross-attentions of a block then start as the one that ``model`` has; what merges their
    results starts afresh.
    """
    settings = {"heads": ("classes",), "num_classes": num_classes, "num_images": num_images}
    state = dict(model.state_dict())
    if num_images > model.config.num_images:
        state = _doubled(state)
    state = {key: t for key, t in state.items() if not key.startswith("heads.classes.")}
    return _continued(replace(model.config, **settings), state)


def _doubled(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A cross-attention becomes two equal ones."""
    doubled = {}
    for key, tensor in state.items():
        start, found, inside = key.partition(".cross_attention.")
        for image in ("0.", "1.") if found else ("",):
            doubled[f"{start}{found}{image}{inside}"] = tensor
    return doubled


def _continued(config: BLIPConfig, state: dict[str, Tensor]) -> BLIP:
    """A new model with everything that ``state`` has for it."""
    fresh = BLIP(config)
    own = fresh.state_dict()
    fresh.load_state_dict(own | {key: t for key, t in state.items() if key in own})
    return fresh


# Training.


class BLIPRetrieval(BLIPPretraining):
    """A ``BLIP`` learning retrieval: contrast and matching (``models/blip_retrieval.py``).

    ``batch`` also has ``"image_ids"``: captions of one image share its number. All of them, in the
    batch and in the queue, are right answers of the contrast, and none is a negative of matching.
    Alpha rises over the first epoch. Negatives are drawn by the similarities of the network's own
    features, not the twin's. With ``negatives_of_all`` (COCO, not Flickr30K) they come from all
    processes: gradients find their way to the wrong images, and texts of all must be equally long.
    """

    needed_heads = ("contrast", "match")
    negative_floor = 0.0
    knows_images = True

    def __init__(self, network: BLIP, *settings, negatives_of_all: bool = True, **more):
        super().__init__(network, *settings, **more)
        self.negatives_of_all = negatives_of_all

    def candidates(self, batch: dict[str, Tensor], contrast: MomentumContrast) -> Candidates:
        """Negatives come from the batch of this process or of all."""
        gather = gather_with_gradient if self.negatives_of_all else _as_it_is
        ids, image_ids = batch["input_ids"], batch["image_ids"]
        with torch.no_grad():
            images, texts = contrast.image_features, contrast.text_features
            temperature = self.network.temperature
            text_to_image = texts @ gather(images).T / temperature
            image_to_text = images @ gather(texts).T / temperature
        return Candidates(
            gather(contrast.image_tokens),
            gather(ids),
            gather(valid_tokens(ids, batch.get("attention_mask"))),
            text_to_image,
            image_to_text,
            image_ids[:, None] == gather(image_ids),
        )


def _as_it_is(x: Tensor) -> Tensor:
    return x


class BLIPCaptioning(nn.Module):
    """A ``BLIP`` with a words head learning to describe images (``models/blip.py``).

    Captions begin with a prompt ("a picture of"); its ``prompt_length`` tokens, [DEC] included, are
    given and not learned. 0 or 1 is for captions without a prompt.
    """

    def __init__(
        self, network: BLIP, prompt_length: int = 0, label_smoothing: float = LABEL_SMOOTHING
    ):
        super().__init__()
        network.head("words")
        check(prompt_length >= 0, "prompt_length", prompt_length, "at least 0")
        self.network = network
        self.prompt_length = prompt_length
        self.label_smoothing = label_smoothing

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The language-modelling loss of ``"input_ids"`` (from [CLS] to [SEP]) for ``"images"``.

        ``"attention_mask"`` is needed where texts are padded with anything but 0.
        """
        ids = batch["input_ids"]
        valid = valid_tokens(ids, batch.get("attention_mask"))
        labels = sequence_labels(ids, valid)
        labels[:, : self.prompt_length] = IGNORED
        # The vocabulary is large: words after padding, or of the prompt, are not scored.
        targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
        asked, images = targets != IGNORED, self.network.image_tokens(batch["images"])
        logits = self.network.asked_word_logits(ids, images, asked, valid)
        loss = next_words_loss(logits, targets[asked], self.label_smoothing)
        return {"language_modeling": loss}


class BLIPQuestionAnswering(nn.Module):
    """A ``BLIP`` with an answers head learning to answer questions (``models/blip_vqa.py``)."""

    def __init__(self, network: BLIP, label_smoothing: float = LABEL_SMOOTHING):
        super().__init__()
        network.head("answers")
        self.network = network
        self.label_smoothing = label_smoothing

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weighted losses of all answers, each summed over its words, over the questions.

        ``batch`` has the questions' ``"input_ids"`` and ``"attention_mask"``, their ``"images"``,
        and for all answers in a row ``"answer_ids"`` (from [CLS] to [SEP], then 0),
        ``"question_of"``, the row of its question, and ``"weights"``, the share of people who gave
        it.
        """
        network, ids, rows = self.network, batch["input_ids"], batch["question_of"]
        valid = valid_tokens(ids, batch.get("attention_mask"))
        question = network.ground(ids, network.image_tokens_of(batch["images"]), valid)
        answers = batch["answer_ids"]
        logits = network.answer_logits(answers, question, valid, question_rows=rows)
        labels = sequence_labels(answers, valid_tokens(answers))
        losses = sequence_losses(logits, labels, label_smoothing=self.label_smoothing)
        return {"answers": (batch["weights"] * losses).sum() / len(batch["images"])}


class BLIPClassification(nn.Module):
    """A ``BLIP`` with a classes head in fine-tuning: NLVR2 (``models/blip_nlvr.py``)."""

    def __init__(self, network: BLIP):
        super().__init__()
        network.head("classes")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy with ``"labels"``; the rest of ``batch`` as in ``class_logits``."""
        logits = class_logits(self.network, batch)
        return {"classes": F.cross_entropy(logits, batch["labels"])}


# Use.


def class_logits(network: BLIP, batch: dict[str, Tensor]) -> Float[Tensor, "batch num_classes"]:
    """Scores of the classes for ``"images"``, ``"input_ids"`` and ``"attention_mask"``.

    With two images their shape is (batch, 2, channels, height, width).
    """
    tokens = network.image_tokens_of(batch["images"])
    return network.class_logits(
        network.ground(batch["input_ids"], tokens, batch.get("attention_mask"))
    )


@torch.no_grad()
def match_probabilities(
    network: BLIP,
    images: Float[Tensor, "batch channels height width"],
    input_ids: Int[Tensor, "batch tokens"],
    text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
) -> Float[Tensor, " batch"]:
    """How likely each text fits its image; below 0.5, the filter of CapFilt drops it."""
    grounded = network.ground(input_ids, (network.image_tokens(images),), text_valid)
    return network.matching_logits(grounded).softmax(-1)[:, 1]


@torch.no_grad()
def generate_captions(
    network: BLIP,
    images: Float[Tensor, "batch channels height width"],
    prompt: Int[Tensor, " prompt_tokens"] | None = None,
    end_id: int = SEP_ID,
    **search: float | int,
) -> Int64[Tensor, "batch tokens"]:
    """The likeliest caption of each image that beam search finds, as token numbers.

    ``prompt`` are the tokens that every caption begins with, such as [CLS] "a picture of" without
    [SEP]; the first becomes [DEC]. ``search`` are options of ``mmlab.nn.beam_search``; the official
    code searches with 3 beams for 5 to 20 tokens, prompt and [SEP] included.
    """
    writing = network.start_writing(network.image_tokens(images))
    return beam_search(writing, _prompts(network, len(images), prompt, images), end_id, **search)


@torch.no_grad()
def sample_captions(
    network: BLIP,
    images: Float[Tensor, "batch channels height width"],
    prompt: Int[Tensor, " prompt_tokens"] | None = None,
    end_id: int = SEP_ID,
    **sampling: float | int | torch.Generator | None,
) -> Int64[Tensor, "batch tokens"]:
    """A caption of each image, drawn by nucleus sampling, as token numbers.

    ``sampling`` are options of ``mmlab.nn.sample_text``; the rest as in ``generate_captions``.
    """
    writing = network.start_writing(network.image_tokens(images))
    return sample_text(writing, _prompts(network, len(images), prompt, images), end_id, **sampling)


@torch.no_grad()
def generate_answers(
    network: BLIP,
    images: Float[Tensor, "batch channels height width"],
    input_ids: Int[Tensor, "batch tokens"],
    text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    end_id: int = SEP_ID,
    min_length: int = 1,
    max_length: int = 10,
    **search: float | int,
) -> Int64[Tensor, "batch answer_tokens"]:
    """The likeliest answer to each question that beam search finds, as token numbers.

    The official ``generate`` lets the decoder see the padding of questions, too; here it sees what
    it saw in training.
    """
    valid = valid_tokens(input_ids, text_valid)
    question = network.ground(input_ids, network.image_tokens_of(images), valid)
    writing = network.start_writing(question, valid)
    prompts = _prompts(network, len(images), None, images)
    lengths = {"min_length": min_length, "max_length": max_length}
    return beam_search(writing, prompts, end_id, **lengths, **search)


def _prompts(
    network: BLIP, count: int, prompt: Int[Tensor, " prompt_tokens"] | None, like: Tensor
) -> Int64[Tensor, "batch prompt_tokens"]:
    """The prompt for each row, with [DEC] first; only [DEC] if there is none."""
    start = torch.tensor([network.config.decoder_id], device=like.device)
    rest = start[:0] if prompt is None else prompt[1:].long().to(like.device)
    return torch.cat([start, rest]).expand(count, -1)
