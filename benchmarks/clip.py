"""CLIP ViT-B/32 here against CLIP ViT-B/32 of transformers: forward pass and contrastive step.

    python benchmarks/clip.py

See ``pairs.py`` for how the two are compared.
"""

import torch
import transformers
from pairs import compare, forward, headline, training_step

from mmlab.models.clip import CLIP, CLIP_VIT_B_32, CLIPPretraining


def inputs(batch_size):
    """Pictures and captions of 77 tokens that end at different places."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(batch_size, 3, 224, 224, generator=generator)
    ids = torch.randint(1, 49000, (batch_size, 77), generator=generator)
    ids[torch.arange(batch_size), torch.randint(10, 77, (batch_size,), generator=generator)] = 49407
    return images, ids


def measure(rounds=7, batch_size=8):
    torch.manual_seed(0)
    theirs, ours = transformers.CLIPModel(transformers.CLIPConfig()), CLIP(CLIP_VIT_B_32)
    images, ids = inputs(batch_size)
    pretraining = CLIPPretraining(ours)
    headline(f"CLIP ViT-B/32, fp32, batch {batch_size}")
    return {
        "forward": compare(
            "forward",
            forward(theirs, lambda: theirs(input_ids=ids, pixel_values=images)),
            forward(ours, lambda: ours(images, ids)),
            rounds,
        ),
        "training_step": compare(
            "contrastive training step",
            training_step(
                theirs, lambda: theirs(input_ids=ids, pixel_values=images, return_loss=True).loss
            ),
            training_step(
                ours,
                lambda: pretraining.losses({"images": images, "input_ids": ids})["contrastive"],
            ),
            rounds,
        ),
    }


if __name__ == "__main__":
    measure()
