"""Retrieval in two stages: features find candidates, a fusion encoder ranks them.

ALBEF (Li et al. 2021, section 5.1), BLIP and BLIP-2: comparing features is cheap enough for all
pairs, the matching head is not, but knows better.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, Int64
from torch import Tensor

from mmlab.datasets import Scenes
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.datasets.transforms import normalize
from mmlab.hub import create_model, read_checkpoint
from mmlab.hub.load import saved_config
from mmlab.models.albef import ALBEF
from mmlab.models.albef_tasks import rank_answers
from mmlab.models.blip import BLIP
from mmlab.models.blip2 import BLIP2, query_similarity
from mmlab.tasks.dual_encoder import other_settings, read_saved_tokenizer
from mmlab.tasks.fusion import CAPTION_KIND, saved_answers
from mmlab.tasks.preparation import image_statistics
from mmlab.tasks.retrieval import Retrieval, ranks_of_scores, summarize

NO_CANDIDATE = -100.0
"""The score of a pair that the matching head has not seen, as in the official code."""

CANDIDATES = 16
"""How many candidates are usual among our few scenes; the papers take 128 or 256 of thousands."""

PairScores = Callable[[Int64[Tensor, " pairs"], Int64[Tensor, " pairs"]], Float[Tensor, " pairs"]]
"""From numbers of queries and of items to one score for each pair."""


def rerank(
    similarity: Float[Tensor, "queries items"],
    k: int,
    pair_scores: PairScores,
    similarity_weight: float = 0.0,
    batch_size: int = 256,
) -> Float[Tensor, "queries items"]:
    """Scores of the ``k`` most similar items of each query, ``NO_CANDIDATE`` for all others.

    ALBEF ranks by the score of the pair alone; BLIP and BLIP-2 add the similarity
    (``similarity_weight=1``).
    ``batch_size`` pairs are scored at a time. With fewer than ``k`` items, all are candidates.
    ValueError for a ``k`` below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    best, items = similarity.topk(min(k, similarity.shape[1]), dim=1)
    queries = torch.arange(len(similarity), device=items.device)[:, None].expand_as(items)
    pairs = zip(queries.flatten().split(batch_size), items.flatten().split(batch_size), strict=True)
    scores = torch.cat([pair_scores(*rows).to(similarity) for rows in pairs]).view_as(best)
    table = torch.full_like(similarity, NO_CANDIDATE)
    return table.scatter(1, items, scores + similarity_weight * best)


@torch.no_grad()
def reranked_scores(
    model: ALBEF | BLIP | BLIP2,
    images: Float[Tensor, "images channels height width"],
    input_ids: Int[Tensor, "texts tokens"],
    text_valid: Tensor | None = None,
    k: int = 128,
    batch_size: int = 256,
) -> tuple[Float[Tensor, "images texts"], Float[Tensor, "texts images"]]:
    """Both tables of scores: each image's ``k`` best texts, each text's ``k`` best images.

    Candidates come from the cosines, the scores from the matching head's output for "fits"
    (``Retrieval.py`` of ALBEF); BLIP and BLIP-2 add the cosine (``train_retrieval.py``) and read
    each text anew with each image. ``text_valid`` as in ``ALBEF.forward``.
    """
    read = ReadApart(model, images, input_ids, text_valid, batch_size)
    cosines = read.cosines()
    settings = {"similarity_weight": similarity_weight(model), "batch_size": batch_size}
    to_texts = rerank(cosines, k, read.fits, **settings)
    to_images = rerank(cosines.T, k, lambda t, i: read.fits(i, t), **settings)
    return to_texts, to_images


def similarity_weight(model: ALBEF | BLIP | BLIP2) -> float:
    """What the cosine counts beside the matching head's score, as the official codes have it."""
    return 0.0 if isinstance(model, ALBEF) else 1.0


class ReadApart:
    """Images and texts that a model has read apart: to be compared, or fused in pairs.

    Arguments as in ``reranked_scores``.
    """

    @torch.no_grad()
    def __init__(
        self,
        model: ALBEF | BLIP | BLIP2,
        images: Float[Tensor, "images channels height width"],
        input_ids: Int[Tensor, "texts tokens"],
        text_valid: Tensor | None = None,
        batch_size: int = 256,
    ):
        self.model, self.input_ids, self.batch_size = model, input_ids, batch_size
        self.valid = input_ids != 0 if text_valid is None else text_valid.bool()
        images = images.split(batch_size)
        self.image_tokens = torch.cat([model.image_tokens(part) for part in images])
        texts = zip(input_ids.split(batch_size), self.valid.split(batch_size), strict=True)
        self.text_tokens = torch.cat([model.text_tokens(*part) for part in texts])

    @torch.no_grad()
    def cosines(self) -> Float[Tensor, "images texts"]:
        """Of each image with each text; of BLIP-2's features of an image the likest counts."""
        return _cosines(self.model, self.image_tokens, self.text_tokens, self.batch_size)

    @torch.no_grad()
    def fits(
        self, image_rows: Int64[Tensor, " pairs"], text_rows: Int64[Tensor, " pairs"]
    ) -> Float[Tensor, " pairs"]:
        """The matching head's output for "fits", of all these pairs at a time."""
        texts = (self.input_ids[text_rows], self.text_tokens[text_rows], self.valid[text_rows])
        return _matching_logits(self.model, self.image_tokens[image_rows], *texts)[:, 1]


def _matching_logits(
    model: ALBEF | BLIP | BLIP2,
    image_tokens: Float[Tensor, "pairs image_tokens dim"],
    input_ids: Int[Tensor, "pairs tokens"],
    text_tokens: Float[Tensor, "pairs tokens text_dim"],
    text_valid: Tensor,
) -> Float[Tensor, "pairs 2"]:
    """ALBEF goes on from the text's tokens; the others read each text anew with the image."""
    if isinstance(model, ALBEF):
        fused = model.fuse(text_tokens, (image_tokens,), text_valid)
    elif isinstance(model, BLIP):
        fused = model.ground(input_ids, (image_tokens,), text_valid)
    else:
        fused = model.fuse(input_ids, image_tokens, text_valid)
    return model.matching_logits(fused)


def _cosines(
    model: ALBEF | BLIP | BLIP2,
    image_tokens: Float[Tensor, "images image_tokens dim"],
    text_tokens: Float[Tensor, "texts tokens text_dim"],
    batch_size: int,
) -> Float[Tensor, "images texts"]:
    """BLIP-2 has a feature for each query, of which the likest counts."""
    texts = model.text_features(text_tokens)
    if not isinstance(model, BLIP2):
        return model.image_features(image_tokens) @ texts.T
    parts = (model.qformer.look(part).tokens for part in image_tokens.split(batch_size))
    return torch.cat([query_similarity(model.image_features(part), texts) for part in parts])


def reranked_retrieval(
    model: ALBEF | BLIP | BLIP2,
    images: Float[Tensor, "images channels height width"],
    input_ids: Int[Tensor, "texts tokens"],
    image_ids: Int[Tensor, " images"],
    text_ids: Int[Tensor, " texts"],
    text_valid: Tensor | None = None,
    k: int = 128,
) -> Retrieval:
    """Recall of both directions after re-ranking; equal ids mean that the two belong together."""
    to_texts, to_images = reranked_scores(model, images, input_ids, text_valid, k)
    belongs = image_ids[:, None] == text_ids
    return Retrieval(
        summarize(ranks_of_scores(to_texts, belongs)),
        summarize(ranks_of_scores(to_images, belongs.T)),
        len(image_ids),
        len(text_ids),
    )


@dataclass(frozen=True)
class Reranker:
    """A trained ALBEF, BLIP or BLIP-2 with its tokenizer, ready for scenes and sentences.

    ``answers`` are what it chooses from if it has learned to answer questions.
    """

    network: ALBEF | BLIP | BLIP2
    tokenizer: Tokenizer
    answers: tuple[str, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    def prepared(
        self, dataset: Scenes, rows: Int64[Tensor, " batch"] | None = None
    ) -> Float[Tensor, "batch 3 height width"]:
        """Images of a data set as the network takes them; all without ``rows``."""
        statistics = image_statistics(self.network.config)
        return normalize(dataset.images(rows), *statistics).to(self.device)

    def tokens(self, texts: Sequence[str]) -> Int64[Tensor, "batch tokens"]:
        """Numbers of the word pieces; what does not fit into the context is cut off.

        ALBEF's texts have no [SEP]. ValueError for an empty text, which it names.
        """
        length, ends = self.network.config.context_length, not isinstance(self.network, ALBEF)
        return self.tokenizer(list(texts), length, add_last=ends).input_ids.to(self.device)

    @torch.no_grad()
    def answer(
        self, images: Float[Tensor, "batch 3 height width"], questions: Sequence[str]
    ) -> Float[Tensor, "batch answers"]:
        """How likely each answer is to one question about each image (see ``rank_answers``).

        ValueError without an ``"answers"`` head.
        """
        self.network.head("answers")
        ids, network = self.tokens(questions), self.network
        if isinstance(network, ALBEF):
            asked = network(ids, images).fused
        else:
            asked = network.ground(ids, network.image_tokens_of(images))
        written = self.tokenizer(self.answers).input_ids.to(self.device)
        places, probabilities = rank_answers(network, asked, ids != 0, written, len(written))
        return torch.zeros_like(probabilities).scatter(1, places, probabilities).cpu()


def load_reranker(name: str, file: str | Path) -> Reranker:
    """The network ``name`` in one of our own files, with the tokenizer that it holds.

    CheckpointError if the file is of another model, or holds no tokenizer.
    """
    metadata = read_checkpoint(file).metadata
    tokenizer = read_saved_tokenizer(metadata, file)
    settings = other_settings(name, saved_config(metadata))
    network = create_model(name, pretrained=file, **settings).eval()
    return Reranker(network, tokenizer, saved_answers(metadata))


@torch.no_grad()
def scene_figures(
    model: Reranker, dataset: Scenes, language: str = "en", k: int = CANDIDATES
) -> dict[str, object]:
    """Each image among all captions and each caption among all images, as plain numbers.

    The figures after re-ranking ``k`` candidates; those of the features alone, ``"by_features"``;
    and ``"matching_accuracy"``: how often "fits" or "does not" is said rightly of each caption with
    its own image and with the next one's. Chance is 0.5. ValueError for a ``k`` below 1.
    """
    images, ids = model.prepared(dataset), model.tokens(dataset.captions(language, CAPTION_KIND))
    own = torch.arange(len(images), device=model.device)
    figures = reranked_retrieval(model.network, images, ids, own, own, k=k).figures()
    by_features = _by_features(model.network, images, ids)
    return {
        **figures,
        "by_features": {
            "image_to_text": by_features.image_to_text.figures(),
            "text_to_image": by_features.text_to_image.figures(),
        },
        "matching_accuracy": _matching_accuracy(model.network, images, ids),
    }


def _by_features(
    model: ALBEF | BLIP | BLIP2,
    images: Float[Tensor, "num 3 height width"],
    input_ids: Int64[Tensor, "num tokens"],
) -> Retrieval:
    """Of a BLIP-2's features of an image, the one counts that is likest the text."""
    text_tokens = model.text_tokens(input_ids, input_ids != 0)
    cosines = _cosines(model, model.image_tokens(images), text_tokens, 256)
    own = torch.eye(len(images), dtype=torch.bool, device=images.device)
    directions = (summarize(ranks_of_scores(table, own)) for table in (cosines, cosines.T))
    return Retrieval(*directions, len(images), len(input_ids))


def _matching_accuracy(
    model: ALBEF | BLIP | BLIP2,
    images: Float[Tensor, "num 3 height width"],
    input_ids: Int64[Tensor, "num tokens"],
) -> float:
    valid, shown = input_ids != 0, model.image_tokens(images)
    texts = (input_ids, model.text_tokens(input_ids, valid), valid)
    true, false = (
        _matching_logits(model, tokens, *texts).argmax(1).float().mean()
        for tokens in (shown, shown.roll(1, 0))
    )
    return ((true + 1 - false) / 2).item()
