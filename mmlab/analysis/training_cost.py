"""What a pretraining run will cost, before it is paid: FLOPs and hours of a device."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

from mmlab.analysis.albef_cost import (
    albef_fusion_macs,
    albef_image_macs,
    albef_matching_macs,
    albef_text_macs,
)
from mmlab.analysis.blip2_cost import LANGUAGE_MODELS, LanguageModelSizes, blip2_step_macs
from mmlab.analysis.blip_cost import (
    blip_grounded_macs,
    blip_image_macs,
    blip_matching_macs,
    blip_text_macs,
    blip_words_macs,
)
from mmlab.analysis.cost import GradientMacs, clip_image_macs, clip_text_macs
from mmlab.analysis.vlmo_cost import vlmo_step_macs
from mmlab.hub.create import model_config
from mmlab.models.albef import ALBEFConfig
from mmlab.models.blip import BLIPConfig
from mmlab.models.blip2 import BLIP2Config
from mmlab.models.checks import check, check_integers, check_positive
from mmlab.models.clip import CLIPConfig
from mmlab.models.vlmo import VLMoConfig

A100_BF16_PEAK = 312e12
"""FLOP/s of one NVIDIA A100 in bf16, dense (NVIDIA, A100 datasheet)."""
MASKED_SHARE = 0.15
"""The share of words that are masked, at most: [CLS] never is."""


@dataclass(frozen=True)
class TrainingCost:
    """A run of ``steps`` steps with ``batch_size`` pairs each, over all devices together.

    - ``mfu``: the model FLOPs utilisation, the share of ``peak_flops`` (FLOP/s of one device) that
      the model's own operations reach (Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B);
      measure it on a short run.
    - ``num_devices``: how many work together; only the hours on the clock depend on it, unless a
      system says more.
    - ``num_text_tokens``: the length that captions have in a batch; None is the longest that fit.
    - ``recompute``: activation checkpointing, one more forward pass. It lengthens the run, yet does
      not count as the model's own work, so it enters the hours and not ``flops``.

    A wrong value raises ValueError.
    """

    config: CLIPConfig
    steps: int
    batch_size: int
    mfu: float
    peak_flops: float = A100_BF16_PEAK
    num_devices: int = 1
    num_text_tokens: int | None = None
    recompute: bool = False

    def __post_init__(self) -> None:
        check_integers(self, "steps", "batch_size", "num_devices")
        check_positive(self, "peak_flops")
        check(0 < self.mfu <= 1, "mfu", self.mfu, "above 0 and at most 1")
        if self.num_text_tokens is not None:
            check_integers(self, "num_text_tokens")
            longest = self.config.context_length
            fits = self.num_text_tokens <= longest
            check(fits, "num_text_tokens", self.num_text_tokens, f"at most {longest}")

    @property
    def num_pairs(self) -> int:
        """Pairs seen in the whole run, repetitions included."""
        return self.steps * self.batch_size

    @property
    def num_tokens(self) -> int:
        """How long captions are."""
        return self.num_text_tokens or self.config.context_length

    @property
    def forward_macs_per_pair(self) -> int:
        """MACs of both encoders, and of a pair's row and column of similarities.

        Each of the two directions computes a table of its own (see ``contrastive_loss``).
        """
        encoders = clip_image_macs(self.config) + clip_text_macs(self.config, self.num_text_tokens)
        return encoders + 2 * self.batch_size * self.config.embed_dim

    @property
    def flops(self) -> int:
        """FLOPs of the run: two a MAC, and the backward pass costs two forward passes."""
        return 2 * 3 * self.forward_macs_per_pair * self.num_pairs

    @property
    def recomputed_flops(self) -> float | int:
        """FLOPs of the forward pass that ``recompute`` repeats."""
        return 2 * self.forward_macs_per_pair * self.num_pairs

    @property
    def device_hours(self) -> float:
        """Hours of one device; as many devices share them."""
        done = self.flops + (self.recomputed_flops if self.recompute else 0)
        return done / (self.peak_flops * self.mfu) / 3600

    @property
    def hours(self) -> float:
        """Hours on the clock, if more devices keep the same ``mfu``."""
        return self.device_hours / self.num_devices

    @property
    def pairs_per_second(self) -> float:
        """What each device takes, and its readers must deliver."""
        return self.num_pairs / (self.device_hours * 3600)

    def __str__(self) -> str:
        return (
            f"{self.num_pairs:,} pairs, {self.flops / 1e18:,.1f} EFLOPs, "
            f"{self.device_hours:,.0f} device-hours at {self.mfu:.0%} of "
            f"{self.peak_flops / 1e12:,.0f} TFLOP/s, {self.hours:,.1f} h on {self.num_devices}"
        )


@dataclass(frozen=True)
class TwinTrainingCost(TrainingCost):
    """A run of a network with a momentum twin, which has no backward pass; see ``TrainingCost``.

    ``online_macs_per_pair`` (all forward passes through the network) and ``momentum_macs_per_pair``
    (the twin's) are what a system adds. Heads other than that for the words, and the similarities,
    are left out.
    """

    @property
    def forward_macs_per_pair(self) -> float | int:
        """MACs of the network and of its twin, forwards."""
        return self.online_macs_per_pair + self.momentum_macs_per_pair

    @property
    def flops(self) -> float | int:
        """FLOPs of the run: two a MAC; the network's backward pass costs two forward passes."""
        return 2 * (3 * self.online_macs_per_pair + self.momentum_macs_per_pair) * self.num_pairs

    @property
    def recomputed_flops(self) -> float | int:
        """FLOPs of the network's forward passes; the twin's are not repeated."""
        return 2 * self.online_macs_per_pair * self.num_pairs


@dataclass(frozen=True)
class ALBEFTrainingCost(TwinTrainingCost):
    """A run of ALBEF's pre-training.

    A sample goes through the network's trunks and, forwards only, through those of its twin: image
    encoder once; text blocks twice, for the text and for the masked text; fusion blocks once, for
    the masked text. In the network three pairs more go through the fusion blocks, a true one and
    two false ones, which share the keys and values of their images.
    """

    config: ALBEFConfig

    @property
    def online_macs_per_pair(self) -> float:
        """MACs of all forward passes through the network."""
        return self.momentum_macs_per_pair + albef_matching_macs(self.config, self.num_tokens)

    @property
    def momentum_macs_per_pair(self) -> float:
        """MACs of all passes through the twin."""
        config, tokens = self.config, self.num_tokens
        image, text = albef_image_macs(config), albef_text_macs(config, tokens)
        words = MASKED_SHARE * tokens * config.text_dim * (config.text_dim + config.vocab_size)
        return image + 2 * text + albef_fusion_macs(config, tokens) + words


@dataclass(frozen=True)
class BLIPTrainingCost(TwinTrainingCost):
    """A run of BLIP's pre-training.

    A sample goes once through the image encoder and once through the text encoder, in the network
    and, forwards only, in its twin; the network also reads three pairs, which share the keys and
    values of their images, and writes one caption.
    """

    config: BLIPConfig

    @property
    def online_macs_per_pair(self) -> int:
        """MACs of all forward passes through the network."""
        config, tokens = self.config, self.num_tokens
        written = blip_grounded_macs(config, tokens) + blip_words_macs(config, tokens)
        return self.momentum_macs_per_pair + blip_matching_macs(config, tokens) + written

    @property
    def momentum_macs_per_pair(self) -> int:
        """MACs of all passes through the twin."""
        return blip_image_macs(self.config) + blip_text_macs(self.config, self.num_tokens)


@dataclass(frozen=True)
class FrozenTrainingCost(TrainingCost):
    """A run of a network of which parts are frozen; see ``TrainingCost``.

    ``gradient_macs`` (of one pair) is what a system adds. Heads other than those that the system
    names, and the similarities, are left out.
    """

    @property
    def forward_macs_per_pair(self) -> int | float:
        """MACs of all forward passes."""
        return self.gradient_macs.forward

    @property
    def flops(self) -> int | float:
        """FLOPs of the run: two a MAC; backwards only the gradients that are needed."""
        return 2 * self.gradient_macs.total * self.num_pairs

    @property
    def recomputed_flops(self) -> int | float:
        """FLOPs of the forward passes that have a backward pass."""
        return 2 * (self.forward_macs_per_pair - self.gradient_macs.none) * self.num_pairs


@dataclass(frozen=True)
class BLIP2TrainingCost(FrozenTrainingCost):
    """A run of one of BLIP-2's two stages: the second if ``language_model`` is given.

    ``num_text_tokens`` are those of the Q-Former's tokenizer or, in the second stage, of the
    language model's. A pair of the first stage costs a little more where wrong images come from
    several devices (see ``blip2_matching_macs``). ValueError if the configuration is of the other
    stage or for word vectors of another width.
    """

    config: BLIP2Config
    language_model: LanguageModelSizes | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        wanted = self.language_model.dim if self.language_model else 0
        allowed = f"{wanted}, as of {self.language_model}" if wanted else "0 without language_model"
        check(self.config.prefix_dim == wanted, "prefix_dim", self.config.prefix_dim, allowed)

    @property
    def gradient_macs(self) -> GradientMacs:
        """MACs of one pair; with the words head, and the layer to the language model's width."""
        settings = (self.num_tokens, self.language_model, self.num_devices)
        return blip2_step_macs(self.config, *settings)


@dataclass(frozen=True)
class VLMoTrainingCost(FrozenTrainingCost):
    """A run of one of VLMo's stages, which the heads of the configuration tell.

    A "pair" of the first two stages is an image or a text.
    """

    config: VLMoConfig

    @property
    def gradient_macs(self) -> GradientMacs:
        """MACs of one pair; with the heads for words and for codes."""
        return vlmo_step_macs(self.config, self.num_tokens)


_KINDS = {
    "clip": TrainingCost,
    "albef": ALBEFTrainingCost,
    "blip": BLIPTrainingCost,
    "blip2": BLIP2TrainingCost,
    "vlmo": VLMoTrainingCost,
}


def steps_for(num_images: int, epochs: int | float, batch_size: int) -> int:
    """Whole steps that see ``num_images`` at least ``epochs`` times; ValueError if one is below 1.

    Fewer than ``batch_size`` pairs are seen beyond that.
    """
    ok = num_images >= 1 and epochs > 0 and batch_size >= 1
    check(ok, "num_images, epochs, batch_size", (num_images, epochs, batch_size), "positive")
    return math.ceil(num_images * epochs / batch_size)


def recipe_cost(
    path: str | os.PathLike[str],
    mfu: float,
    num_devices: int = 1,
    num_text_tokens: int | None = None,
) -> TrainingCost:
    """The cost of a recipe file on A100s.

    It is told by ``system``, ``size``, the fields of the ``model``, ``steps`` and ``batch_size``.
    ``num_text_tokens`` as in ``TrainingCost``. ValueError if it is no recipe for one of those whose
    cost is known: CLIP, ALBEF, BLIP, BLIP-2 and VLMo.
    """
    import yaml

    try:
        recipe = yaml.safe_load(Path(path).read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"recipe {os.fspath(path)!r} cannot be read: {error}") from None
    try:
        kind, config = _KINDS[recipe["system"]], _config_of(recipe)
        steps, batch_size = recipe["steps"], recipe["batch_size"]
    except (TypeError, KeyError, ValueError) as error:
        raise ValueError(
            f"recipe {os.fspath(path)!r} must name one of the systems {', '.join(_KINDS)}, one of "
            f"its sizes, steps and batch_size: {error}"
        ) from None
    return kind(
        config,
        steps,
        batch_size,
        mfu,
        num_devices=num_devices,
        num_text_tokens=num_text_tokens,
        **_language_model(recipe["size"]),
    )


def _language_model(size: str) -> dict[str, LanguageModelSizes]:
    """The second part of a name such as "g-14-opt-2.7b", if it has one."""
    name = next((name for name in LANGUAGE_MODELS if size.endswith(f"-{name}")), None)
    return {"language_model": LANGUAGE_MODELS[name]} if name else {}


def _config_of(recipe: dict[str, object]) -> object:
    changes = recipe.get("model", {})
    settled = {key: tuple(v) if isinstance(v, list) else v for key, v in changes.items()}
    return replace(model_config(f"{recipe['system']}-{recipe['size']}"), **settled)
