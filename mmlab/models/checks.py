"""Checks that configurations share: a wrong value is a ValueError that says what is allowed."""

from __future__ import annotations

import math
from collections.abc import Collection


def check(ok: bool, name: str, value: object, allowed: str) -> None:
    """Raise ``ValueError("<name> must be <allowed>, got <value>")`` unless ``ok``."""
    if not ok:
        raise ValueError(f"{name} must be {allowed}, got {value!r}")


def check_integers(config: object, *names: str, minimum: int = 1) -> None:
    """The named fields are integers of at least ``minimum``."""
    for name in names:
        value = getattr(config, name)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        check(is_integer and value >= minimum, name, value, f"an integer of at least {minimum}")


def check_rates(config: object, *names: str) -> None:
    """The named fields are probabilities in [0, 1)."""
    for name in names:
        value = getattr(config, name)
        check(isinstance(value, int | float) and 0 <= value < 1, name, value, "in [0, 1)")


def check_positive(config: object, *names: str) -> None:
    """The named fields are finite numbers above 0."""
    for name in names:
        value = getattr(config, name)
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        check(is_number and 0 < value < math.inf, name, value, "positive")


def check_choice(config: object, name: str, choices: Collection[str]) -> None:
    """The named field is one of ``choices``."""
    value = getattr(config, name)
    check(value in choices, name, value, "one of " + ", ".join(map(repr, choices)))


def check_multiple(config: object, name: str, unit: str) -> None:
    """The field ``name`` is a multiple of the field ``unit``."""
    value, step = getattr(config, name), getattr(config, unit)
    check(value % step == 0, name, value, f"a multiple of {unit}={step}")


def check_heads(
    config: object, known: Collection[str], classifier: str, size: str = "num_classes"
) -> None:
    """``heads`` are some of ``known``; the head ``classifier`` wants the field ``size``."""
    heads, outputs = config.heads, getattr(config, size)
    right = isinstance(heads, tuple) and set(heads) <= set(known)
    check(right, "heads", heads, "a tuple of some of " + ", ".join(map(repr, known)))
    check(len(set(heads)) == len(heads), "heads", heads, "free of repetitions")
    wanted = classifier in heads
    allowed = f"at least 1 with the head {classifier!r}" if wanted else f"0 without {classifier!r}"
    check((outputs > 0) == wanted, size, outputs, allowed)
