"""A pretrained BERT, whose weights the text transformers of other systems begin with.

There is no BERT among our models: its blocks are parts of theirs, and a file of BERT is read into
the names that these parts have there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from mmlab.hub.conversion import detect_layout
from mmlab.hub.files import CheckpointFile
from mmlab.hub.load import read_hf_config
from mmlab.hub.mapping import CheckpointError, HFConfig, Layout, Tie, as_tensors, convert, linear
from mmlab.hub.tables.bert import block_rows, embedding_rows, language_head_rows

LAYOUT = Layout(
    name="bert",
    rows=(
        *embedding_rows(),
        *block_rows(),
        *linear("pooler.dense", "pooler.dense", "out dim", "pooler"),
        *language_head_rows("words", "cls.predictions", "words"),
    ),
    source="google-research/bert as transformers keeps it: BertModel, BertForPreTraining, "
    "BertForMaskedLM",
    ignored=(r"embeddings\.position_ids", r"cls\.seq_relationship\..*"),
    tied=(
        Tie("cls.predictions.decoder.weight", "embeddings.word_embeddings.weight"),
        Tie("cls.predictions.decoder.bias", "cls.predictions.bias"),
    ),
    hf_config=HFConfig(
        model_types=("bert",),
        fields={"num_heads": "num_attention_heads", "activation": "hidden_act"}
        | {"norm_eps": "layer_norm_eps"},
    ),
)
"""It is none of ``mmlab.hub.layouts()``, as no model of ours is a BERT alone."""

_BLOCK = re.compile(r"(?:module\.)?(?:bert\.)?encoder\.layer\.\d+\.attention\.self\.query\.weight")
_OLD_NAMES = {"gamma": "weight", "beta": "bias"}


@dataclass(frozen=True)
class Bert:
    """A file of BERT in our names: ``embeddings.…``, ``blocks.{i}.…``, ``pooler.…``, ``words.…``.

    ``settings`` are what it tells of its ``BertConfig``: sizes by its shapes; heads, activation
    and epsilon only where a ``config.json`` lies beside it.
    """

    source: str
    state: dict[str, Tensor]
    settings: dict[str, object]


def read_bert(file: CheckpointFile) -> Bert:
    """The BERT in a file, with its language head if it has one; the next-sentence head is dropped.

    Files of any age are read: norms whose weights are called ``gamma`` and ``beta``, with or
    without the ``bert.`` before all names. CheckpointError names the file and what is wrong.
    """
    try:
        if not is_bert(file.tensors):
            raise CheckpointError(f"it is no BERT{_seems(file.tensors)}")
        state = {_present_name(key): t for key, t in as_tensors(file.tensors).items()}
        state = {key: state[whole] for whole, key in LAYOUT.table_keys(state).items()}
        state, _ = convert(LAYOUT.name, LAYOUT.rows, LAYOUT.without_copies(state))
        told = read_hf_config(LAYOUT.hf_config, file.config, {})
    except CheckpointError as error:
        raise CheckpointError(f"{file.source!r}: {error}") from None
    return Bert(file.source, state, told | _sizes(state))


def is_bert(keys: Iterable[str]) -> bool:
    """Whether these are keys of a BERT, or of something that holds one under its own names."""
    return any(_BLOCK.fullmatch(key) for key in keys)


def _present_name(key: str) -> str:
    key = key.removeprefix("module.").removeprefix("bert.")
    return re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda match: _OLD_NAMES[match[0]], key)


def _seems(keys: Iterable[str]) -> str:
    try:
        return f"; its keys look like {detect_layout(keys)!r}"
    except CheckpointError:
        return ""


def _sizes(state: Mapping[str, Tensor]) -> dict[str, object]:
    """The fields of ``BertConfig`` that shapes tell beyond doubt."""
    vocab_size, dim = state["embeddings.word_embedding.weight"].shape
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "depth": sum(key.endswith(".norm1.bias") for key in state),
        "mlp_dim": len(state["blocks.0.mlp.fc1.bias"]),
        "max_positions": len(state["embeddings.position_embedding.weight"]),
    }
