"""ALBEF after pre-training: retrieval, visual entailment, pairs of images, questions.

Li et al. 2021 (arXiv 2107.07651), section 5; the losses as in salesforce/ALBEF (``models``). All
tasks go on learning from a momentum twin.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from mmlab.models.albef import ALBEF, PAD_ID, ALBEFConfig, ALBEFPretraining
from mmlab.nn import MomentumTwin
from mmlab.objectives.distillation import distilled_classification_loss
from mmlab.objectives.language_modeling import sequence_labels, sequence_losses
from mmlab.objectives.matching import sample_several_hard_negatives

ASSIGNMENT_TEMPERATURE = 0.07
"""What similarities of images are divided by in text assignment, whatever the model has learned."""


# From a pretrained model to one for a task.


def albef_retriever(model: ALBEF) -> ALBEF:
    """An ALBEF for retrieval: the pretrained ``model`` without its words head."""
    config = replace(model.config, heads=("contrast", "match"))
    return _continued(config, model.state_dict())


def albef_classifier(
    model: ALBEF, num_classes: int, num_images: int = 1, hidden_head: bool = True
) -> ALBEF:
    """An ALBEF with a fresh classes head: visual entailment, or NLVR2 with ``num_images=2``.

    With two images each fusion block of ``model``, which has one, is there twice (section 5.4).
    With ``hidden_head=False`` it is the model of text assignment and keeps the contrast head; one
    with two images already, as text assignment leaves it, is taken as it is.
    """
    heads = ("classes",) if hidden_head else ("contrast", "classes")
    settings = {"num_classes": num_classes, "num_images": num_images, "hidden_head": hidden_head}
    state = dict(model.state_dict())
    if num_images > model.config.num_images:
        state = _doubled(state, model.config)
    state = {key: t for key, t in state.items() if not key.startswith("heads.classes.")}
    return _continued(replace(model.config, heads=heads, **settings), state)


def albef_answerer(model: ALBEF) -> ALBEF:
    """An ALBEF that answers questions: the decoder starts as the pretrained fusion blocks.

    Its embeddings and its words head are those of ``model``, too (``VQA.py``).
    """
    state, depth = dict(model.state_dict()), model.config.text_depth
    decoder = "heads.answers."
    for key, tensor in model.state_dict().items():
        _, _, inside = key.partition("text_encoder.")
        if inside.startswith("embeddings."):
            state[decoder + inside] = tensor
        elif inside.startswith("blocks."):
            _, block, rest = inside.split(".", 2)
            if int(block) >= depth:
                state[f"{decoder}blocks.{int(block) - depth}.{rest}"] = tensor
        elif key.startswith("heads.words."):
            state[key.replace("heads.words.", f"{decoder}words.")] = tensor
    # The decoder looks at the question, the fusion blocks at the image: keys and values only fit
    # where both are equally wide.
    if model.config.dim != model.config.text_dim:
        wide = (".cross_attention.k_proj.weight", ".cross_attention.v_proj.weight")
        state = {k: t for k, t in state.items() if not (k.startswith(decoder) and k.endswith(wide))}
    return _continued(replace(model.config, heads=("answers",)), state)


def _doubled(state: dict[str, Tensor], config: ALBEFConfig) -> dict[str, Tensor]:
    """Fusion block ``n`` becomes blocks ``2n`` and ``2n + 1`` after the text's."""
    doubled = {}
    for key, tensor in state.items():
        start, found, inside = key.partition("text_encoder.blocks.")
        block, _, rest = inside.partition(".")
        fusion = int(block) - config.text_depth if found else -1
        if fusion < 0:
            doubled[key] = tensor
            continue
        for image in range(2):
            number = config.text_depth + 2 * fusion + image
            doubled[f"{start}{found}{number}.{rest}"] = tensor
    return doubled


def _continued(config: ALBEFConfig, state: dict[str, Tensor]) -> ALBEF:
    """A new model with everything that ``state`` has for it."""
    fresh = ALBEF(config)
    own = fresh.state_dict()
    fresh.load_state_dict(own | {key: t for key, t in state.items() if key in own})
    return fresh


# Training.


class ALBEFRetrieval(ALBEFPretraining):
    """An ``ALBEF`` learning retrieval: contrast and matching, without masked words (section 5.1).

    ``batch`` also has ``"image_ids"``: captions of one image share its number. All of them, in the
    batch and in the queue, are right answers of the contrast, and none is a negative of matching.
    The temperature is not clamped.
    """

    needed_heads = ("contrast", "match")
    clamps_temperature = False
    knows_images = True


class ALBEFClassification(nn.Module):
    """An ``ALBEF`` with a classes head in fine-tuning: visual entailment, NLVR2 (section 5).

    ``decay``, ``alpha`` and ``ramp_steps`` are those of the ``MomentumTwin``. The official code
    lets alpha rise over the first epoch for NLVR2, not for entailment.
    """

    def __init__(
        self, network: ALBEF, decay: float = 0.995, alpha: float = 0.4, ramp_steps: int = 0
    ):
        super().__init__()
        network.head("classes")
        self.network = network
        self.momentum = MomentumTwin(network, decay, alpha, ramp_steps)

    def losses(self, batch: dict[str, Tensor], update: bool = True) -> dict[str, Tensor]:
        """Cross-entropy with ``"labels"`` and with the twin's guess.

        The other entries of ``batch`` are ``"images"`` (of shape (batch, 2, channels, height,
        width) with two images), ``"input_ids"`` and ``"attention_mask"``. ``update=False`` leaves
        the twin as it is.
        """
        if update:
            self.momentum.update(self.network)
        logits = class_logits(self.network, batch)
        with torch.no_grad():
            guess = class_logits(self.momentum.network, batch)
        alpha = self.momentum.weight()
        return {"classes": distilled_classification_loss(logits, batch["labels"], guess, alpha)}


def class_logits(network: ALBEF, batch: dict[str, Tensor]) -> Float[Tensor, "batch num_classes"]:
    """Scores of the classes for a batch as in ``ALBEFClassification``."""
    features = network(batch["input_ids"], batch["images"], batch.get("attention_mask"))
    return network.class_logits(features.fused)


class Assignment(NamedTuple):
    """Two images for each text, as rows of the batch, and where its own one is: 0, 1 or 2, none."""

    first: Int64[Tensor, " batch"]
    second: Int64[Tensor, " batch"]
    labels: Int64[Tensor, " batch"]


class ALBEFTextAssignment(nn.Module):
    """The extra pre-training before NLVR2: which of two images is the text about? (section 5.4.)

    ``network`` comes from ``albef_classifier(model, 3, num_images=2, hidden_head=False)``. Random
    choices are drawn from ``generator``, or from PyTorch's global random state.
    """

    def __init__(self, network: ALBEF, generator: torch.Generator | None = None):
        super().__init__()
        network.head("contrast")
        network.head("classes")
        self.network = network
        self.generator = generator

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Three-way cross-entropy; ``batch`` has single ``"images"`` and their texts.

        The pairs are drawn by ``assign``, unless ``batch`` gives the entries of an ``Assignment``.
        """
        network = self.network
        images = network.image_tokens(batch["images"])
        given = all(name in batch for name in Assignment._fields)
        drawn = (
            Assignment(*(batch[name] for name in Assignment._fields))
            if given
            else self.assign(network.image_features(images))
        )
        ids, valid = batch["input_ids"], batch.get("attention_mask")
        texts = network.text_tokens(ids, valid)
        valid = ids != 0 if valid is None else valid
        fused = network.fuse(texts, (images[drawn.first], images[drawn.second]), valid)
        return {"assignment": F.cross_entropy(network.class_logits(fused), drawn.labels)}

    @torch.no_grad()
    def assign(self, features: Float[Tensor, "batch embed_dim"]) -> Assignment:
        """Own image first, second, or not at all, a third each; others are drawn by similarity.

        Similar images are likely. ValueError for fewer than three images.
        """
        count, device = len(features), features.device
        similarity = features @ features.T / ASSIGNMENT_TEMPERATURE
        own = torch.eye(count, dtype=torch.bool, device=device)
        other, another = sample_several_hard_negatives(similarity, own, 2, self.generator).unbind(1)
        where = self.generator.device if self.generator is not None else device
        labels = torch.randint(3, (count,), generator=self.generator, device=where).to(device)
        rows = torch.arange(count, device=device)
        first = torch.where(labels == 0, rows, other)
        second = torch.where(labels == 0, other, torch.where(labels == 1, rows, another))
        return Assignment(first, second, labels)


class ALBEFQuestionAnswering(nn.Module):
    """An ``ALBEF`` with an answers head learning to answer questions (section 5.3).

    The paper distils with the momentum twin here as well. The released ``model_vqa.py`` does not
    pass its alpha on, so there the twin's guesses count nothing: ``alpha=0`` is what it does.
    """

    def __init__(
        self, network: ALBEF, decay: float = 0.995, alpha: float = 0.4, ramp_steps: int = 0
    ):
        super().__init__()
        network.head("answers")
        self.network = network
        self.momentum = MomentumTwin(network, decay, alpha, ramp_steps)

    def losses(self, batch: dict[str, Tensor], update: bool = True) -> dict[str, Tensor]:
        """The weighted log-likelihoods of all answers, over the number of questions.

        ``batch`` has the questions' ``"input_ids"`` and ``"attention_mask"``, their ``"images"``,
        and for all answers in a row ``"answer_ids"`` (from [CLS] to [SEP], then 0),
        ``"question_of"``, the row of its question, and ``"weights"``, the share of people who gave
        it. ``update=False`` leaves the twin as it is.
        """
        if update:
            self.momentum.update(self.network)
        logits = self._logits(self.network, batch)
        with torch.no_grad():
            guess = self._logits(self.momentum.network, batch)
        labels = sequence_labels(batch["answer_ids"], batch["answer_ids"] != PAD_ID)
        losses = sequence_losses(logits, labels, guess, self.momentum.weight())
        return {"answers": (batch["weights"] * losses).sum() / len(batch["images"])}

    @staticmethod
    def _logits(network: ALBEF, batch: dict[str, Tensor]) -> Tensor:
        ids, rows = batch["input_ids"], batch["question_of"]
        valid = batch.get("attention_mask", ids != 0)
        question = network(ids, batch["images"], valid).fused
        return network.answer_logits(batch["answer_ids"], question, valid, question_rows=rows)


@torch.no_grad()
def rank_answers(
    network: nn.Module,
    question: Float[Tensor, "batch tokens text_dim"],
    question_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"],
    answer_ids: Int[Tensor, "answers answer_tokens"],
    k: int = 128,
    first_word_weight: float = 1.0,
    label_smoothing: float = 0.0,
) -> tuple[Int64[Tensor, "batch k"], Float[Tensor, "batch k"]]:
    """The ``k`` best of a list of answers for each question, best first, with probabilities.

    ``network`` is an ``ALBEF`` or a ``BLIP`` with an answers head, ``question`` what its encoder
    made of the question. Answers whose first word is likely are candidates; their whole
    log-likelihood ranks them, and its softmax over the ``k`` is the probability. The released code
    of ALBEF counts the first word twice there: ``first_word_weight=2``; BLIP's ranks by the loss of
    its training: ``label_smoothing=0.1``. With fewer than ``k`` answers, all are candidates.
    """
    count, k = len(question), min(k, len(answer_ids))
    start = answer_ids[:1, :1].expand(count, 1)
    words = network.answer_logits(start, question, question_valid)[:, 0].log_softmax(-1)
    first, candidates = words[:, answer_ids[:, 1]].topk(k, dim=1)
    ids = answer_ids[candidates.flatten()]
    rows = torch.arange(count, device=question.device).repeat_interleave(k)
    logits = network.answer_logits(ids, question, question_valid, question_rows=rows)
    labels = sequence_labels(ids, ids != PAD_ID)
    losses = sequence_losses(logits, labels, label_smoothing=label_smoothing)
    likelihood = -losses.unflatten(0, (count, k))
    likelihood = likelihood + (first_word_weight - 1) * first
    probabilities, order = likelihood.softmax(-1).sort(dim=1, descending=True)
    return candidates.gather(1, order), probabilities
