"""Two contestants in one process, taking turns, so that a slow minute of the machine hits both."""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch


def timed(function):
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(name, theirs, ours, rounds):
    """Time both ``rounds`` times in turn, the first turn unmeasured.

    The ratio is the median over the rounds of (their time / our time): above 1 is faster here.
    """
    theirs(), ours()
    pairs = []
    for round_number in range(rounds):
        # Who goes first changes from round to round.
        order = (theirs, ours) if round_number % 2 else (ours, theirs)
        seconds = {function: timed(function) for function in order}
        pairs.append((seconds[theirs], seconds[ours]))
    their_median, our_median = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    print(
        f"{name:36s} {1e3 * their_median:9.1f} ms {1e3 * our_median:9.1f} ms   x{ratio:.3f}",
        flush=True,
    )
    return {"theirs_s": their_median, "ours_s": our_median, "ratio": ratio}


def headline(title):
    print(f"{title:36s} {'theirs':>12s} {'ours':>12s}   ratio", flush=True)


def forward(model, call):
    """A forward pass in evaluation mode; gives what ``call`` gives."""

    @torch.no_grad()
    def run():
        model.eval()
        return call()

    return run


def training_step(model, loss, lr=1e-5):
    """``loss`` in training mode, its gradients, and AdamW on all parameters of ``model``."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, fused=True)

    def run():
        model.train()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()

    return run


def check_same(theirs, ours, tolerance=1e-4):
    """Refuse to time two things that do not compute the same."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)


def compare_forward(name, theirs, ours, rounds):
    """``compare`` two pairs of a model and a call, once their outputs agree."""
    runs = forward(*theirs), forward(*ours)
    check_same(*(run() for run in runs))
    return compare(name, *runs, rounds)


def compare_training(name, theirs, ours, rounds):
    """``compare`` steps of two pairs of a model and a loss, once the losses agree.

    They are checked without dropout, and timed with the dropout of the models.
    """
    check_same(*(forward(*side)() for side in (theirs, ours)))
    return compare(name, *(training_step(*side) for side in (theirs, ours)), rounds)


def command_line(measure, description):
    """Run a benchmark with options for what ``measure`` takes; its own defaults otherwise."""
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    for option in ("--rounds", "--batch-size", "--depth"):
        parser.add_argument(option, type=int, default=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    given = vars(parser.parse_args())
    target = given.pop("json")
    figures = measure(**given)
    if target:
        target.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
