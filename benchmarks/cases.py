"""The systems that ``gpu.py`` examines: how to make each, and what to give it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from mmlab.models import albef, blip, blip2, clip, flip, mae, vilt, vit
from mmlab.nn import random_masking

Inputs = dict[str, torch.Tensor]
Draw = Callable[[int, torch.Generator], Inputs]


@dataclass(frozen=True)
class Case:
    """One model: ``encode(network, inputs)`` gives the tensor that is compared.

    ``pretraining(network).losses(batch(size, generator))`` is a training step's loss. Mini cases
    try the script where there is no GPU.
    """

    system: str
    name: str
    network: Callable[[], torch.nn.Module]
    inputs: Draw
    encode: Callable[[torch.nn.Module, Inputs], torch.Tensor]
    pretraining: Callable[[torch.nn.Module], torch.nn.Module]
    batch: Draw
    batch_size: int = 128
    mini: bool = False


def pictures(config) -> Draw:
    """Noise in the size that a model takes."""

    def draw(batch: int, generator: torch.Generator) -> Inputs:
        shape = (batch, config.num_channels, config.image_size, config.image_size)
        return {"images": torch.randn(shape, generator=generator)}

    return draw


def pairs(config, length: int) -> Draw:
    """Pictures and captions of ``length`` tokens that all end with the highest one."""

    def draw(batch: int, generator: torch.Generator) -> Inputs:
        ids = torch.randint(1, config.vocab_size - 1, (batch, length), generator=generator)
        ids[:, -1] = config.vocab_size - 1 if getattr(config, "end_id", None) is None else 3
        valid = torch.ones_like(ids, dtype=torch.bool)
        return {**pictures(config)(batch, generator), "input_ids": ids, "attention_mask": valid}

    return draw


def vit_case(name: str, config: vit.ViTConfig, **settings) -> Case:
    def batch(size: int, generator: torch.Generator) -> Inputs:
        labels = torch.randint(config.num_classes, (size,), generator=generator)
        return {**pictures(config)(size, generator), "labels": labels}

    return Case(
        system="vit",
        name=name,
        network=lambda: vit.ViT(config),
        inputs=pictures(config),
        encode=lambda network, inputs: network.encode_image(inputs["images"]),
        pretraining=lambda network: vit.ViTClassification(network),
        batch=batch,
        **settings,
    )


def mae_case(name: str, config: mae.MAEConfig, **settings) -> Case:
    def masked(size: int, generator: torch.Generator) -> Inputs:
        noise = torch.rand(size, config.encoder.num_patches, generator=generator)
        return {**pictures(config)(size, generator), "noise": noise}

    def encode(network: mae.MAE, inputs: Inputs) -> torch.Tensor:
        return network(inputs["images"], random_masking(inputs["noise"], config.mask_ratio))

    return Case(
        system="mae",
        name=name,
        network=lambda: mae.MAE(config),
        inputs=masked,
        encode=encode,
        pretraining=mae.MAEPretraining,
        batch=masked,
        **settings,
    )


def both_features(network: torch.nn.Module, inputs: Inputs) -> torch.Tensor:
    images, texts = network.encode_image(inputs["images"]), network.encode_text(inputs["input_ids"])
    return torch.cat([images.float(), texts.float()])


def clip_case(name: str, config: clip.CLIPConfig, **settings) -> Case:
    draw = pairs(config, config.context_length)
    return Case(
        system="clip",
        name=name,
        network=lambda: clip.CLIP(config),
        inputs=draw,
        encode=both_features,
        pretraining=clip.CLIPPretraining,
        batch=draw,
        **settings,
    )


def flip_case(name: str, config: flip.FLIPConfig, mask_ratio: float, **settings) -> Case:
    """The forward pass is unmasked; the training step drops patches, which is FLIP's saving."""
    draw = pairs(config, config.context_length)
    return Case(
        system="flip",
        name=f"{name}, {mask_ratio:.0%} masked",
        network=lambda: flip.FLIP(config),
        inputs=draw,
        encode=both_features,
        pretraining=lambda network: flip.FLIPPretraining(network, mask_ratio),
        batch=draw,
        **settings,
    )


def vilt_case(name: str, config: vilt.ViLTConfig, **settings) -> Case:
    draw = pairs(config, config.context_length)
    return Case(
        system="vilt",
        name=name,
        network=lambda: vilt.ViLT(config),
        inputs=draw,
        encode=lambda network, inputs: network(inputs["input_ids"], inputs["images"]).pooled,
        pretraining=lambda network: vilt.ViLTPretraining(network, mask_id=4),
        batch=draw,
        **settings,
    )


FUSING = {
    "albef": (albef.ALBEF, albef.ALBEFPretraining, "fused"),
    "blip": (blip.BLIP, blip.BLIPPretraining, "grounded"),
    "blip2": (blip2.BLIP2, blip2.BLIP2Pretraining, "fused"),
}
"""The network, its pretraining, and which of the features are the text with the image."""


def fusing_case(
    system: str,
    name: str,
    config: albef.ALBEFConfig | blip.BLIPConfig | blip2.BLIP2Config,
    length: int,
    **settings,
) -> Case:
    """Texts that look at images: the forward pass ends with what the text makes of the image.

    In BLIP-2 the image encoder is frozen, and queries do the looking.
    """
    network, pretraining, fused = FUSING[system]
    draw = pairs(config, length)
    return Case(
        system=system,
        name=name,
        network=lambda: network(config),
        inputs=draw,
        encode=lambda model, inputs: getattr(model(inputs["input_ids"], inputs["images"]), fused),
        pretraining=pretraining,
        batch=draw,
        **settings,
    )


CASES = [
    vit_case("vit-b-16", vit.VIT_B_16, batch_size=256),
    vit_case("vit-l-16", vit.VIT_L_16),
    vit_case("vit-h-14", vit.VIT_H_14, batch_size=64),
    clip_case("clip-vit-b-32", clip.CLIP_VIT_B_32, batch_size=512),
    clip_case("clip-vit-l-14", clip.CLIP_VIT_L_14, batch_size=64),
    clip_case("clip-rn50", clip.CLIP_RN50, batch_size=256),
    mae_case("mae-b-16", mae.MAE_B_16, batch_size=256),
    *(flip_case("flip-b-16", flip.FLIP_B_16, ratio, batch_size=256) for ratio in (0.0, 0.5, 0.75)),
    vilt_case("vilt-b-32", vilt.VILT_B_32, batch_size=64),
    fusing_case("albef", "albef-b-16", albef.ALBEF_B_16, 30, batch_size=64),
    fusing_case("blip", "blip-b-16", blip.BLIP_B_16, 30, batch_size=64),
    fusing_case("blip2", "blip2-l-14", blip2.BLIP2_L_14, 32, batch_size=64),
    fusing_case("blip2", "blip2-g-14", blip2.BLIP2_G_14, 32, batch_size=64),
    vit_case("vit-mini", vit.VIT_MINI, mini=True),
    clip_case("clip-mini", clip.CLIP_MINI, mini=True),
    clip_case("clip-vit-mini", clip.CLIP_VIT_MINI, mini=True),
    mae_case("mae-mini", mae.MAE_MINI, mini=True),
    flip_case("flip-mini", flip.FLIP_MINI, 0.5, mini=True),
    vilt_case("vilt-mini", vilt.VILT_MINI, mini=True),
    fusing_case("albef", "albef-mini", albef.ALBEF_MINI, 30, mini=True),
    fusing_case("blip", "blip-mini", blip.BLIP_MINI, 30, mini=True),
    fusing_case("blip2", "blip2-mini", blip2.BLIP2_MINI, 30, mini=True),
]
