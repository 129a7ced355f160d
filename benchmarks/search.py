"""Search among many vectors: all of them by a matrix product, or a graph of neighbours.

    python benchmarks/search.py [--vectors 1000000] [--dim 128] [--json FILE]

The vectors are random around random centres, as features of pictures cluster; pure noise would be
harder for a graph than anything real. Told are the seconds to build and to read the graph from disk
again, its memory and its file beside the plain vectors, milliseconds a question, and the share of
the ten true neighbours that it finds, for several breadths of the search.

``make bench`` takes 100,000 vectors of 128, the width of ``clip-mini``.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import faiss
import torch
import torch.nn.functional as F

from mmlab.tasks.image_index import NeighbourGraph

NUM_QUERIES, NEIGHBOURS, BREADTHS = 100, 10, (16, 64, 256)
GIB = 2**30


def make_vectors(num, dim, centers=5000, spread=0.7, chunk=50_000):
    """Unit vectors around ``centers`` directions, and questions of the same kind."""
    generator = torch.Generator().manual_seed(0)
    middles = F.normalize(torch.randn(centers, dim, generator=generator), dim=-1)
    vectors = torch.empty(num + NUM_QUERIES, dim)
    for part in vectors.split(chunk):
        chosen = torch.randint(centers, (len(part),), generator=generator)
        noise = F.normalize(torch.randn(len(part), dim, generator=generator), dim=-1)
        part.copy_(F.normalize(middles[chosen] + spread * noise, dim=-1))
    return vectors[:num], vectors[num:]


def milliseconds_a_question(search, queries):
    """The median over single questions, as a user asks them."""
    times = []
    for query in queries:
        started = time.perf_counter()
        search(query[None])
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def memory_gib():
    """What this process holds now; None where the system does not tell it."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGESIZE") / GIB
    return None


def share_found(found, exact):
    pairs = zip(found.tolist(), exact.tolist(), strict=True)
    return statistics.fmean(len(set(a) & set(b)) / NEIGHBOURS for a, b in pairs)


def build(vectors):
    before, started = memory_gib(), time.perf_counter()
    graph = NeighbourGraph(vectors)
    seconds = time.perf_counter() - started
    return graph, {
        "build_s": seconds,
        "memory_gib": None if before is None else memory_gib() - before,
    }


def on_disk(graph):
    """The size of its file, and how long reading it takes; the graph that was read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "graph.faiss")
        graph.save(path)
        started = time.perf_counter()
        again = NeighbourGraph.load(path)
        seconds = time.perf_counter() - started
        return again, {"file_gib": path.stat().st_size / GIB, "read_s": seconds}


def search_at(graph, breadth, queries, exact, every_ms):
    graph.breadth = breadth
    _, found = graph.search(queries, NEIGHBOURS)
    took = milliseconds_a_question(lambda q: graph.search(q, NEIGHBOURS), queries)
    share = share_found(found, exact)
    print(
        f"graph, breadth {breadth:4d} {took:9.3f} ms a question   x{every_ms / took:.1f}   "
        f"{share:.1%} of the neighbours",
        flush=True,
    )
    return {"breadth": breadth, "ms": took, "ratio": every_ms / took, "share_found": share}


def measure(num=100_000, dim=128):
    vectors, queries = make_vectors(num, dim)
    plain = vectors.numel() * vectors.element_size() / GIB
    exact = (queries @ vectors.T).topk(NEIGHBOURS).indices
    every = milliseconds_a_question(lambda q: (q @ vectors.T).topk(NEIGHBOURS), queries)
    print(f"{num:,} vectors of {dim}, {plain:.2f} GiB in memory and on disk", flush=True)
    print(f"all of them         {every:9.3f} ms a question", flush=True)
    graph, costs = build(vectors)
    graph, read = on_disk(graph)
    costs |= read
    held = "" if costs["memory_gib"] is None else f"{costs['memory_gib']:.2f} GiB more in memory, "
    print(
        f"graph: built in {costs['build_s']:.0f} s; {held}{costs['file_gib']:.2f} GiB on disk "
        f"(x{costs['file_gib'] / plain:.2f} the vectors), read in {costs['read_s']:.1f} s",
        flush=True,
    )
    return {
        "vectors": num,
        "dim": dim,
        "vectors_gib": plain,
        "all_ms": every,
        "graph": costs,
        "search": [search_at(graph, breadth, queries, exact, every) for breadth in BREADTHS],
        "machine": {
            "cores": os.cpu_count(),
            "torch_threads": torch.get_num_threads(),
            "faiss_threads": faiss.omp_get_max_threads(),
            "load": os.getloadavg()[0],
            "faiss": faiss.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--vectors", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    text = json.dumps(measure(arguments.vectors, arguments.dim), indent=2)
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(text + "\n", encoding="utf-8")
        print(f"\nThe figures are in {arguments.json}.")


if __name__ == "__main__":
    main()
