"""VisualBERT after pre-training: questions, pairs of images, choices, grounding.

Li et al. 2019 (arXiv 1908.03557), section 4; heads and losses as in uclanlp/visualbert
(``TrainVisualBERTObjective``).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from mmlab.models.visualbert import VisualBERT, features_of


def visualbert_classifier(
    model: VisualBERT, num_classes: int, answer_from: str = "last_word"
) -> VisualBERT:
    """A VisualBERT with a fresh answer head.

    VQA reads the ``"last_word"``; NLVR2 (two classes) and VCR (one) read ``"pooled"``.
    """
    heads = {"heads": ("answer",), "num_classes": num_classes, "answer_from": answer_from}
    return _continued(model, **heads)


def visualbert_grounder(model: VisualBERT) -> VisualBERT:
    """A VisualBERT with a fresh grounding head beside the heads of ``model``."""
    return _continued(model, heads=(*model.config.heads, "grounding"))


def _continued(model: VisualBERT, **changes: object) -> VisualBERT:
    """A new model with all weights of ``model`` but those of its answers."""
    fresh = VisualBERT(replace(model.config, **changes))
    own = fresh.state_dict()
    old = {key: t for key, t in model.state_dict().items() if not key.startswith("heads.answer.")}
    fresh.load_state_dict(own | {key: t for key, t in old.items() if key in own})
    return fresh


class VisualBERTQuestionAnswering(nn.Module):
    """A ``VisualBERT`` with an ``"answer"`` head learning to answer questions (section 4.1)."""

    def __init__(self, network: VisualBERT):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """KL divergence of the answers from ``"scores"``, how right each is, mean over the batch.

        Not binary cross-entropy, as other systems have it: the answers compete. The scores of a
        question, 0 to 1 each, need not sum to 1. The other entries are those of ``features_of``.
        """
        logits = self.network.answer_logits(features_of(self.network, batch))
        loss = F.kl_div(logits.log_softmax(-1), batch["scores"], reduction="batchmean")
        return {"answers": loss}


class VisualBERTReasoning(nn.Module):
    """A ``VisualBERT`` for pairs of images: is the text true of them? (NLVR2; section 4.3)."""

    def __init__(self, network: VisualBERT):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of ``"labels"``.

        ``"features"`` has shape (batch, 2, regions, feature_dim) and ``"region_valid"``, if there,
        (batch, 2, regions). All regions make one sequence, told apart by their types.
        """
        logits = self.network.answer_logits(features_of(self.network, in_one_sequence(batch)))
        return {"answers": F.cross_entropy(logits, batch["labels"])}


def in_one_sequence(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The regions of both images of each text as one image's, of type 0 and of type 1."""
    features = batch["features"]
    number = torch.arange(features.shape[1], device=features.device)
    types = number[:, None].expand(features.shape[:3])
    given = {"features": features, "region_types": types}
    given |= {"region_valid": batch["region_valid"]} if "region_valid" in batch else {}
    return batch | {name: value.flatten(1, 2) for name, value in given.items()}


class VisualBERTChoices(nn.Module):
    """A ``VisualBERT`` that scores each of several choices (VCR; section 4.2).

    A question and an answer are one text; of the second task, a question with its answer and a
    rationale. The network has one class. In the paper its detector is trained along.
    """

    def __init__(self, network: VisualBERT):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of ``"labels"``, the number of the right choice; see ``choice_scores``."""
        return {"choices": F.cross_entropy(choice_scores(self.network, batch), batch["labels"])}


TEXT_ENTRIES = ("input_ids", "attention_mask", "types", "alignment")


def choice_scores(network: VisualBERT, batch: dict[str, Tensor]) -> Float[Tensor, "batch choices"]:
    """One score a choice.

    What belongs to the texts (``"input_ids"``, ``"attention_mask"``, ``"types"``, ``"alignment"``)
    has an axis of choices after that of the batch; the regions are the same for all choices.
    """
    count = batch["input_ids"].shape[1]
    flat = {
        name: value.flatten(0, 1) if name in TEXT_ENTRIES else value.repeat_interleave(count, 0)
        for name, value in batch.items()
    }
    scores = network.answer_logits(features_of(network, flat)).squeeze(-1)
    return scores.unflatten(0, (-1, count))


class VisualBERTGrounding(nn.Module):
    """A ``VisualBERT`` with a ``"grounding"`` head: which region? (Flickr30k; section 4.4)."""

    def __init__(self, network: VisualBERT):
        super().__init__()
        network.head("grounding")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """KL divergence from ``"targets"`` (batch, phrases, regions), sum over phrases.

        ``"places"`` (batch, phrases) are the tokens that stand for the phrases, filled up with -1;
        targets of such rows are 0. Mean over the batch, so images with many phrases count more.
        """
        network = self.network
        features = features_of(network, batch)
        scores = network.grounding_logits(features, batch["places"], batch.get("region_valid"))
        loss = F.kl_div(scores.log_softmax(-1), batch["targets"], reduction="batchmean")
        return {"grounding": loss}


def grounding_recall(
    scores: Float[Tensor, "batch phrases regions"],
    right: Bool[Tensor, "batch phrases regions"],
    k: int = 1,
) -> Float[Tensor, ""]:
    """The share of phrases, of those with a right region, that have one among their ``k`` best."""
    best = scores.topk(min(k, scores.shape[-1]), dim=-1).indices
    found, asked = right.gather(-1, best).any(-1), right.any(-1)
    return (found & asked).sum() / asked.sum().clamp_min(1)
