"""How long each chapter takes to execute, from an empty kernel.

    python benchmarks/chapters.py

The budget is 90 seconds on two cores.
"""

import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

BOOK = Path(__file__).resolve().parents[1] / "book"


def measure():
    """Seconds by chapter."""
    seconds = {}
    for path in sorted(BOOK.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        client = NotebookClient(
            notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": BOOK}}
        )
        started = time.perf_counter()
        client.execute()
        seconds[path.stem] = time.perf_counter() - started
        print(f"{path.stem:24s} {seconds[path.stem]:6.1f} s", flush=True)
    return seconds


if __name__ == "__main__":
    measure()
