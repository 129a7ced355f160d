"""Checkpoint layouts of ALBEF.

Read in salesforce/ALBEF (``models/model_*.py``, ``models/xbert.py``). A file holds the network, its
momentum twin (the same names, ``_m`` after the first word) and the queues. What only training needs
has our names of ``ALBEFPretraining`` (``momentum.…``, ``queue.…``), everything else those of
``ALBEF``. There is no ALBEF in transformers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mmlab.hub.mapping import Layout, Row, Tie, linear, prefixed
from mmlab.hub.tables.bert import block_rows, embedding_rows, language_head_rows
from mmlab.hub.tables.vit import trunk_rows

_TEMPERATURE = Row("heads.contrast.temperature", "temp", "", "contrast")
_CONTRAST = (
    *linear("heads.contrast.image_projection", "vision_proj", "embed_dim dim", "contrast"),
    *linear("heads.contrast.text_projection", "text_proj", "embed_dim text_dim", "contrast"),
)
_MATCH = linear("heads.match", "itm_head", "outcomes text_dim", "match")
_CLASSES = (
    *linear("heads.classes.0", "cls_head.0", "hidden text_dim", "classes"),
    *linear("heads.classes.2", "cls_head.2", "classes hidden", "classes"),
)
_ASSIGNMENT = linear("heads.classes", "ta_head", "classes text_dim", "assignment")
_QUEUE = (
    Row("queue.images", "image_queue", "embed_dim size", "queue"),
    Row("queue.texts", "text_queue", "embed_dim size", "queue"),
    Row("queue.pointer", "queue_ptr", "1", "queue"),
    Row("queue.ids", "idx_queue", "1 size -> size", "ids of the queue"),
)


def _image_encoder() -> tuple[Row, ...]:
    return trunk_rows("vit-timm", "image_encoder.", "visual_encoder.")


def _bert(ours: str, theirs: str, context: str) -> tuple[Row, ...]:
    """``context`` names the axis that cross-attentions take keys and values from."""
    blocks = block_rows(cross_attention=True, context=context)
    return prefixed((*embedding_rows(), *blocks), ours, theirs)


def _words(ours: str, theirs: str) -> tuple[Row, ...]:
    return prefixed(language_head_rows("words", "cls.predictions", "words"), ours, theirs)


def _twin(rows: Iterable[Row]) -> tuple[Row, ...]:
    """The same rows of the momentum twin: all of them, or none."""

    def theirs(key: str) -> str:
        first, _, rest = key.partition(".")
        return f"{first}_m.{rest}"

    return tuple(
        replace(
            row,
            ours=_momentum(row.our_keys),
            theirs=theirs(row.theirs),
            group=f"momentum {row.group}".strip(),
            scope=f"momentum {row.scope}".strip(),
        )
        for row in rows
    )


def _momentum(keys: tuple[str, ...]) -> str | tuple[str, ...]:
    named = tuple(f"momentum.network.{key}" for key in keys)
    return named if len(named) > 1 else named[0]


def _ties(head: str, table: str) -> tuple[Tie, ...]:
    """The last matrix of a words head is the table of word vectors, in the network and its twin."""
    return tuple(
        tie
        for m in ("", "_m")
        for tie in (
            Tie(
                f"{head}{m}.cls.predictions.decoder.weight",
                f"{head}{m}.{table}embeddings.word_embeddings.weight",
                beside=f"{head}{m}.cls.predictions.bias",
            ),
            Tie(f"{head}{m}.cls.predictions.decoder.bias", f"{head}{m}.cls.predictions.bias"),
        )
    )


def _layout(
    name: str, averaged: tuple[Row, ...], alone: tuple[Row, ...], source: str, ties: tuple[Tie, ...]
) -> Layout:
    """``averaged`` is there twice, in the network and in its twin; ``alone`` once."""
    return Layout(
        name=name,
        rows=(*averaged, *alone, *_twin(averaged), *_QUEUE),
        source=f"salesforce/ALBEF, {source}",
        config={"norm_eps": 1e-6, "text_norm_eps": 1e-12, "activation": "gelu"},
        strip=("module.",),
        ignored=(r"text_(en|de)coder(_m)?\.(bert\.)?embeddings\.position_ids",),
        tied=ties,
    )


LAYOUTS = (
    _layout(
        "albef",
        averaged=(
            *_image_encoder(),
            *_bert("text_encoder.", "text_encoder.bert.", "image_dim"),
            *_words("heads.", "text_encoder."),
            *_CONTRAST,
        ),
        alone=(*_MATCH, _TEMPERATURE),
        source="models/model_pretrain.py",
        ties=_ties("text_encoder", "bert."),
    ),
    _layout(
        "albef-finetuned",
        averaged=(
            *_image_encoder(),
            *_bert("text_encoder.", "text_encoder.", "image_dim"),
            *_CONTRAST,
            *_CLASSES,
        ),
        alone=(*_MATCH, *_ASSIGNMENT, _TEMPERATURE),
        source="models/model_retrieval.py, model_ve.py, model_nlvr.py and model_pretrain_nlvr.py",
        ties=(),
    ),
    _layout(
        "albef-vqa",
        averaged=(
            *_image_encoder(),
            *_bert("text_encoder.", "text_encoder.", "image_dim"),
            *_bert("heads.answers.", "text_decoder.bert.", "dim"),
            *_words("heads.answers.", "text_decoder."),
        ),
        alone=(),
        source="models/model_vqa.py",
        ties=_ties("text_decoder", "bert."),
    ),
)
