"""Two contestants in one process, taking turns, so that a slow minute of the machine hits both."""

import statistics
import time


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
