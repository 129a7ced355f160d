"""All benchmarks of the CPU, one after the other; the figures also go to a JSON file.

python benchmarks/all.py [--only vit clip] [--json _build/benchmarks.json]
"""

import argparse
import importlib
import json
import os
import platform
from pathlib import Path

import torch
import transformers

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("scenes", "vit", "clip", "flip", "blip", "albef", "qformer", "loss_memory", "search")
PARTS += ("lxmert", "visualbert", "transport", "chapters")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--json", type=Path, default=ROOT / "_build" / "benchmarks.json")
    arguments = parser.parse_args()
    figures = {}
    for name in arguments.only:
        print(f"\n{name}")
        figures[name] = importlib.import_module(name).measure()
    figures["machine"] = {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(f"\nThe figures are in {arguments.json}.")


if __name__ == "__main__":
    main()
