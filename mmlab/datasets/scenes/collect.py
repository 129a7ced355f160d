"""Rejection sampling with an end: how every task over scenes draws its items."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

Item = TypeVar("Item")
TRIES = 300


def collect(num: int, attempt: Callable[[], Item | None], what: str) -> tuple[Item, ...]:
    """Call ``attempt`` until it has given ``num`` items; ValueError if the scenes allow too few."""
    if num < 0:
        raise ValueError(f"num is {num}; it must be 0 or more")
    found: list[Item] = []
    for _ in range(TRIES * max(num, 1)):
        if len(found) == num:
            break
        item = attempt()
        found += [] if item is None else [item]
    if len(found) < num:
        raise ValueError(f"found {len(found)} of {num} {what}: the data set needs more images")
    return tuple(found)
