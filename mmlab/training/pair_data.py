"""Images with captions for systems that read both together, of scenes or from shards."""

from __future__ import annotations

import json
import math

from mmlab.datasets.shards import list_shards
from mmlab.datasets.tokenizer import read_tokenizer
from mmlab.models.checks import check
from mmlab.tasks.dual_encoder import TOKENIZER
from mmlab.tasks.fusion import ANSWERS
from mmlab.tasks.paired_scenes import PairedScenes, paired_scenes, with_tokens
from mmlab.tasks.preparation import image_statistics
from mmlab.tasks.streamed_captions import StreamedCaptions
from mmlab.training.recipe import Recipe
from mmlab.training.system import config_of, learned_tokenizer, started_tokenizer

Pairs = PairedScenes | StreamedCaptions


def captioned_pairs(
    recipe: Recipe,
    heads: tuple[str, ...],
    *,
    ends: bool = True,
    extra_tokens: tuple[str, ...] = (),
    whole_words: bool = True,
) -> Pairs:
    """Scenes or shards with captions, prepared for ``heads`` (see ``PairedScenes``).

    Shards hold pairs; for ``("patches",)`` images alone will do, for ``("words",)`` texts alone.
    ``extra_tokens`` are added to the vocabulary; without ``ends`` captions have no [SEP]. Where the
    recipe starts with a trained model, words are numbered as that one numbers them. What a batch of
    scenes has masked already, the module masks in one from shards: whole words if it is told of
    them. ValueError if the recipe names other data, or sets what only classifiers have.
    """
    allowed = f"scenes or shards: {recipe.system} learns from captions"
    check(recipe.data in ("scenes", "shards"), "data", recipe.data, allowed)
    streamed, asks = recipe.data == "shards", "answers" in heads
    check(not (streamed and asks), "data", recipe.data, "scenes: shards hold no questions")
    for name in ("target", "label_smoothing"):
        value = getattr(recipe, name)
        check(not value, name, value, f"left out: {recipe.system} learns from captions")
    config, tokenizer = config_of(recipe), started_tokenizer(recipe)
    sizes, statistics = (config.image_size, config.context_length), image_statistics(config)
    if recipe.tokenizer:
        tokenizer = read_tokenizer(recipe.tokenizer)
    if streamed:
        wants = {("patches",): "images", ("words",): "texts"}.get(heads, "pairs")
        told = "told: images alone bring no words, which later stages number as this one"
        check(bool(tokenizer) or wants != "images", "tokenizer", recipe.tokenizer, told)
        shards = tuple(list_shards(recipe.shards))
        room = config.vocab_size - len(extra_tokens)
        tokenizer = tokenizer or learned_tokenizer(shards, room, recipe.seed, wants)
        tokenizer = with_tokens(tokenizer, extra_tokens)
        data = StreamedCaptions(shards, tokenizer, *sizes, statistics, ends, whole_words, wants)
    else:
        options = {"extra_tokens": extra_tokens, "ends": ends, "whole_words": whole_words}
        options["spells_answers"] = True  # those who learn to answer later keep this vocabulary
        options["most_objects"] = recipe.most_objects
        options |= {"statistics": statistics, "num_patches": math.prod(config.grid)}
        data = paired_scenes(*sizes, recipe.num_images, heads, recipe.seed, tokenizer, **options)
    _check_tokenizer(data, recipe, asks)
    return data


def _check_tokenizer(data: Pairs, recipe: Recipe, asks: bool) -> None:
    """The models take 0 for padding; answers are told apart by how they are written."""
    source, pad_id = recipe.tokenizer or recipe.start, data.tokenizer.pad_id
    check(pad_id == 0, "tokenizer", source, f"one that pads with 0, not {pad_id}")
    if asks:
        written = data.tokenizer(data.answers).input_ids.unique(dim=0)
        told = f"one that writes the {len(data.answers)} answers in as many ways"
        check(len(written) == len(data.answers), "tokenizer", source, told)


def words_and_answers(data: Pairs) -> dict[str, str]:
    """For the file of weights: the tokenizer, and the answers where the model learns to answer."""
    asked = isinstance(data, PairedScenes) and {"answer", "answers"} & set(data.heads)
    answers = data.answers if asked else ()
    return {TOKENIZER: data.tokenizer.to_json(), ANSWERS: json.dumps(answers)}
