"""LXMERT after pre-training: questions (VQA, GQA), statements about two images (NLVR2).

Tan and Bansal 2019 (arXiv 1908.07490), section 4; the losses as in airsplay/lxmert
(``src/tasks``), the answers that pre-training knows as in ``src/pretrain/qa_answer_table.py``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmlab.models.lxmert import LXMERT, pair_features

_ARTICLES = ("a ", "an ", "the ")
_OTHER_SPELLINGS = {
    **{
        word: str(number)
        for number, word in enumerate(
            ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"), 1
        )
    },
    "grey": "gray",
}


def lxmert_classifier(model: LXMERT, num_classes: int, num_images: int = 1) -> LXMERT:
    """An LXMERT for questions (VQA, GQA) or, with two images, for statements (NLVR2).

    It starts from a pretrained ``model``, with a fresh answer head; for a head that knows the
    answers of pre-training see ``start_answers``.
    """
    heads = {"heads": ("answer",), "num_classes": num_classes, "num_images": num_images}
    fresh = LXMERT(replace(model.config, **heads))
    state = {key: t for key, t in model.state_dict().items() if not key.startswith("heads.")}
    fresh.load_state_dict(fresh.state_dict() | state)
    return fresh


@torch.no_grad()
def start_from_lxmert(model: LXMERT, pretrained: LXMERT) -> None:
    """Give ``model`` the weights of a pretrained LXMERT, with those heads that both have.

    ValueError if anything but the heads is of another shape.
    """
    own, state = model.state_dict(), pretrained.state_dict()
    fitting = {key for key in own.keys() & state.keys() if own[key].shape == state[key].shape}
    others = (own.keys() | state.keys()) - fitting
    unfit = sorted(key for key in others if not key.startswith("heads."))
    if unfit:
        raise ValueError(f"the two LXMERTs must have the same shape; they differ in {unfit[0]!r}")
    model.load_state_dict(own | {key: state[key] for key in fitting})


@torch.no_grad()
def start_answers(
    model: LXMERT,
    answers: Sequence[str],
    pretrained: LXMERT,
    pretrained_answers: Sequence[str],
) -> list[str]:
    """Give the answer head of ``model`` what ``pretrained`` knows of ``answers``, by their words.

    The hidden layer becomes that of ``pretrained``, and so does the row of each answer among
    ``pretrained_answers`` (after ``plain_answer``). The other rows become zero; these answers are
    returned. ValueError if the lists are not those of the heads, or the heads not of one shape.
    """
    own, known = model.head("answer"), pretrained.head("answer")
    for name, network, given in (
        ("answers", model, answers),
        ("pretrained_answers", pretrained, pretrained_answers),
    ):
        if len(given) != network.config.num_classes:
            count = network.config.num_classes
            raise ValueError(f"{name} must be the {count} answers of the head, got {len(given)}")
    if own.transform.dense.weight.shape != known.transform.dense.weight.shape:
        raise ValueError("both answer heads must be for equally many images and equally wide")
    own.transform.load_state_dict(known.transform.state_dict())
    rows = {answer: row for row, answer in enumerate(pretrained_answers)}
    found = [rows.get(plain_answer(answer), -1) for answer in answers]
    places = torch.tensor(found, device=known.decoder.weight.device)
    for mine, theirs in zip(own.decoder.parameters(), known.decoder.parameters(), strict=True):
        mine.copy_(theirs[places.clamp_min(0)])
        mine[(places < 0).to(mine.device)] = 0.0
    return [answer for answer, row in zip(answers, found, strict=True) if row < 0]


def plain_answer(answer: str) -> str:
    """``"The two."`` as ``"2"``: how the table of LXMERT's 9500 answers spells an answer.

    Small letters, no full stop, no article, numbers up to ten in figures, "gray".
    """
    answer = answer.lower()
    if answer.endswith("."):
        answer = answer[:-1].strip()
    for article in _ARTICLES:
        answer = answer.removeprefix(article).strip() if answer.startswith(article) else answer
    return _OTHER_SPELLINGS.get(answer, answer)


class LXMERTQuestionAnswering(nn.Module):
    """An ``LXMERT`` with an ``"answer"`` head learning to answer questions (VQA, GQA).

    ``one_right`` treats the best answer as the only right one, an option of the official GQA code.
    """

    def __init__(self, network: LXMERT, one_right: bool = False):
        super().__init__()
        network.head("answer")
        self.network = network
        self.one_right = one_right

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Binary cross-entropy with ``"scores"``, how right each answer is (0 to 1), summed.

        The other entries of ``batch`` are ``"input_ids"``, ``"attention_mask"``, ``"features"``,
        ``"locations"`` and ``"region_valid"``. The mean is over the batch. With ``one_right`` it is
        the cross-entropy, times the number of answers as in the official code.
        """
        logits = self.network.answer_logits(pair_features(self.network, batch))
        scores = batch["scores"]
        if self.one_right:
            loss = F.cross_entropy(logits, scores.argmax(1))
        else:
            loss = F.binary_cross_entropy_with_logits(logits, scores)
        return {"answers": loss * scores.shape[1]}


class LXMERTReasoning(nn.Module):
    """An ``LXMERT`` for pairs of images: is the text true of them? (NLVR2)."""

    def __init__(self, network: LXMERT):
        super().__init__()
        network.head("answer")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy of ``"labels"``; batch as in ``logits``."""
        return {"answers": F.cross_entropy(self.logits(batch), batch["labels"])}

    def logits(self, batch: dict[str, Tensor]) -> Tensor:
        """Scores of "false" and "true", shape (batch, 2).

        ``"features"``, ``"locations"`` and ``"region_valid"`` have an axis of images after the
        first. Each image is read with the whole text; all pairs are one pass through the network.
        """
        count = batch["features"].shape[1]
        text, regions = ("input_ids", "attention_mask"), ("features", "locations", "region_valid")
        flat = {key: batch[key].repeat_interleave(count, dim=0) for key in text if key in batch}
        flat |= {key: batch[key].flatten(0, 1) for key in regions if key in batch}
        both = pair_features(self.network, flat)
        images = (type(both)(*(part[i::count] for part in both)) for i in range(count))
        return self.network.answer_logits(*images)
