"""ViT-B/16 here against ViT-B/16 of transformers, and the price of recording attention.

    python benchmarks/vit.py [--rounds 7] [--batch-size 8] [--json FILE]

See ``pairs.py`` for how the two are compared.
"""

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from pairs import compare, forward, headline, training_step

from mmlab.analysis import record_attention
from mmlab.models.vit import VIT_B_16, ViT


def build_models():
    """Both at the same size; the head is zero here, which costs the same."""
    config = transformers.ViTConfig(num_labels=1000, layer_norm_eps=1e-6)
    return transformers.ViTForImageClassification(config), ViT(VIT_B_16)


def recorded(model, run_plain):
    def run():
        with record_attention(model):
            run_plain()

    return run


def measure(rounds=7, batch_size=8):
    torch.manual_seed(0)
    theirs, ours = build_models()
    images = torch.randn(batch_size, 3, 224, 224)
    labels = torch.randint(1000, (batch_size,))
    plain = forward(ours, lambda: ours(images))
    headline(f"ViT-B/16, fp32, batch {batch_size}")
    results = {
        "forward": compare("forward", forward(theirs, lambda: theirs(images)), plain, rounds),
        "training_step": compare(
            "training step",
            training_step(theirs, lambda: F.cross_entropy(theirs(images).logits, labels), 1e-4),
            training_step(ours, lambda: F.cross_entropy(ours(images), labels), 1e-4),
            rounds,
        ),
    }
    name = "record_attention (plain / recorded)"
    results["record_attention"] = compare(name, plain, recorded(ours, plain), rounds)
    overhead = 1 / results["record_attention"]["ratio"]
    print(f"recording all 12 layers costs x{overhead:.3f} of a plain forward pass")
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    results = measure(arguments.rounds, arguments.batch_size)
    results["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    results["threads"] = torch.get_num_threads()
    text = json.dumps(results, indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
