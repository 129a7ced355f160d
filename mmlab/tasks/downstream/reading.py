"""What every system gives a task, whatever it is inside: a vector of the pair, and image tokens."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.datasets import Scenes
from mmlab.datasets.tokenizer import Tokenizer
from mmlab.tasks.fusion import Images


class Reading(NamedTuple):
    """A batch of pictures, each read with one text.

    - ``joint``: the vector of picture and text together.
    - ``tokens``: places of the picture, after they have seen the text if the system lets them.
    - ``boxes``: where each place is, as fractions of the image, x1 y1 x2 y2.
    - ``valid``: False on places that only fill up the batch.
    """

    joint: Float[Tensor, "batch dim"]
    tokens: Float[Tensor, "batch places token_dim"]
    boxes: Float[Tensor, "batch places 4"]
    valid: Bool[Tensor, "batch places"]


class Reader(nn.Module, ABC):
    """A network that reads a picture with a text, ready for tasks.

    ``network`` is trained on; ``dim`` and ``token_dim`` are the widths of a ``Reading``;
    ``image_size`` is that of the scenes it is shown, in pixels.
    """

    network: nn.Module
    tokenizer: Tokenizer
    dim: int
    token_dim: int
    image_size: int

    @abstractmethod
    def prepared(self, dataset: Scenes, rows: Int64[Tensor, " batch"]) -> Images:
        """Scenes as this system is shown them: normalised pixels, or what a detector tells."""

    @abstractmethod
    def tokens(self, texts: Sequence[str]) -> Int64[Tensor, "batch tokens"]:
        """Numbers of the word pieces, padded; what does not fit into the context is cut off."""

    @abstractmethod
    def forward(self, images: Images, input_ids: Int64[Tensor, "batch tokens"]) -> Reading:
        """Each picture read with its text."""

    @abstractmethod
    def blank(self, images: Images) -> Images:
        """The same with nothing to be seen: mean gray, or a single region that tells nothing."""
