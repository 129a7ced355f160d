"""A small language model that knows the captions of scenes: stage 2 of BLIP-2 speaks through it.

Published BLIP-2s take OPT-2.7B and the like (Li et al. 2023, section 3.2). This is an OPT, too,
with some hundred thousand weights, trained in about a minute on one core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Int64
from torch import Generator, Tensor

from mmlab import datasets
from mmlab.datasets.tokenizer import Tokenizer, train_wordpiece
from mmlab.models.checks import check
from mmlab.tasks.language_models import LanguageModel, import_transformers, with_tokenizer
from mmlab.tasks.paired_scenes import CAPTION_KINDS
from mmlab.training.optim import make_optimizer
from mmlab.training.schedules import rate_factor, set_rate
from mmlab.training.seeds import generator, seed_everything

SIZES = {
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 512,
    "max_position_embeddings": 128,
    "dropout": 0.0,
}
"""Of the configuration of an OPT in ``transformers``."""
BLOCK_LENGTH = 64
LR, WEIGHT_DECAY, WARMUP, CLIP_NORM = 3e-3, 0.01, 20, 1.0
_WEIGHTS, _BLOCKS = 5, 6


def train_language_model(
    folder: str | Path,
    num_scenes: int = 2000,
    steps: int = 300,
    batch_size: int = 32,
    seed: int = 0,
    report: Callable[[dict[str, float | int]], None] = lambda figures: None,
) -> LanguageModel:
    """Train it on captions of training scenes and write it to ``folder``, as ``transformers`` does.

    A block of text is captions of one and the same scene, one after the other, so that the model
    learns to heed what stands before: frozen, it will be told in that place what an image shows.
    ``report`` gets each step's number, its loss in nats a token, and the seconds since the first.
    ValueError for wrong numbers or a folder that is there already; ImportError without
    ``transformers``.
    """
    given = {"num_scenes": num_scenes, "steps": steps, "batch_size": batch_size}
    for name, value in given.items():
        check(value >= 1, name, value, "at least 1")
    folder = Path(folder)
    check(not folder.exists(), "folder", str(folder), "a folder that is not there yet")
    library = import_transformers()
    texts = _texts(num_scenes, seed)
    words = train_wordpiece(list(dict.fromkeys(text for own in texts for text in own)))
    seed_everything(seed, _WEIGHTS)
    numbers = {"pad": words.pad_id, "bos": words.cls_id, "eos": words.sep_id}
    special = {f"{name}_token_id": number for name, number in numbers.items()}
    config = library.OPTConfig(vocab_size=words.vocab_size, **special, **SIZES)
    network = library.OPTForCausalLM(config)
    _train(network, _rows(texts, words), steps, batch_size, seed, report)
    network.save_pretrained(folder)
    tokenizer = _as_theirs(words, library)
    tokenizer.save_pretrained(folder)
    return with_tokenizer(str(folder), network, tokenizer)


def _texts(num_scenes: int, seed: int) -> list[list[str]]:
    """All captions of each scene, short and of medium length."""
    scenes = datasets.scenes(num_scenes, "train", seed=seed)
    return [
        [caption.text for kind in CAPTION_KINDS for caption in scenes.paraphrases(i, "en", kind)]
        for i in range(num_scenes)
    ]


def _rows(texts: Sequence[Sequence[str]], words: Tokenizer) -> list[list[list[int]]]:
    """Each caption's tokens, from [CLS] to [SEP]."""
    flat = words([text for own in texts for text in own])
    rows = iter(zip(flat.input_ids.tolist(), flat.attention_mask.sum(1).tolist(), strict=True))
    return [[ids[:length] for ids, length in (next(rows) for _ in own)] for own in texts]


def _train(
    network: torch.nn.Module,
    rows: Sequence[Sequence[list[int]]],
    steps: int,
    batch_size: int,
    seed: int,
    report: Callable[[dict[str, float | int]], None],
) -> None:
    optimizer, started = make_optimizer(network.train(), LR, WEIGHT_DECAY), time.perf_counter()
    for step in range(steps):
        set_rate(optimizer, LR * rate_factor("cosine", step, steps, WARMUP))
        ids = _blocks(rows, batch_size, generator(seed, _BLOCKS, step))
        loss = network(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), CLIP_NORM)
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.perf_counter() - started
        report({"step": step + 1, "loss": loss.item(), "seconds": seconds})
    network.eval()


def _blocks(
    rows: Sequence[Sequence[list[int]]], batch_size: int, draws: Generator
) -> Int64[Tensor, "batch_size block"]:
    """Captions of one scene in a random order, repeated if they are too few, for each row."""
    blocks = []
    for scene in torch.randint(len(rows), (batch_size,), generator=draws).tolist():
        own, block = rows[scene], []
        while len(block) < BLOCK_LENGTH:
            for place in torch.randperm(len(own), generator=draws).tolist():
                block += own[place]
        blocks.append(block[:BLOCK_LENGTH])
    return torch.tensor(blocks)


def _as_theirs(words: Tokenizer, library: object) -> object:
    """The tokenizer as one of ``transformers``, which puts [CLS] before a text, as OPT's does."""
    from tokenizers import Tokenizer as Engine
    from tokenizers.processors import TemplateProcessing

    engine = Engine.from_str(words.engine.to_str())
    first = words.layout.first
    engine.post_processor = TemplateProcessing(
        single=f"{first} $A", special_tokens=[(first, words.cls_id)]
    )
    named = {"pad_token": "[PAD]", "bos_token": first, "eos_token": words.layout.last}
    return library.PreTrainedTokenizerFast(tokenizer_object=engine, unk_token="[UNK]", **named)
