"""Checkpoint layouts of ViLT.

Read in dandelin/ViLT (``vilt/modules``) and in ``transformers`` 5, which calls the weights the same
on disk and in memory. The official code never makes the mask token of its masked-patch objective;
its row here is what a file with one would have.
"""

from __future__ import annotations

from mmlab.hub.mapping import HFConfig, Layout, Row, linear, norm, prefixed
from mmlab.hub.tables.bert import embedding_rows, language_head_rows
from mmlab.hub.tables.vit import trunk_rows

_TABLE = "heads.words.decoder.weight"


def _answer(theirs: str) -> tuple[Row, ...]:
    """A ``Sequential`` there, whose third module is the activation."""
    return (
        *linear("heads.answer.fc1", f"{theirs}.0", "hidden pooled", "answer"),
        *norm("heads.answer.norm", f"{theirs}.1", "hidden", "answer"),
        *linear("heads.answer.fc2", f"{theirs}.3", "classes hidden", "answer"),
    )


def _modalities(theirs: str) -> Row:
    return Row("modality_embedding.weight", theirs, "modalities dim")


_POOLER = linear("pooler.dense", "pooler.dense", "out dim")
_RANK = linear("heads.rank", "rank_output", "1 dim", "rank")


def _official(name: str, answer: str) -> Layout:
    """VQA's and NLVR2's files differ in what they call the same head."""
    return Layout(
        name=name,
        rows=(
            *embedding_rows("text_embeddings", "text_embeddings"),
            _modalities("token_type_embeddings.weight"),
            *trunk_rows("vit-timm", theirs="transformer."),
            *_POOLER,
            *language_head_rows("heads.words.transform", "mlm_score", "words"),
            Row(_TABLE, "mlm_score.decoder.weight", "vocab dim", "words"),
            *linear("heads.match", "itm_score.fc", "outcomes dim", "match"),
            Row("mask_token", "transformer.mask_token", "1 1 dim", "patches"),
            *linear("heads.patches.dense", "mpp_score.transform.dense", "out dim", "patches"),
            *norm("heads.patches.norm", "mpp_score.transform.LayerNorm", group="patches"),
            *linear("heads.patches.decoder", "mpp_score.decoder", "shades dim", "patches"),
            *_answer(answer),
            *_RANK,
        ),
        source=f"dandelin/ViLT, vilt/modules/vilt_module.py, with {answer}",
        config={"norm_eps": 1e-6, "text_norm_eps": 1e-12, "activation": "gelu"},
        interpolation="bilinear_aligned",
        strip=("module.",),
        ignored=(r"text_embeddings\.position_ids",),
    )


def _hf_model() -> tuple[Row, ...]:
    """``ViltModel``: a ViT's names, but two tables of types and BERT's word embeddings inside."""
    return (
        *embedding_rows("text_embeddings", "embeddings.text_embeddings"),
        _modalities("embeddings.token_type_embeddings.weight"),
        *trunk_rows("vit-hf-base"),
        *_POOLER,
    )


def _hf_words() -> tuple[Row, ...]:
    """A tied model's file has no matrix of the decoder; one with a matrix of its own has."""
    rows = language_head_rows("heads.words.transform", "mlm_score", "words")
    bias = Row("heads.words.transform.bias", "mlm_score.decoder.bias", "vocab", "words")
    table = Row(_TABLE, "mlm_score.decoder.weight", "vocab dim", "own matrix of the words head")
    return (*(row for row in rows if row.ours != bias.ours), bias, table)


_HF_CONFIG = HFConfig(
    model_types=("vilt",),
    fields={
        "image_size": "image_size",
        "patch_size": "patch_size",
        "num_channels": "num_channels",
        "dim": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
        "vocab_size": "vocab_size",
        "context_length": "max_position_embeddings",
        "activation": "hidden_act",
        "norm_eps": "layer_norm_eps",
        "text_norm_eps": "layer_norm_eps",
    },
)


def _hf(name: str, rows: tuple[Row, ...], source: str) -> Layout:
    return Layout(
        name=name,
        rows=rows,
        source=f"transformers {source}",
        # The default of transformers, for all norms but the one in the answer head.
        config={"norm_eps": 1e-12, "text_norm_eps": 1e-12, "activation": "gelu"},
        interpolation="bilinear_aligned",
        # Buffers, and the second name that older versions had for the decoder's bias.
        ignored=(r"(vilt\.)?embeddings\.text_embeddings\.\w+_ids", r"mlm_score\.bias"),
        hf_config=_HF_CONFIG,
    )


LAYOUTS = (
    _official("vilt", "vqa_classifier"),
    _official("vilt-nlvr2", "nlvr2_classifier"),
    _hf(
        "vilt-hf",
        (*prefixed(_hf_model(), theirs="vilt."), *_hf_words(), *_answer("classifier"), *_RANK),
        "ViltForMaskedLM, ViltForQuestionAnswering and the other classes with a head",
    ),
    _hf("vilt-hf-base", _hf_model(), "ViltModel"),
)
