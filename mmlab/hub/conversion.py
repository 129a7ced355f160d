"""Names of a checkpoint layout → our names, and back."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase

from torch import Tensor

from mmlab.hub.mapping import (
    CheckpointError,
    StateDict,
    as_tensors,
    convert,
    first_few,
    key_pattern,
)
from mmlab.hub.tables import LAYOUTS, OTHER_MODELS

OWN = "mmlab"
"""The layout of files that hold our own names."""

_OWN_KEYS = key_pattern(
    {key for table in LAYOUTS.values() for row in table.rows for key in row.our_keys}
)


def layouts(pattern: str = "*") -> tuple[str, ...]:
    """Names of the checkpoint layouts that match a glob, such as ``"vit-*"``."""
    return tuple(name for name in LAYOUTS if fnmatchcase(name, pattern))


def to_mmlab(layout: str, state_dict: StateDict) -> dict[str, Tensor]:
    """Convert a state dict (tensors or numpy arrays) from ``layout`` to our names and axes.

    Strict and without loss: values and dtypes stay, ``from_mmlab`` gives the same file back. The
    input is not changed; tensors that need no change share its memory. CheckpointError names
    missing, left-over and wrong-shaped keys; ValueError an unknown layout.
    """
    return to_mmlab_with_sizes(layout, state_dict)[0]


def from_mmlab(
    layout: str, state_dict: StateDict, *, num_heads: int | None = None
) -> dict[str, Tensor]:
    """Convert a state dict from our names to ``layout``; the inverse of ``to_mmlab``.

    The Flax layouts keep the heads on an axis of their own and need ``num_heads``. Errors as in
    ``to_mmlab``.
    """
    table = get_layout(layout)
    sizes = {} if num_heads is None else {"num_heads": num_heads}
    rows = [row.reversed() for row in table.rows]
    state = {key: t for key, t in as_tensors(state_dict).items() if key not in table.dropped}
    try:
        theirs = convert(layout, rows, state, **sizes)[0]
        return table.with_copies(theirs)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_hint(OWN, state_dict)}") from None


def to_mmlab_with_sizes(
    layout: str, state_dict: StateDict
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """``to_mmlab``, and the sizes of the named axes that it met (``num_heads`` in Flax files)."""
    table = get_layout(layout)
    tensors = as_tensors(state_dict)
    state = {key: tensors[whole] for whole, key in table.table_keys(tensors).items()}
    try:
        return convert(layout, table.rows, table.without_copies(state))
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_hint(layout, state_dict)}") from None


def detect_layout(keys: Iterable[str], prefer: Collection[str] = ()) -> str:
    """The layout that knows most of ``keys``, ``"mmlab"`` for our own names.

    Of several that know equally many, one in ``prefer`` is taken, then that of whose needed keys
    most are there; one that has none of these is out. CheckpointError if none knows at least half
    of ``keys``.
    """
    keys = list(keys)
    best, share = _best_layout(keys, prefer)
    if share >= 0.5:
        return best
    raise CheckpointError(f"no known layout has the keys {first_few(keys)}{_hint('', keys)}")


def get_layout(name: str) -> Layout:
    """The table called ``name``; ValueError with the nearest name if there is none."""
    if name not in LAYOUTS:
        near = difflib.get_close_matches(name, LAYOUTS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(LAYOUTS)}"
        raise ValueError(f"unknown checkpoint layout {name!r}; {hint}")
    return LAYOUTS[name]


def _hint(asked: str, keys: Iterable[str]) -> str:
    """A clause that says what the keys look like, if that is not ``asked``."""
    keys = list(keys)
    best, share = _best_layout(keys)
    if share >= 0.5:
        return f"; these look like {best!r} keys" if best != asked else ""
    other = _other_model(keys)
    return f"; these look like {other}" if other else ""


def _best_layout(keys: list[str], prefer: Collection[str] = ()) -> tuple[str, float]:
    """The layout that has a row for the largest share of ``keys``, and that share."""
    own = sum(bool(_OWN_KEYS.fullmatch(key)) for key in keys) / max(1, len(keys))
    ranks = {}
    for name, table in LAYOUTS.items():
        needed = table.share_of_needed(keys)
        ranks[name] = (table.share_of_known(keys) if needed else 0.0, name in prefer, needed)
    ranks[OWN] = (own, False, 0.0)
    best = max(ranks, key=ranks.__getitem__)
    return best, ranks[best][0]


def _other_model(keys: list[str]) -> str:
    for model, pattern in OTHER_MODELS.items():
        if any(re.fullmatch(pattern, key) for key in keys):
            return model
    return ""
