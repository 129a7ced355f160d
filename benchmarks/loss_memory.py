"""Memory of the contrastive loss against the batch size: all similarities at once, or in chunks.

    python benchmarks/loss_memory.py

The memory is the growth of the peak over a forward and a backward pass from features of 512 that
are there before, in a process of its own (Linux). The table of similarities grows with the square
of the batch, chunks of 256 rows with the batch; what they cost instead is one more matrix product,
which the times show, taken in turns (see ``pairs.py``).
"""

import multiprocessing
import os
from pathlib import Path
from unittest.mock import patch

import torch
from pairs import compare

from mmlab.objectives.contrastive import contrastive_loss

BATCH_SIZES, DIM, CHUNK = (1024, 2048, 4096, 8192), 512, 256
# Every large block then comes from the system and goes back to it at once, so that what the process
# holds is what its tensors need.
ALLOCATION = {"MALLOC_MMAP_THRESHOLD_": "65536"}


def step(batch_size, chunk_size):
    """A function that takes the gradients of a batch."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(2, batch_size, DIM, generator=generator).requires_grad_()

    def run():
        features.grad = None
        contrastive_loss(*features, 14.0, chunk_size).backward()

    return run


def memory_mib(name):
    """``VmRSS``, what this process holds, or ``VmHWM``, the most it has held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 2**10


def measure_peak(batch_size, chunk_size, results):
    step(CHUNK, chunk_size)()
    run = step(batch_size, chunk_size)
    before = memory_mib("VmRSS")
    run()
    results.put(memory_mib("VmHWM") - before)


def peak_mib(batch_size, chunk_size):
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    process = context.Process(target=measure_peak, args=(batch_size, chunk_size, results))
    with patch.dict(os.environ, ALLOCATION):
        process.start()
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the process for a batch of {batch_size} ended with {process.exitcode}")
    return results.get()


def measure(rounds=3):
    if not Path("/proc/self/status").is_file():
        print("skipped: the memory of a process is read from Linux's /proc")
        return {}
    print(f"{'contrastive loss':36s} {'at once':>12s} {f'{CHUNK} rows':>12s}   ratio")
    rows = []
    for batch_size in BATCH_SIZES:
        whole, chunked = (peak_mib(batch_size, chunk) for chunk in (None, CHUNK))
        name = f"batch {batch_size:,}"
        ratio = whole / chunked
        print(f"{name + ', memory':36s} {whole:8.0f} MiB {chunked:8.0f} MiB   x{ratio:.3f}")
        times = compare(f"{name}, time", step(batch_size, None), step(batch_size, CHUNK), rounds)
        memory = {"whole_mib": whole, "chunked_mib": chunked, "ratio": ratio}
        rows.append({"batch_size": batch_size, "memory": memory, "time": times})
    return {"dim": DIM, "chunk_size": CHUNK, "rows": rows}


if __name__ == "__main__":
    measure()
