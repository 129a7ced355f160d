"""Pictures with words: generated scenes, real emoji, photographs, all in one form."""

from mmlab.datasets import transforms
from mmlab.datasets.emoji import Emoji, emoji
from mmlab.datasets.example import (
    Alignment,
    Box,
    Caption,
    Example,
    Question,
    Region,
    Relation,
)
from mmlab.datasets.images import ImageError, load_image
from mmlab.datasets.photos import Photos, photos
from mmlab.datasets.scenes import SceneNoise, Scenes, scenes
from mmlab.datasets.tokenizer import Tokenizer, train_wordpiece

__all__ = [
    "Alignment",
    "Box",
    "Caption",
    "Emoji",
    "Example",
    "ImageError",
    "Photos",
    "Question",
    "Region",
    "Relation",
    "SceneNoise",
    "Scenes",
    "Tokenizer",
    "emoji",
    "load_image",
    "photos",
    "scenes",
    "train_wordpiece",
    "transforms",
]
