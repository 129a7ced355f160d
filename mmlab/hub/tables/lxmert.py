"""Checkpoint layouts of LXMERT.

Read in airsplay/lxmert (``src/lxrt/modeling.py``, ``src/tasks``) and in ``transformers`` 5, which
puts ``lxmert.`` where the official files have ``bert.`` and keeps every other name. The one
cross-attention of a layer is ours in both directions, under two names.
"""

from __future__ import annotations

from dataclasses import replace

from mmlab.hub.mapping import HFConfig, Layout, Row, Tie, linear, norm, prefixed
from mmlab.hub.tables.bert import attention_rows, block_rows, embedding_rows, language_head_rows


def _region_embeddings() -> tuple[Row, ...]:
    ours, theirs = "region_embeddings", "encoder.visn_fc"
    return (
        *linear(f"{ours}.feature_projection", f"{theirs}.visn_fc", "dim features"),
        *norm(f"{ours}.feature_norm", f"{theirs}.visn_layer_norm"),
        *linear(f"{ours}.location_projection", f"{theirs}.box_fc", "dim location"),
        *norm(f"{ours}.location_norm", f"{theirs}.box_layer_norm"),
    )


def _cross_blocks() -> tuple[Row, ...]:
    ours, theirs = "cross_blocks.{i}", "encoder.x_layers.{i}"
    shared = f"{theirs}.visual_attention"
    rows: list[Row] = []
    for direction in ("text_to_regions", "regions_to_text"):
        attention = attention_rows(f"{ours}.{direction}.attention", shared)
        rows += (replace(row, theirs=row.theirs.replace(".self.", ".att.")) for row in attention)
        rows += norm(f"{ours}.{direction}.norm", f"{shared}.output.LayerNorm")
    for block, name in (("text_block", "lang"), ("region_block", "visn")):
        itself = f"{theirs}.{name}_self_att"
        rows += attention_rows(f"{ours}.{block}.attention", itself)
        rows += norm(f"{ours}.{block}.norm1", f"{itself}.output.LayerNorm")
        rows += linear(f"{ours}.{block}.mlp.fc1", f"{theirs}.{name}_inter.dense", "mlp dim")
        rows += linear(f"{ours}.{block}.mlp.fc2", f"{theirs}.{name}_output.dense", "dim mlp")
        rows += norm(f"{ours}.{block}.norm2", f"{theirs}.{name}_output.LayerNorm")
    return tuple(rows)


_BACKBONE = (
    *embedding_rows("text_embeddings", "embeddings"),
    *_region_embeddings(),
    *block_rows("text_blocks.{i}", "encoder.layer.{i}"),
    *block_rows("region_blocks.{i}", "encoder.r_layers.{i}"),
    *_cross_blocks(),
    *linear("pooler.dense", "pooler.dense", "out dim"),
)


def _answer(theirs: str) -> tuple[Row, ...]:
    """A ``Sequential`` there, whose second module is the activation."""
    return (
        *linear("heads.answer.transform.dense", f"{theirs}.0", "hidden pooled", "answer"),
        *norm("heads.answer.transform.norm", f"{theirs}.2", "hidden", "answer"),
        *linear("heads.answer.decoder", f"{theirs}.3", "classes hidden", "answer"),
    )


def _regions() -> tuple[Row, ...]:
    ours, theirs, group = "heads.regions", "obj_predict_head", "regions"
    parts = {"classes": "obj", "attributes": "attr", "features": "feat"}
    return (
        *linear(f"{ours}.transform.dense", f"{theirs}.transform.dense", "out dim", group),
        *norm(f"{ours}.transform.norm", f"{theirs}.transform.LayerNorm", group=group),
        *(
            row
            for part, name in parts.items()
            for row in linear(
                f"{ours}.{part}", f"{theirs}.decoder_dict.{name}", f"region_{part} dim", group
            )
        ),
    )


_HEADS = (
    *language_head_rows("heads.words", "cls.predictions", "words"),
    *linear("heads.match", "cls.seq_relationship", "outcomes dim", "match"),
    *_regions(),
    *_answer("answer_head.logit_fc"),
)

_HF_CONFIG = HFConfig(
    model_types=("lxmert",),
    fields={
        "vocab_size": "vocab_size",
        "max_positions": "max_position_embeddings",
        "dim": "hidden_size",
        "text_depth": "l_layers",
        "region_depth": "r_layers",
        "cross_depth": "x_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
        "feature_dim": "visual_feat_dim",
        "activation": "hidden_act",
    },
)


def _layout(
    name: str, source: str, backbone: str, heads: tuple[Row, ...], hf_config: HFConfig | None = None
) -> Layout:
    word_table = f"{backbone}embeddings.word_embeddings.weight"
    tie = Tie("cls.predictions.decoder.weight", word_table, "cls.predictions.bias")
    return Layout(
        name=name,
        rows=(*prefixed(_BACKBONE, theirs=backbone), *heads),
        source=source,
        config={"norm_eps": 1e-12, "activation": "gelu", "shared_cross_attention": True},
        strip=() if hf_config else ("module.",),
        tied=(tie,) if heads is _HEADS else (),
        hf_config=hf_config,
        mark=f"{backbone}encoder.visn_fc.visn_fc.weight",
    )


def _finetuned(name: str, source: str, encoder: str) -> Layout:
    return _layout(name, f"airsplay/lxmert, {source}", f"{encoder}.bert.", _answer("logit_fc"))


_TASKS = "src/tasks/vqa_model.py, gqa_model.py and nlvr2_model.py"

LAYOUTS = (
    _layout("lxmert", "airsplay/lxmert, src/lxrt/modeling.py", "bert.", _HEADS),
    _finetuned("lxmert-finetuned", _TASKS, "lxrt_encoder.model"),
    _finetuned(
        "lxmert-finetuned-parallel", f"{_TASKS}, on several GPUs", "lxrt_encoder.model.module"
    ),
    _layout(
        "lxmert-hf",
        "transformers LxmertForPreTraining and LxmertForQuestionAnswering",
        "lxmert.",
        _HEADS,
        _HF_CONFIG,
    ),
    _layout("lxmert-hf-base", "transformers LxmertModel", "", (), _HF_CONFIG),
)
