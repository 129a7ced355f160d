"""Checkpoint layouts of ViT and DeiT.

Read in the official code: google-research/vision_transformer (``.npz``), google-research/big_vision
(``models/vit.py``), facebookresearch/deit, and in ``transformers`` 5 (files on disk keep the old
names, ``state_dict()`` in memory has new ones).
"""

from __future__ import annotations

from dataclasses import replace

from mmlab.hub.mapping import Layout, Row, linear, norm, prefixed


def _dense(ours: str, theirs: str, axes: str, group: str = "") -> tuple[Row, Row]:
    """Rows of a Flax ``Dense``, whose kernel is (in, out): ``axes`` is ``"in out"``."""
    inputs, outputs = axes.split()
    return (
        Row(
            f"{ours}.weight", f"{theirs}/kernel", f"{inputs} {outputs} -> {outputs} {inputs}", group
        ),
        Row(f"{ours}.bias", f"{theirs}/bias", outputs, group),
    )


def _flax_norm(ours: str, theirs: str) -> tuple[Row, Row]:
    """Rows of a Flax ``LayerNorm``, which calls its weight ``scale``."""
    return (
        Row(f"{ours}.weight", f"{theirs}/scale", "dim"),
        Row(f"{ours}.bias", f"{theirs}/bias", "dim"),
    )


def _flax_heads(ours: str, theirs: str) -> tuple[Row, Row]:
    """Rows of a Flax query, key or value projection, which keeps heads apart."""
    axes = "dim num_heads head_dim -> (num_heads head_dim) dim"
    return (
        Row(f"{ours}.weight", f"{theirs}/kernel", axes),
        Row(f"{ours}.bias", f"{theirs}/bias", "num_heads head_dim -> (num_heads head_dim)"),
    )


def _flax_rows(positions: str, attention: str, norm2: str, mlp: str) -> tuple[Row, ...]:
    """The Flax layout; its generations differ only in the four names given here."""
    block = "Transformer/encoderblock_{i}"
    ours = "blocks.{i}.attention"
    out_axes = "num_heads head_dim dim -> dim (num_heads head_dim)"
    return (
        Row("patch_embedding.projection.weight", "embedding/kernel", "h w c dim -> dim c h w"),
        Row("patch_embedding.projection.bias", "embedding/bias", "dim"),
        Row("class_token", "cls", "1 1 dim", group="class token"),
        Row("position_embedding", positions, "1 tokens dim"),
        *_flax_norm("blocks.{i}.norm1", f"{block}/LayerNorm_0"),
        *_flax_heads(f"{ours}.q_proj", f"{block}/{attention}/query"),
        *_flax_heads(f"{ours}.k_proj", f"{block}/{attention}/key"),
        *_flax_heads(f"{ours}.v_proj", f"{block}/{attention}/value"),
        Row(f"{ours}.out_proj.weight", f"{block}/{attention}/out/kernel", out_axes),
        Row(f"{ours}.out_proj.bias", f"{block}/{attention}/out/bias", "dim"),
        *_flax_norm("blocks.{i}.norm2", f"{block}/{norm2}"),
        *_dense("blocks.{i}.mlp.fc1", f"{block}/{mlp}/Dense_0", "dim mlp"),
        *_dense("blocks.{i}.mlp.fc2", f"{block}/{mlp}/Dense_1", "mlp dim"),
        *_flax_norm("norm", "Transformer/encoder_norm"),
        *_dense("pre_logits", "pre_logits", "dim hidden", group="pre_logits"),
        *_dense("head", "head", "dim classes", group="head"),
    )


_PRE_LINEN = {
    "attention": "MultiHeadDotProductAttention_1",
    "norm2": "LayerNorm_2",
    "mlp": "MlpBlock_3",
}
_LINEN = {
    "attention": "MultiHeadDotProductAttention_0",
    "norm2": "LayerNorm_1",
    "mlp": "MlpBlock_0",
}
_IN_TRANSFORMER = "Transformer/posembed_input/pos_embedding"

# Flax' gelu is the tanh approximation, its LayerNorm has eps 1e-6.
_FLAX_CONFIG = {"norm_eps": 1e-6, "activation": "gelu_tanh"}
_TIMM_CONFIG = {"norm_eps": 1e-6, "activation": "gelu"}
# The default of transformers' ViTConfig; a config.json beside the file overrules it.
_HF_CONFIG = {"norm_eps": 1e-12, "activation": "gelu"}

_QKV = ("q_proj", "k_proj", "v_proj")
_BLOCK_QKV = tuple(f"blocks.{{i}}.attention.{name}" for name in _QKV)

_TIMM_ROWS = (
    Row("patch_embedding.projection.weight", "patch_embed.proj.weight", "dim c h w"),
    Row("patch_embedding.projection.bias", "patch_embed.proj.bias", "dim"),
    Row("class_token", "cls_token", "1 1 dim", group="class token"),
    Row("distillation_token", "dist_token", "1 1 dim", group="distillation token"),
    Row("position_embedding", "pos_embed", "1 tokens dim"),
    *norm("blocks.{i}.norm1", "blocks.{i}.norm1"),
    Row(
        tuple(f"{name}.weight" for name in _BLOCK_QKV),
        "blocks.{i}.attn.qkv.weight",
        "(qkv out) dim -> qkv out dim",
    ),
    Row(
        tuple(f"{name}.bias" for name in _BLOCK_QKV),
        "blocks.{i}.attn.qkv.bias",
        "(qkv out) -> qkv out",
    ),
    *linear("blocks.{i}.attention.out_proj", "blocks.{i}.attn.proj", "dim out"),
    *norm("blocks.{i}.norm2", "blocks.{i}.norm2"),
    *linear("blocks.{i}.mlp.fc1", "blocks.{i}.mlp.fc1", "mlp dim"),
    *linear("blocks.{i}.mlp.fc2", "blocks.{i}.mlp.fc2", "dim mlp"),
    *norm("norm", "norm"),
    *linear("pre_logits", "pre_logits.fc", "hidden dim", group="pre_logits"),
    *linear("head", "head", "classes dim", group="head"),
    *linear("distillation_head", "head_dist", "classes dim", group="distillation head"),
)

_HF_EMBEDDINGS = (
    Row(
        "patch_embedding.projection.weight",
        "embeddings.patch_embeddings.projection.weight",
        "dim c h w",
    ),
    Row("patch_embedding.projection.bias", "embeddings.patch_embeddings.projection.bias", "dim"),
    Row("class_token", "embeddings.cls_token", "1 1 dim"),
    Row(
        "distillation_token",
        "embeddings.distillation_token",
        "1 1 dim",
        group="distillation token",
    ),
    Row("position_embedding", "embeddings.position_embeddings", "1 tokens dim"),
    *norm("norm", "layernorm"),
)

_HF_DISK_LAYERS = (
    *norm("blocks.{i}.norm1", "encoder.layer.{i}.layernorm_before"),
    *linear(
        "blocks.{i}.attention.q_proj", "encoder.layer.{i}.attention.attention.query", "out dim"
    ),
    *linear("blocks.{i}.attention.k_proj", "encoder.layer.{i}.attention.attention.key", "out dim"),
    *linear(
        "blocks.{i}.attention.v_proj", "encoder.layer.{i}.attention.attention.value", "out dim"
    ),
    *linear("blocks.{i}.attention.out_proj", "encoder.layer.{i}.attention.output.dense", "dim out"),
    *norm("blocks.{i}.norm2", "encoder.layer.{i}.layernorm_after"),
    *linear("blocks.{i}.mlp.fc1", "encoder.layer.{i}.intermediate.dense", "mlp dim"),
    *linear("blocks.{i}.mlp.fc2", "encoder.layer.{i}.output.dense", "dim mlp"),
)

_HF_MEMORY_LAYERS = (
    *norm("blocks.{i}.norm1", "layers.{i}.layernorm_before"),
    *linear("blocks.{i}.attention.q_proj", "layers.{i}.attention.q_proj", "out dim"),
    *linear("blocks.{i}.attention.k_proj", "layers.{i}.attention.k_proj", "out dim"),
    *linear("blocks.{i}.attention.v_proj", "layers.{i}.attention.v_proj", "out dim"),
    *linear("blocks.{i}.attention.out_proj", "layers.{i}.attention.o_proj", "dim out"),
    *norm("blocks.{i}.norm2", "layers.{i}.layernorm_after"),
    *linear("blocks.{i}.mlp.fc1", "layers.{i}.mlp.fc1", "mlp dim"),
    *linear("blocks.{i}.mlp.fc2", "layers.{i}.mlp.fc2", "dim mlp"),
)

# The pooler of transformers, a linear layer and tanh, is what Google calls pre_logits. The classes
# with a head have none.
_POOLER = linear("pre_logits", "pooler.dense", "hidden dim", group="pre_logits")
_VIT_HEAD = linear("head", "classifier", "classes dim", group="head")
_DEIT_HEADS = (
    *linear("head", "cls_classifier", "classes dim", group="head"),
    *linear("distillation_head", "distillation_classifier", "classes dim", group="head"),
)


def _hf_layouts() -> tuple[Layout, ...]:
    """Three classes of transformers, each with the names on disk and those in memory."""
    classes = (
        ("vit-hf", "vit.", _VIT_HEAD, "ViTForImageClassification"),
        ("vit-hf-base", "", _POOLER, "ViTModel, DeiTModel"),
        ("deit-hf", "deit.", _DEIT_HEADS, "DeiTForImageClassificationWithTeacher"),
    )
    forms = (("", _HF_DISK_LAYERS, "saved"), ("-memory", _HF_MEMORY_LAYERS, "in memory"))
    return tuple(
        Layout(
            name=name + suffix,
            rows=prefixed((*_HF_EMBEDDINGS, *layers), theirs=prefix) + heads,
            source=f"transformers {which}, {form}",
            config=_HF_CONFIG,
        )
        for name, prefix, heads, which in classes
        for suffix, layers, form in forms
    )


LAYOUTS = (
    Layout(
        name="vit-npz",
        rows=_flax_rows(_IN_TRANSFORMER, **_PRE_LINEN),
        source="google-research/vision_transformer, released .npz files",
        config=_FLAX_CONFIG,
        interpolation="bilinear_aligned",
    ),
    Layout(
        name="vit-linen",
        rows=_flax_rows(_IN_TRANSFORMER, **_LINEN),
        source="google-research/vision_transformer, files written by its linen code",
        config=_FLAX_CONFIG,
        interpolation="bilinear_aligned",
        strip=("params/",),
    ),
    Layout(
        name="vit-big-vision",
        rows=_flax_rows("pos_embedding", **_LINEN),
        source="google-research/big_vision, models/vit.py",
        config=_FLAX_CONFIG,
        interpolation="bilinear_aligned",
        strip=("params/",),
    ),
    Layout(
        name="vit-timm",
        rows=_TIMM_ROWS,
        source="facebookresearch/deit and timm",
        config=_TIMM_CONFIG,
        strip=("module.",),
    ),
    *_hf_layouts(),
)


def trunk_rows(layout: str, ours: str = "", theirs: str = "") -> tuple[Row, ...]:
    """A ViT within another system: no head, no distillation; the class token always."""
    rows = next(table.rows for table in LAYOUTS if table.name == layout)
    kept = (replace(row, group="") for row in rows if row.group in ("", "class token"))
    return prefixed(kept, ours, theirs)
