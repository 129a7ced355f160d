"""Grad-CAM on attention: which of the weights of a layer a score depends on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mmlab.analysis.attention import attention_weights
from mmlab.nn import Attention


def grad_cam(
    model: nn.Module, layer: str, score: Callable[[], Float[Tensor, " batch"]]
) -> Float[Tensor, "batch queries keys"]:
    """Attention weights times the gradient of a score by them, where it is positive.

    The mean over the heads. Selvaraju et al. 2017 (arXiv 1610.02391) for convolutions; ALBEF (Li et
    al. 2021, section 5.5) for the cross-attention of its third fusion block, as a box for a phrase
    without ever having seen a box::

        def score():
            features = model(input_ids, images, valid)
            return model.matching_logits(features.fused)[:, 1]

        maps = grad_cam(model, "text_encoder.blocks.8.cross_attention", score)
        heat = maps[:, :, 1:]  # (batch, tokens, patches): key 0 is the class token

    ``layer`` is a name as in ``record_attention``; ``score`` runs the model and gives one number
    for each row of its batch. The weights are computed openly in this one layer, with the same
    result up to rounding. Gradients of parameters stay as they are. ValueError if there is no such
    layer, if the model is in training mode, or if the score does not depend on the layer.
    """
    attention = dict(model.named_modules()).get(layer)
    if not isinstance(attention, Attention):
        raise ValueError(f"{type(model).__name__} has no attention called {layer!r}")
    if model.training:
        raise ValueError("the model is in training mode; call model.eval() before grad_cam")
    with torch.enable_grad(), _open_weights(attention) as seen:
        total = score().sum()
    gradients = torch.autograd.grad(total, seen, allow_unused=True) if seen else (None,)
    if gradients[-1] is None:
        raise ValueError(f"the score does not depend on the attention {layer!r}")
    return (seen[-1].detach() * gradients[-1].clamp(min=0)).mean(1)


@contextmanager
def _open_weights(attention: Attention) -> Iterator[list[Tensor]]:
    """Attention by explicit weights, which are gathered: one tensor for each call of the layer."""
    seen: list[Tensor] = []

    def recompute(module: nn.Module, inputs: tuple[Tensor | None, ...], output: Tensor) -> Tensor:
        queries, keys, values, mask = inputs
        # Cut off from what comes before: the gradient need not go deeper.
        weights = attention_weights(queries, keys, mask).detach().requires_grad_()
        seen.append(weights)
        return weights.to(values.dtype) @ values

    handle = attention.dot_product.register_forward_hook(recompute)
    try:
        with torch.compiler.set_stance("force_eager"):
            yield seen
    finally:
        handle.remove()
