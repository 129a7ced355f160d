"""FLIP on emoji with 0, 25, 50 and 75 % of the patches dropped: one recipe, one seed, four runs.

    python -m scripts.flip_arms

``recipes/arms/flip-emoji.yaml`` is the recipe. Writes ``data/results/flip_arms.json``: for each
share the retrieval figures, the last losses and the processor seconds of training; the chapter's
laboratory shows them.
"""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import mean

import torch

from mmlab.training.recipe import Recipe, read_recipe
from mmlab.training.run import METRICS, read_metrics
from scripts.make_checkpoints import ROOT, THREADS, UNFINISHED, measure_retrieval, train

RECIPE = ROOT / "recipes" / "arms" / "flip-emoji.yaml"
RESULT = ROOT / "data" / "results" / "flip_arms.json"
SHARES = (0.0, 0.25, 0.5, 0.75)
LAST = 50
"""Over how many steps the last loss is averaged."""


def arm(recipe: Recipe, share: float) -> dict[str, object]:
    """Train with ``share`` of the patches dropped, and measure."""
    recipe = replace(recipe, model={**recipe.model, "mask_ratio": share})
    name = f"flip-emoji-{round(100 * share):02}"
    folder = UNFINISHED / name
    # From the start, or the seconds would be those of a part.
    shutil.rmtree(folder, ignore_errors=True)
    start = time.process_time()
    network, _ = train(name, recipe)
    seconds = time.process_time() - start
    losses = [figures["loss"] for figures in read_metrics(folder / METRICS)]
    return {
        "mask_ratio": share,
        "processor_seconds": round(seconds, 1),
        "last_loss": mean(losses[-LAST:]),
        "retrieval": measure_retrieval(recipe, network),
    }


def main(recipe: Recipe, result: Path = RESULT) -> None:
    """All arms, written once they are all there."""
    torch.set_num_threads(THREADS)
    arms = [arm(recipe, share) for share in SHARES]
    result.write_text(json.dumps({"recipe": asdict(recipe), "arms": arms}, indent=2) + "\n")


if __name__ == "__main__":
    main(read_recipe(RECIPE))
