"""Checkpoint layouts of VisualBERT.

Read in uclanlp/visualbert (``visualbert/pytorch_pretrained_bert/modeling.py``) and in
``transformers`` 5. Official files are written by a wrapper, which puts ``bert.`` before every name;
without it, the model of the objective has them without.
"""

from __future__ import annotations

from mmlab.hub.mapping import HFConfig, Layout, Row, Tie, linear, prefixed
from mmlab.hub.tables.bert import block_rows, embedding_rows, language_head_rows

_OFFICIAL_REGIONS = {
    "projection": "projection",
    "type_embedding": "token_type_embeddings_visual",
    "position_embedding": "position_embeddings_visual",
}
_HF_REGIONS = {
    "projection": "visual_projection",
    "type_embedding": "visual_token_type_embeddings",
    "position_embedding": "visual_position_embeddings",
}
_LATE = "late fusion"


def _late_block() -> tuple[Row, ...]:
    """The block that regions join in without early fusion; files of other models lack it."""
    rows = block_rows("late_block", "additional_layer")
    return tuple(Row(row.ours, row.theirs, row.axes, _LATE) for row in rows)


def _regions(theirs: dict[str, str]) -> tuple[Row, ...]:
    ours, embeddings = "region_embeddings", "embeddings"
    return (
        *linear(f"{ours}.projection", f"{embeddings}.{theirs['projection']}", "dim features"),
        Row(
            f"{ours}.type_embedding.weight",
            f"{embeddings}.{theirs['type_embedding']}.weight",
            "types dim",
        ),
        Row(
            f"{ours}.position_embedding.weight",
            f"{embeddings}.{theirs['position_embedding']}.weight",
            "positions dim",
        ),
    )


def _backbone(regions: dict[str, str]) -> tuple[Row, ...]:
    return (
        *embedding_rows(),
        *_regions(regions),
        *block_rows("trunk.blocks.{i}"),
        *linear("trunk.pooler.dense", "pooler.dense", "out dim"),
        *_late_block(),
    )


def _heads(answer: str, grounding: str) -> tuple[Row, ...]:
    """Answers of VQA, NLVR2 and VCR have one name; they differ in their number."""
    parts = ("query", "key", "value")
    grounds = (
        row
        for part in parts
        for row in linear(
            f"heads.grounding.{part}", f"{grounding}.{part}", "head_dim dim", "grounding"
        )
    )
    return (
        *language_head_rows("heads.words", "cls.predictions", "words"),
        *linear("heads.match", "cls.seq_relationship", "outcomes dim", "match"),
        *linear("heads.answer", answer, "classes dim", "answer"),
        *grounds,
    )


def _ties(prefix: str, table: str, bias: bool) -> tuple[Tie, ...]:
    """The last matrix of the words head is the table of word vectors, in transformers with bias."""
    words = f"{prefix}cls.predictions"
    matrix = Tie(
        f"{words}.decoder.weight", f"{table}embeddings.word_embeddings.weight", f"{words}.bias"
    )
    return (matrix, Tie(f"{words}.decoder.bias", f"{words}.bias")) if bias else (matrix,)


def _official(name: str, prefix: str) -> Layout:
    table = f"{prefix}bert."
    rows = (*prefixed(_backbone(_OFFICIAL_REGIONS), theirs="bert."), *_official_heads())
    return Layout(
        name=name,
        rows=prefixed(rows, theirs=prefix),
        source="uclanlp/visualbert, TrainVisualBERTObjective",
        config={"norm_eps": 1e-12, "activation": "gelu"},
        mark=f"{table}embeddings.projection.weight",
        strip=("module.",),
        # Files of VCR also hold the detector that was trained along; we start from its features.
        ignored=(r"detector\..*", rf"{prefix}bert\.embeddings\.position_ids"),
        tied=_ties(prefix, table, bias=False),
    )


def _official_heads() -> tuple[Row, ...]:
    return _heads("classifier", "flickr_attention")


_HF_CONFIG = HFConfig(
    model_types=("visual_bert",),
    fields={
        "vocab_size": "vocab_size",
        "max_positions": "max_position_embeddings",
        "dim": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
        "feature_dim": "visual_embedding_dim",
        "late_fusion": "bypass_transformer",
        "activation": "hidden_act",
        "norm_eps": "layer_norm_eps",
    },
)


def _hf(
    name: str, rows: tuple[Row, ...], prefix: str, source: str, ties: tuple[Tie, ...] = ()
) -> Layout:
    return Layout(
        name=name,
        rows=rows,
        source=f"transformers {source}",
        config={"norm_eps": 1e-12, "activation": "gelu"},
        ignored=(r"(visual_bert\.)?embeddings\.position_ids",),
        tied=ties,
        hf_config=_HF_CONFIG,
        mark=f"{prefix}embeddings.visual_projection.weight",
    )


LAYOUTS = (
    _official("visualbert", "bert."),
    _official("visualbert-objective", ""),
    _hf(
        "visualbert-hf",
        (*prefixed(_backbone(_HF_REGIONS), theirs="visual_bert."), *_heads("cls", "attention")),
        "visual_bert.",
        "VisualBertForPreTraining and the other classes with a head",
        _ties("", "visual_bert.", bias=True),
    ),
    _hf("visualbert-hf-base", _backbone(_HF_REGIONS), "", "VisualBertModel"),
)
