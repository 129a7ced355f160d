"""Figures that answer the hand: live in Jupyter, alive on a page with no kernel."""

from mmlab.widgets.attention_distance import AttentionDistance
from mmlab.widgets.base import Widget
from mmlab.widgets.clip_search import CLIPSearch
from mmlab.widgets.families import Families
from mmlab.widgets.league_table import LeagueTable
from mmlab.widgets.loss_laboratory import LossLaboratory
from mmlab.widgets.masking import Masking
from mmlab.widgets.patch_splitter import PatchSplitter
from mmlab.widgets.similarity_matrix import SimilarityMatrix
from mmlab.widgets.token_calculator import TokenCalculator
from mmlab.widgets.transport_alignment import TransportAlignment, WordsAndPlaces, true_places

__all__ = [
    "AttentionDistance",
    "CLIPSearch",
    "Families",
    "LeagueTable",
    "LossLaboratory",
    "Masking",
    "PatchSplitter",
    "SimilarityMatrix",
    "TokenCalculator",
    "TransportAlignment",
    "Widget",
    "WordsAndPlaces",
    "true_places",
]
