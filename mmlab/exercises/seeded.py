"""Random inputs that are the same for every reader, and how to write them down."""

from __future__ import annotations

import torch
from torch import Tensor

SEED = "generator=torch.Generator().manual_seed(0)"
"""The argument that gives ``torch.randn`` the numbers of ``random``."""


def random(*shape: int) -> Tensor:
    """Standard normal numbers; equal shapes have equal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
