"""A recipe that trains in a second, on a model with dropout, so that random states matter."""

import os
import subprocess
import sys
from dataclasses import replace

from mmlab.training.recipe import Recipe, recipe_text
from tests.book.pages import ROOT

TINY = Recipe(
    model={"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 64, "patch_size": 16, "dropout": 0.1},
    steps=6,
    batch_size=8,
    warmup=2,
    checkpoint_every=2,
    ema_decay=0.9,
)


TINY_CLIP = replace(
    TINY,
    system="clip",
    size="vit-mini",
    model={
        **{"dim": 32, "depth": 1, "num_heads": 2, "mlp_dim": 64, "embed_dim": 16},
        **{"text_dim": 32, "text_depth": 1, "text_num_heads": 2, "text_mlp_dim": 64},
        **{"patch_size": 16, "stem": "linear"},
    },
    batch_size=16,
)


TINY_VILT = replace(
    TINY,
    system="vilt",
    data="scenes",
    num_images=24,
    model={
        **{k: v for k, v in TINY.model.items() if k != "depth"},
        **{"image_size": 32, "depth": 1, "heads": ("words", "match", "answer")},
    },
)


def write_recipe(recipe: Recipe, folder) -> str:
    path = folder / "recipe.yaml"
    path.write_text(recipe_text(recipe))
    return str(path)


PAIR = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"),
    *("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"),
    *("--main_process_port", "0"),
)
"""Starts two processes; with ``ACCELERATE_USE_CPU`` on the CPU. (``--cpu`` would start one.)"""


def start(*arguments: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen:
    """``mmlab`` with these arguments in a process of its own, on one thread of the CPU."""
    told = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "ACCELERATE_USE_CPU": "true"}
    return subprocess.Popen(
        [sys.executable, *launcher, "-m", "mmlab.cli", *arguments],
        env=os.environ | told,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
