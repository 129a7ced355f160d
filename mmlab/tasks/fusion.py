"""A trained model that reads text and image together, with its tokenizer and its answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn

from mmlab.datasets import Scenes
from mmlab.datasets.regions import Regions
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.datasets.transforms import VIT_MEAN, VIT_STD, normalize
from mmlab.hub import CheckpointError, create_model, read_checkpoint
from mmlab.hub.load import saved_config
from mmlab.tasks.dual_encoder import other_settings, read_saved_tokenizer
from mmlab.tasks.retrieval import Retrieval, ranks_of_scores, retrieval, summarize

ANSWERS = "mmlab.answers"
"""The key of the answers, a list in JSON, in the metadata of finished weights."""

CAPTION_KIND = "medium"
"""Short captions of two scenes are often the same; detailed ones are too long for a small model."""
BATCH_SIZE = 256

Images = Float[Tensor, "_ 3 _ _"] | Regions
"""What a model is shown: pixels, or what a detector tells of them."""


@dataclass(frozen=True)
class FusionModel:
    """A network such as a ViLT or VLMo; ``answers`` are the classes of its ``"answer"`` head."""

    network: nn.Module
    tokenizer: Tokenizer
    answers: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def answer(self, images: Images, questions: Sequence[str]) -> Float[Tensor, "batch answers"]:
        """Logits of the answers to one question about each image.

        ValueError without an ``"answer"`` head.
        """
        self.network.head("answer")
        return self._pairs(images, self.tokens(questions), self.network.answer_logits)

    @torch.no_grad()
    def match(self, images: Images, texts: Sequence[str]) -> Float[Tensor, " batch"]:
        """How well each text fits its image: the ranking score, or else the logit for "match".

        Of the matching head's two logits it is the difference, above 0 where the head says yes.
        ValueError without one of these heads.
        """
        return self._pairs(images, self.tokens(texts), self._fit())

    @torch.no_grad()
    def match_all(self, images: Images, texts: Sequence[str]) -> Float[Tensor, "images texts"]:
        """``match`` of every image with every text: as many forward passes as there are pairs."""
        score, ids = self._fit(), self.tokens(texts)
        repeated = (torch.full((len(ids),), i) for i in range(len(images)))
        return torch.stack([self._pairs(pick(images, rows), ids, score) for rows in repeated])

    @torch.no_grad()
    def encode_images(self, images: Float[Tensor, "batch 3 _ _"]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of prepared images alone, as a VLMo makes them.

        ValueError, here and below, without a ``"contrast"`` head.
        """
        self.network.head("contrast")
        parts = images.split(BATCH_SIZE)
        return torch.cat([self.network.encode_image(p.to(self.device)).cpu() for p in parts])

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of texts alone."""
        self.network.head("contrast")
        parts = self.tokens(texts).split(BATCH_SIZE)
        return torch.cat([self.network.encode_text(p.to(self.device)).cpu() for p in parts])

    def prepared(
        self, dataset: Scenes, rows: Int64[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """Images of a data set as the network takes them; all without ``rows``."""
        return prepared_images(dataset, rows)

    def tokens(self, texts: Sequence[str]) -> Int64[Tensor, "batch tokens"]:
        """Numbers of the word pieces; what does not fit into the context is cut off.

        ValueError for an empty text, which it names.
        """
        return self.tokenizer(list(texts), self.network.config.context_length).input_ids

    def _fit(self):
        if "rank" in self.network.heads:
            return self.network.rank_scores
        self.network.head("match")
        return self._match_logit

    def _match_logit(self, features: tuple[Tensor | None, ...]) -> Float[Tensor, " batch"]:
        return self.network.matching_logits(features).diff(dim=1).squeeze(1)

    def _pairs(self, images: Images, ids: Tensor, read) -> Tensor:
        """What ``read`` makes of the features of each pair, a batch at a time, on the CPU."""
        parts = torch.arange(len(ids)).split(BATCH_SIZE)
        return torch.cat([self._read(pick(images, part), ids[part], read) for part in parts])

    def _read(self, images: Tensor, ids: Tensor, read) -> Tensor:
        valid = ids != self.tokenizer.pad_id
        ids, valid = ids[:, valid.any(0)], valid[:, valid.any(0)]
        given = (part.to(self.device) for part in (ids, images, valid))
        return read(self.network(*given)).cpu()


def pick(images: Images, rows: Int64[Tensor, " rows"]) -> Images:
    """Some images, as pixels or as regions."""
    return images.select(rows) if isinstance(images, Regions) else images[rows]


def prepared_images(
    dataset: Scenes, rows: Int64[Tensor, " batch"] | None = None
) -> Float[Tensor, "batch 3 height width"]:
    """Images of a data set, made of the model's size, as a ViLT takes them."""
    return normalize(dataset.images(rows), VIT_MEAN, VIT_STD)


def load_fusion(name: str, file: str | Path) -> FusionModel:
    """The network ``name`` in one of our own files, with the tokenizer and answers it holds.

    CheckpointError if the file is of another model, or holds no tokenizer.
    """
    metadata = read_checkpoint(file).metadata
    tokenizer = read_saved_tokenizer(metadata, file)
    settings = other_settings(name, saved_config(metadata))
    network = create_model(name, pretrained=file, **settings).eval()
    answers, wanted = saved_answers(metadata), network.config.num_classes
    if len(answers) != wanted:
        raise CheckpointError(f"{str(file)!r} names {len(answers)} answers for {wanted} classes")
    return FusionModel(network, tokenizer, answers)


def saved_answers(metadata: dict[str, str]) -> tuple[str, ...]:
    """The answers in a file's metadata; none if it holds none that can be read."""
    try:
        return tuple(json.loads(metadata.get(ANSWERS, "[]")))
    except (ValueError, TypeError):
        return ()


def fusion_retrieval(model: FusionModel, dataset: Scenes, language: str = "en") -> Retrieval:
    """Each image among all captions and each caption among all images, every pair scored jointly.

    A dual encoder would make one pass for each image and each text; here 100 of each are 10,000
    passes (ViLT, section 4.4).
    """
    images, texts = model.prepared(dataset), dataset.captions(language, CAPTION_KIND)
    scores = model.match_all(images, texts)
    belongs = torch.eye(len(texts), dtype=torch.bool)
    return Retrieval(
        summarize(ranks_of_scores(scores, belongs)),
        summarize(ranks_of_scores(scores.T, belongs)),
        len(images),
        len(texts),
    )


def feature_retrieval(model: FusionModel, dataset: Scenes, language: str = "en") -> Retrieval:
    """As ``fusion_retrieval``, by the features that a VLMo makes of images and of texts apart.

    ValueError without a ``"contrast"`` head.
    """
    texts = model.encode_texts(dataset.captions(language, CAPTION_KIND))
    rows = torch.arange(len(dataset))
    parts = rows.split(BATCH_SIZE)
    images = [model.encode_images(model.prepared(dataset, part)) for part in parts]
    return retrieval(torch.cat(images), texts, rows, rows)


def matching_accuracy(model: FusionModel, dataset: Scenes, language: str = "en") -> float:
    """How often "fits" or "does not" is said rightly, half of the pairs being true; chance is 0.5.

    Each caption comes with its own image and with the next one's. ValueError without a ``"match"``
    head.
    """
    images, texts = model.prepared(dataset), dataset.captions(language, CAPTION_KIND)
    model.network.head("match")
    ids, others = model.tokens(texts), torch.arange(len(texts)).roll(1)
    true, false = (
        model._pairs(shown, ids, model._match_logit) > 0 for shown in (images, pick(images, others))
    )
    return ((true.float().mean() + 1 - false.float().mean()) / 2).item()
