"""The head of models that compare images and texts by their first tokens."""

from __future__ import annotations

import torch
from torch import nn

TEMPERATURES = (0.001, 0.5)
"""Where ALBEF and BLIP keep the temperature in training."""


class ContrastHead(nn.Module):
    """From class tokens to features that can be compared, and the temperature of the comparison.

    ``temperature`` is where it starts; with None there is none, which comparing does not need.
    """

    def __init__(
        self, image_dim: int, text_dim: int, embed_dim: int, temperature: float | None = 0.07
    ):
        super().__init__()
        self.image_projection = nn.Linear(image_dim, embed_dim)
        self.text_projection = nn.Linear(text_dim, embed_dim)
        start = None if temperature is None else nn.Parameter(torch.tensor(float(temperature)))
        self.register_parameter("temperature", start)

    @torch.no_grad()
    def clamp_temperature(self) -> None:
        """Bring the temperature back into ``TEMPERATURES``, as before each training step."""
        self.temperature.clamp_(*TEMPERATURES)
