"""Scenes with captions and questions: what models train on that read text and image together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Generator, Tensor

from mmlab import datasets
from mmlab.datasets import Scenes
from mmlab.datasets.example import Question
from mmlab.datasets.scenes import COLORS, SHAPES, TEXTURES
from mmlab.datasets.scenes.world import MAX_OBJECTS
from mmlab.datasets.tokenizer import Tokenizer, train_wordpiece
from mmlab.datasets.transforms import VIT_MEAN, VIT_STD, normalize
from mmlab.models.vlmo_pretraining import MASKED_SHARE
from mmlab.objectives.masked_language import IGNORED, MaskedTokens, mask_tokens
from mmlab.tasks.preparation import Channels

CAPTION_KINDS = ("short", "medium")
"""Detailed captions are longer than a small model's context."""
VOCAB_SIZE = 1000
ANSWERS = (
    *("yes", "no"),
    *map(str, range(MAX_OBJECTS + 1)),
    *(*COLORS, *SHAPES, *TEXTURES),
)
"""All answers to the English questions."""
FALSE_TEXTS = 15
"""How many wrong captions an image is shown with its own in learning to rank (ViLT, 4.4)."""


@dataclass(frozen=True)
class CaptionTable:
    """Caption ``v`` of image ``i`` is ``input_ids[i, v]``; ``word_ids`` as in ``TokenBatch``."""

    input_ids: Int64[Tensor, "num variants tokens"]
    word_ids: Int64[Tensor, "num variants tokens"]


@dataclass(frozen=True)
class QuestionTable:
    """Question ``q`` of image ``i``, of which there are ``counts[i]``; ``answers`` are classes."""

    input_ids: Int64[Tensor, "num most tokens"]
    answers: Int64[Tensor, "num most"]
    counts: Int64[Tensor, " num"]


@dataclass(frozen=True)
class PairedScenes:
    """What each head of a model learns from: one caption and one question of each image.

    Random choices (captions, masked words and patches, false images and texts) are made here and
    not by the model, so that they are alike however many processes share a batch. ``statistics``
    are the mean and deviation that images are normalised with. With ``whole_words`` all pieces of a
    word are masked, or none. ``num_patches`` is that of an image, for the head ``"patches"``.
    """

    dataset: Scenes
    heads: tuple[str, ...]
    tokenizer: Tokenizer
    captions: CaptionTable
    questions: QuestionTable
    answers: tuple[str, ...]
    statistics: tuple[Channels, Channels] = (VIT_MEAN, VIT_STD)
    whole_words: bool = True
    num_patches: int = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        """``{"images"}`` of ``rows[share]``, and for each head what it wants.

        - ``"captions"``: the captions, as ``"input_ids"`` and ``"attention_mask"``.
        - ``"words"``: these, and ``"masked_ids"`` with ``"labels"``. ``"masked_share"`` is how much
          of the masked words of the whole batch are here, relative to the rows: 1 in a single
          process.
        - ``"match"``: all this, and images for false pairs, as ``ViLTPretraining.losses`` takes
          them.
        - ``"answer"``: ``"question_ids"``, ``"question_mask"`` and ``"scores"``.
        - ``"answers"``: questions as ``"input_ids"`` and ``"attention_mask"``; ``"scores"``; for a
          model that writes its answers, ``"answer_ids"``, ``"question_of"`` and ``"weights"``.
        - ``"rank"``: ``"text_ids"`` and ``"text_mask"``, each image's own caption first.
        - ``"patches"``: ``"masked_patches"``, and ``"masked_share"`` of them.

        With ``"words"`` alone there are no images.
        """
        made = {} if self.heads == ("words",) else {"images": self._images(rows[share])}
        if {"captions", "words", "match"} & set(self.heads):
            made |= self._pretraining(rows, share, generator)
        if "answer" in self.heads:
            made |= self._asked(rows, share, generator)
        if "answers" in self.heads:
            made |= self._answered(rows, share, generator)
        if "rank" in self.heads:
            made |= self._ranked(rows, share, generator)
        if "patches" in self.heads:
            made |= self._hidden(rows, share, generator)
        return made

    def _images(self, rows: Int64[Tensor, " batch"]) -> Float[Tensor, "batch 3 height width"]:
        return normalize(self.dataset.images(rows), *self.statistics)

    def _pretraining(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        """Words are masked, and exactly half of the rows matched, in the whole batch."""
        variant = self._variants(rows, generator)
        ids, word_ids = (t[rows, variant] for t in vars(self.captions).values())
        ids, valid = self._trimmed(ids)
        made = {"input_ids": ids[share], "attention_mask": valid[share]}
        if {"words", "match"} & set(self.heads):
            masked = self._masked(ids, word_ids[:, : ids.shape[1]], generator)
            made |= {"masked_ids": masked.ids[share], "labels": masked.labels[share]}
            made["masked_share"] = masked_density(masked.labels != IGNORED, share)
        if "match" in self.heads:
            matched = torch.randperm(len(rows), generator=generator) < len(rows) // 2
            strangers = self._others(rows, generator)
            made |= {"matched": matched[share], "false_images": self._images(strangers[share])}
        return made

    def _masked(
        self, ids: Tensor, word_ids: Int64[Tensor, "batch tokens"], generator: Generator
    ) -> MaskedTokens:
        special = torch.tensor(self.tokenizer.special_ids)
        vocab = (self.tokenizer.mask_id, self.tokenizer.vocab_size)
        words = word_ids if self.whole_words else None
        maskable = ~torch.isin(ids, special)
        return mask_tokens(ids, maskable, *vocab, word_ids=words, generator=generator)

    def _hidden(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        luck = torch.rand(len(rows), self.num_patches, generator=generator)
        hidden = luck < MASKED_SHARE
        return {"masked_patches": hidden[share], "masked_share": masked_density(hidden, share)}

    def _asked(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        ids, valid, answers = self._questions(rows, generator)
        scores = F.one_hot(answers, len(self.answers)).float()
        return {
            "question_ids": ids[share],
            "question_mask": valid[share],
            "scores": scores[share],
        }

    def _answered(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        ids, valid, answers = self._questions(rows, generator)
        written = self.tokenizer(self.answers).input_ids[answers[share]]
        return {
            "input_ids": ids[share],
            "attention_mask": valid[share],
            "scores": F.one_hot(answers[share], len(self.answers)).float(),
            "answer_ids": written,
            "question_of": torch.arange(len(written)),
            "weights": torch.ones(len(written)),
        }

    def _questions(
        self, rows: Int64[Tensor, " batch"], generator: Generator
    ) -> tuple[Tensor, Tensor, Int64[Tensor, " batch"]]:
        """A question about each image: its numbers, where they are no padding, and its answer."""
        luck = torch.rand(len(rows), generator=generator)
        chosen = (luck * self.questions.counts[rows]).long()
        ids, valid = self._trimmed(self.questions.input_ids[rows, chosen])
        return ids, valid, self.questions.answers[rows, chosen]

    def _ranked(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        false = [self._others(rows, generator) for _ in range(FALSE_TEXTS)]
        chosen = torch.stack([rows, *false], 1).flatten()
        variants = self._variants(chosen, generator)
        ids, valid = self._trimmed(self.captions.input_ids[chosen, variants])
        texts = {"text_ids": ids, "text_mask": valid}
        return {name: t.unflatten(0, (len(rows), -1))[share] for name, t in texts.items()}

    def _variants(
        self, rows: Int64[Tensor, " batch"], generator: Generator
    ) -> Int64[Tensor, " batch"]:
        count = self.captions.input_ids.shape[1]
        return torch.randint(count, (len(rows),), generator=generator)

    def _others(
        self, rows: Int64[Tensor, " batch"], generator: Generator
    ) -> Int64[Tensor, " batch"]:
        """Another image of the data set for each row, as the official code draws them."""
        steps = torch.randint(1, len(self), (len(rows),), generator=generator)
        return (rows + steps) % len(self)

    def _trimmed(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Texts cut to the longest of them, and where they are no padding."""
        valid = ids != self.tokenizer.pad_id
        longest = int(valid.any(0).sum())
        return ids[:, :longest], valid[:, :longest]


def masked_density(asked: Bool[Tensor, "batch tokens"], share: slice) -> Float[Tensor, ""]:
    """What is asked a row in ``asked[share]``, relative to the whole.

    A mean over it here, times this, averaged over the processes, is the mean over all.
    """
    counts = asked.sum(1).float()
    return counts[share].mean() / counts.mean().clamp_min(1 / len(counts))


def paired_scenes(
    image_size: int,
    context_length: int,
    num_images: int,
    heads: Sequence[str],
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    *,
    extra_tokens: tuple[str, ...] = (),
    ends: bool = True,
    spells_answers: bool = False,
    most_objects: int = MAX_OBJECTS,
    **settings: object,
) -> PairedScenes:
    """Scenes of the split ``"train"`` with English captions and questions, never augmented.

    They show one to ``most_objects`` objects.

    Without a ``tokenizer`` one is made from these texts; no number is among them, so it knows those
    only with ``spells_answers``, which a model that writes its answers needs. ``extra_tokens`` are
    special tokens that come after the last of it, if it lacks them. With ``ends=False`` texts have
    no [SEP]. ``settings`` are further fields of ``PairedScenes``. ValueError for a single scene,
    which has no false pair.
    """
    if num_images < 2:
        raise ValueError(f"num_images must be at least 2, for false pairs, got {num_images}")
    shown = (1, most_objects)
    dataset = datasets.scenes(num_images, "train", image_size, seed=seed, num_objects=shown)
    captions = [dataset.captions("en", kind) for kind in CAPTION_KINDS]
    questions = dataset.questions("en")
    if tokenizer is None:
        asked = [question.text for own in questions for question in own]
        once = dict.fromkeys([*(text for kind in captions for text in kind), *asked])
        once |= dict.fromkeys(ANSWERS if spells_answers else ())
        tokenizer = train_wordpiece(list(once), VOCAB_SIZE)
    tokenizer = with_tokens(tokenizer, extra_tokens)
    return PairedScenes(
        dataset,
        tuple(heads),
        tokenizer,
        _caption_table(captions, tokenizer, context_length, ends),
        _question_table(questions, tokenizer, context_length, ends),
        ANSWERS,
        **settings,
    )


def with_tokens(tokenizer: Tokenizer, extra_tokens: tuple[str, ...]) -> Tokenizer:
    """A tokenizer with these special tokens after its last, unless it ends with them already."""
    if not extra_tokens:
        return tokenizer
    last = tokenizer.special_ids[-len(extra_tokens) :]
    known = tokenizer.engine.token_to_id(extra_tokens[0])
    if known is not None and known == tokenizer.vocab_size - len(extra_tokens) == last[0]:
        return tokenizer
    return tokenizer.add_special_tokens(*extra_tokens)


def _caption_table(
    captions: Sequence[Sequence[str]], tokenizer: Tokenizer, context_length: int, ends: bool
) -> CaptionTable:
    given = (context_length, "max_length")
    batches = [tokenizer(texts, *given, add_last=ends) for texts in captions]
    ids, words = ([getattr(b, name) for b in batches] for name in ("input_ids", "word_ids"))
    return CaptionTable(torch.stack(ids, 1), torch.stack(words, 1))


def _question_table(
    questions: Sequence[Sequence[Question]],
    tokenizer: Tokenizer,
    context_length: int,
    ends: bool,
) -> QuestionTable:
    counts = torch.tensor([len(own) for own in questions])
    flat = [question for own in questions for question in own]
    classes = torch.tensor([ANSWERS.index(question.answer) for question in flat])
    texts = [question.text for question in flat]
    ids = tokenizer(texts, context_length, "max_length", add_last=ends).input_ids
    there = torch.arange(int(counts.max())) < counts[:, None]
    table = torch.full((*there.shape, context_length), tokenizer.pad_id)
    table[there] = ids
    right = torch.zeros(there.shape, dtype=torch.int64)
    right[there] = classes
    return QuestionTable(table, right, counts)
