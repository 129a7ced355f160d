"""Which part of the input made the answer: Integrated Gradients and occlusion, by Captum.

Both take any function ``forward`` from a batch of inputs to outputs: ``model`` itself for images,
or for text a function of the word embeddings, since token numbers have no gradient.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

# Captum is imported where it is used: it takes longer to load than the rest of this package.

Forward = Callable[[Tensor], Tensor]
"""``(batch, ...)`` to ``(batch, classes)``, or to ``(batch,)`` where there is no target."""

Target = int | Int[Tensor, " targets"] | None
"""The output to explain: one class for all, one for each input, None for a single output."""


def integrated_gradients(
    forward: Forward,
    inputs: Float[Tensor, "batch ..."],
    target: Target = None,
    baseline: float | Float[Tensor, " ..."] = 0.0,
    steps: int = 50,
    batch_size: int = 32,
) -> Float[Tensor, "batch ..."]:
    """Share of each input value in ``forward(inputs) - forward(baseline)``.

    The gradient is averaged along the straight line from the baseline to the input and multiplied
    by their difference (Sundararajan et al. 2017, equation 1), with ``steps`` Gauss-Legendre nodes.
    The shares sum to the difference of the outputs up to ``completeness_gap``. ``baseline`` 0 is
    the mean colour of normalised images; the answer depends on this choice. ``batch_size`` bounds
    the inputs that go through ``forward`` at once. ValueError if an argument does not fit, or if
    ``forward`` is a model in training mode.
    """
    from captum.attr import IntegratedGradients

    _check(forward, inputs, target, baseline, steps=steps, batch_size=batch_size)
    return IntegratedGradients(_checked(forward, target)).attribute(
        inputs.detach(),
        baselines=_as_baseline(baseline, inputs),
        target=target,
        n_steps=steps,
        internal_batch_size=max(batch_size, len(inputs)),
    )


@torch.no_grad()
def completeness_gap(
    forward: Forward,
    inputs: Float[Tensor, "batch ..."],
    attributions: Float[Tensor, "batch ..."],
    target: Target = None,
    baseline: float | Float[Tensor, " ..."] = 0.0,
) -> Float[Tensor, " batch"]:
    """Sum of the attributions minus ``forward(inputs) - forward(baseline)``.

    0 for exact Integrated Gradients; where it is large, take more steps.
    """
    _check(forward, inputs, target, baseline)
    outputs = [
        _select(_checked(forward, target)(x), target)
        for x in (inputs, _as_baseline(baseline, inputs))
    ]
    return attributions.flatten(1).sum(dim=1) - (outputs[0] - outputs[1])


def occlusion(
    forward: Forward,
    inputs: Float[Tensor, "batch ..."],
    window: tuple[int, ...],
    target: Target = None,
    baseline: float | Float[Tensor, " ..."] = 0.0,
    batch_size: int = 32,
) -> Float[Tensor, "batch ..."]:
    """How much the output falls when a window of the input is replaced by the baseline.

    ``window`` has one size per dimension after the batch; windows lie side by side, and the answer
    has one value for each (Zeiler and Fergus 2013, section 4.2). ``(1, dim)`` covers word by word
    in embeddings ``(batch, words, dim)``. ValueError as in ``integrated_gradients``, or if the
    windows do not tile the input.
    """
    from captum.attr import Occlusion

    _check(forward, inputs, target, baseline, batch_size=batch_size)
    _check_window(window, inputs.shape[1:])
    differences = Occlusion(_checked(forward, target)).attribute(
        inputs.detach(),
        sliding_window_shapes=window,
        strides=window,
        baselines=_as_baseline(baseline, inputs),
        target=target,
        perturbations_per_eval=max(batch_size // len(inputs), 1),
    )
    # Captum repeats a window's value at each of its places.
    return differences[(slice(None), *(slice(None, None, size) for size in window))]


def patch_occlusion(
    forward: Forward,
    images: Float[Tensor, "batch channels height width"],
    target: Target = None,
    patch_size: int = 16,
    baseline: float | Float[Tensor, " ..."] = 0.0,
    batch_size: int = 32,
) -> Float[Tensor, "batch rows columns"]:
    """``occlusion`` of images patch by patch, one value for each; baseline 0 is the mean colour."""
    _check_tiling("patch_size", (patch_size, patch_size), images.shape[-2:])
    window = (images.shape[1], patch_size, patch_size)
    return occlusion(forward, images, window, target, baseline, batch_size)[:, 0]


def _as_baseline(baseline: float | Tensor, inputs: Tensor) -> Tensor:
    return torch.as_tensor(baseline).to(inputs).expand_as(inputs)


def _checked(forward: Forward, target: Target) -> Forward:
    """``forward`` with a look at its outputs; a single output comes as ``(batch,)``."""

    def run(inputs: Tensor) -> Tensor:
        outputs = forward(inputs)
        _check_outputs(outputs, target, len(inputs))
        return outputs.flatten() if target is None else outputs

    return run


def _select(outputs: Tensor, target: Target) -> Float[Tensor, " batch"]:
    if target is None:
        return outputs
    columns = torch.as_tensor(target, device=outputs.device).expand(len(outputs))
    return outputs.gather(1, columns[:, None].long())[:, 0]


def _check_outputs(outputs: Tensor, target: Target, batch: int) -> None:
    shape = tuple(outputs.shape)
    if target is None:
        if outputs.numel() != batch:
            raise ValueError(f"target must name one of the outputs, whose shape is {shape}")
        return
    if outputs.ndim != 2:
        raise ValueError(f"forward must return (batch, classes) with a target, got {shape}")
    # A negative number would count from the end without a word.
    lowest, highest = torch.as_tensor(target).aminmax()
    if lowest < 0 or highest >= shape[1]:
        raise ValueError(f"target must be from 0 to {shape[1] - 1}, got {target}")


def _check(
    forward: Forward, inputs: Tensor, target: Target, baseline: float | Tensor, **counts: int
) -> None:
    if isinstance(forward, nn.Module) and forward.training:
        raise ValueError("the model is in training mode; call model.eval() before attributing")
    if not len(inputs):
        raise ValueError("inputs must hold at least one example, got an empty batch")
    if isinstance(target, Tensor) and len(target) != len(inputs):
        raise ValueError(
            f"target must have one class for each of {len(inputs)} inputs, got {len(target)}"
        )
    _check_baseline(baseline, inputs)
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")


def _check_baseline(baseline: float | Tensor, inputs: Tensor) -> None:
    try:
        _as_baseline(baseline, inputs)
    except RuntimeError:
        given, wanted = tuple(torch.as_tensor(baseline).shape), tuple(inputs.shape)
        raise ValueError(f"baseline must spread to shape {wanted}, got {given}") from None


def _check_window(window: tuple[int, ...], shape: torch.Size) -> None:
    if len(window) != len(shape):
        raise ValueError(
            f"window must have {len(shape)} sizes for inputs of {tuple(shape)}, got {window}"
        )
    _check_tiling("window", window, shape)


def _check_tiling(name: str, window: tuple[int, ...], shape: torch.Size) -> None:
    if any(size < 1 or length % size for size, length in zip(window, shape, strict=True)):
        raise ValueError(f"{name} must tile the input of {tuple(shape)}, got {window}")
