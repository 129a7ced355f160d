"""The systems that ``gpu.py`` examines: how to make each, and what to give it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mmlab.models import vit

Inputs = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    """One model: ``encode(network, inputs)`` gives the tensor that is compared.

    ``pretraining(network).losses(batch(size, generator))`` is a training step's loss. Mini cases
    try the script where there is no GPU.
    """

    system: str
    name: str
    network: Callable[[], torch.nn.Module]
    inputs: Callable[[int, torch.Generator], Inputs]
    encode: Callable[[torch.nn.Module, Inputs], torch.Tensor]
    pretraining: Callable[[torch.nn.Module], torch.nn.Module]
    batch: Callable[[int, torch.Generator], Inputs]
    batch_size: int = 128
    mini: bool = False


def images(config, batch: int, generator: torch.Generator) -> torch.Tensor:
    size = config.image_size
    return torch.randn(batch, config.num_channels, size, size, generator=generator)


def vit_case(name: str, config: vit.ViTConfig, **settings) -> Case:
    def batch(size: int, generator: torch.Generator) -> Inputs:
        labels = torch.randint(config.num_classes, (size,), generator=generator)
        return {"images": images(config, size, generator), "labels": labels}

    return Case(
        system="vit",
        name=name,
        network=lambda: vit.ViT(config),
        inputs=lambda size, generator: {"images": images(config, size, generator)},
        encode=lambda network, inputs: network.encode_image(inputs["images"]),
        pretraining=lambda network: vit.ViTClassification(network),
        batch=batch,
        **settings,
    )


CASES = [
    vit_case("vit-b-16", vit.VIT_B_16, batch_size=256),
    vit_case("vit-l-16", vit.VIT_L_16),
    vit_case("vit-h-14", vit.VIT_H_14, batch_size=64),
    vit_case("vit-mini", vit.VIT_MINI, mini=True),
]
