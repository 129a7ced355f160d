"""Masked language modelling: hide words of a caption, and find them again with the image's help.

Devlin et al. 2018 (BERT, section 3.1, task 1). ViLT and VLMo hide whole words: of "giraffe", cut
into "gi", "##raf", "##fe", a model can guess "##raf" from its neighbours without looking.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

IGNORED = -100
"""The label of a token that is not to be predicted."""

TO_MASK, TO_RANDOM = 0.8, 0.1
MASKED_LOSSES = ("masked_words", "masked_patches")
"""What pretraining modules call the losses that are means over what is masked."""


class MaskedTokens(NamedTuple):
    """``ids`` with some tokens hidden; ``labels`` are their true ids, ``IGNORED`` elsewhere."""

    ids: Int64[Tensor, "batch tokens"]
    labels: Int64[Tensor, "batch tokens"]


def mask_tokens(
    ids: Int64[Tensor, "batch tokens"],
    maskable: Bool[Tensor, "batch tokens"],
    mask_id: int,
    vocab_size: int,
    probability: float = 0.15,
    word_ids: Int64[Tensor, "batch tokens"] | None = None,
    generator: torch.Generator | None = None,
    at_least_one: bool = False,
    never_drawn: Sequence[int] = (),
) -> MaskedTokens:
    """Choose each maskable token with ``probability``; of the chosen ones hide most.

    80 % become ``mask_id``, 10 % a token drawn from the whole vocabulary, 10 % stay (BERT, appendix
    A.1), so that a model cannot rely on ``mask_id`` to know what it will be asked. ``maskable`` is
    False on special tokens and padding. With ``word_ids`` (the word each token belongs to) words
    are chosen, and all of their tokens with them.

    UNITER's ways (``data/mlm.py``): with ``at_least_one``, a text of which no token is chosen loses
    its first maskable one to ``mask_id``; tokens ``never_drawn``, special ones, replace no other.
    ValueError for a wrong probability, or if no token is left to draw.
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must lie between 0 and 1, got {probability}")
    draw = _Draws(ids, generator)
    luck = draw.uniform() if word_ids is None else _by_word(draw.uniform(), word_ids)
    chosen = (luck < probability) & maskable
    masked = hide_tokens(ids, chosen, mask_id, vocab_size, generator, never_drawn)
    if not at_least_one:
        return masked
    first = _first(maskable) & ~chosen.any(1, keepdim=True)
    labels = torch.where(first, ids, masked.labels)
    return MaskedTokens(masked.ids.masked_fill(first, mask_id), labels)


def hide_tokens(
    ids: Int64[Tensor, "batch tokens"],
    chosen: Bool[Tensor, "batch tokens"],
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
    never_drawn: Sequence[int] = (),
) -> MaskedTokens:
    """The second half of ``mask_tokens``: most of the ``chosen`` tokens are hidden, as there."""
    draw = _Draws(ids, generator)
    fate = draw.uniform()
    hidden = chosen & (fate < TO_MASK)
    replaced = chosen & (fate >= TO_MASK) & (fate < TO_MASK + TO_RANDOM)
    masked = torch.where(hidden, mask_id, ids)
    masked = torch.where(replaced, draw.words(vocab_size, never_drawn), masked)
    return MaskedTokens(masked, ids.masked_fill(~chosen, IGNORED))


def masked_language_loss(
    logits: Float[Tensor, "batch tokens vocab"], labels: Int64[Tensor, "batch tokens"]
) -> Float[Tensor, ""]:
    """Cross-entropy at the tokens with a label, their mean; 0 if there are none.

    A short batch may have no masked token; the mean of nothing would be NaN.
    """
    total = F.cross_entropy(
        logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction="sum"
    )
    return total / _count(labels)


def asked_words_loss(
    score: Callable[[Tensor], Tensor],
    tokens: Float[Tensor, "batch tokens dim"],
    labels: Int64[Tensor, "batch tokens"],
) -> Float[Tensor, ""]:
    """``masked_language_loss`` of what ``score`` makes of the tokens that have a label.

    The vocabulary is large and few words are asked for; the others are not scored.
    """
    asked = labels != IGNORED
    return masked_language_loss(score(tokens[asked])[None], labels[asked][None])


def distilled_masked_language_loss(
    logits: Float[Tensor, "batch tokens vocab"],
    labels: Int64[Tensor, "batch tokens"],
    teacher_logits: Float[Tensor, "batch tokens vocab"],
    alpha: float | Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """``(1 - alpha)`` of the loss above and ``alpha`` of the cross-entropy with a teacher's guess.

    ALBEF, equation 7, as its code has it: the teacher (the momentum model) sees the same masked
    text, and other words that fit are right as well. No gradient to the teacher.
    """
    asked = labels != IGNORED
    soft = teacher_logits.detach()[asked].softmax(-1)
    distilled = -(soft * logits[asked].log_softmax(-1)).sum() / _count(labels)
    return (1 - alpha) * masked_language_loss(logits, labels) + alpha * distilled


def share_masked_loss(losses: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """``losses`` with the masked one times ``"masked_share"``, if ``batch`` tells it.

    Processes that share a batch mask unequally many words, yet their losses are averaged. Times its
    share, how many it has relative to the mean, each process's mean becomes that of all words.
    """
    share = batch.get("masked_share")
    if share is None:
        return losses
    return {k: loss * share if k in MASKED_LOSSES else loss for k, loss in losses.items()}


def _count(labels: Int64[Tensor, "batch tokens"]) -> Int64[Tensor, ""]:
    return (labels != IGNORED).sum().clamp_min(1)


def _first(places: Bool[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
    """The first True of each row alone."""
    return places & (places.cumsum(1) == 1)


def _by_word(
    luck: Float[Tensor, "batch tokens"], word_ids: Int64[Tensor, "batch tokens"]
) -> Float[Tensor, "batch tokens"]:
    """Every token takes the number drawn at the place that its word has in the sequence."""
    # Words are numbered from 0 and are no more than the tokens; special tokens have -1.
    return luck.gather(1, word_ids.clamp_min(0))


class _Draws:
    """Random numbers in the shape of the tokens, on the generator's device, moved to theirs."""

    def __init__(self, ids: Int64[Tensor, "batch tokens"], generator: torch.Generator | None):
        self.ids, self.generator = ids, generator
        self.device = ids.device if generator is None else generator.device

    def uniform(self) -> Float[Tensor, "batch tokens"]:
        drawn = torch.rand(self.ids.shape, generator=self.generator, device=self.device)
        return drawn.to(self.ids.device)

    def words(self, vocab_size: int, never: Sequence[int]) -> Int64[Tensor, "batch tokens"]:
        allowed = torch.ones(vocab_size, dtype=torch.bool)
        allowed[list(never)] = False
        words = allowed.nonzero().flatten().to(self.ids.device)
        if not len(words):
            raise ValueError(f"never_drawn must leave some of the {vocab_size} tokens, leaves none")
        shape, device = self.ids.shape, self.device
        drawn = torch.randint(len(words), shape, generator=self.generator, device=device)
        return words[drawn.to(self.ids.device)]
