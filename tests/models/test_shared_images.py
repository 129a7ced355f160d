"""Pairs that share an image: its keys and values are computed once, and nothing else changes."""

from dataclasses import replace

import pytest
import torch

from mmlab.models.albef import ALBEF
from mmlab.models.blip import BLIP
from mmlab.models.blip2 import BLIP2
from tests.models.tiny import TINY_ALBEF, TINY_BLIP, TINY_BLIP2

# Image 0 is in four pairs, image 2 in two.
ROWS = torch.tensor([0, 1, 2, 1, 0, 0, 0, 1, 2])
IDS = torch.randint(4, 48, (len(ROWS), 7), generator=torch.Generator().manual_seed(1))
TWO = {"num_images": 2, "heads": ("classes",), "num_classes": 2}


def read_by_albef(network, images, rows):
    return network.fuse(network.text_tokens(IDS), images, IDS != 0, rows)


def read_by_blip(network, images, rows):
    return network.ground(IDS, images, image_rows=rows)


def read_by_blip2(network, images, rows):
    return network.fuse(IDS, images[0], image_rows=rows)


KINDS = {
    "albef": (ALBEF, TINY_ALBEF, read_by_albef),
    "albef, two images": (ALBEF, replace(TINY_ALBEF, **TWO), read_by_albef),
    "blip": (BLIP, TINY_BLIP, read_by_blip),
    "blip, two images": (BLIP, replace(TINY_BLIP, merge_from=1, **TWO), read_by_blip),
    "blip2": (BLIP2, TINY_BLIP2, read_by_blip2),
}


def looked_at(network):
    """A list that takes down of how many images a cross-attention computes the keys."""
    counts = []
    for name, layer in network.named_modules():
        if "cross_attention" in name and name.endswith("k_proj"):
            layer.register_forward_hook(lambda _, given, keys: counts.append(len(given[0])))
    return counts


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_sharing_equals_repeating(kind, checkpointing):
    torch.manual_seed(0)
    network, config, read = KINDS[kind]
    network = network(config).double()
    images = [
        torch.randn(3, 5, config.dim, dtype=torch.float64, requires_grad=True)
        for _ in range(getattr(config, "num_images", 1))
    ]
    weights = [*images, *(p for p in network.parameters() if p.requires_grad)]
    counts = looked_at(network)

    def results(tokens, rows):
        fused = read(network, tokens, rows)
        gradients = torch.autograd.grad(fused.sin().sum(), weights, allow_unused=True)
        return fused, *gradients

    repeated = results(tuple(image[ROWS] for image in images), None)
    assert set(counts) == {len(ROWS)}
    counts.clear()
    network.activation_checkpointing = checkpointing
    shared = results(tuple(images), ROWS)
    assert set(counts) == {len(images[0])}
    assert all(gradient.abs().max() > 1e-6 for gradient in shared[1 : 1 + len(images)])
    torch.testing.assert_close(shared, repeated, rtol=1e-9, atol=1e-12)
