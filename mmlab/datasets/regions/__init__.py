"""Detected regions: one batch form, a toy detector for scenes, readers of published features."""

from mmlab.datasets.regions.batch import Regions, collate_regions
from mmlab.datasets.regions.databases import FeatureLMDB
from mmlab.datasets.regions.detector import ATTRIBUTES, ToyDetector
from mmlab.datasets.regions.oscar_tsv import OscarTSV, Tag, TagTSV, tag_text
from mmlab.datasets.regions.rows import FeatureFileError
from mmlab.datasets.regions.tsv import FeatureTSV, stream_tsv

__all__ = [
    "ATTRIBUTES",
    "FeatureFileError",
    "FeatureLMDB",
    "FeatureTSV",
    "OscarTSV",
    "Regions",
    "Tag",
    "TagTSV",
    "ToyDetector",
    "collate_regions",
    "stream_tsv",
    "tag_text",
]
