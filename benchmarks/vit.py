"""ViT-B/16 here against ViT-B/16 of transformers, and the price of recording attention.

    python benchmarks/vit.py [--rounds 7] [--batch-size 8] [--json FILE]

The contestants take turns in one process, so that a slow minute of the machine hits both; a ratio
is the median over the rounds of (their time / our time). Above 1 is faster here.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers

from mmlab.analysis import record_attention
from mmlab.models.vit import VIT_B_16, ViT


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(name, theirs, ours, rounds):
    """Time both ``rounds`` times in turn, the first turn unmeasured."""
    theirs(), ours()
    pairs = []
    for round_number in range(rounds):
        # Who goes first changes from round to round.
        order = (theirs, ours) if round_number % 2 else (ours, theirs)
        seconds = {function: timed(function) for function in order}
        pairs.append((seconds[theirs], seconds[ours]))
    their_median, our_median = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(f"{name:34s} {1e3 * their_median:9.1f} ms {1e3 * our_median:9.1f} ms   x{ratio:.3f}")
    return {"theirs_s": their_median, "ours_s": our_median, "ratio": ratio}


def build_models():
    """Both at the same size; the head is zero here, which costs the same."""
    config = transformers.ViTConfig(num_labels=1000, layer_norm_eps=1e-6)
    return transformers.ViTForImageClassification(config), ViT(VIT_B_16)


def forward(model, images):
    @torch.no_grad()
    def run():
        model.eval()
        model(images)

    return run


def training_step(model, images, labels, logits_of):
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def run():
        model.train()
        optimizer.zero_grad()
        F.cross_entropy(logits_of(model(images)), labels).backward()
        optimizer.step()

    return run


def recorded_forward(model, images):
    plain = forward(model, images)

    def run():
        with record_attention(model):
            plain()

    return run


def measure(rounds, batch_size):
    torch.manual_seed(0)
    theirs, ours = build_models()
    images = torch.randn(batch_size, 3, 224, 224)
    labels = torch.randint(1000, (batch_size,))
    print(f"{'ViT-B/16, fp32, batch ' + str(batch_size):34s} {'theirs':>12s} {'ours':>12s}   ratio")
    results = {
        "forward": compare("forward", forward(theirs, images), forward(ours, images), rounds),
        "training_step": compare(
            "training step",
            training_step(theirs, images, labels, lambda output: output.logits),
            training_step(ours, images, labels, lambda logits: logits),
            rounds,
        ),
    }
    plain, recorded = forward(ours, images), recorded_forward(ours, images)
    name = "record_attention (plain / recorded)"
    results["record_attention"] = compare(name, plain, recorded, rounds)
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
