"""Checkpoint layouts of VLMo.

Read in microsoft/unilm (``vlmo/modules``), and of BEiT, whose image transformer VLMo starts from,
in microsoft/unilm (``beit/modeling_pretrain.py``). All official classes of VLMo call the same
things the same. The released code never masks an image, so it has no mask token and no codes head;
their rows are BEiT's.
"""

from __future__ import annotations

from mmlab.hub.mapping import Layout, Row, linear, norm
from mmlab.hub.tables.bert import embedding_rows, language_head_rows

_OURS, _THEIRS = "blocks.{i}", "transformer.blocks.{i}"
_ATTENTION = f"{_OURS}.attention"


def _expert(ours: str, theirs: str, group: str = "") -> tuple[Row, ...]:
    expert, mlp = f"{_OURS}.experts.{ours}", f"{_THEIRS}.mlp_{theirs}"
    return (
        *norm(f"{expert}.norm", f"{_THEIRS}.norm2_{theirs}", group=group),
        *linear(f"{expert}.mlp.fc1", f"{mlp}.fc1", "mlp dim", group),
        *linear(f"{expert}.mlp.fc2", f"{mlp}.fc2", "dim mlp", group),
    )


def _block() -> tuple[Row, ...]:
    """The keys have no bias; that of queries and values stand apart from the fused matrix."""
    weights = tuple(f"{_ATTENTION}.{name}_proj.weight" for name in "qkv")
    scale = "layer scale"
    return (
        *norm(f"{_OURS}.norm1", f"{_THEIRS}.norm1"),
        Row(weights, f"{_THEIRS}.attn.qkv.weight", "(qkv out) dim -> qkv out dim"),
        Row(f"{_ATTENTION}.q_proj.bias", f"{_THEIRS}.attn.q_bias", "out"),
        Row(f"{_ATTENTION}.v_proj.bias", f"{_THEIRS}.attn.v_bias", "out"),
        *linear(f"{_ATTENTION}.out_proj", f"{_THEIRS}.attn.proj", "dim out"),
        Row(f"{_OURS}.gamma1", f"{_THEIRS}.gamma_1", "dim", scale),
        Row(f"{_OURS}.gamma2", f"{_THEIRS}.gamma_2", "dim", scale),
        *_expert("text", "text"),
        *_expert("image", "imag"),
        *_expert("fusion", "vl", "fusion expert"),
    )


_TRUNK = (
    Row("class_token", "transformer.cls_token", "1 1 dim"),
    Row("mask_token", "transformer.mask_token", "1 1 dim", "codes"),
    Row("position_embedding", "transformer.pos_embed", "1 image_tokens dim", "absolute"),
    Row("position_bias.table", "relative_position_bias_table", "offsets heads", "relative"),
    *linear("patch_embedding.projection", "transformer.patch_embed.proj", "dim c h w"),
    *_block(),
    *norm("norm", "transformer.norm"),
    *embedding_rows("text_embeddings", "text_embeddings"),
    Row("modality_embedding.weight", "token_type_embeddings.weight", "modalities dim"),
    *linear("pooler.dense", "pooler.dense", "out dim"),
)


def _contrast(ours: str, theirs: str) -> tuple[Row, ...]:
    return (
        Row(
            f"heads.{ours}.image_projection.weight",
            f"itc{theirs}_image_proj.fc.weight",
            "o dim",
            ours,
        ),
        Row(
            f"heads.{ours}.text_projection.weight",
            f"itc{theirs}_text_proj.fc.weight",
            "o dim",
            ours,
        ),
        Row(f"heads.{ours}.logit_scale", f"logit{theirs}_scale", "", ours),
    )


def _answer(theirs: str) -> tuple[Row, ...]:
    """A ``Sequential`` there, whose third module is the activation."""
    return (
        *linear("heads.answer.fc1", f"{theirs}.0", "hidden pooled", "answer"),
        *norm("heads.answer.norm", f"{theirs}.1", "hidden", "answer"),
        *linear("heads.answer.fc2", f"{theirs}.3", "classes hidden", "answer"),
    )


def _official(name: str, answer: str) -> Layout:
    """VQA's and NLVR2's files differ in what they call the same head."""
    return Layout(
        name=name,
        rows=(
            *_TRUNK,
            *_contrast("contrast", ""),
            *_contrast("fusion_contrast", "_vl"),
            *linear("heads.match", "itm_score.fc", "outcomes dim", "match"),
            *language_head_rows("heads.words.transform", "mlm_score", "words"),
            Row("heads.words.decoder.weight", "mlm_score.decoder.weight", "vocab dim", "words"),
            *linear("heads.codes", "lm_head", "codes dim", "codes"),
            *_answer(answer),
        ),
        source=f"microsoft/unilm, vlmo/modules/vlmo_module.py, with {answer}",
        config={"norm_eps": 1e-6, "text_norm_eps": 1e-12, "activation": "gelu"},
        strip=("module.",),
        # Released files carry the tables of indices, which the present code no longer stores.
        ignored=(
            r"text_embeddings\.position_ids",
            r"(text_|text_imag_)?relative_position_index",
        ),
    )


LAYOUTS = (_official("vlmo", "vqa_classifier"), _official("vlmo-nlvr2", "nlvr2_classifier"))
