"""UNITER after pre-training: questions, entailment, retrieval, NLVR2, VCR, referring expressions.

Chen et al. 2020 (arXiv 1909.11740), section 4; the losses as in ChenRocks/UNITER (``model``). The
batches of all tasks have texts (``"input_ids"``, ``"attention_mask"``) and regions (``"features"``,
``"locations"``, ``"region_valid"``). What needs no head of UNITER's own works with a ``UnicoderVL``
as well.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from mmlab.models.checks import check, check_integers
from mmlab.models.uniter import REGION_TYPE, TEXT_TYPE, UNITER, pair_features
from mmlab.nn import JointFeatures

ANSWER_TYPE, RATIONALE_TYPE = 2, 3
"""VCR's further rows of the token-type table."""

VCR_WORDS = 81
"""How many tokens VCR adds to the vocabulary: names of persons and things by number."""

_TEXT = ("input_ids", "attention_mask")
_REGIONS = ("features", "locations", "region_valid")


# From a pretrained model to one for a task.


def uniter_answerer(model: UNITER, num_classes: int) -> UNITER:
    """A network that chooses among answers: VQA, or SNLI-VE with three classes; a fresh head."""
    return _continued(model, {"heads": ("answer",), "num_classes": num_classes})


def uniter_ranker(model: UNITER) -> UNITER:
    """A network for retrieval: its score starts as the logit for "match" of ``model``.

    ValueError if that has no ``"match"`` head.
    """
    match = model.head("match")
    ranker = _continued(model, {"heads": ("match", "rank"), "num_classes": 0}, keep=("match",))
    rank = {"weight": match.weight[1:].detach(), "bias": match.bias[1:].detach()}
    ranker.heads["rank"].load_state_dict(rank)
    return ranker


def uniter_reasoner(model: UNITER) -> UNITER:
    """A network for NLVR2: a second image is of a third type, which starts as the first one's."""
    changes = {"heads": ("pair",), "num_classes": 0, "num_types": 3}
    return _continued(model, changes, type_rows=(TEXT_TYPE, REGION_TYPE, REGION_TYPE))


def uniter_chooser(model: UNITER, extra_words: int = VCR_WORDS) -> UNITER:
    """A network for VCR: answers and rationales have types of their own, which start as text's.

    ``extra_words`` random vectors come after the table of words.
    """
    check(extra_words >= 0, "extra_words", extra_words, "a number of at least 0")
    changes = {"heads": ("choice",), "num_classes": 0, "num_types": 4}
    changes["vocab_size"] = model.config.vocab_size + extra_words
    return _continued(model, changes, type_rows=(TEXT_TYPE, REGION_TYPE, TEXT_TYPE, TEXT_TYPE))


def uniter_referrer(model: UNITER, layers: int = 1) -> UNITER:
    """A network for referring expressions, with a head of one or two linear layers."""
    return _continued(model, {"heads": ("refer",), "num_classes": 0, "refer_layers": layers})


def _continued(
    model: UNITER,
    changes: dict[str, object],
    keep: Sequence[str] = (),
    type_rows: Sequence[int] | None = None,
) -> UNITER:
    """A network with ``changes`` that goes on from ``model``; of its heads those to ``keep``."""
    fresh = type(model)(replace(model.config, **changes))
    own, state = fresh.state_dict(), dict(model.state_dict())
    table, words = (f"text_embeddings.{name}_embedding.weight" for name in ("type", "word"))
    if type_rows is not None:
        state[table] = state[table][list(type_rows)]
    state[words] = torch.cat([state[words], own[words][len(state[words]) :]])
    kept = tuple(f"heads.{name}." for name in keep)
    old = {k: t for k, t in state.items() if k.startswith(kept) or not k.startswith("heads.")}
    fresh.load_state_dict(own | old)
    return fresh


# Training.


class UNITERQuestionAnswering(nn.Module):
    """A network with an ``"answer"`` head learning to answer questions (VQA)."""

    def __init__(self, network: UNITER):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy with ``"scores"``, how right each answer is (0 to 1), summed.

        The mean is over the batch.
        """
        logits = self.network.answer_logits(pair_features(self.network, batch))
        return {"answers": _answer_loss(logits, batch["scores"])}


class UNITEREntailment(nn.Module):
    """A network whose ``"answer"`` head says whether a text follows from an image (SNLI-VE).

    The official code treats the three classes as VQA's answers: they do not compete in a softmax.
    """

    def __init__(self, network: UNITER):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy of each class, summed; ``"labels"`` are the right classes."""
        logits = self.network.answer_logits(pair_features(self.network, batch))
        scores = F.one_hot(batch["labels"], logits.shape[1]).to(logits.dtype)
        return {"answers": _answer_loss(logits, scores)}


def _answer_loss(
    logits: Float[Tensor, "batch answers"], scores: Float[Tensor, "batch answers"]
) -> Float[Tensor, ""]:
    return F.binary_cross_entropy_with_logits(logits, scores) * scores.shape[1]


class UNITERRetrieval(nn.Module):
    """A network with a ``"rank"`` head learning to find true pairs among false ones.

    Texts and regions have the shape (batch, pairs, …), the first pair is the true one. Where all
    pairs share a text, or an image, one is enough: (batch, 1, …). With ``hardest`` all pairs are
    scored first, without gradient and dropout, and only so many false ones with the highest scores
    are learnt from: the paper takes 31 of 399.
    """

    def __init__(self, network: UNITER, margin: float = 0.2, hardest: int | None = None):
        super().__init__()
        network.head("rank")
        self.network, self.margin, self.hardest = network, margin, hardest
        if hardest is not None:
            check_integers(self, "hardest")

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """By how much a false pair's score comes closer than ``margin`` to the true one's.

        Scores are probabilities here. The mean is over all false pairs.
        """
        pairs = _spread(batch)
        if self.hardest is not None:
            pairs = _choose(pairs, self._hardest(pairs, self.hardest))
        scores = self.scores(pairs).sigmoid()
        return {"ranking": F.relu(self.margin + scores[:, 1:] - scores[:, :1]).mean()}

    def scores(self, batch: dict[str, Tensor]) -> Float[Tensor, "batch pairs"]:
        """The score of each pair, before the sigmoid."""
        pairs = _spread(batch)
        flat = {name: entry.flatten(0, 1) for name, entry in pairs.items()}
        scores = self.network.rank_scores(pair_features(self.network, flat))
        return scores.unflatten(0, pairs["input_ids"].shape[:2])

    @torch.no_grad()
    def _hardest(self, pairs: dict[str, Tensor], count: int) -> Int64[Tensor, "batch kept"]:
        """The true pair, then the false ones with the highest scores."""
        was_training = self.network.training
        self.network.eval()
        try:
            false = self.scores(pairs)[:, 1:]
        finally:
            self.network.train(was_training)
        hard = false.topk(min(count, false.shape[1])).indices + 1
        return F.pad(hard, (1, 0))


def _spread(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Texts and regions of all pairs, also of those that share one."""
    entries = {name: batch[name] for name in (*_TEXT, *_REGIONS)}
    count = max(entry.shape[1] for entry in entries.values())
    return {name: t.expand(-1, count, *t.shape[2:]) for name, t in entries.items()}


def _choose(pairs: dict[str, Tensor], kept: Int64[Tensor, "batch kept"]) -> dict[str, Tensor]:
    rows = torch.arange(len(kept), device=kept.device)[:, None]
    return {name: entry[rows, kept] for name, entry in pairs.items()}


class UNITERReasoning(nn.Module):
    """A network with a ``"pair"`` head: is a text true of two images? (NLVR2)"""

    def __init__(self, network: UNITER):
        super().__init__()
        network.head("pair")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of ``"labels"``; regions have the shape (batch, 2, regions, …)."""
        return {"answers": F.cross_entropy(self.logits(batch), batch["labels"])}

    def logits(self, batch: dict[str, Tensor]) -> Float[Tensor, "batch 2"]:
        """Scores of "false" and "true"."""
        left, right = (self._side(batch, image) for image in (0, 1))
        text_valid, region_valid = batch["attention_mask"].bool(), batch["region_valid"].bool()
        valid = [torch.cat([text_valid, region_valid[:, image]], dim=1) for image in (0, 1)]
        return self.network.pair_logits(left, right, *valid)

    def _side(self, batch: dict[str, Tensor], image: int) -> JointFeatures:
        """The whole text with one of the images."""
        one = {name: batch[name] for name in _TEXT} | {n: batch[n][:, image] for n in _REGIONS}
        types = torch.full_like(one["region_valid"], REGION_TYPE + image, dtype=torch.long)
        return pair_features(self.network, one, region_types=types)


class UNITERChoice(nn.Module):
    """A network with a ``"choice"`` head: which answer, or rationale, is right? (VCR)

    Texts have the shape (batch, choices, tokens), each made by ``choice_text``.
    """

    def __init__(self, network: UNITER):
        super().__init__()
        network.head("choice")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Each choice is right or wrong by itself, ``"labels"`` (batch) tell the right ones.

        Cross-entropy of two classes, mean over all choices: they do not compete.
        """
        logits = self._logits(batch)
        right = F.one_hot(batch["labels"], logits.shape[1])
        return {"choices": F.cross_entropy(logits.flatten(0, 1), right.flatten())}

    def scores(self, batch: dict[str, Tensor]) -> Float[Tensor, "batch choices"]:
        """The logit for "right" of each choice; the highest is chosen."""
        return self._logits(batch)[..., 1]

    def _logits(self, batch: dict[str, Tensor]) -> Float[Tensor, "batch choices 2"]:
        count = batch["input_ids"].shape[1]
        flat = {name: batch[name].flatten(0, 1) for name in _TEXT}
        flat |= {name: batch[name].repeat_interleave(count, dim=0) for name in _REGIONS}
        types = batch["text_types"].flatten(0, 1)
        features = pair_features(self.network, flat, text_types=types)
        return self.network.choice_logits(features).unflatten(0, (-1, count))


def choice_text(
    question: Sequence[int],
    choice: Sequence[int],
    cls_id: int,
    sep_id: int,
    answer: Sequence[int] | None = None,
) -> tuple[Int[Tensor, " tokens"], Int[Tensor, " tokens"]]:
    """The tokens of a question and one choice, and their types (``data/vcr.py``).

    The choice is an answer, or with ``answer`` (the right one) a rationale for it. A [SEP] has the
    type of what comes after it.
    """
    given = [] if answer is None else [sep_id, *answer]
    ids = [cls_id, *question, *given, sep_id, *choice, sep_id]
    kind = ANSWER_TYPE if answer is None else RATIONALE_TYPE
    types = [TEXT_TYPE] * (1 + len(question)) + [ANSWER_TYPE] * len(given)
    types += [kind] * (len(choice) + 2)
    return torch.tensor(ids), torch.tensor(types)


class UNITERReferring(nn.Module):
    """A network with a ``"refer"`` head: which region does an expression mean? (RefCOCO)"""

    def __init__(self, network: UNITER):
        super().__init__()
        network.head("refer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy over the regions of an image; ``"labels"`` are the right ones."""
        return {"regions": F.cross_entropy(self.scores(batch), batch["labels"])}

    def scores(self, batch: dict[str, Tensor]) -> Float[Tensor, "batch regions"]:
        """The score of each region; the highest is meant."""
        features = pair_features(self.network, batch)
        return self.network.refer_scores(features, batch["region_valid"].bool())
