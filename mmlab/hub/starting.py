"""Weights of others that a fresh network begins with: an image encoder, a BERT for its texts.

Strict as loading is: what the two files hold either has its place in the network, or is known to
have none, or it is an error. What was taken, and what begins afresh, is told.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mmlab.hub.beit import beit_grid_side, beit_weights
from mmlab.hub.bert import Bert, is_bert, read_bert
from mmlab.hub.conversion import detect_layout, layouts, to_mmlab
from mmlab.hub.files import CheckpointFile
from mmlab.hub.fit import Checkpoint, differences, fit_state, read_vit
from mmlab.hub.load import first_problems, key_problems
from mmlab.hub.mapping import CheckpointError, convert
from mmlab.hub.tables.blip2 import EVA_ROWS
from mmlab.models.blip2 import BLIP2
from mmlab.models.vlmo import VLMo
from mmlab.nn import BertConfig, interpolate_positions

State = dict[str, Tensor]
Places = tuple[tuple[str, str], ...]
"""Where parts of a BERT stand in a network: its prefix there, and that of ``mmlab.hub.bert``."""

_WORDS, _POSITIONS = "embeddings.word_embedding.weight", "embeddings.position_embedding.weight"
_WORD_BIAS = "words.bias"
_POSITION_TABLE = "position_embedding"
_DIGITS = re.compile(r"\.\d+(?=\.)")


@dataclass(frozen=True)
class Taken:
    """What a network has taken of a file.

    ``keys`` are names of the network, ``unused`` those of the file (ours) that have no place in it,
    ``notes`` what was changed on the way.
    """

    source: str
    keys: tuple[str, ...]
    unused: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        spare = [f"left out are {', '.join(_subtrees(self.unused))}"] if self.unused else []
        told = [f"{len(self.keys)} tensors from {self.source!r}", *self.notes, *spare]
        return "; ".join(told)


def untouched(network: nn.Module, taken: Iterable[Taken]) -> list[str]:
    """The parts of a network that nothing was taken for, each by the shortest name it has.

    A ``*`` stands for the number of any layer.
    """
    touched = {key for part in taken for key in part.keys}
    return _subtrees(network.state_dict().keys() - touched, touched)


def _subtrees(keys: Iterable[str], others: Iterable[str] = ()) -> list[str]:
    """The shortest names that stand for ``keys`` and for none of ``others``."""
    other_paths = {path for key in others for path in _paths(key)}
    found = {}
    for key in sorted(keys):
        free = (path for path in _paths(key) if path not in other_paths)
        found[next(free, key)] = None
    return list(found)


def _paths(key: str) -> list[str]:
    """``a``, ``a.b`` and ``a.b.c``, the number of a layer as a ``*``."""
    parts = _DIGITS.sub(".*", key).split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


@torch.no_grad()
def _give(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Put ``weights``, of the right shapes, into the network."""
    own = network.state_dict()
    problems = key_problems(own, own | dict(weights))
    if problems:
        raise CheckpointError(f"it does not fit: {first_problems(problems)}")
    network.load_state_dict(own | dict(weights))


# Texts.


def start_from_bert(
    network: nn.Module, file: CheckpointFile, places: Places, num_added: int = 0
) -> Taken:
    """Give the text parts of ``network`` the weights of a BERT, in place.

    ``network.config.bert`` is what the BERT must be like; its first positions and, where
    ``num_added`` special tokens come after BERT's vocabulary, its words are taken, and the others
    stay fresh. MLPs and norms for queries start as those of the text (LAVIS, ``blip2_qformer.py``).
    CheckpointError if the file is none, or of other sizes or another vocabulary.
    """
    bert, own = read_bert(file), network.state_dict()
    notes = _check_bert(bert, network.config.bert, num_added)
    sources = {key: _name_in_bert(key, places) for key in own}
    sources = {key: name for key, name in sources.items() if name in bert.state}
    weights = {key: _fitted(name, bert.state[name], own[key]) for key, name in sources.items()}
    _give(network, weights)
    unused = bert.state.keys() - set(sources.values())
    return Taken(bert.source, tuple(weights), tuple(sorted(unused)), tuple(notes))


def _name_in_bert(key: str, places: Places) -> str:
    for ours, theirs in places:
        if key.startswith(ours):
            name = theirs + key.removeprefix(ours)
            return name.replace(".query_mlp.", ".mlp.").replace(".query_norm.", ".norm2.")
    return ""


def _check_bert(bert: Bert, config: BertConfig, num_added: int) -> list[str]:
    """What differs between the two and does no harm. CheckpointError if they do not fit."""
    told, notes = bert.settings, []
    unlike = [
        f"{name}={told[name]!r} (not {getattr(config, name)!r})"
        for name in ("dim", "depth", "num_heads", "mlp_dim")
        if name in told and told[name] != getattr(config, name)
    ]
    if unlike:
        has = ", ".join(unlike)
        raise CheckpointError(f"{bert.source!r} is no BERT for this model: it has {has}")
    expected = config.vocab_size - num_added
    if told["vocab_size"] != expected:
        raise CheckpointError(
            f"{bert.source!r} knows {told['vocab_size']} words, the tokenizer {expected}; a BERT "
            "is taken with its own vocabulary"
        )
    if told["max_positions"] < config.max_positions:
        raise CheckpointError(
            f"{bert.source!r} has {told['max_positions']} positions, fewer than this model's "
            f"context_length={config.max_positions}"
        )
    if num_added:
        notes.append(f"{num_added} more words are fresh")
    if told["max_positions"] > config.max_positions:
        notes.append(f"the first {config.max_positions} of {told['max_positions']} positions")
    return [*notes, *_behaviour(told, config)]


def _behaviour(told: Mapping[str, object], config: object) -> list[str]:
    """Settings that no shape shows, where the file was trained with others."""
    return [
        f"it was trained with {name}={told[name]!r}, this model has {getattr(config, name)!r}"
        for name in ("norm_eps", "activation")
        if name in told and told[name] != getattr(config, name)
    ]


def _fitted(name: str, theirs: Tensor, own: Tensor) -> Tensor:
    """A table cut to the model's positions, or continued with its own fresh words."""
    if name == _POSITIONS:
        return theirs[: len(own)]
    if name in (_WORDS, _WORD_BIAS):
        return torch.cat([theirs.to(own.dtype), own[len(theirs) :]])
    return theirs


# Images.


def start_from_image_encoder(network: nn.Module, file: CheckpointFile) -> Taken:
    """Give ``network.image_encoder`` the weights in a file, in place.

    That is a ViT or DeiT in any layout of ours, with or without a head; for a ``BLIP2`` what its
    image encoder is: EVA-CLIP's ViT in official names, or a CLIP in any layout. Learned positions
    are interpolated to the model's grid. CheckpointError if the file is of another kind or size.
    """
    kind = network.config.image_encoder if isinstance(network, BLIP2) else "vit"
    if kind not in _IMAGE_READERS:
        raise CheckpointError(f"{file.source!r}: this model's image encoder, {kind!r}, takes none")
    if is_bert(file.tensors):
        raise CheckpointError(f"{file.source!r} is a BERT, and no image encoder")
    try:
        taken = _IMAGE_READERS[kind](network.image_encoder, file, network.config)
    except CheckpointError as error:
        named = repr(file.source) in str(error)
        raise CheckpointError(str(error) if named else f"{file.source!r}: {error}") from None
    return replace(taken, keys=tuple(f"image_encoder.{key}" for key in taken.keys))


def _take_vit(encoder: nn.Module, file: CheckpointFile, config: object) -> Taken:
    checkpoint = read_vit(file)
    own, wanted = encoder.state_dict(), encoder.config
    unlike = differences(wanted, checkpoint)
    if unlike:
        raise CheckpointError(
            f"{file.source!r} is no image encoder for this model: it has {', '.join(unlike)}"
        )
    weights = fit_state(wanted, own, _in_float(checkpoint))
    notes = _stretched(checkpoint.state, weights) + _behaviour(checkpoint.settings, wanted)
    _give(encoder, weights)
    return _taken(file, checkpoint.state, weights, notes)


def _in_float(checkpoint: Checkpoint) -> Checkpoint:
    return replace(checkpoint, state={key: t.float() for key, t in checkpoint.state.items()})


def _take_eva(encoder: nn.Module, file: CheckpointFile, config: object) -> Taken:
    """EVA's files have all blocks and a head; of both, BLIP-2 takes a part."""
    spare = _spare(r"(norm|fc_norm|head)\..*", encoder)
    theirs = {key: t for key, t in file.tensors.items() if not spare.fullmatch(key)}
    state, _ = convert("eva", EVA_ROWS, theirs)
    return _take_encoder(encoder, file, state, "bicubic", file.tensors.keys() - theirs.keys())


def _take_clip(encoder: nn.Module, file: CheckpointFile, config: object) -> Taken:
    layout = detect_layout(file.tensors, prefer=layouts("clip-*"))
    if layout not in layouts("clip-*"):
        raise CheckpointError(f"it is no CLIP; its keys look like {layout!r}")
    spare, whole = _spare(r"norm\..*", encoder), to_mmlab(layout, file.tensors)
    start = "image_encoder."
    state = {k.removeprefix(start): t for k, t in whole.items() if k.startswith(start)}
    kept = {key: t for key, t in state.items() if not spare.fullmatch(key)}
    unused = whole.keys() - {start + key for key in kept}
    return _take_encoder(encoder, file, kept, "bicubic_aligned", unused)


def _spare(pattern: str, encoder: nn.Module) -> re.Pattern[str]:
    """Keys of what comes after the blocks that BLIP-2 has, and of blocks beyond them."""
    depth = len(encoder.blocks)
    beyond = rf"blocks\.(?!({'|'.join(map(str, range(depth)))})\.).*"
    return re.compile(f"{pattern}|{beyond}")


def _take_encoder(
    encoder: nn.Module,
    file: CheckpointFile,
    state: State,
    interpolation: str,
    unused: Iterable[str],
) -> Taken:
    """A class token and a square of patches have positions; they are interpolated."""
    own, weights = encoder.state_dict(), dict(state)
    old, new = (part[_POSITION_TABLE] for part in (state, own))
    grids = [2 * (math.isqrt(table.shape[1] - 1),) for table in (old, new)]
    if old.shape[1] == math.prod(grids[0]) + 1:
        weights[_POSITION_TABLE] = interpolate_positions(old.float(), *grids, interpolation, 1)
    problems = key_problems(own, weights)
    if problems:
        raise CheckpointError(f"it is no image encoder for this model: {first_problems(problems)}")
    encoder.load_state_dict(weights)
    notes = tuple(_stretched(state, weights))
    return Taken(file.source, tuple(weights), tuple(sorted(unused)), notes)


def _taken(file: CheckpointFile, state: State, weights: State, notes: list[str]) -> Taken:
    unused = state.keys() - weights.keys()
    return Taken(file.source, tuple(weights), tuple(sorted(unused)), tuple(notes))


def _stretched(old: State, new: State) -> list[str]:
    """How many positions there were, and are, if that is not the same."""
    tables = [state.get(_POSITION_TABLE) for state in (old, new)]
    if tables[0] is None or tables[0].shape == tables[1].shape:
        return []
    before, after = (table.shape[1] for table in tables)
    return [f"{before} positions are interpolated to {after}"]


_IMAGE_READERS = {"vit": _take_vit, "eva": _take_eva, "clip": _take_clip}


def start_vlmo_from_beit(network: VLMo, file: CheckpointFile) -> Taken:
    """Give ``network`` the weights of a BEiT in official names, in place.

    As ``mmlab.hub.beit.start_from_beit``, but errors name the file, and a BEiT for images of
    another size is stretched to the network's.
    """
    grid = network.config.grid
    try:
        side = beit_grid_side(file.tensors)
        if side == grid[0]:
            weights, notes = beit_weights(network, file.tensors), ()
        else:
            weights = _resized_beit(network, file.tensors, side)
            notes = (f"{side} x {side} patches are stretched to {grid[0]} x {grid[0]}",)
        _give(network, weights)
    except CheckpointError as error:
        raise CheckpointError(f"{file.source!r}: {error}") from None
    return Taken(file.source, tuple(weights), notes=notes)


def _resized_beit(network: VLMo, tensors: State, side: int) -> State:
    """Through a VLMo of the BEiT's size."""
    config = network.config
    own = VLMo(replace(config, image_size=side * config.patch_size))
    weights = beit_weights(own, tensors)
    _give(own, weights)
    own.resize_positions(config.image_size)
    return {key: own.state_dict()[key] for key in weights}
