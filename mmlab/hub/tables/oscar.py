"""Checkpoint layouts of OSCAR and VinVL.

Read in microsoft/Oscar (``oscar/modeling/modeling_bert.py``). There is no port to transformers, and
the ``config.json`` beside the files has no ``model_type``: it is not looked at. The head that tells
original from polluted pairs has two rows in old files and may have three in new ones.
"""

from __future__ import annotations

from mmlab.hub.mapping import Layout, Row, Tie, linear, norm, prefixed
from mmlab.hub.tables.bert import block_rows, embedding_rows, language_head_rows

_TABLE, _COPY = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"

_NETWORK = (
    *embedding_rows(theirs="bert.embeddings"),
    *linear("region_embedding", "bert.img_embedding", "dim region"),
    # Directly under "bert": not the norm of the words, which is in bert.embeddings.
    *norm("image_norm", "bert.LayerNorm", group="image norm"),
    *prefixed(block_rows(), "trunk.", "bert."),
    *linear("trunk.pooler.dense", "bert.pooler.dense", "out dim"),
    *language_head_rows("heads.words.transform", "cls.predictions", "words"),
    *linear("heads.match", "cls.seq_relationship", "outcomes dim", "match"),
)
_ONE_LAYER = linear("heads.answer.linear", "classifier", "classes pooled", "answer")


def _two_layers(second: int) -> tuple[Row, ...]:
    """A ``Sequential`` there; the second layer comes after the activation, or after a norm."""
    return (
        *linear("heads.answer.fc1", "classifier.0", "hidden pooled", "hidden answer"),
        *linear("heads.answer.fc2", f"classifier.{second}", "classes hidden", "hidden answer"),
    )


def _layout(name: str, *rows: Row, source: str, ties: tuple[Tie, ...] = ()) -> Layout:
    return Layout(
        name=name,
        rows=(*_NETWORK, *rows),
        source=f"microsoft/Oscar, {source}",
        config={"norm_eps": 1e-12, "image_norm_eps": 1e-12, "activation": "gelu"},
        strip=("module.",),
        ignored=(r"bert\.embeddings\.position_ids",),
        tied=ties,
        mark="bert.img_embedding.weight",
    )


_TIED = (Tie(_COPY, _TABLE, beside="cls.predictions.bias"),)

LAYOUTS = (
    _layout(
        "oscar",
        *_ONE_LAYER,
        *_two_layers(2),
        source="BertImgForPreTraining and its tasks",
        ties=_TIED,
    ),
    _layout(
        "oscar-plus-nlvr2",
        *norm("heads.answer.norm", "classifier.2", "hidden", "hidden answer"),
        *_two_layers(3),
        source="ImageBertForMultipleChoice with an image norm",
        ties=_TIED,
    ),
    # The same names as "oscar", so that no file is recognised as it: ask for it by name.
    _layout(
        "oscar-untied",
        Row("heads.words.decoder.weight", _COPY, "vocab dim", "words"),
        source="BertForImageCaptioning without tie_weights",
    ),
)
