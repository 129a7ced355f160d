"""What the engine has to know of a system, and what all systems do alike with a recipe."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch import nn

from mmlab.datasets.tokenizer import Tokenizer
from mmlab.hub import CheckpointError, create_model, model_config, read_checkpoint
from mmlab.hub.load import saved_config
from mmlab.models.checks import check
from mmlab.tasks.dual_encoder import TOKENIZER, other_settings, read_saved_tokenizer
from mmlab.tasks.streamed_captions import learn_tokenizer
from mmlab.training.batches import StreamedData, TrainingData
from mmlab.training.optim import Rule, decays
from mmlab.training.recipe import Recipe, check_known, typed


@dataclass(frozen=True)
class System:
    """How to make the data and the module of a recipe.

    - ``metadata`` is what finished weights need beside themselves, for their file.
    - ``settings`` are what ``Recipe.pretraining`` may set, with their usual values.
    - ``decays`` tells by name and parameter whether weight decay falls on it.
    - ``starts``: which of ``mmlab.training.starting.PARTS`` its recipes may name.
    - ``takes_turns``: a step may leave parameters without a gradient, as where tasks take turns;
      even a single loss of it is told by name.
    """

    data: Callable[[Recipe], TrainingData | StreamedData]
    module: Callable[[Recipe, TrainingData | StreamedData], nn.Module]
    metadata: Callable[[TrainingData | StreamedData], dict[str, str]] = lambda data: {}
    settings: Mapping[str, object] = field(default_factory=dict)
    decays: Rule = decays
    takes_turns: bool = False
    starts: tuple[str, ...] = ()


def overrides(recipe: Recipe, *given: str) -> dict[str, object]:
    """The fields of the model that the recipe replaces; ``given`` are set by its data.

    ValueError if the recipe sets one of those, or asks for pictures that are not in colour.
    """
    for name in given:
        if name in recipe.model:
            raise ValueError(f"model must not set {name}: the data give it")
    channels = recipe.model.get("num_channels", 3)
    check(channels == 3, "num_channels", channels, f"3, as the {recipe.data} are in colour")
    return dict(recipe.model)


def config_of(recipe: Recipe) -> object:
    """The configuration of the recipe's model, as far as the recipe alone tells it."""
    config = model_config(recipe.model_name)
    # What is no field is told when the model is made; of heads and what they need, the data and the
    # stage of the training have a say.
    known = {field.name for field in fields(config)}
    known -= {"heads", "num_classes", "num_codes", "fusion_depth", "prefix_dim"}
    names = known & recipe.model.keys()
    return replace(config, **{name: recipe.model[name] for name in names})


REGION_IMAGE_SIZE = 64


def image_size(recipe: Recipe) -> int:
    """Pixels per side of the images that the recipe's model takes.

    A model of regions sees none itself; its detector's are as large as the recipe tells.
    """
    own = getattr(config_of(recipe), "image_size", None)
    return own or recipe.pretraining.get("image_size", REGION_IMAGE_SIZE)


def pretraining_settings(recipe: Recipe, usual: Mapping[str, object]) -> dict[str, object]:
    """The ``usual`` settings with those of the recipe in their place.

    ValueError for one that is not among them, or is of another type.
    """
    wanted = f"left out: a {recipe.system} has no such settings"
    check(bool(usual) or not recipe.pretraining, "pretraining", recipe.pretraining, wanted)
    for name in recipe.pretraining:
        check_known("pretraining setting", name, tuple(usual))
    given = {name: typed(name, v, usual[name]) for name, v in recipe.pretraining.items()}
    return {**usual, **given}


def learned_tokenizer(
    shards: tuple[str, ...], vocab_size: int, seed: int, wants: str = "pairs"
) -> Tokenizer:
    """Word pieces of the captions in shards, at most ``vocab_size``: alike on all processes.

    ``wants`` as in ``ShardOptions``.
    """
    is_main = PartialState().is_main_process
    learned = [learn_tokenizer(shards, vocab_size, seed, wants).to_json() if is_main else None]
    return Tokenizer.from_json(broadcast_object_list(learned)[0])


def check_no_start(recipe: Recipe) -> None:
    """ValueError if the recipe names weights to begin with."""
    check(not recipe.start, "start", recipe.start, f"left out: a {recipe.system} begins afresh")


def started_tokenizer(recipe: Recipe) -> Tokenizer | None:
    """The tokenizer of the trained model that a recipe starts with; None if it starts afresh.

    ValueError if the recipe names another one beside it, or names none where the file has none.
    """
    if not recipe.start:
        return None
    metadata = read_checkpoint(recipe.start).metadata
    if TOKENIZER not in metadata:
        told = f"told, as {recipe.start!r} holds none"
        check(bool(recipe.tokenizer), "tokenizer", recipe.tokenizer, told)
        return None
    check(not recipe.tokenizer, "tokenizer", recipe.tokenizer, "left out with start")
    return read_saved_tokenizer(metadata, recipe.start)


def load_started(recipe: Recipe) -> nn.Module:
    """The trained model, of the recipe's own system, that the recipe starts with.

    CheckpointError if the file holds another one.
    """
    saved = saved_config(read_checkpoint(recipe.start).metadata)
    settings = other_settings(recipe.model_name, saved)
    try:
        return create_model(recipe.model_name, pretrained=recipe.start, **settings)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{recipe.start!r} is no {recipe.model_name!r}: {error}") from None


@torch.no_grad()
def start_with(network: nn.Module, started: nn.Module, recipe: Recipe) -> None:
    """Give a fresh network the weights of ``started``, and those heads that both have.

    ValueError if anything but the heads is of another shape.
    """
    state, own = started.state_dict(), network.state_dict()
    fitting = {key for key in own.keys() & state.keys() if own[key].shape == state[key].shape}
    unfit = sorted(key for key in (own.keys() | state.keys()) - fitting if "heads." not in key)
    if unfit:
        raise ValueError(f"cannot start with {recipe.start!r}: it differs in {unfit[0]!r}")
    network.load_state_dict(own | {key: state[key] for key in fitting})
