"""A recipe that trains in a second, on a model with dropout, so that random states matter."""

import os
import subprocess
import sys
from dataclasses import replace

import torch

from mmlab import datasets
from mmlab.datasets.shards import write_shards
from mmlab.hub import create_model, save
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


_TEXT = {"text_dim": 32, "text_num_heads": 2, "text_mlp_dim": 64, "embed_dim": 16}
_SMALL = {**TINY_VILT.model, "patch_size": 16, "num_heads": 2, "dim": 32, "mlp_dim": 64, "depth": 1}
_SMALL = {name: value for name, value in _SMALL.items() if name != "heads"}

TINY_ALBEF = replace(
    TINY_VILT,
    system="albef",
    model={**_SMALL, **_TEXT, "text_depth": 1, "fusion_depth": 1},
    pretraining={"queue_size": 20, "decay": 0.9},
    ema_decay=0.0,
)
TINY_BLIP = replace(TINY_ALBEF, system="blip", model={**_SMALL, **_TEXT, "text_depth": 1})
TINY_VLMO = replace(
    TINY_VILT, system="vlmo", model={**_SMALL, "depth": 2, "drop_path": 0.1}, ema_decay=0.0
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


TINY_BLIP2 = replace(
    TINY,
    system="blip2",
    data="scenes",
    num_images=24,
    model={
        **{k: v for k, v in TINY.model.items() if k != "depth"},
        **{"image_size": 32, "depth": 1, "stem": "linear", "num_queries": 4},
        **{"text_dim": 32, "text_depth": 2, "text_num_heads": 2, "text_mlp_dim": 64},
        # A spread of 0.02, so that the first losses are those of a guess.
        **{"embed_dim": 16, "init": "normal"},
    },
)
"""Its ``start`` is the file that ``write_vit`` gives."""


def on_shards(recipe: Recipe, folder) -> Recipe:
    """The same on pictures of other sizes with captions, in tar shards in ``folder``."""
    scenes = datasets.scenes(24, "train", 40)
    write_shards(scenes, folder, max_samples=6)
    return replace(recipe, data="shards", shards=(f"{folder}/*.tar",), buffer=8)


def write_vit(path, seed=0) -> str:
    """A ViT that fits ``TINY_BLIP2``, all of its weights random, in a file."""
    names = ("image_size", "patch_size", "dim", "depth", "num_heads", "mlp_dim", "stem")
    sizes = {name: TINY_BLIP2.model[name] for name in names}
    torch.manual_seed(seed)
    vit = create_model("vit-mini", **sizes, num_classes=3)
    for parameter in vit.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    save(vit, path)
    return str(path)
