"""Random numbers that depend on the seed and the step, never on what ran before.

A run that was killed has then no random state to lose, and a batch can be made by any process.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Generator


def mixed_seed(seed: int, *keys: int) -> int:
    """One 63-bit seed from several numbers; other numbers give an unrelated seed."""
    mixed = np.random.SeedSequence([seed, *keys]).generate_state(1, np.uint64)
    return int(mixed[0]) >> 1


def generator(seed: int, *keys: int) -> Generator:
    """A fresh generator for ``seed`` and ``keys``."""
    return Generator().manual_seed(mixed_seed(seed, *keys))


def seed_everything(seed: int, *keys: int) -> None:
    """Seed PyTorch's global states on all devices: dropout, drop path, fresh weights."""
    torch.manual_seed(mixed_seed(seed, *keys))
