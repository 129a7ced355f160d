"""ViLT after pre-training: questions, statements about two images, retrieval.

Kim, Son and Kim 2021 (arXiv 2102.03334), sections 4.3 and 4.4; the losses as in dandelin/ViLT
(``vilt/modules/objectives.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlab.models.checks import check
from mmlab.models.vilt import ViLT, ViLTFeatures, ViLTPretraining
from mmlab.objectives.masked_language import share_masked_loss


def vilt_classifier(model: ViLT, num_classes: int, num_images: int = 1) -> ViLT:
    """A ViLT for fine-tuning on questions (VQA) or, with two images, on statements (NLVR2).

    It starts from a pretrained ``model`` with a fresh answer head; a second image starts with the
    modality row of the first, as in the official code.
    """
    heads = {"heads": ("answer",), "num_classes": num_classes, "num_images": num_images}
    state = dict(model.state_dict())
    rows = state["modality_embedding.weight"][:2]
    extra = rows[1:].expand(num_images - 1, -1)
    state["modality_embedding.weight"] = torch.cat([rows, extra])
    return _continued(ViLT(replace(model.config, **heads)), state)


def vilt_ranker(model: ViLT) -> ViLT:
    """A ViLT for retrieval: its score starts as the logit for "match" of the pretrained ``model``.

    ValueError if that has no ``"match"`` head.
    """
    model.head("match")
    state = _with_rank(model.state_dict())
    return _continued(ViLT(replace(model.config, heads=("rank",), num_classes=0)), state)


def _with_rank(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    rows = {f"heads.rank.{name}": state[f"heads.match.{name}"][1:] for name in ("weight", "bias")}
    return {**state, **rows}


@torch.no_grad()
def start_from_vilt(model: ViLT, pretrained: ViLT) -> None:
    """Give ``model`` the weights of a pretrained ViLT, with those heads that both have.

    The score for retrieval starts as in ``vilt_ranker``. ValueError if anything but the heads is of
    another shape.
    """
    state = dict(pretrained.state_dict())
    if "match" in pretrained.heads and "rank" not in pretrained.heads:
        state = _with_rank(state)
    own = model.state_dict()
    fitting = {key for key in own.keys() & state.keys() if own[key].shape == state[key].shape}
    others = (own.keys() | state.keys()) - fitting
    unfit = sorted(key for key in others if not key.startswith("heads."))
    if unfit:
        raise ValueError(f"the two ViLTs must have the same shape; they differ in {unfit[0]!r}")
    model.load_state_dict(own | {key: state[key] for key in fitting})


def _continued(fresh: ViLT, state: dict[str, Tensor]) -> ViLT:
    """``fresh`` with everything that ``state`` has for it."""
    own = fresh.state_dict()
    fresh.load_state_dict(own | {key: t for key, t in state.items() if key in own})
    return fresh


class ViLTQuestionAnswering(nn.Module):
    """A ``ViLT`` with an ``"answer"`` head learning to answer questions (ViLT, section 4.3)."""

    def __init__(self, network: ViLT):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy with ``"scores"``, how right each answer is (0 to 1), summed.

        The other entries of ``batch`` are ``"input_ids"``, ``"attention_mask"``, ``"images"`` and,
        where they are padded, ``"image_sizes"``. The mean is over the batch.
        """
        features = _pair_features(self.network, batch)
        logits, scores = self.network.answer_logits(features), batch["scores"]
        loss = F.binary_cross_entropy_with_logits(logits, scores) * scores.shape[1]
        return {"answers": loss}


class ViLTReasoning(nn.Module):
    """A ``ViLT`` for pairs of images: is the text true of them? (NLVR2; ViLT, section 4.3)."""

    def __init__(self, network: ViLT):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of ``"labels"``.

        ``"images"`` has shape (batch, images, channels, height, width), and ``"image_sizes"``, if
        there, (batch, images, 2). Each image is a forward pass of its own with the whole text.
        """
        images, sizes = batch["images"], batch.get("image_sizes")
        features = [
            self.network(
                batch["input_ids"],
                images[:, index],
                batch["attention_mask"],
                None if sizes is None else sizes[:, index],
                image_number=index + 1,
            )
            for index in range(images.shape[1])
        ]
        logits = self.network.answer_logits(*features)
        return {"answers": F.cross_entropy(logits, batch["labels"])}


class ViLTRetrieval(nn.Module):
    """A ``ViLT`` with a ``"rank"`` head learning to find an image's text (ViLT, section 4.4)."""

    def __init__(self, network: ViLT):
        super().__init__()
        network.head("rank")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of the first text among several of one image; the paper has 15 false ones.

        ``"input_ids"`` and ``"attention_mask"`` have shape (batch, texts, tokens).
        """
        count = batch["input_ids"].shape[1]
        rows = {"input_ids", "attention_mask"}
        flat = {
            key: t.flatten(0, 1) if key in rows else t.repeat_interleave(count, dim=0)
            for key, t in batch.items()
        }
        scores = self.network.rank_scores(_pair_features(self.network, flat)).unflatten(
            0, (-1, count)
        )
        first = torch.zeros(len(scores), dtype=torch.long, device=scores.device)
        return {"ranking": F.cross_entropy(scores, first)}


class ViLTLessons(nn.Module):
    """A ``ViLT`` that learns with all of its heads side by side; ``network`` is the model.

    Pre-training for ``"words"`` and ``"match"`` (and ``"patches"``), questions for ``"answer"``,
    retrieval for ``"rank"``. The paper has one after the other; a small model, whose time is
    short, may learn from all at once. ``mask_id`` as in ``ViLTPretraining``. ValueError for a model
    without a head, or with one of ``"words"`` and ``"match"`` but not the other.
    """

    def __init__(self, network: ViLT, mask_id: int = 103):
        super().__init__()
        heads = network.config.heads
        check(bool(heads), "heads", heads, "the heads to train, and not empty")
        self.network = network
        self._lessons = []
        if {"words", "match", "patches"} & set(heads):
            self._lessons.append((ViLTPretraining(network, mask_id, None), _PRETRAINING))
        if "answer" in heads:
            self._lessons.append((ViLTQuestionAnswering(network), _QUESTIONS))
        if "rank" in heads:
            self._lessons.append((ViLTRetrieval(network), _RANKING))

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The losses of all heads; ``batch`` is that of ``PairedScenes.batch``."""
        losses: dict[str, Tensor] = {}
        for lesson, entries in self._lessons:
            given = {name: batch[entry] for name, entry in entries.items() if entry in batch}
            losses |= lesson.losses(given)
        return share_masked_loss(losses, batch)


_TEXT = ("input_ids", "attention_mask")
_PRETRAINING = {
    name: name for name in ("images", *_TEXT, "masked_ids", "labels", "matched", "false_images")
}
_QUESTIONS = {"images": "images", "scores": "scores"} | dict(
    zip(_TEXT, ("question_ids", "question_mask"), strict=True)
)
_RANKING = {"images": "images"} | dict(zip(_TEXT, ("text_ids", "text_mask"), strict=True))
"""What a lesson calls the entries of the common batch."""


def _pair_features(network: ViLT, batch: dict[str, Tensor]) -> ViLTFeatures:
    sizes = batch.get("image_sizes")
    return network(batch["input_ids"], batch["images"], batch["attention_mask"], sizes)
