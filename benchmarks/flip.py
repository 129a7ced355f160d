"""FLIP's training speed-up by dropping patches, measured against the count of multiply-adds.

    python benchmarks/flip.py [--rounds 5] [--batch-size 16] [--depth 4] [--device cpu] [--json F]

Unmasked and masked steps take turns in one process (see ``pairs.py``), at the width of ViT-B/16 and
224 pixels; ``--depth 12`` is the published depth and takes three times as long. "Predicted" is the
ratio of the counts, "reached" the measured speed-up as a share of it. The image tower alone runs
forwards and backwards; the whole step adds texts, the loss and the optimizer.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from pairs import compare, headline

from mmlab.analysis.cost import flip_image_macs, flip_text_macs
from mmlab.models.flip import FLIP, FLIP_B_16, FLIPPretraining
from mmlab.nn import random_masking

RATIOS = (0.5, 0.75)


def finished(device):
    """Kernels run behind Python's back on a GPU; a time means something after they ended."""
    if device == "cuda":
        torch.cuda.synchronize()


def tower_step(network, images, ratio):
    """The image tower, forwards and backwards."""
    noise = torch.rand(len(images), network.config.image.num_patches, device=images.device)
    kept = random_masking(noise, ratio).kept if ratio else None
    weights = torch.randn(len(images), network.config.embed_dim, device=images.device)

    def run():
        network.zero_grad()
        (network.encode_image(images, kept) * weights).sum().backward()
        finished(images.device.type)

    return run


def training_step(network, batch, ratio):
    """Both towers, the loss and the optimizer."""
    module = FLIPPretraining(network, ratio).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-5, fused=True)

    def run():
        optimizer.zero_grad()
        module.losses(batch)["contrastive"].backward()
        optimizer.step()
        finished(batch["images"].device.type)

    return run


def with_prediction(name, unmasked, masked, rounds, predicted):
    """``compare``, with the speed-up that the counts predict."""
    figures = compare(name, unmasked, masked, rounds)
    reached = figures["ratio"] / predicted
    print(f"{'':36s} predicted x{predicted:.3f}, reached {reached:.1%}", flush=True)
    return {**figures, "predicted": predicted, "reached": reached}


def measure(rounds=5, batch_size=16, depth=4, device="cpu"):
    config = replace(FLIP_B_16, depth=depth, text_depth=depth)
    torch.manual_seed(0)
    network = FLIP(config).to(device)
    images = torch.randn(batch_size, 3, config.image_size, config.image_size, device=device)
    ids = torch.randint(1, config.vocab_size, (batch_size, config.context_length), device=device)
    batch, text = {"images": images, "input_ids": ids}, flip_text_macs(config)
    figures = {}
    print("(theirs: unmasked, ours: masked)")
    headline(f"FLIP, width of B/16, depth {depth}, batch {batch_size}")
    for ratio in RATIOS:
        whole, left = flip_image_macs(config), flip_image_macs(config, ratio)
        percent = f"{ratio:.0%}"
        figures[percent] = {
            "image_tower": with_prediction(
                f"image tower, {percent} dropped",
                tower_step(network, images, 0.0),
                tower_step(network, images, ratio),
                rounds,
                whole / left,
            ),
            "training_step": with_prediction(
                f"training step, {percent} dropped",
                training_step(network, batch, 0.0),
                training_step(network, batch, ratio),
                rounds,
                (whole + text) / (left + text),
            ),
        }
    return figures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    figures = measure(arguments.rounds, arguments.batch_size, arguments.depth, arguments.device)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
