"""A trained dual encoder with its tokenizer, ready for pictures and sentences as they come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from mmlab.datasets import Emoji, Scenes
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.datasets.transforms import center_crop, normalize, resize
from mmlab.hub import CheckpointError, create_model, model_config, read_checkpoint
from mmlab.hub.load import saved_config
from mmlab.tasks.preparation import image_statistics
from mmlab.tasks.retrieval import Retrieval, retrieval
from mmlab.tasks.zero_shot import ZeroShot, class_features, zero_shot

TOKENIZER = "mmlab.tokenizer"
"""The key of the tokenizer in the metadata of finished weights."""

BATCH_SIZE = 256


@dataclass(frozen=True)
class DualEncoder:
    """``network`` is a CLIP, a FLIP or another module with ``encode_image`` and ``encode_text``."""

    network: nn.Module
    tokenizer: Tokenizer

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.network.parameters()).device

    @torch.no_grad()
    def encode_images(
        self, images: Sequence[UInt8[Tensor, "3 _ _"]] | UInt8[Tensor, "batch 3 _ _"]
    ) -> Float[Tensor, "batch dim"]:
        """Unit vectors of pictures of any size: resized, cut to the middle square, normalised.

        Resized with the bicubic filter, as the official CLIP does (openai/CLIP, ``clip/clip.py``).
        """
        size = self.network.config.image_size
        squares = _squares(images, size)
        return torch.cat([self._image_features(part) for part in squares.split(BATCH_SIZE)])

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "batch dim"]:
        """Unit vectors of sentences; what does not fit into the context is cut off.

        ValueError for an empty sentence, which it names.
        """
        length = self.network.config.context_length
        ids = self.tokenizer(list(texts), length).input_ids
        return torch.cat(
            [self.network.encode_text(part.to(self.device)).cpu() for part in ids.split(BATCH_SIZE)]
        )

    def encode_dataset(self, dataset: Emoji | Scenes) -> Float[Tensor, "num dim"]:
        """Unit vectors of all images of a data set."""
        rows = torch.arange(len(dataset)).split(BATCH_SIZE)
        return torch.cat([self.encode_images(dataset.images(part)) for part in rows])

    def _image_features(
        self, images: UInt8[Tensor, "batch 3 height width"]
    ) -> Float[Tensor, "batch dim"]:
        statistics = image_statistics(self.network.config)
        prepared = normalize(images, *statistics).to(self.device)
        return self.network.encode_image(prepared).cpu()


def load_dual_encoder(
    name: str, file: str | Path, tokenizer: Tokenizer | None = None
) -> DualEncoder:
    """The network ``name`` in one of our own files, with ``tokenizer`` or the one the file holds.

    CheckpointError if the file is of another model, or holds no tokenizer where none is given.
    """
    metadata = read_checkpoint(file).metadata
    tokenizer = tokenizer or read_saved_tokenizer(metadata, file)
    overrides = other_settings(name, saved_config(metadata))
    return DualEncoder(create_model(name, pretrained=file, **overrides).eval(), tokenizer)


def read_saved_tokenizer(metadata: Mapping[str, str], file: str | Path) -> Tokenizer:
    """The tokenizer in the metadata of ``file``; CheckpointError if there is none."""
    if TOKENIZER not in metadata:
        raise CheckpointError(f"{str(file)!r} holds no tokenizer; it was not trained here")
    return Tokenizer.from_json(metadata[TOKENIZER], f"{TOKENIZER!r} of {str(file)!r}")


def other_settings(name: str, saved: Mapping[str, object]) -> dict[str, object]:
    """What a file's configuration has other than ``name``, such as the size of the vocabulary."""
    usual = asdict(model_config(name))
    return {key: value for key, value in saved.items() if key in usual and value != usual[key]}


def dataset_retrieval(
    encoder: DualEncoder, dataset: Emoji | Scenes, language: str = "en"
) -> Retrieval:
    """Each image among all captions and each caption among all images of a data set.

    Emoji have their names: one caption a concept, which the drawings of all vendors share. Scenes
    have one detailed caption each.
    """
    features = encoder.encode_dataset(dataset)
    if isinstance(dataset, Scenes):
        ids = torch.arange(len(dataset))
        texts = dataset.captions(language, "detailed")
        return retrieval(features, encoder.encode_texts(texts), ids, ids)
    captions = dict(zip(dataset.labels.tolist(), dataset.captions(language), strict=True))
    text_ids = torch.tensor(list(captions))
    texts = encoder.encode_texts(list(captions.values()))
    return retrieval(features, texts, dataset.labels, text_ids)


def dataset_zero_shot(
    encoder: DualEncoder, dataset: Emoji | Scenes, templates: Sequence[str], target: str = ""
) -> ZeroShot:
    """Classify the images of a data set by sentences about the classes of ``target``."""
    labels, classes = dataset.targets(target) if target else dataset.targets()
    features = class_features(encoder.encode_texts, classes, templates)
    return zero_shot(encoder.encode_dataset(dataset), features, labels)


def _squares(
    images: Sequence[UInt8[Tensor, "3 _ _"]] | UInt8[Tensor, "batch 3 _ _"], size: int
) -> UInt8[Tensor, "batch 3 _ _"]:
    """The middle squares of pictures, at one time where all are of one size."""
    if not isinstance(images, Tensor):
        return torch.cat([_squares(image[None], size) for image in images])
    return center_crop(resize(images, size, interpolation="bicubic"), size)
