"""Figures that answer the hand: live in Jupyter, alive on a page with no kernel."""

from mmlab.widgets.base import Widget
from mmlab.widgets.patch_splitter import PatchSplitter
from mmlab.widgets.token_calculator import TokenCalculator

__all__ = ["PatchSplitter", "TokenCalculator", "Widget"]
