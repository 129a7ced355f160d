"""Checkpoint layouts as tables of data, and the one engine that reads them in both directions.

A ``Layout`` lists, row by row, our key, their key and how the axes of their tensor become ours,
written as an einops pattern (``"in out -> out in"``). Turned round, the same row exports. Three
things make up the whole notation:

- ``{i}`` in a key stands for the number of a layer, the same on both sides; ``{ii}`` writes it
  with two digits;
- several keys on one side are slices along the first axis of that side's pattern (fused q, k, v);
- equal axis names mean equal sizes in the whole table, so a tensor of a wrong shape is found.

One of several keys may be ``UNUSED``: a slice that changes no result, and that we do not keep.

Tensors that a file stores twice are no rows: a ``Tie`` says which is the copy.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
from einops import rearrange
from torch import Tensor, nn

Keys = str | tuple[str, ...]
StateDict = Mapping[str, Tensor | np.ndarray]
Sizes = dict[str, int]

_LAYER = re.compile(r"\{i+\}")
UNUSED = ""
"""In the place of a key of ours: a slice that is dropped when it is read, and written as zeros.

Such is the bias of keys, which adds one number to all scores of a query: softmax takes it away.
"""


class CheckpointError(ValueError):
    """A checkpoint that cannot be read, converted or loaded; the message says why."""


@dataclass(frozen=True)
class Row:
    """One line of a table: our key or keys, theirs, and ``"their axes -> our axes"``.

    An ``axes`` without arrow means that both sides agree. Rows of one ``group`` are optional, but
    come all together or not at all (in each layer, for keys with ``{i}``). Axis names are compared
    within one ``scope``, so that two towers may both have a ``dim``; a scope with ``{i}`` is one of
    each layer.
    """

    ours: Keys
    theirs: Keys
    axes: str
    group: str = ""
    scope: str = ""

    @property
    def our_keys(self) -> tuple[str, ...]:
        """All of our keys."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    @property
    def their_keys(self) -> tuple[str, ...]:
        """All of their keys."""
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    def reversed(self) -> Row:
        """The row that undoes this one."""
        axes = " -> ".join(reversed(self.axes.split(" -> ")))
        return replace(self, ours=self.theirs, theirs=self.ours, axes=axes)


@dataclass(frozen=True)
class Tie:
    """Their ``copy`` holds the same tensor as their ``original``, such as BERT's last matrix.

    A file that is read need not have both. In one that is written the copy stands wherever the
    original does; with ``beside``, only where that key does too (the head that the copy belongs to
    may be missing).
    """

    copy: str
    original: str
    beside: str = ""


@dataclass(frozen=True)
class HFConfig:
    """How to read the ``config.json`` of transformers: our field → theirs, with dots inwards.

    ``model_types`` are the values of its ``model_type`` that are meant. Fields it does not have are
    left out; of several for one of ours, all must agree.
    """

    model_types: tuple[str, ...]
    fields: Mapping[str, Keys]


@dataclass(frozen=True)
class Layout:
    """The table of one checkpoint layout.

    ``config`` holds the settings that files of this layout imply (``norm_eps``, ``activation``),
    ``interpolation`` the official way to resize its positions. Their keys may all stand behind one
    of the prefixes in ``strip``. ``ignored`` are patterns (regular expressions) of their keys that
    are no weights of ours, such as ``position_ids``. ``tied`` are their tensors that are stored
    twice, ``dropped`` our keys that they have no place for. ``hf_config`` tells what a
    ``config.json`` beside the file means. ``mark`` is one of their keys without which a file is not
    taken for one of this layout: where a whole BERT is a part, any BERT has most of the others.
    """

    name: str
    rows: tuple[Row, ...]
    source: str
    config: Mapping[str, object] = field(default_factory=dict)
    interpolation: str = "bicubic"
    strip: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    tied: tuple[Tie, ...] = ()
    dropped: tuple[str, ...] = ()
    hf_config: HFConfig | None = None
    mark: str = ""

    def table_keys(self, keys: Iterable[str]) -> dict[str, str]:
        """Key in a file → key in this table; ignored keys left out."""
        keys = {key: key for key in keys}
        for prefix in self.strip:
            if keys and all(key.startswith(prefix) for key in keys.values()):
                keys = {whole: key.removeprefix(prefix) for whole, key in keys.items()}
        ignored = [re.compile(pattern) for pattern in self.ignored]
        return {
            whole: key
            for whole, key in keys.items()
            if not any(pattern.fullmatch(key) for pattern in ignored)
        }

    def share_of_known(self, keys: Iterable[str]) -> float:
        """Which share of ``keys``, 0 to 1, this layout has a row for; 0 without its ``mark``."""
        known = self.table_keys(keys).values()
        if self.mark and self.mark not in known:
            return 0.0
        return sum(bool(self._their_keys.fullmatch(key)) for key in known) / max(1, len(known))

    def share_of_needed(self, keys: Iterable[str]) -> float:
        """Which share of what all files of this layout have is there, 0 to 1."""
        needed = {_unnumbered(k) for row in self.rows if not row.group for k in row.their_keys}
        found = needed & {_unnumbered(key) for key in self.table_keys(keys).values()}
        return len(found) / max(1, len(needed))

    def without_copies(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` in their names with each tied tensor once, as ``original``.

        CheckpointError where a copy differs from its original.
        """
        state = dict(state)
        for tie in self.tied:
            copy = state.pop(tie.copy, None)
            if copy is None:
                continue
            original = state.setdefault(tie.original, copy)
            if not _equal(copy, original):
                raise CheckpointError(
                    f"{tie.copy!r} and {tie.original!r} must be the same tensor in layout "
                    f"{self.name!r}, but they differ"
                )
        return state

    def with_copies(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``state`` in their names with each tied tensor twice, as the official files have it."""
        copies = {
            tie.copy: state[tie.original]
            for tie in self.tied
            if tie.original in state and (not tie.beside or tie.beside in state)
        }
        return {**state, **copies}

    @cached_property
    def _their_keys(self) -> re.Pattern[str]:
        keys = [key for row in self.rows for key in row.their_keys]
        return key_pattern([*keys, *(tie.copy for tie in self.tied)])


def linear(ours: str, theirs: str, axes: str = "out in", group: str = "") -> tuple[Row, Row]:
    """Rows of a linear layer with bias that is ``torch.nn.Linear`` on both sides."""
    return (
        Row(f"{ours}.weight", f"{theirs}.weight", axes, group),
        Row(f"{ours}.bias", f"{theirs}.bias", axes.split()[0], group),
    )


def norm(ours: str, theirs: str, axes: str = "dim", group: str = "") -> tuple[Row, Row]:
    """Rows of a layer norm that has weight and bias on both sides."""
    return (
        Row(f"{ours}.weight", f"{theirs}.weight", axes, group),
        Row(f"{ours}.bias", f"{theirs}.bias", axes, group),
    )


def prefixed(rows: Iterable[Row], ours: str = "", theirs: str = "") -> tuple[Row, ...]:
    """The rows of a part, placed in a larger model; axis names keep to the part."""

    def put(prefix: str, keys: Keys) -> Keys:
        if isinstance(keys, str):
            return keys if keys == UNUSED else prefix + keys
        return tuple(put(prefix, key) for key in keys)

    return tuple(
        replace(
            row,
            ours=put(ours, row.ours),
            theirs=put(theirs, row.theirs),
            group=row.group and ours + row.group,
            scope=ours + row.scope,
        )
        for row in rows
    )


def key_pattern(keys: Iterable[str]) -> re.Pattern[str]:
    """A regular expression for the given keys, ``{i}`` standing for any layer number."""
    parts = (map(re.escape, _LAYER.split(key)) for key in keys if key != UNUSED)
    return re.compile("|".join(r"\d+".join(part) for part in parts))


def as_tensors(state_dict: StateDict) -> dict[str, Tensor]:
    """Every value as a detached tensor; numpy arrays are copied, tensors are not."""
    return {key: _as_tensor(key, value) for key, value in state_dict.items()}


def convert(
    layout: str, rows: Iterable[Row], state: Mapping[str, Tensor], **sizes: int
) -> tuple[dict[str, Tensor], Sizes]:
    """Turn ``state`` from their names into ours by ``rows``, strictly.

    ``sizes`` gives the lengths of axes that the shapes alone don't tell. Returns contiguous
    tensors, which share memory with ``state`` where nothing had to move, and the sizes of all
    named axes outside of scopes. CheckpointError names missing, left-over and wrong-shaped keys.
    """
    steps = _needed_steps(rows, state)
    _check_keys(layout, steps, state)
    scopes = _bind_axes(layout, steps, state, sizes)
    converted: dict[str, Tensor] = {}
    for step in steps:
        for key, tensor in step.run(state, scopes[step.scope]).items():
            # What we keep under two names (LXMERT's cross-attention) may be one tensor of theirs.
            known = converted.setdefault(key, tensor)
            if known is not tensor and not _equal(known, tensor):
                raise CheckpointError(
                    f"{key!r} has one value in layout {layout!r}, but {step.sources[0]!r} differs"
                )
    return converted, scopes[""]


def check_shared(network: nn.Module, state: Mapping[str, Tensor]) -> None:
    """CheckpointError where ``state`` has different values for weights that the network shares.

    Loading would let the last of them win.
    """
    first: dict[int, str] = {}
    for key, tensor in network.state_dict(keep_vars=True).items():
        known = first.setdefault(id(tensor), key)
        both = known != key and known in state and key in state
        if both and not _equal(state[known], state[key]):
            raise CheckpointError(
                f"{known!r} and {key!r} are the same tensor in this model, but they differ"
            )


def first_few(names: Iterable[str], limit: int = 4) -> str:
    """``'a', 'b' and 7 more`` for an error message."""
    names = list(names)
    shown = ", ".join(repr(name) for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"


@dataclass(frozen=True)
class _Step:
    """A row made concrete for one layer: read ``sources``, write ``targets``."""

    sources: tuple[str, ...]
    targets: tuple[str, ...]
    axes: tuple[str, str]
    part: tuple[str, int]
    scope: str

    @property
    def tensor_axes(self) -> list[str]:
        """The axes of one source tensor: without the first where several sources are stacked."""
        axes = _split_axes(self.axes[0])
        return axes[1:] if len(self.sources) > 1 else axes

    @property
    def used(self) -> list[str]:
        """The sources that are keys."""
        return [key for key in self.sources if key != UNUSED]

    @property
    def stack_sizes(self) -> Sizes:
        """The axis that several keys span has their number as its size."""
        sides = zip(self.axes, (self.sources, self.targets), strict=True)
        return {_split_axes(axes)[0]: len(keys) for axes, keys in sides if len(keys) > 1}

    def run(self, state: Mapping[str, Tensor], sizes: Sizes) -> dict[str, Tensor]:
        like = state[self.used[0]]
        tensors = [torch.zeros_like(like) if k == UNUSED else state[k] for k in self.sources]
        sizes = {name: sizes[name] for name in _axis_names(self.axes[0]) if name in sizes}
        sizes |= self.stack_sizes
        whole = tensors if len(tensors) > 1 else tensors[0]
        if self.axes[0] != self.axes[1] or len(tensors) > 1:
            whole = rearrange(whole, " -> ".join(self.axes), **sizes)
        if len(self.targets) == 1:
            return {self.targets[0]: whole.contiguous()}
        # Cloned: slices of one storage could not be saved as separate tensors.
        slices = (part.clone(memory_format=torch.contiguous_format) for part in whole)
        named = zip(self.targets, slices, strict=True)
        return {key: tensor for key, tensor in named if key != UNUSED}


def _needed_steps(rows: Iterable[Row], state: Mapping[str, Tensor]) -> list[_Step]:
    """Steps for all layers of ``state``, without the optional parts that it has nothing of."""
    rows = tuple(rows)
    depths = _depths((key for row in rows for key in row.their_keys), state)
    steps = [step for row in rows for step in _steps(row, depths)]
    present = {step.part for step in steps if any(key in state for key in step.sources)}
    return [step for step in steps if not step.part[0] or step.part in present]


def _steps(row: Row, depths: Mapping[str, int]) -> list[_Step]:
    their_axes, arrow, our_axes = row.axes.partition(" -> ")
    stack, *layered = _LAYER.split(row.their_keys[0], 1)
    return [
        _Step(
            sources=tuple(_numbered(key, i) for key in row.their_keys),
            targets=tuple(_numbered(key, i) for key in row.our_keys),
            axes=(their_axes, our_axes if arrow else their_axes),
            part=(row.group, i),
            scope=_numbered(row.scope, i),
        )
        for i in range(depths[stack] if layered else 1)
    ]


def _unnumbered(key: str) -> str:
    """The key of any layer."""
    return re.sub(r"\{i+\}|\d+", "#", key)


def _numbered(key: str, layer: int) -> str:
    """The key of one layer: as many digits as there are letters ``i`` in the braces, or more."""
    return _LAYER.sub(lambda match: f"{layer:0{len(match[0]) - 2}}", key)


def _depths(patterns: Iterable[str], keys: Iterable[str]) -> dict[str, int]:
    """Number of layers behind every prefix that ``{i}`` follows; at least one."""
    keys = list(keys)
    depths = {}
    for stack in {_LAYER.split(key, 1)[0] for key in patterns if _LAYER.search(key)}:
        found = (re.match(re.escape(stack) + r"(\d{1,6})(?!\d)", key) for key in keys)
        # A file has at least one key a layer; a larger number is no layer but a left-over key.
        numbers = [int(match[1]) for match in found if match and int(match[1]) < len(keys)]
        depths[stack] = 1 + max(numbers, default=0)
    return depths


def _check_keys(layout: str, steps: list[_Step], state: Mapping[str, Tensor]) -> None:
    wanted = {key: None for step in steps for key in step.used}
    missing = [key for key in wanted if key not in state]
    left_over = [key for key in state if key not in wanted]
    problems = [
        f"{len(keys)} {what}: {first_few(keys)}"
        for what, keys in (("missing", missing), ("left over", left_over))
        if keys
    ]
    if problems:
        raise CheckpointError(f"the keys do not fit layout {layout!r}; {'; '.join(problems)}")


def _bind_axes(
    layout: str, steps: list[_Step], state: Mapping[str, Tensor], sizes: Sizes
) -> dict[str, Sizes]:
    """Size of every axis name, per scope; CheckpointError where two tensors disagree."""
    scopes: dict[str, Sizes] = defaultdict(lambda: dict(sizes))
    wrong = []
    for step in steps:
        for key in step.used:
            known = scopes[step.scope]
            if not _bind(step.tensor_axes, tuple(state[key].shape), known, step.stack_sizes):
                needed = _describe(step.tensor_axes, known | step.stack_sizes)
                wrong.append(f"{key!r} is {tuple(state[key].shape)} instead of {needed}")
    if wrong:
        more = f"; {len(wrong) - 3} more" if len(wrong) > 3 else ""
        shown = "; ".join(wrong[:3])
        raise CheckpointError(f"{len(wrong)} of wrong shape for layout {layout!r}: {shown}{more}")
    return scopes


def _bind(axes: list[str], shape: tuple[int, ...], known: Sizes, stack: Sizes) -> bool:
    """Whether ``shape`` fits ``axes``; sizes that it newly tells are added to ``known``."""
    if len(axes) != len(shape):
        return False
    for axis, size in zip(axes, shape, strict=True):
        names = _axis_names(axis)
        unknown = [name for name in names if name not in known and name not in stack]
        product = math.prod((known | stack)[name] for name in names if name not in unknown)
        if len(unknown) > 1:
            raise CheckpointError(f"shapes alone do not tell {unknown[0]}; pass {unknown[0]}=…")
        if size % max(1, product) or (not unknown and size != product):
            return False
        known.update(dict.fromkeys(unknown, size // product))
    return True


def _describe(axes: list[str], known: Sizes) -> str:
    """``(mlp=3072, num_heads=12 x head_dim=64)``: axis names with the sizes that are known."""
    sizes = [[f"{name}={known.get(name, '?')}" for name in _axis_names(axis)] for axis in axes]
    return f"({', '.join(' x '.join(names) or '1' for names in sizes)})"


def _split_axes(axes: str) -> list[str]:
    """``"(a b) c"`` as ``["(a b)", "c"]``."""
    return re.findall(r"\([^)]*\)|\S+", axes)


def _equal(left: Tensor, right: Tensor) -> bool:
    """Bit for bit. Tensors without values, on the meta device, are equal if their shapes are."""
    if left.is_meta or right.is_meta:
        return left.shape == right.shape
    return left.dtype == right.dtype and torch.equal(left, right)


def _axis_names(axes: str) -> list[str]:
    """Names within ``axes``; a literal 1 has none."""
    return re.findall(r"[a-z_]+", axes)


def _as_tensor(key: str, value: Tensor | np.ndarray) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    # numpy knows no bfloat16: JAX stores it as two opaque bytes.
    if value.dtype == np.dtype("V2"):
        return torch.from_numpy(value.view(np.uint16).copy()).view(torch.bfloat16)
    try:
        return torch.from_numpy(np.array(value, dtype=value.dtype.newbyteorder("=")))
    except TypeError:
        raise CheckpointError(f"{key!r} is no numeric array: its dtype is {value.dtype}") from None
