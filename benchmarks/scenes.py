"""Images of the scenes data set per second on one core, scene graphs included.

Run with ``python benchmarks/scenes.py``. The budget is 2,000 images a second at 64 pixels.
"""

import time
from collections.abc import Callable

import torch

from mmlab.datasets.scenes import scenes

NUM_IMAGES = 4096
REPEATS = 5


def images_per_second(image_size: int, clock: Callable[[], float]) -> float:
    """The best of several runs over new images each: graphs sampled and pixels painted."""
    best = float("inf")
    for seed in range(REPEATS):
        data = scenes(NUM_IMAGES, image_size=image_size, seed=seed)
        start = clock()
        data.images()
        best = min(best, clock() - start)
    return NUM_IMAGES / best


def examples_per_second(image_size: int) -> float:
    """The same with everything that is known: six captions, relations, questions."""
    data = scenes(512, image_size=image_size)
    start = time.perf_counter()
    data.__getitems__(list(range(len(data))))
    return len(data) / (time.perf_counter() - start)


def measure():
    """Figures by image size, on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scenes(256).images()
    figures = {}
    for size in (32, 64, 96):
        wall = images_per_second(size, time.perf_counter)
        # Other work on the machine slows the clock on the wall, not the processor's own.
        core = images_per_second(size, time.process_time)
        figures[f"{size} px"] = {"images_a_second": wall, "images_a_processor_second": core}
        print(f"{size:3d} px: {wall:8,.0f} images/s, {core:8,.0f} per second of processor time")
    figures["64 px, everything known"] = {"images_a_second": examples_per_second(64)}
    print(f" 64 px: {examples_per_second(64):8,.0f} examples/s (images, captions, questions)")
    torch.set_num_threads(threads)
    return figures


if __name__ == "__main__":
    measure()
