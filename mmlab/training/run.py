"""A run: a recipe, and a folder with all that comes of it.

``config.yaml`` is the recipe, ``metrics.jsonl`` one line a step, ``checkpoints`` what a killed run
goes on from, ``model.safetensors`` the finished network (the average, where there is one). A stream
adds ``skipped.json``: what it could not use, up to the last checkpoint.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, gather_object
from torch import nn

from mmlab.datasets.shards import ShardOptions, SkipReport, total_report
from mmlab.hub import CheckpointError, create_model, read_checkpoint, save
from mmlab.hub.fit import read_vit
from mmlab.tasks.dual_encoder import TOKENIZER, DualEncoder, load_dual_encoder
from mmlab.training.batches import Batches, StreamedBatches, StreamedData, TrainingData
from mmlab.training.checkpoints import (
    AVERAGE,
    WEIGHTS,
    list_checkpoints,
    load_checkpoint,
    remove_partial,
    save_checkpoint,
    write_text,
)
from mmlab.training.loop import Figures, TrainingError, TrainingState, make_state, train
from mmlab.training.recipe import Recipe, parse_recipe, read_recipe, recipe_text
from mmlab.training.seeds import seed_everything
from mmlab.training.starting import check_parts
from mmlab.training.system import overrides, pretraining_settings
from mmlab.training.systems import SYSTEMS

CONFIG, METRICS, CHECKPOINTS = "config.yaml", "metrics.jsonl", "checkpoints"
SKIPPED = "skipped.json"
RECIPE = "mmlab.recipe"
"""The key of the recipe in the metadata of finished weights."""
_WEIGHTS_SEED = 4

Report = Callable[[Figures], None]


def run(
    recipe: Recipe, folder: str | Path, resume: bool = False, report: Report = lambda figures: None
) -> nn.Module:
    """Train, or go on with a run that was cut short; returns the finished network.

    ``report`` gets the figures of every step in the main process. ValueError if the folder holds
    another run, or the recipe cannot be; CheckpointError for a damaged or unwritable checkpoint;
    TrainingError if the loss is no number.
    """
    folder = Path(folder)
    system = SYSTEMS[recipe.system]
    accelerator = _make_accelerator(recipe.precision, system.takes_turns)
    data = training_data(recipe)
    batches = make_batches(data, recipe, accelerator)
    state = make_state(new_model(recipe, data), recipe, accelerator, system.decays)
    state.names_losses = system.takes_turns
    state.metadata = {RECIPE: recipe_text(recipe), **system.metadata(data)}
    check_folder(folder, recipe, resume)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        _open_folder(folder, recipe)
    accelerator.wait_for_everyone()
    _resume(state, batches, folder, accelerator)
    with _Metrics(folder, state.step, accelerator.is_main_process) as metrics:
        after_step = _after_step(state, batches, recipe, folder, accelerator, metrics, report)
        try:
            train(state, batches, recipe, accelerator, after_step)
        except TrainingError as error:
            raise TrainingError(f"{error}{_kept(folder)}") from None
    network = state.model.network if state.average is None else state.average
    if accelerator.is_main_process:
        save(network, folder / WEIGHTS, metadata=state.metadata)
    accelerator.wait_for_everyone()
    return network.eval()


def make_batches(
    data: TrainingData | StreamedData, recipe: Recipe, accelerator: Accelerator
) -> Batches | StreamedBatches:
    """The batches of this process. ValueError if the recipe's cannot be shared or read."""
    readers = (accelerator.process_index, accelerator.num_processes, recipe.workers)
    if isinstance(data, StreamedData):
        options = ShardOptions(seed=recipe.seed, buffer=recipe.buffer, wants=data.wants)
        return StreamedBatches(data, recipe.batch_size, options, *readers)
    return Batches(data, recipe.batch_size, recipe.seed, *readers)


def new_model(recipe: Recipe, data: TrainingData | StreamedData) -> nn.Module:
    """The pretraining module of a recipe, its fresh weights drawn from the recipe's seed."""
    seed_everything(recipe.seed, _WEIGHTS_SEED)
    return SYSTEMS[recipe.system].module(recipe, data)


def training_data(recipe: Recipe) -> TrainingData | StreamedData:
    """What a recipe trains on. ValueError if the recipe asks for what its system has not."""
    system = SYSTEMS[recipe.system]
    pretraining_settings(recipe, system.settings)
    check_parts(recipe, system.starts)
    return system.data(recipe)


def check_folder(folder: Path, recipe: Recipe, resume: bool) -> None:
    """ValueError unless the folder is free, or holds this run and it is to be resumed."""
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{str(folder)!r} is a file, not a folder for a run")
    config = folder / CONFIG
    if resume and not config.is_file():
        raise ValueError(f"there is no run in {str(folder)!r} to resume: it has no {CONFIG}")
    if not config.is_file():
        return
    if not resume:
        raise ValueError(f"{str(folder)!r} holds a run; resume it, or choose another folder")
    changed = _changes(read_recipe(config), recipe)
    if changed:
        raise ValueError(f"a run is resumed with its own recipe; {config} has {changed}")


def _changes(old: Recipe, new: Recipe) -> str:
    names = [f.name for f in fields(Recipe) if getattr(old, f.name) != getattr(new, f.name)]
    return ", ".join(f"{n} = {getattr(old, n)!r}, not {getattr(new, n)!r}" for n in names)


def latest_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run; None before the first."""
    return next(iter(reversed(list_checkpoints(folder / CHECKPOINTS))), None)


def weights_file(source: Path) -> Path:
    """The weights to use in a run folder, a checkpoint folder or a file.

    The average before the network itself. ValueError if there are none.
    """
    if not source.is_dir():
        return source
    checkpoint = latest_checkpoint(source)
    folders = [source, *([checkpoint] if checkpoint else [])]
    files = [folder / name for folder in folders for name in (AVERAGE, WEIGHTS)]
    for file in files:
        if file.is_file():
            return file
    raise ValueError(f"{str(source)!r} holds no weights: no {WEIGHTS}, no checkpoint")


def load_network(recipe: Recipe, file: Path, num_classes: int) -> nn.Module:
    """The trained classifier in a file; CheckpointError if it is of another model or target."""
    found = read_vit(read_checkpoint(file)).settings["num_classes"]
    if found != num_classes:
        raise CheckpointError(
            f"{str(file)!r} tells {found} classes apart, the target has {num_classes}"
        )
    settings = {**overrides(recipe, "num_classes"), "num_classes": num_classes}
    return create_model(recipe.model_name, pretrained=file, **settings).eval()


def load_encoder(recipe: Recipe, file: Path) -> DualEncoder:
    """The trained dual encoder in a file with its tokenizer.

    A file that holds none, as older checkpoints do, gets the one that is made from the data.
    CheckpointError if the file is of another model.
    """
    metadata = read_checkpoint(file).metadata
    tokenizer = None if TOKENIZER in metadata else training_data(recipe).tokenizer
    return load_dual_encoder(recipe.model_name, file, tokenizer)


def recipe_of(source: Path) -> Recipe | None:
    """The recipe of the run that a folder or file of weights comes from; None if none is told.

    A file may hold it itself, as the finished weights of a run do.
    """
    own = source if source.is_dir() else source.parent
    above = [folder.parent for folder in own.parents if folder.name == CHECKPOINTS]
    for folder in (own, *above):
        if (folder / CONFIG).is_file():
            return read_recipe(folder / CONFIG)
    text = _metadata(source).get(RECIPE)
    return parse_recipe(text, str(source)) if text else None


def _metadata(file: Path) -> dict[str, str]:
    return read_checkpoint(file).metadata if file.suffix == ".safetensors" else {}


def _make_accelerator(precision: str, takes_turns: bool = False) -> Accelerator:
    """ValueError if the environment asks for a device that is not there."""
    # Processes would wait for gradients that no step of theirs makes.
    averaging = DistributedDataParallelKwargs(find_unused_parameters=takes_turns)
    # Accelerate keeps the precision of the first run of a process; a notebook may have several.
    AcceleratorState._reset_state()
    try:
        accelerator = Accelerator(mixed_precision=precision, kwargs_handlers=[averaging])
        torch.empty(1, device=accelerator.device)
    # PyTorch without CUDA raises an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"cannot start on the device that accelerate is set to: {reason}"
        ) from None
    _check_distribution(accelerator.distributed_type)
    return accelerator


def device() -> torch.device:
    """The device that a run would use here: a GPU where there is one."""
    return _make_accelerator("no").device


def _check_distribution(kind: DistributedType) -> None:
    """Checkpoints hold whole weights, which every process must therefore have."""
    split = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
    if kind in split:
        raise ValueError(f"every process must hold the whole model; {kind.value} splits it")


def _open_folder(folder: Path, recipe: Recipe) -> None:
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"cannot make the folder {str(folder)!r}: {error.strerror}") from None
    remove_partial(folder / CHECKPOINTS)
    if not (folder / CONFIG).is_file():
        write_text(folder / CONFIG, recipe_text(recipe))


def _resume(
    state: TrainingState,
    batches: Batches | StreamedBatches,
    folder: Path,
    accelerator: Accelerator,
) -> None:
    checkpoint = latest_checkpoint(folder)
    if checkpoint is None:
        return
    _check_tokenizer(state, checkpoint)
    load_checkpoint(state, checkpoint)
    if not any(state.positions):
        return
    if len(state.positions) != accelerator.num_processes:
        raise ValueError(
            f"{str(folder)!r} is a run of {len(state.positions)} processes that read shards, and "
            f"can only go on with as many; there are {accelerator.num_processes}"
        )
    batches.load_state_dict(state.positions[accelerator.process_index])


def _check_tokenizer(state: TrainingState, checkpoint: Path) -> None:
    """Numbers of words that mean something else now would ruin the run in silence."""
    now = state.metadata.get(TOKENIZER)
    if _metadata(checkpoint / WEIGHTS).get(TOKENIZER, now) != now:
        raise CheckpointError(
            f"checkpoint {str(checkpoint)!r} was trained with another vocabulary than the captions "
            "or the tokenizer's file give now"
        )


def _kept(folder: Path) -> str:
    checkpoint = latest_checkpoint(folder)
    return f"; the last good checkpoint is {checkpoint}" if checkpoint else ""


def _after_step(
    state: TrainingState,
    batches: Batches | StreamedBatches,
    recipe: Recipe,
    folder: Path,
    accelerator: Accelerator,
    metrics: _Metrics,
    report: Report,
) -> Report:
    """What the main process does after each step; the others wait while a checkpoint is written."""

    def after_step(figures: Figures) -> None:
        due = state.step % recipe.checkpoint_every == 0 or state.step == recipe.steps
        if due:
            state.positions = gather_object([batches.state_dict()])
        if accelerator.is_main_process:
            report(metrics.write(figures))
            if due:
                save_checkpoint(state, folder / CHECKPOINTS, recipe.keep)
                _write_skipped(state, folder)
        if due:
            accelerator.wait_for_everyone()

    return after_step


def _write_skipped(state: TrainingState, folder: Path) -> None:
    if any(state.positions):
        report = asdict(total_report(state.positions))
        write_text(folder / SKIPPED, json.dumps(report, ensure_ascii=False, indent=2) + "\n")


def read_skipped(folder: Path) -> SkipReport | None:
    """What a run on shards gave and skipped, up to its last checkpoint; None for other data."""
    path = folder / SKIPPED
    return SkipReport(**json.loads(path.read_text("utf-8"))) if path.is_file() else None


class _Metrics:
    """``metrics.jsonl``: each step once, also after a resumption."""

    def __init__(self, folder: Path, step: int, active: bool):
        self.path = folder / METRICS
        self.file = None
        if not active:
            return
        lines = read_metrics(self.path)[:step]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in lines))
        self.started = time.perf_counter() - (lines[-1]["seconds"] if lines else 0)
        self.file = self.path.open("a", encoding="utf-8")

    def write(self, figures: Figures) -> Figures:
        seconds = round(time.perf_counter() - self.started, 3)
        line = {**figures, "seconds": seconds}
        try:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()
        except OSError as error:
            raise CheckpointError(f"could not write {str(self.path)!r}: {error}") from None
        return line

    def __enter__(self) -> _Metrics:
        return self

    def __exit__(self, *error: object) -> None:
        if self.file is not None:
            self.file.close()


def read_metrics(path: str | Path) -> list[Figures]:
    """The lines of a ``metrics.jsonl``; one that was cut short ends them."""
    lines: list[Figures] = []
    path = Path(path)
    for text in path.read_text("utf-8").splitlines() if path.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines
