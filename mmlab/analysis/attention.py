"""Attention maps from any model of this package, with its fused kernels left on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmlab.nn import AttentionMask, DotProductAttention

AttentionMaps = dict[str, Float[Tensor, "batch heads queries keys"]]


@contextmanager
def record_attention(model: nn.Module) -> Iterator[AttentionMaps]:
    """Collect the attention weights of every layer in the forward passes of the ``with`` block.

    ::

        with mmlab.record_attention(model) as maps:
            model(images)
        maps["blocks.0.attention"]  # (batch, heads, queries, keys)

    A key is the layer's name: ``model.get_submodule(key)`` is the ``Attention``. A layer that runs
    again replaces its map, so each map is the last one. Attention dropout is left out. The maps
    carry gradients to queries and keys where gradients are on. A compiled model runs uncompiled
    inside the block. Afterwards the model is as it was, also after an error; its outputs are the
    same bit for bit. ValueError if the model has no attention of ours.
    """
    layers = _attention_layers(model)
    maps: AttentionMaps = {}
    handles = []
    try:
        for name, layer in layers.items():
            handles.append(layer.register_forward_hook(_recorder(maps, name)))
        with torch.compiler.set_stance("force_eager"):
            yield maps
    finally:
        for handle in handles:
            handle.remove()


def attention_weights(
    queries: Float[Tensor, "batch heads queries head_dim"],
    keys: Float[Tensor, "batch heads keys head_dim"],
    mask: AttentionMask | None = None,
) -> Float[Tensor, "batch heads queries keys"]:
    """``softmax(q k^T / sqrt(head_dim))`` over the keys, at least in float32.

    A mask of numbers is added to the scores before the softmax. Hidden keys get exactly 0; a query
    that may look nowhere has a row of zeros, as in PyTorch's fused kernel.
    """
    logits = (queries * queries.shape[-1] ** -0.5) @ keys.mT
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if mask is None:
        return logits.softmax(dim=-1)
    if mask.is_floating_point():
        logits, mask = logits + mask, mask != -torch.inf
    # Not -inf: a row that is all -inf would turn into NaN, in the gradient too.
    logits = logits.masked_fill(~mask, torch.finfo(logits.dtype).min)
    return logits.softmax(dim=-1).masked_fill(~mask, 0.0)


def _attention_layers(model: nn.Module) -> dict[str, DotProductAttention]:
    layers = {
        # torch.compile wraps a module and calls the original `_orig_mod`.
        name.replace("_orig_mod.", "").rpartition(".")[0]: module
        for name, module in model.named_modules()
        if isinstance(module, DotProductAttention)
    }
    if not layers:
        raise ValueError(f"{type(model).__name__} has no mmlab.nn.Attention layer to record")
    return layers


def _recorder(maps: AttentionMaps, name: str) -> Callable[..., None]:
    def record(module: nn.Module, inputs: tuple[Tensor | None, ...], output: Tensor) -> None:
        queries, keys, _, mask = inputs
        # Activation checkpointing compares what forward and recomputation save for the backward
        # pass. These pass-through hooks keep our tensors out of its count: the recomputation may
        # come after the block, when we no longer record.
        with saved_tensors_hooks(_unchanged, _unchanged):
            maps[name] = attention_weights(queries, keys, mask)

    return record


def _unchanged(tensor: Tensor) -> Tensor:
    return tensor
