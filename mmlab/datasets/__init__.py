"""Pictures with words: generated scenes, real emoji, photographs, all in one form."""

from mmlab.datasets.example import (
    Alignment,
    Box,
    Caption,
    Example,
    Question,
    Region,
    Relation,
)

__all__ = ["Alignment", "Box", "Caption", "Example", "Question", "Region", "Relation"]
