"""The optimiser, and which parameters decay."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.optim import AdamW, Optimizer

_FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}

Rule = Callable[[str, nn.Parameter], bool]
"""Whether weight decay falls on a parameter, told by its name and itself."""


def decays(name: str, parameter: nn.Parameter) -> bool:
    """The usual rule: only the entries of matrices and convolution kernels decay.

    Norms, biases, learned tokens, positions and temperatures do not, as in DeiT's code
    (``no_weight_decay`` in timm): pulling them to zero limits no capacity, it only moves the point
    from which the network computes.
    """
    learned_input = "position" in name or name.endswith(("token", "tokens"))
    return parameter.ndim >= 2 and not learned_input


def parameter_groups(model: nn.Module, weight_decay: float, rule: Rule = decays) -> list[dict]:
    """The trainable parameters in two groups: those that decay and those that do not."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    decayed = [p for name, p in named if rule(name, p)]
    others = [p for name, p in named if not rule(name, p)]
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module,
    lr: float,
    weight_decay: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    rule: Rule = decays,
) -> Optimizer:
    """AdamW (Loshchilov & Hutter 2019) on ``parameter_groups``, fused where the device has it."""
    devices = {p.device.type for p in model.parameters()}
    groups = parameter_groups(model, weight_decay, rule)
    return AdamW(groups, lr=lr, betas=betas, eps=eps, fused=devices <= _FUSED_DEVICES)
