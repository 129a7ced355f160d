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
from mmlab.datasets.regions import (
    FeatureLMDB,
    FeatureTSV,
    Regions,
    ToyDetector,
    collate_regions,
    stream_tsv,
)
from mmlab.datasets.scenes import SceneNoise, Scenes, scenes
from mmlab.datasets.tokenizer import Tokenizer, train_wordpiece

__all__ = [
    "Alignment",
    "Box",
    "Caption",
    "Emoji",
    "Example",
    "FeatureLMDB",
    "FeatureTSV",
    "ImageError",
    "Photos",
    "Question",
    "Region",
    "Regions",
    "Relation",
    "SceneNoise",
    "Scenes",
    "Tokenizer",
    "ToyDetector",
    "collate_regions",
    "emoji",
    "load_image",
    "photos",
    "scenes",
    "stream_tsv",
    "train_wordpiece",
    "transforms",
]
