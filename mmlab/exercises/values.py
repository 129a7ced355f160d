"""Numbers and tensors of a reader: compared whatever their type, and put in words."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

RELATIVE, ABSOLUTE = 1e-4, 1e-5
# A tensor of at most so many entries is shown in full.
SMALL = 12


def as_tensor(value: object) -> Tensor | None:
    """A real tensor on the CPU from a number, list, tuple, array or tensor; None for all else."""
    if not isinstance(value, int | float | np.generic | np.ndarray | Tensor | list | tuple):
        return None
    try:
        tensor = torch.as_tensor(value).detach().cpu()
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None
    return None if tensor.is_complex() or tensor.layout != torch.strided else tensor


def same(value: object, expected: object) -> bool:
    """Equal shapes and values: to the unit for whole numbers, else to about four digits.

    NaN equals NaN, so that a mistake that gives NaN can be recognised.
    """
    value, expected = as_tensor(value), as_tensor(expected)
    if value is None or expected is None or value.shape != expected.shape:
        return False
    return bool(_close(value, expected).all())


def untouched(after: object, before: object) -> bool:
    """Whether an input is as it was: numbers and tensors, also inside lists."""
    if isinstance(before, list | tuple):
        return len(after) == len(before) and all(map(untouched, after, before))
    return as_tensor(before) is None or same(after, before)


def first_difference(value: Tensor, expected: Tensor) -> tuple[int, ...]:
    """Index of the first entry in which two tensors of one shape differ; see ``same``."""
    return tuple((~_close(value, expected)).nonzero()[0].tolist())


def _close(value: Tensor, expected: Tensor) -> Tensor:
    tolerance = (RELATIVE, ABSOLUTE) if expected.is_floating_point() else (0.0, 0.0)
    return torch.isclose(value.double(), expected.double(), *tolerance, equal_nan=True)


def kind_of(value: object) -> str:
    """``"a str"``, ``"an int"``, ``"a tensor of shape (2, 3)"``."""
    if isinstance(value, Tensor | np.ndarray):
        word = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{word} of shape {tuple(value.shape)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def show(value: object) -> str:
    """A value in one short line: in full if it is small, else its shape."""
    if isinstance(value, bool | str):
        return shorten(repr(value), 60)
    if isinstance(value, int | float):
        return _number(value)
    tensor = as_tensor(value)
    if tensor is not None and tensor.numel() <= SMALL:
        return _nested(tensor.tolist())
    if tensor is None and isinstance(value, list | tuple):
        inside = ", ".join(kind_of(item) for item in value[:4])
        return f"{kind_of(value)} of {len(value)}: {inside}{', …' * (len(value) > 4)}"
    return kind_of(value) if tensor is None else f"a tensor of shape {tuple(tensor.shape)}"


def _number(value: int | float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _nested(value: list | int | float) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_nested, value)) + "]"
    return _number(value)


def shorten(text: str, length: int) -> str:
    """The text, cut with an ellipsis if it is longer."""
    return text if len(text) <= length else text[: length - 1] + "…"
