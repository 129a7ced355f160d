"""Scenes as a detector tells them, with captions and questions: what the region models train on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int64
from torch import Generator, Tensor

from mmlab.datasets.regions import Regions, ToyDetector
from mmlab.datasets.scenes import SHAPES
from mmlab.datasets.scenes.world import MAX_OBJECTS
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.objectives.masked_language import IGNORED
from mmlab.tasks.paired_scenes import PairedScenes, masked_density, paired_scenes

Pairs = dict[str, Tensor]
"""The raw pairs of a batch; see ``RegionScenes.pairs``."""

Lesson = Callable[[Pairs, int, int, Sequence[int], Generator], dict[str, Tensor]]
"""From pairs, [MASK], the size of the vocabulary, special tokens and a generator to a batch."""

SHARE = "share."
"""Before the name of a loss: how much of what it asks the batch of this process has."""


@dataclass(frozen=True, kw_only=True)
class RegionScenes(PairedScenes):
    """Scenes with their ``regions``, and the ``lesson`` that makes a batch of raw pairs.

    Regions are the same in each epoch, as in the feature files of the papers. The lesson draws for
    the whole batch and is cut afterwards, so that draws are alike however many processes share it.
    ``asked`` tells by a loss's name which entry of the batch says what it is a mean over: labels,
    or a mask. Other losses are means over the rows.
    """

    regions: Regions
    lesson: Lesson
    asked: Mapping[str, str]

    def batch(
        self, rows: Int64[Tensor, " batch"], share: slice, generator: Generator
    ) -> dict[str, Tensor]:
        """What the lesson makes of ``rows``, cut to ``share``, with a share of each loss.

        A loss times its ``"share.…"``, averaged over the processes, is that of the whole batch.
        """
        words = self.tokenizer
        vocab = (words.mask_id, words.vocab_size, words.special_ids)
        made = self.lesson(self.pairs(rows, generator), *vocab, generator)
        shares = {
            SHARE + name: masked_density(_places(made[entry]), share)
            for name, entry in self.asked.items()
            if entry in made
        }
        return {name: value[share] for name, value in made.items()} | shares

    def pairs(self, rows: Int64[Tensor, " batch"], generator: Generator) -> Pairs:
        """Captions, tags, a question and regions of each image, and those of another image.

        - ``"input_ids"``, ``"attention_mask"``, ``"word_ids"``: a caption; ``"second_…"``: another
          one of the same image; ``"other_…"``: one of another image.
        - ``"tag_ids"``, ``"tag_mask"``: the words of the classes that the detector tells, without
          special tokens; ``"other_tag_…"``: those of the other image.
        - ``"question_ids"``, ``"question_mask"``; ``"answers"``, the classes of the answers, and
          ``"answer_ids"``, ``"answer_mask"``, their words without special tokens;
          ``"other_question_…"`` and ``"other_answer_…"``: those of the other image.
        - the fields of ``Regions``, of which ``mask`` is called ``"region_valid"``; with
          ``"other_"`` before it those of the other image.
        """
        variant, others = self._variants(rows, generator), self._others(rows, generator)
        second = (variant + 1) % self.captions.input_ids.shape[1]
        strange = self._variants(rows, generator)
        asked = self._asked_of(rows, generator)
        strangely = self._asked_of(others, generator)
        own, other = (self.regions.select(part) for part in (rows, others))
        longest = int(torch.maximum(own.num_regions, other.num_regions).max())
        ids, valid = self._caption(rows, variant)
        second_ids, second_mask = self._caption(rows, second)
        other_ids, other_mask = self._caption(others, strange)
        pairs = {
            "input_ids": ids,
            "attention_mask": valid,
            "word_ids": self.captions.word_ids[rows, variant][:, : ids.shape[1]],
            "second_ids": second_ids,
            "second_mask": second_mask,
            "other_ids": other_ids,
            "other_mask": other_mask,
        }
        pairs |= asked | region_entries(own, self.tokenizer, longest)
        strangers = strangely | region_entries(other, self.tokenizer, longest)
        return pairs | {f"other_{name}": value for name, value in strangers.items()}

    def _asked_of(self, rows: Int64[Tensor, " batch"], generator: Generator) -> Pairs:
        ids, valid, answers = self._questions(rows, generator)
        written = _inner(self.tokenizer, self.answers)[answers]
        written, there = _packed(written, self.tokenizer.pad_id)
        made = {"question_ids": ids, "question_mask": valid, "answers": answers}
        return made | {"answer_ids": written, "answer_mask": there}

    def _caption(
        self, rows: Int64[Tensor, " batch"], variant: Int64[Tensor, " batch"]
    ) -> tuple[Tensor, Tensor]:
        return self._trimmed(self.captions.input_ids[rows, variant])


def _places(entry: Tensor) -> Bool[Tensor, "batch places"]:
    """Where something is asked: a mask says it itself, labels are ``IGNORED`` elsewhere."""
    places = entry if entry.dtype == torch.bool else entry != IGNORED
    return places.flatten(1) if places.ndim > 1 else places[:, None]


def region_entries(regions: Regions, tokenizer: Tokenizer, longest: int | None = None) -> Pairs:
    """The part of raw pairs that comes of ``regions``, cut or not to the ``longest`` image."""
    longest = longest or int(regions.num_regions.max())
    fields = {name: value for name, value in vars(regions).items() if value is not None}
    sizes, mask = fields.pop("image_sizes"), fields.pop("mask")
    cut = {name: value[:, :longest] for name, value in fields.items()}
    tag_ids, tag_mask = tags_of(regions, tokenizer)
    cut |= {"region_valid": mask[:, :longest], "image_sizes": sizes}
    return cut | {"tag_ids": tag_ids, "tag_mask": tag_mask}


def tags_of(
    regions: Regions, tokenizer: Tokenizer
) -> tuple[Int64[Tensor, "batch tokens"], Bool[Tensor, "batch tokens"]]:
    """The words of the detected classes, in the order of the regions, and where they are.

    Two regions of a class say its name twice. Background has no name, so there may be no tag.
    """
    background = regions.class_distributions.argmax(-1) == 0
    told = regions.mask & ~background
    pieces = _inner(tokenizer, SHAPES)[regions.classes]
    ids = torch.where(told[..., None], pieces, tokenizer.pad_id).flatten(1)
    return _packed(ids, tokenizer.pad_id)


def _inner(tokenizer: Tokenizer, texts: Sequence[str]) -> Int64[Tensor, "texts tokens"]:
    """The numbers of texts without special tokens, padding after them."""
    ids = tokenizer(texts).input_ids[:, 1:]
    return ids.masked_fill(ids == tokenizer.sep_id, tokenizer.pad_id)


def _packed(ids: Tensor, pad_id: int) -> tuple[Tensor, Tensor]:
    """The ids of each row in order, padding after them; at least one place."""
    valid = ids != pad_id
    order = (~valid).to(torch.int8).argsort(dim=1, stable=True)
    longest = max(1, int(valid.sum(1).max()))
    ids, valid = (t.gather(1, order)[:, :longest] for t in (ids, valid))
    return ids.masked_fill(~valid, pad_id), valid


def region_scenes(
    image_size: int,
    context_length: int,
    num_images: int,
    detector: ToyDetector,
    lesson: Lesson,
    asked: Mapping[str, str],
    heads: Sequence[str] = (),
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    most_objects: int = MAX_OBJECTS,
) -> RegionScenes:
    """Scenes of the split ``"train"`` as ``paired_scenes`` makes them, looked at once.

    Without a ``tokenizer`` one is made, which knows classes and answers. ValueError for a
    single scene.
    """
    sizes = (image_size, context_length, num_images)
    shown = {"spells_answers": True, "most_objects": most_objects}
    texts = paired_scenes(*sizes, heads, seed, tokenizer, **shown)
    regions = detector.detect(texts.dataset)
    return RegionScenes(**vars(texts), regions=regions, lesson=lesson, asked=asked)
