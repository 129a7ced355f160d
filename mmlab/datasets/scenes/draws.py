"""Random numbers that can be asked for one image at a time.

An ordinary generator hands out numbers in sequence, so image 7 would depend on images 0 to 6. Here
every number is a hash of (seed, stream, image, name of the draw): the SplitMix64 finaliser of
Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014, section 3).
"""

from __future__ import annotations

import math
import random
import zlib

import numpy as np
import torch
from jaxtyping import Float64, Int64
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(z: np.ndarray) -> np.ndarray:
    """Scramble uint64 values: a bijection in which every input bit moves about half the output."""
    z = (z ^ (z >> np.uint64(30))) * _MIX_1
    z = (z ^ (z >> np.uint64(27))) * _MIX_2
    return z ^ (z >> np.uint64(31))


class Draws:
    """The random numbers of the images ``indices`` of the stream (``seed``, ``stream``)."""

    def __init__(self, seed: int, stream: str, indices: Int64[Tensor, " batch"]):
        self.seed = seed
        self.stream = stream
        self.indices = indices.numpy().astype(np.uint64)

    def uniform(self, name: str, *shape: int) -> Float64[Tensor, " batch *shape"]:
        """Numbers in [0, 1), different for every ``name``, the same whatever else is drawn."""
        purpose = np.array([zlib.crc32(f"{self.stream}/{name}".encode())], dtype=np.uint64)
        key = mix(mix(np.array([self.seed], dtype=np.uint64) * _GOLDEN + purpose))
        state = mix(self.indices * _GOLDEN + key)
        counter = np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * _GOLDEN
        bits = mix(state[:, None] + counter) >> np.uint64(11)
        return torch.from_numpy(bits * 2.0**-53).reshape(len(state), *shape)

    def integers(self, name: str, high: int, *shape: int) -> Int64[Tensor, " batch *shape"]:
        """Whole numbers 0 … high - 1, all equally likely."""
        return (self.uniform(name, *shape) * high).long()


def choose(
    weights: Float64[Tensor, "batch options"], uniform: Float64[Tensor, " batch"]
) -> Int64[Tensor, " batch"]:
    """One option a row, with probability proportional to its weight; weight 0 is never chosen."""
    cumulative = weights.cumsum(1)
    return (uniform[:, None] * cumulative[:, -1:] >= cumulative).sum(1)


def text_generator(*parts: str | int) -> random.Random:
    """A generator for word choices, fixed by ``parts`` (Python hashes the string with SHA-512)."""
    return random.Random("/".join(map(str, parts)))
