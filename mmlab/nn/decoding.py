"""Writing a text with a model that scores the next word: beam search and nucleus sampling.

Both ask a ``Writing`` for scores and know nothing else of the model. BLIP describes images so: the
likeliest captions come from beams, varied ones from the nucleus (Li et al. 2022, section 4.2).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor


@runtime_checkable
class Writing(Protocol):
    """A model that reads token by token, such as ``BertWriting``."""

    def next(self, ids: Int[Tensor, "rows new_tokens"]) -> Float[Tensor, "rows vocab"]:
        """Scores of the word that follows these tokens and all before."""

    def repeat(self, times: int) -> None:
        """Go on with each row ``times`` times, next to each other."""

    def select(self, rows: Int64[Tensor, " rows"]) -> None:
        """Go on from these rows, in their order."""


@torch.no_grad()
def beam_search(
    writing: Writing,
    prompt: Int[Tensor, "batch prompt_tokens"],
    end_id: int,
    num_beams: int = 3,
    max_length: int = 20,
    min_length: int = 5,
    length_penalty: float = 1.0,
    repetition_penalty: float = 1.0,
    pad_id: int = 0,
) -> Int64[Tensor, "batch tokens"]:
    """The likeliest text that a search with ``num_beams`` open ends finds, one for each prompt.

    Rows hold the prompt, what was written, ``end_id``, then ``pad_id``. Lengths count the prompt,
    too; ``max_length`` also counts the end, which no text has before it is ``min_length`` long. A
    finished text counts by its log-likelihood over (its written tokens) ** ``length_penalty``; the
    search of a row is over when no open end is better than its ``num_beams`` finished texts. All of
    this is what transformers 5 does (``generate``). ValueError for wrong numbers.
    """
    start = prompt.shape[1]
    _check_lengths(start, min_length, max_length)
    if num_beams < 1:
        raise ValueError(f"num_beams must be at least 1, got {num_beams}")
    beams = _Beams(prompt.long(), num_beams, max_length, pad_id)
    logits = writing.next(prompt).repeat_interleave(num_beams, 0)
    writing.repeat(num_beams)
    for length in range(start + 1, max_length + 1):
        log_probs = logits.float().log_softmax(-1)
        log_probs = _penalise(log_probs, beams.texts.flatten(0, 1), repetition_penalty)
        log_probs = _keep_open(log_probs, end_id, length <= min_length)
        rows = beams.advance(log_probs, end_id, (length - start) ** length_penalty)
        if length == max_length or not beams.is_open.any():
            break
        writing.select(rows)
        logits = writing.next(beams.texts[..., -1:].flatten(0, 1))
    return _trimmed(beams.finished[:, 0], end_id, start)


class _Beams:
    """The open ends of each row, best first, and its best finished texts.

    ``texts`` (batch, beams, tokens) and their log-likelihoods ``scores`` are open; ``is_open`` says
    for which rows the search goes on.
    """

    def __init__(self, prompt: Tensor, num_beams: int, max_length: int, pad_id: int):
        batch, device = len(prompt), prompt.device
        self.max_length, self.pad_id = max_length, pad_id
        self.texts = prompt[:, None].expand(-1, num_beams, -1)
        # All open ends are the same at first: only one of them may count.
        self.scores = torch.zeros(batch, num_beams, device=device)
        self.scores[:, 1:] = -torch.inf
        self.finished = torch.full((batch, num_beams, max_length), pad_id, device=device)
        self.finished_scores = torch.full_like(self.scores, -torch.inf)
        self.is_open = torch.ones(batch, 1, dtype=torch.bool, device=device)
        self.first_row = num_beams * torch.arange(batch, device=device)[:, None]

    def advance(
        self, log_probs: Float[Tensor, "rows vocab"], end_id: int, worth: float | int
    ) -> Int64[Tensor, " rows"]:
        """One word more for every open end; the rows that the new ones come from.

        ``worth`` is what the log-likelihood of a text that ends now is divided by.
        """
        batch, num_beams = self.scores.shape
        total = self.scores[..., None] + log_probs.unflatten(0, (batch, num_beams))
        # Half of the best may be ends; enough open ones remain then.
        best, place = total.flatten(1).topk(2 * num_beams)
        sources, words = place // total.shape[-1], place % total.shape[-1]
        texts = torch.cat([_pick(self.texts, sources), words[..., None]], dim=-1)
        ends = (words == end_id) | (texts.shape[-1] == self.max_length)
        self._finish(texts[:, :num_beams], (best / worth)[:, :num_beams], ends[:, :num_beams])
        self.scores, kept = best.masked_fill(ends, -torch.inf).topk(num_beams)
        self.texts = _pick(texts, kept)
        self.is_open &= self.scores[:, :1] / worth > self.finished_scores[:, -1:]
        return (self.first_row + sources.gather(1, kept)).flatten()

    def _finish(
        self,
        texts: Int64[Tensor, "batch beams tokens"],
        scores: Float[Tensor, "batch beams"],
        ends: Bool[Tensor, "batch beams"],
    ) -> None:
        """Take in those that end, if they are among the best."""
        padding = (0, self.max_length - texts.shape[-1])
        texts = torch.cat([self.finished, F.pad(texts, padding, value=self.pad_id)], dim=1)
        scores = scores.masked_fill(~(ends & self.is_open), -torch.inf)
        scores = torch.cat([self.finished_scores, scores], dim=1)
        self.finished_scores, places = scores.topk(self.scores.shape[1])
        self.finished = _pick(texts, places)


@torch.no_grad()
def sample_text(
    writing: Writing,
    prompt: Int[Tensor, "batch prompt_tokens"],
    end_id: int,
    top_p: float = 0.9,
    top_k: int | None = None,
    max_length: int = 20,
    min_length: int = 5,
    repetition_penalty: float = 1.1,
    pad_id: int = 0,
    generator: torch.Generator | None = None,
) -> Int64[Tensor, "batch tokens"]:
    """A text drawn word by word from the nucleus of the distribution, one for each prompt.

    ``top_k`` also leaves out all but the likeliest ``top_k`` words, before the nucleus is taken:
    the paper has no such thing, but BLIP's code inherits 50 from transformers. The rest as in
    ``beam_search``. Words are drawn from ``generator``, or from PyTorch's global random state.
    """
    _check_lengths(prompt.shape[1], min_length, max_length)
    texts = new = prompt.long()
    done = torch.zeros(len(prompt), 1, dtype=torch.bool, device=prompt.device)
    for length in range(prompt.shape[1] + 1, max_length + 1):
        logits = _penalise(writing.next(new).float(), texts, repetition_penalty)
        logits = _keep_open(logits, end_id, length <= min_length)
        logits = nucleus_filter(_likeliest(logits, top_k), top_p)
        new = _draw(logits, generator).masked_fill(done, pad_id)
        texts = torch.cat([texts, new], dim=1)
        done = done | (new == end_id)
        if done.all():
            break
    return texts


def nucleus_filter(
    logits: Float[Tensor, "rows vocab"], top_p: float
) -> Float[Tensor, "rows vocab"]:
    """-inf for all words outside the nucleus (Holtzman et al. 2019, arXiv 1904.09751).

    The nucleus is the smallest set of likeliest words that have at least ``top_p`` together; it has
    at least one. ValueError if ``top_p`` is not in (0, 1].
    """
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must be in (0, 1], got {top_p}")
    if top_p == 1:
        return logits
    probabilities, words = logits.softmax(-1).sort(dim=-1, descending=True, stable=True)
    before = probabilities.cumsum(-1) - probabilities
    outside = torch.empty_like(before, dtype=torch.bool).scatter_(-1, words, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)


def _likeliest(logits: Float[Tensor, "rows vocab"], k: int | None) -> Float[Tensor, "rows vocab"]:
    """-inf for all but the ``k`` likeliest words, and those that are as likely as the last."""
    if k is None:
        return logits
    if k < 1:
        raise ValueError(f"top_k must be at least 1, got {k}")
    last = logits.topk(min(k, logits.shape[-1])).values[:, -1:]
    return logits.masked_fill(logits < last, -torch.inf)


def _draw(
    logits: Float[Tensor, "rows vocab"], generator: torch.Generator | None
) -> Int64[Tensor, "rows 1"]:
    """A word for each row; a generator draws on its own device."""
    probabilities = logits.softmax(-1)
    where = probabilities.device if generator is None else generator.device
    drawn = torch.multinomial(probabilities.to(where), 1, generator=generator)
    return drawn.to(probabilities.device)


def _penalise(
    scores: Float[Tensor, "rows vocab"], texts: Int64[Tensor, "rows tokens"], penalty: float
) -> Float[Tensor, "rows vocab"]:
    """Make words less likely that the text has already (Keskar et al. 2019, arXiv 1909.05858)."""
    if penalty <= 0:
        raise ValueError(f"repetition_penalty must be positive, got {penalty}")
    if penalty == 1:
        return scores
    old = scores.gather(1, texts)
    return scores.scatter(1, texts, torch.where(old < 0, old * penalty, old / penalty))


def _keep_open(
    scores: Float[Tensor, "rows vocab"], end_id: int, wanted: bool
) -> Float[Tensor, "rows vocab"]:
    """The text must go on if ``wanted``."""
    end = torch.arange(scores.shape[-1], device=scores.device) == end_id
    return scores.masked_fill(end, -torch.inf) if wanted else scores


def _pick(
    texts: Int64[Tensor, "batch beams tokens"], places: Int64[Tensor, "batch picked"]
) -> Int64[Tensor, "batch picked tokens"]:
    return texts.gather(1, places[..., None].expand(-1, -1, texts.shape[-1]))


def _trimmed(
    texts: Int64[Tensor, "batch tokens"], end_id: int, start: int
) -> Int64[Tensor, "batch shorter"]:
    """Without the columns after the last end; a prompt may hold ``end_id`` as well."""
    length, written = texts.shape[1], texts[:, start:] == end_id
    first = torch.where(written.any(1), written.int().argmax(1) + start + 1, length)
    return texts[:, : int(first.max())]


def _check_lengths(start: int, min_length: int, max_length: int) -> None:
    if max_length <= start:
        raise ValueError(f"max_length must exceed the prompt's {start} tokens, got {max_length}")
    if min_length > max_length:
        raise ValueError(f"min_length must be at most max_length={max_length}, got {min_length}")
