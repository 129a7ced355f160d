"""Checkpoint layouts of ALBEF.

Read in salesforce/ALBEF (``models/model_*.py``, ``models/xbert.py``). A file holds the network, its
momentum twin (the same names, ``_m`` after the first word) and the queues. What only training needs
has our names of ``ALBEFPretraining`` (``momentum.…``, ``queue.…``), everything else those of
``ALBEF``. There is no ALBEF in transformers.
"""

from __future__ import annotations

from mmlab.hub.mapping import Layout, Row, Tie, linear, prefixed
from mmlab.hub.tables.bert import block_rows, embedding_rows, language_head_rows
from mmlab.hub.tables.momentum import CLASSES, CONTRAST, MATCH, TEMPERATURE, queue_rows, twin_rows
from mmlab.hub.tables.vit import trunk_rows

_ASSIGNMENT = linear("heads.classes", "ta_head", "classes text_dim", "assignment")


def _image_encoder() -> tuple[Row, ...]:
    return trunk_rows("vit-timm", "image_encoder.", "visual_encoder.")


def _bert(ours: str, theirs: str, context: str) -> tuple[Row, ...]:
    """``context`` names the axis that cross-attentions take keys and values from."""
    blocks = block_rows(cross_attention=True, context=context)
    return prefixed((*embedding_rows(), *blocks), ours, theirs)


def _words(ours: str, theirs: str) -> tuple[Row, ...]:
    return prefixed(language_head_rows("words", "cls.predictions", "words"), ours, theirs)


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
        rows=(*averaged, *alone, *twin_rows(averaged), *queue_rows()),
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
            *CONTRAST,
        ),
        alone=(*MATCH, TEMPERATURE),
        source="models/model_pretrain.py",
        ties=_ties("text_encoder", "bert."),
    ),
    _layout(
        "albef-finetuned",
        averaged=(
            *_image_encoder(),
            *_bert("text_encoder.", "text_encoder.", "image_dim"),
            *CONTRAST,
            *CLASSES,
        ),
        alone=(*MATCH, *_ASSIGNMENT, TEMPERATURE),
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
