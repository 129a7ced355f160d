"""The command line: ``mmlab train``, ``mmlab evaluate``, ``mmlab league``, ``mmlab info`` and more.

A wrong value costs one line on stderr and exit code 2; Ctrl-C exits with 130. Set
``MMLAB_TRACEBACK=1`` to see where an error came from.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from mmlab.training.recipe import Recipe, read_recipe, to_recipe

# Heavy imports stand inside the commands, so that --help answers at once.

app = typer.Typer(
    help="Train, evaluate and look into vision-and-language models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
_USAGE_ERROR = typer.BadParameter.__base__
"""The error of a wrong option, wherever typer's version keeps it."""

_DEFAULT = Recipe()


def _option(text: str, name: str = "", default: str = "") -> typer.models.OptionInfo:
    """An option whose help tells the recipe's default of ``name``, or ``default``."""
    default = str(getattr(_DEFAULT, name)) if name else default
    told = f" [dim]\\[default: {default}][/dim]" if default else ""
    return typer.Option(help=text + told, show_default=False)


Text, Number, Whole, File = str | None, float | None, int | None, Path | None

System = Annotated[
    str,
    typer.Argument(
        help="What to train: vit, clip, flip, vilt, albef, blip, blip2, vlmo, vilbert, lxmert, "
        "uniter, oscar, visualbert, unicoder-vl or vlbert.",
        show_default=False,
    ),
]
Size = Annotated[Text, _option("Its size: mini, ti-16, b-16 …", "size")]
Data = Annotated[Text, _option("emoji or scenes; a --config can name shards, too.", "data")]
Target = Annotated[
    Text,
    _option(
        "What to tell from an image: group, subgroup, concept or vendor of an emoji; "
        "largest_shape, largest_color, count, left_right … of a scene.",
        default="group, largest_shape",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def train(
    system: System = "",
    config: Annotated[File, _option("A recipe in YAML; options given here overrule it.")] = None,
    size: Size = None,
    data: Data = None,
    target: Target = None,
    start: Annotated[Text, _option("A file of weights to begin with.", default="none")] = None,
    start_image: Annotated[
        Text, _option("Or a ViT, DeiT … for the image encoder alone.", default="none")
    ] = None,
    start_text: Annotated[
        Text, _option("Or a BERT for the text alone; give its --tokenizer.", default="none")
    ] = None,
    tokenizer: Annotated[
        Text, _option("The file with the vocabulary of captions.", default="learned from them")
    ] = None,
    steps: Annotated[Whole, _option("Steps to take.", "steps")] = None,
    batch_size: Annotated[
        Whole, _option("Images a step, over all processes.", "batch_size")
    ] = None,
    lr: Annotated[Number, _option("Highest learning rate.", "lr")] = None,
    weight_decay: Annotated[Number, _option("AdamW's weight decay.", "weight_decay")] = None,
    warmup: Annotated[Whole, _option("Steps until the highest rate.", "warmup")] = None,
    schedule: Annotated[
        Text, _option("Then cosine, linear, exponential or constant.", "schedule")
    ] = None,
    end_lr: Annotated[Number, _option("Rate that the schedule ends at.", "end_lr")] = None,
    ema_decay: Annotated[Number, _option("Average the weights; 0: no.", "ema_decay")] = None,
    seed: Annotated[Whole, _option("Of everything random.", "seed")] = None,
    precision: Annotated[Text, _option("no (float32) or bf16.", "precision")] = None,
    workers: Annotated[Whole, _option("Processes that prepare batches.", "workers")] = None,
    checkpoint_every: Annotated[
        Whole, _option("Steps between checkpoints.", "checkpoint_every")
    ] = None,
    keep: Annotated[Whole, _option("How many checkpoints to keep.", "keep")] = None,
    out: Annotated[File, _option("Folder of the run.", default="runs/vit-mini-emoji …")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the run in this folder.")
    ] = False,
) -> None:
    """Train a model; the run folder gets its recipe, metrics, checkpoints and weights.

    [bold]mmlab train vit --data emoji --size mini[/bold] takes about a minute on two CPU cores.
    Several processes or GPUs: [bold]accelerate launch -m mmlab.cli train vit …[/bold]
    """
    given = {
        name: value
        for name, value in locals().items()
        if name not in ("config", "out", "resume") and value not in (None, "")
    }
    if not system and config is None and not resume:
        raise ValueError("name what to train, as in 'mmlab train vit', or give a --config")
    recipe = to_recipe(given) if config is None else replace(read_recipe(config), **given)
    out = out or Path("runs") / f"{recipe.model_name}-{recipe.data}"
    if resume and config is None:
        recipe = replace(_recipe_of_run(out), **given)
    _train(recipe, out, resume)


def _recipe_of_run(folder: Path) -> Recipe:
    config = folder / "config.yaml"
    if not config.is_file():
        raise ValueError(f"there is no run in {str(folder)!r} to resume: it has no config.yaml")
    return read_recipe(config)


def _train(recipe: Recipe, out: Path, resume: bool) -> None:
    from mmlab.training.run import check_folder, read_skipped, run
    from mmlab.training.system import image_size

    image_size(recipe)  # an unknown model is told before anything slow
    check_folder(out, recipe, resume)
    say = _speaker()
    try:
        with _said(say), _progress(recipe.steps, say) as report:
            run(recipe, out, resume, report)
    except KeyboardInterrupt:
        say(f"mmlab: stopped; go on with: mmlab train --resume --out {out}")
        raise typer.Exit(130) from None
    say(f"done: weights, metrics and recipe are in {out}")
    skipped = read_skipped(out)
    if skipped is not None:
        say(f"read: {skipped}")
    say(f"next: {_next(recipe, out)}")


def _next(recipe: Recipe, out: Path) -> str:
    """What to do with finished weights; a stage on the way is measured by nothing."""
    from mmlab.training.evaluation import usual_task

    if not usual_task(recipe):
        return f"the stage after this one, with --start {out / 'model.safetensors'}"
    known = "emoji" if recipe.system in ("clip", "flip") else "scenes"
    where = f" --data {known}" if recipe.data == "shards" else ""
    return f"mmlab evaluate {recipe.system} --checkpoint {out}{where}"


def _speaker() -> Callable[[str], None]:
    """Prints to stderr, in the main process only."""
    main = os.environ.get("RANK", "0") == "0"
    return lambda text: print(text, file=sys.stderr, flush=True) if main else None


@contextmanager
def _said(say: Callable[[str], None]) -> Iterator[None]:
    """What a run logs is said, as where its weights come from."""
    handler, logger = logging.Handler(), logging.getLogger("mmlab")
    handler.emit = lambda record: say(record.getMessage())
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def _progress(
    steps: int, say: Callable[[str], None]
) -> Iterator[Callable[[dict[str, float | int]], None]]:
    """A function to report steps to: a bar in a terminal, some ten lines elsewhere."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeRemainingColumn(),
    )
    if not console.is_terminal:
        every = max(1, steps // 10)
        yield (
            lambda figures: (
                say(_step_line(figures, steps)) if figures["step"] % every == 0 else None
            )
        )
        return
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=steps, loss=float("nan"))
        yield lambda figures: bar.update(task, completed=figures["step"], loss=figures["loss"])


def _step_line(figures: dict[str, float | int], steps: int) -> str:
    seconds = figures["seconds"]
    return f"step {figures['step']}/{steps}  loss {figures['loss']:.4f}  {seconds:.0f} s"


@app.command("language-model")
def language_model(
    out: Annotated[Path, typer.Option(help="The folder to write; it must not be there yet.")],
    steps: Annotated[Whole, typer.Option(help="Steps to take.")] = 300,
    seed: Annotated[Whole, typer.Option(help="Of everything random.")] = 0,
) -> None:
    """Train the small language model that stage 2 of a blip2-mini speaks through.

    It is an OPT that learns the captions of scenes in about a minute, and needs transformers. A
    recipe names it so: [bold]pretraining: {language_model: FOLDER}[/bold]
    """
    from mmlab.training.mini_language import train_language_model

    say = _speaker()
    with _progress(steps, say) as report:
        train_language_model(out, steps=steps, seed=seed, report=report)
    say(f"done: the language model is in {out}")


@app.command()
def evaluate(
    system: System,
    checkpoint: Annotated[
        File,
        _option(
            "A run folder, a checkpoint folder or a file of weights.",
            default="the trained mini model that comes with mmlab",
        ),
    ] = None,
    size: Size = None,
    data: Data = None,
    target: Target = None,
    vendor: Annotated[
        Text, _option("Who drew the emoji: fluent is a style never trained on.", default="fluent")
    ] = None,
    split: Annotated[
        Text,
        _option(
            "emoji: train, held_out, all; scenes: train, validation, test, held_out.",
            default="train, test",
        ),
    ] = None,
    num_images: Annotated[
        Whole, _option("How many scenes.", default="1000; 100 where each pair is a forward pass")
    ] = None,
    seed: Annotated[Whole, _option("Of the scenes.", default="0")] = None,
    task: Annotated[
        Text,
        _option(
            "classification of a vit; retrieval or zero-shot of a clip or flip; retrieval or "
            "captioning of a blip2; matching or vqa of a visualbert; retrieval or vqa of all "
            "others that have learned it.",
            default="the first of them",
        ),
    ] = None,
    language: Annotated[str, _option("Of the captions: en or zh.", default="en")] = "en",
    as_json: AsJson = False,
) -> None:
    """Measure a trained model.

    Finished weights remember size, data and target; options given here overrule them.
    """
    from mmlab.training.evaluation import choose, measure, usual_task
    from mmlab.training.run import recipe_of, weights_file

    source = checkpoint or _shipped(system, size)
    given = _given(system=system, size=size, data=data, target=target)
    recipe = _recipe_to_evaluate(recipe_of(source), given)
    chosen = _given(vendor=vendor, split=split, num_images=num_images, seed=seed)
    task = task or usual_task(recipe)
    where = choose(recipe.data, chosen, recipe.system, task)
    weights = weights_file(source)
    result = measure(recipe, weights, task, where, language)
    told = {"model": recipe.model_name, "weights": str(weights), "data": recipe.data, **where}
    told |= {"task": task}
    if checkpoint is None:
        print(f"no --checkpoint given: this is mmlab's own {recipe.model_name}", file=sys.stderr)
    _print({**told, **result}, as_json)


def _given(**options: object) -> dict[str, object]:
    """The options that the command line sets."""
    return {name: value for name, value in options.items() if value is not None}


def _shipped(system: str, size: str | None) -> Path:
    from mmlab.hub import mini_checkpoint

    return mini_checkpoint(replace(_DEFAULT, **_given(system=system, size=size)).model_name)


def _recipe_to_evaluate(own: Recipe | None, given: dict[str, str]) -> Recipe:
    if own is None:
        return to_recipe(given)
    if given.get("data", own.data) != own.data:
        own = replace(own, data=given["data"], target="", shards=())
    recipe = replace(own, **given)
    if recipe.model_name != own.model_name:
        raise ValueError(f"the run trained {own.model_name!r}, not {recipe.model_name!r}")
    return recipe


Pictures = Annotated[Path, typer.Option("--images", help="Your folder of pictures.")]
Index = Annotated[
    File, _option("Folder that keeps the index.", default="one in your cache, for these pictures")
]
Weights = Annotated[
    File,
    _option(
        "A run folder or file of weights of a clip or flip, as 'mmlab train clip' makes them.",
        default="a trained clip-mini, where mmlab comes with one",
    ),
]


@app.command()
def embed(
    images: Pictures,
    index: Index = None,
    checkpoint: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Compute the features of a folder of pictures, once; later only of what is new or changed."""
    from dataclasses import asdict

    encoder, model = _encoder(checkpoint)
    index, done = _embed(images, index, encoder, model)
    _print({"images": str(images), "index": str(index), **asdict(done)}, as_json)


@app.command()
def search(
    question: Annotated[str, typer.Argument(help="A sentence, in English or Chinese.")],
    images: Pictures,
    k: Annotated[int, typer.Option("-k", help="How many pictures to show.")] = 5,
    index: Index = None,
    checkpoint: Weights = None,
    as_json: AsJson = False,
) -> None:
    """Find the pictures of a folder that fit a sentence best.

    [bold]mmlab search "a happy cat" --images holiday[/bold] reads each picture once and keeps what
    it has learned of it. A model trained on emoji knows emoji and little else.
    """
    from mmlab.tasks import picture_search

    encoder, model = _encoder(checkpoint)
    query = picture_search.encode_question(encoder, question)
    index, _ = _embed(images, index, encoder, model)
    hits = picture_search.search(query, index, k)
    if as_json:
        print(json.dumps([{"path": str(hit.path), "score": hit.score} for hit in hits], indent=2))
        return
    for hit in hits:
        print(f"{hit.score:6.3f}  {hit.path}")


def _encoder(checkpoint: Path | None):
    """A dual encoder, and a name for it with its weights."""
    from mmlab.tasks.picture_search import model_id
    from mmlab.training.run import device, load_encoder, recipe_of, weights_file

    source = checkpoint or _shipped("clip", None)
    recipe = recipe_of(source)
    if recipe is None:
        raise ValueError(f"{str(source)!r} does not tell what it was trained as")
    if recipe.system not in ("clip", "flip"):
        raise ValueError(f"pictures are searched with a clip or a flip, not {recipe.model_name!r}")
    weights = weights_file(source)
    encoder = load_encoder(recipe, weights)
    encoder.network.to(device())
    return encoder, model_id(recipe.model_name, weights)


def _embed(images: Path, index: Path | None, encoder, model: str):
    """The index of a folder, brought up to date; broken pictures are told on stderr."""
    from mmlab.tasks import picture_search

    index = index or picture_search.default_index(images, model)
    say = _speaker()
    done = picture_search.embed(
        images, index, encoder, model, lambda done, total: say(f"{done}/{total} pictures read")
    )
    for _, reason in done.broken:
        say(f"mmlab: left out: {reason}")
    return index, done


@app.command()
def league(
    plan: Annotated[
        str, _option("small (minutes), full (hours) or a file in YAML.", default="small")
    ] = "small",
    out: Annotated[File, _option("Folder of the run.", default="runs/league-small …")] = None,
    jobs: Annotated[int, typer.Option(help="Cells to run side by side; they share the cores.")] = 1,
    systems: Annotated[
        Text, _option("Only these systems of the plan, as in clip,vilt.", default="all")
    ] = None,
    tasks: Annotated[
        Text,
        _option("Only these tasks, as in vqa,binding; pretraining comes first.", default="all"),
    ] = None,
    seeds: Annotated[Text, _option("Only these seeds, as in 0,1.", default="all")] = None,
    table: Annotated[
        bool, typer.Option("--table", help="Run nothing; write the table of what is there.")
    ] = False,
) -> None:
    """Train every system on the same scenes with the same budget, and measure every task.

    The same command goes on where the last one stopped: what is finished is not run again, what
    failed is tried again. The folder gets a file for each cell, league.json, a table and plots.
    """
    from mmlab.league.plan import read_plan
    from mmlab.league.report import report
    from mmlab.league.run import chosen_cells, run_league

    asked = read_plan(plan)
    only = chosen_cells(asked, systems, tasks, seeds)
    out = out or Path("runs") / f"league-{Path(plan).stem}"
    if not table:
        say = _speaker()
        try:
            run_league(asked, out, jobs, say, only)
        except KeyboardInterrupt:
            say("mmlab: stopped; the same command goes on with it")
            raise typer.Exit(130) from None
    for line in report(out):
        print(line)


@app.command("list")
def list_(
    pattern: Annotated[str, typer.Argument(help="Which: a glob such as 'vit-b-*'.")] = "*",
    as_json: AsJson = False,
) -> None:
    """List the models that mmlab can make."""
    from mmlab.hub import list_models

    names = list_models(pattern)
    if not names:
        raise ValueError(f"no model matches {pattern!r}; 'mmlab list' shows all")
    print(json.dumps(names, indent=2) if as_json else "\n".join(names))


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A name that 'mmlab list' shows.")],
    as_json: AsJson = False,
) -> None:
    """Tell a model's shapes, parameters and costs; no weights are made."""
    from mmlab.analysis.describe import describe

    _print(describe(model), as_json)


def _print(table: dict[str, object], as_json: bool) -> None:
    """A result on stdout: aligned lines, or JSON."""
    if as_json:
        print(json.dumps(table, indent=2))
        return
    flat = dict(_flat(table))
    width = max(map(len, flat))
    for name, value in flat.items():
        print(f"{name.replace('_', ' '):{width}}  {_shown(value)}")


def _flat(table: dict[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """``{"a": {"b": 1}}`` as ``("a b", 1)``."""
    for name, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name} ")
        else:
            yield prefix + name, value


def _shown(value: object) -> str:
    if isinstance(value, list):
        return " x ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 2 for an error, 130 for Ctrl-C."""
    try:
        return app(args=arguments, prog_name="mmlab", standalone_mode=False) or 0
    except (KeyboardInterrupt, typer.Abort) as stop:
        return _fail(str(stop) or "stopped", 130)
    except _USAGE_ERROR as error:
        return _fail(error.format_message(), 2)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("MMLAB_TRACEBACK") == "1":
            raise
        return _fail(str(error) or type(error).__name__, 2)


def _fail(message: str, code: int) -> int:
    # Without any argument the help has been shown, and there is nothing to add.
    if message:
        print("mmlab: " + " ".join(message.split()), file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
