"""What a contrastive run will cost, before it is paid: FLOPs and hours of a device."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

from mmlab.analysis.cost import clip_image_macs, clip_text_macs
from mmlab.models import clip
from mmlab.models.checks import check, check_integers, check_positive
from mmlab.models.clip import CLIPConfig

A100_BF16_PEAK = 312e12
"""FLOP/s of one NVIDIA A100 in bf16, dense (NVIDIA, A100 datasheet)."""


@dataclass(frozen=True)
class TrainingCost:
    """A run of ``steps`` steps with ``batch_size`` pairs each, over all devices together.

    - ``mfu``: the model FLOPs utilisation, the share of ``peak_flops`` (FLOP/s of one device) that
      the model's own operations reach (Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B);
      measure it on a short run.
    - ``num_devices``: how many work together; only the hours on the clock depend on it.
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
    def device_hours(self) -> float:
        """Hours of one device; as many devices share them."""
        passes = 4 / 3 if self.recompute else 1
        return passes * self.flops / (self.peak_flops * self.mfu) / 3600

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


def steps_for(num_images: int, epochs: int | float, batch_size: int) -> int:
    """Whole steps that see ``num_images`` at least ``epochs`` times; ValueError if one is below 1.

    Fewer than ``batch_size`` pairs are seen beyond that.
    """
    ok = num_images >= 1 and epochs > 0 and batch_size >= 1
    check(ok, "num_images, epochs, batch_size", (num_images, epochs, batch_size), "positive")
    return math.ceil(num_images * epochs / batch_size)


def recipe_cost(path: str | os.PathLike[str], mfu: float, num_devices: int = 1) -> TrainingCost:
    """The cost of a recipe file for a CLIP on A100s: its ``size``, ``steps`` and ``batch_size``.

    ValueError if it is no such recipe.
    """
    import yaml

    try:
        recipe = yaml.safe_load(Path(path).read_text("utf-8"))
        name = f"{recipe['system']}_{recipe['size']}".upper().replace("-", "_")
        config, steps, batch_size = getattr(clip, name), recipe["steps"], recipe["batch_size"]
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"recipe {os.fspath(path)!r} cannot be read: {error}") from None
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"recipe {os.fspath(path)!r} must name the system clip, one of its sizes, steps and "
            f"batch_size: {error}"
        ) from None
    return TrainingCost(config, steps, batch_size, mfu, num_devices=num_devices)
