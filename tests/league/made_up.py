"""Leagues that were never run: cells with figures as told."""

import json

from mmlab.league.measures import FINETUNED
from mmlab.league.verdicts import CONTRAST_FIRST, DUAL, FUSION

SYSTEMS = (*DUAL, *FUSION)
PLAN = {
    "budget": 1e13,
    "seeds": [0, 1, 2],
    "num_images": 8000,
    "most_objects": 2,
    "test_images": 1000,
    "retrieved": 100,
    "finetuning": {"steps": 300},
    "tasks": list(FINETUNED),
    "systems": {name: [{"system": name}] for name in ("vit", *SYSTEMS)},
}


def cell(entry, seed, task, status="done", error="", **figures):
    return {
        "entry": entry,
        "system": entry,
        "seed": seed,
        "task": task,
        "status": status,
        "error": error,
        "figures": figures,
        "flops": 1e13,
        "seconds": 100.0,
        "memory_mib": 500.0,
        "num_parameters": 1_000_000,
        "steps": 300,
        "code": "abc",
        "folder": f"cells/{entry}/seed{seed}/{task}",
    }


def seeds(entry, task, values, name="accuracy", **more):
    """One cell a seed: ``values`` of the figure ``name``."""
    return [cell(entry, k, task, **{name: v, **more}) for k, v in enumerate(values)]


def league(cells, **plan):
    return {"plan": {**PLAN, **plan}, "machine": {}, "cells": list(cells)}


def found(share):
    return {way: {"r@1": share, "r@5": 1.0} for way in ("image_to_text", "text_to_image")}


def way(share, binding, passes):
    return {
        "retrieval": found(share),
        "passes": passes,
        "seconds": 1.0,
        "binding": {"accuracy": binding, "by_kind": {"color": binding}},
    }


def probe(entry, seed, **ways):
    """``ways``: dual, fusion or reranked → (recall, accuracy on binding, passes)."""
    made = {name: way(*told) for name, told in ways.items()}
    return cell(entry, seed, "probe", ways=made, num_retrieved=100)


def tuned(entry, seed, task, share, base=0.3):
    hidden = {"other_image": base, "blank_image": base}
    figures = {"accuracy": share, "chance": 0.25, "commonest": 0.28, "num_items": 1000, **hidden}
    if task == "vqa":
        kinds = {"color": share, "shape": share, "texture": share, "count": share}
        figures |= {"vqa_score": share + 0.02, "by_kind": kinds}
    if task == "matching":
        figures["retrieval"] = found(share / 2)
    return cell(entry, seed, task, **figures)


def whole(jitter=0.01, num_seeds=3):
    """A league in which every system does everything, and fusion is better than dual."""
    cells = []
    for seed in range(num_seeds):
        noise = jitter * (seed - 1)
        for index, entry in enumerate(("vit", "text-only", *SYSTEMS)):
            blind = entry in ("vit", "text-only")
            share = 0.3 if blind else 0.5 if entry in DUAL else 0.6 + 0.01 * index
            cells += [] if entry == "text-only" else [cell(entry, seed, "pretraining")]
            cells += [tuned(entry, seed, task, share + noise) for task in FINETUNED]
            dual, fusion = (share / 2 + noise, 0.55, 200), (share + noise, 0.7 + noise, 10_000)
            if entry in DUAL:
                cells.append(probe(entry, seed, dual=dual))
            elif entry in CONTRAST_FIRST:
                reranked = (share + noise, 0.7, 1_800)
                cells.append(probe(entry, seed, dual=dual, reranked=reranked, fusion=fusion))
            elif entry in FUSION:
                cells.append(probe(entry, seed, fusion=fusion))
            if entry in ("albef", "blip"):
                cells.append(cell(entry, seed, "captioning", finetuned={"cider": 1.5 + noise}))
                written = {"ranked_accuracy": share + noise, "written_accuracy": share + noise}
                cells.append(cell(entry, seed, "vqa_written", **written))
    return league(cells)


def write(folder, made):
    """The cells of a league as a run leaves them."""
    (folder / "plan.json").write_text(json.dumps(made["plan"]))
    for one in made["cells"]:
        own = {name: value for name, value in one.items() if name != "folder"}
        (folder / one["folder"]).mkdir(parents=True)
        (folder / one["folder"] / "cell.json").write_text(json.dumps(own))
