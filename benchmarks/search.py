"""Search among many vectors: all of them by a matrix product, or a graph of neighbours.

    python benchmarks/search.py [--vectors 1000000] [--dim 128] [--json FILE]

The vectors are random around random centres, as features of pictures cluster; pure noise would be
harder for a graph than anything real. Prints seconds to build, milliseconds a question, memory, and
the share of the ten true neighbours that the graph finds, for several breadths of the search.
"""

import argparse
import json
import resource
import statistics
import time
from pathlib import Path

import torch
import torch.nn.functional as F

from mmlab.tasks.image_index import NeighbourGraph

NUM_QUERIES, NEIGHBOURS = 100, 10


def make_vectors(num, dim, centers=5000, spread=0.7):
    """Unit vectors around ``centers`` directions, and questions of the same kind."""
    generator = torch.Generator().manual_seed(0)
    middles = F.normalize(torch.randn(centers, dim, generator=generator), dim=-1)
    chosen = torch.randint(centers, (num + NUM_QUERIES,), generator=generator)
    noise = F.normalize(torch.randn(len(chosen), dim, generator=generator), dim=-1)
    vectors = F.normalize(middles[chosen] + spread * noise, dim=-1)
    return vectors[:num], vectors[num:]


def milliseconds_a_question(search, queries):
    """The median over single questions, as a user asks them."""
    times = []
    for query in queries:
        started = time.perf_counter()
        search(query[None])
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def peak_memory_gib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def share_found(found, exact):
    pairs = zip(found.tolist(), exact.tolist(), strict=True)
    return statistics.fmean(len(set(a) & set(b)) / NEIGHBOURS for a, b in pairs)


def measure(num, dim):
    vectors, queries = make_vectors(num, dim)
    bytes_of_vectors = vectors.numel() * vectors.element_size()
    exact = (queries @ vectors.T).topk(NEIGHBOURS).indices
    every = milliseconds_a_question(lambda q: (q @ vectors.T).topk(NEIGHBOURS), queries)
    print(f"{num:,} vectors of {dim}: {bytes_of_vectors / 2**30:.2f} GiB", flush=True)
    print(f"all of them           {every:8.2f} ms a question", flush=True)
    before, started = peak_memory_gib(), time.perf_counter()
    graph = NeighbourGraph(vectors)
    built = time.perf_counter() - started
    print(f"graph: built in {built:.0f} s, {peak_memory_gib() - before:.2f} GiB more", flush=True)
    rows = []
    for breadth in (16, 64, 256):
        graph.breadth = breadth
        _, found = graph.search(queries, NEIGHBOURS)
        took = milliseconds_a_question(lambda q: graph.search(q, NEIGHBOURS), queries)
        share = share_found(found, exact)
        rows.append({"breadth": breadth, "ms": took, "share_found": share})
        print(f"graph, breadth {breadth:4d}   {took:8.2f} ms a question, {share:.1%}")
    return {
        "vectors": num,
        "dim": dim,
        "threads": torch.get_num_threads(),
        "all_ms": every,
        "graph_build_s": built,
        "graph_memory_gib": peak_memory_gib() - before,
        "graph": rows,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.vectors, arguments.dim), indent=2)
    print(text)
    if arguments.json:
        arguments.json.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
