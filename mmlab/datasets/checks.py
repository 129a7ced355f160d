"""Checks of what a user gives to a data set; each failure is one sentence that names it all."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from difflib import get_close_matches

import torch
from jaxtyping import Int64
from torch import Tensor

Indices = Iterable[int] | Tensor | None
"""Which examples: their numbers, or None for all."""


def not_allowed(name: str, value: object, allowed: Iterable[str]) -> str:
    """The sentence: what was given, the nearest match if any is near, and what is allowed."""
    allowed = tuple(allowed)
    near = get_close_matches(str(value), allowed, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    return f"{name} is {value!r}{hint}; it must be one of {', '.join(allowed)}"


def check_choice(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """``value`` if it is allowed, else ValueError."""
    if value not in allowed:
        raise ValueError(not_allowed(name, value, allowed))
    return value


def check_image_size(image_size: object, largest: int) -> int:
    """``image_size`` if it is a whole number of pixels, 1 to ``largest``, else ValueError."""
    whole = isinstance(image_size, int) and not isinstance(image_size, bool)
    if not whole or not 1 <= image_size <= largest:
        raise ValueError(
            f"image_size is {image_size!r}; it must be a whole number, 1 to {largest:,}"
        )
    return image_size


def check_rows(indices: Indices, length: int) -> Int64[Tensor, " batch"]:
    """Indices into ``length`` examples, all for None; negative ones count from the end.

    Raises:
        IndexError: one is out of range.
        ValueError: they are booleans, which would silently mean 0 and 1.
    """
    if indices is None:
        return torch.arange(length)
    given = indices.flatten().tolist() if isinstance(indices, Tensor) else list(indices)
    if any(isinstance(i, bool) for i in given):
        raise ValueError("indices is a mask of booleans; give whole numbers")
    rows = [operator.index(i) for i in given]
    for i in rows:
        if not -length <= i < length:
            raise IndexError(f"index {i} is out of range for {length} images")
    return torch.tensor([i % length for i in rows], dtype=torch.int64)
