"""Checkpoint layouts of CLIP.

Read in openai/CLIP (``clip/model.py``; open_clip's own ViTs and ResNets have the same names) and in
``transformers`` 5, whose names are the same on disk and in memory. Only OpenAI has ResNets.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mmlab.hub.mapping import HFConfig, Layout, Row, linear, norm, prefixed

_QKV = ("q_proj", "k_proj", "v_proj")
_LOGIT_SCALE = Row("logit_scale", "logit_scale", "")
_CONFIG = {"norm_eps": 1e-5, "activation": "quick_gelu"}


def _tower(rows: Iterable[Row], ours: str, theirs: str) -> tuple[Row, ...]:
    return prefixed(rows, f"{ours}_encoder.", theirs)


def _projection(ours: str, theirs: str, axes: str) -> Row:
    return Row(f"{ours}_projection.weight", theirs, axes, scope=f"{ours}_encoder.")


# ---------------------------------------------------------------------------------------- OpenAI


def _openai_blocks(theirs: str) -> tuple[Row, ...]:
    block = f"{theirs}resblocks.{{i}}"
    attention = tuple(f"blocks.{{i}}.attention.{name}" for name in _QKV)
    return (
        *norm("blocks.{i}.norm1", f"{block}.ln_1"),
        Row(
            tuple(f"{name}.weight" for name in attention),
            f"{block}.attn.in_proj_weight",
            "(qkv out) dim -> qkv out dim",
        ),
        Row(
            tuple(f"{name}.bias" for name in attention),
            f"{block}.attn.in_proj_bias",
            "(qkv out) -> qkv out",
        ),
        *linear("blocks.{i}.attention.out_proj", f"{block}.attn.out_proj", "dim out"),
        *norm("blocks.{i}.norm2", f"{block}.ln_2"),
        *linear("blocks.{i}.mlp.fc1", f"{block}.mlp.c_fc", "mlp dim"),
        *linear("blocks.{i}.mlp.fc2", f"{block}.mlp.c_proj", "dim mlp"),
    )


_OPENAI_VIT = (
    Row("patch_embedding.projection.weight", "conv1.weight", "dim c h w"),
    Row("class_token", "class_embedding", "dim -> 1 1 dim"),
    Row("position_embedding", "positional_embedding", "tokens dim -> 1 tokens dim"),
    *norm("norm_pre", "ln_pre"),
    *_openai_blocks("transformer."),
    *norm("norm", "ln_post"),
)
_OPENAI_TEXT = (
    *_tower(
        (
            Row("token_embedding.weight", "token_embedding.weight", "vocab dim"),
            Row("position_embedding", "positional_embedding", "tokens dim -> 1 tokens dim"),
            *_openai_blocks("transformer."),
            *norm("norm", "ln_final"),
        ),
        "text",
        "",
    ),
    _projection("text", "text_projection", "dim embed -> embed dim"),
    _LOGIT_SCALE,
)


def _batch_norm(ours: str, theirs: str, axis: str, group: str = "") -> tuple[Row, ...]:
    """Files without the counter of training steps are fine."""
    names = ("weight", "bias", "running_mean", "running_var")
    counter = "num_batches_tracked"
    return (
        *(Row(f"{ours}.{name}", f"{theirs}.{name}", axis, group) for name in names),
        Row(f"{ours}.{counter}", f"{theirs}.{counter}", "", f"{group}{theirs}.{counter}"),
    )


def _convolution(
    ours: str, theirs: str, number: int, axes: str, group: str = ""
) -> tuple[Row, ...]:
    """A convolution and its batch norm: ``conv1``, ``norm1`` with us, ``conv1``, ``bn1`` there."""
    weight = Row(f"{ours}conv{number}.weight", f"{theirs}conv{number}.weight", f"{axes} h w", group)
    normed = _batch_norm(f"{ours}norm{number}", f"{theirs}bn{number}", axes.split()[0], group)
    return (weight, *normed)


def _bottlenecks(stage: int) -> tuple[Row, ...]:
    """A stage. Its blocks differ in shape, so axis names are compared within one block only."""
    ours, theirs = f"stages.{stage}.{{i}}.", f"layer{stage + 1}.{{i}}."
    group = f"shortcut of stage {stage}"
    rows = (
        Row(f"{ours}conv1.weight", f"{theirs}conv1.weight", "inside before 1 1"),
        *_batch_norm(f"{ours}norm1", f"{theirs}bn1", "inside"),
        *_convolution(ours, theirs, 2, "inside inside"),
        Row(f"{ours}conv3.weight", f"{theirs}conv3.weight", "outside inside 1 1"),
        *_batch_norm(f"{ours}norm3", f"{theirs}bn3", "outside"),
        Row(f"{ours}shortcut.weight", f"{theirs}downsample.0.weight", "outside before 1 1", group),
        *_batch_norm(f"{ours}shortcut_norm", f"{theirs}downsample.1", "outside", group),
    )
    return tuple(replace(row, scope=ours) for row in rows)


_OPENAI_RESNET = (
    *_convolution("stem.", "", 1, "half c"),
    *_convolution("stem.", "", 2, "half half"),
    *_convolution("stem.", "", 3, "width half"),
    *(row for stage in range(4) for row in _bottlenecks(stage)),
    Row("pool.position_embedding", "attnpool.positional_embedding", "tokens dim -> 1 tokens dim"),
    *(row for name in _QKV for row in linear(f"pool.{name}", f"attnpool.{name}", "out dim")),
    *linear("pool.out_proj", "attnpool.c_proj", "embed dim"),
)


def image_rows(ours: str, theirs: str) -> tuple[Row, ...]:
    """OpenAI's ViT within another system, which takes it before its last norm."""
    rows = (row for row in _OPENAI_VIT if row.ours not in ("norm.weight", "norm.bias"))
    return prefixed(rows, ours, theirs)


_OPENAI = Layout(
    name="clip-openai",
    rows=(
        *_tower(_OPENAI_VIT, "image", "visual."),
        _projection("image", "visual.proj", "dim embed -> embed dim"),
        *_OPENAI_TEXT,
    ),
    source="openai/CLIP, clip/model.py; open_clip's ViT with its own text tower",
    config=_CONFIG,
    strip=("module.",),
    # Numbers beside the weights of the released files; the mask is computed.
    ignored=("input_resolution", "context_length", "vocab_size", "attn_mask"),
)

# -------------------------------------------------------------------------------- transformers

_HF_LAYERS = (
    *norm("blocks.{i}.norm1", "encoder.layers.{i}.layer_norm1"),
    *(
        row
        for name in _QKV
        for row in linear(
            f"blocks.{{i}}.attention.{name}", f"encoder.layers.{{i}}.self_attn.{name}", "out dim"
        )
    ),
    *linear("blocks.{i}.attention.out_proj", "encoder.layers.{i}.self_attn.out_proj", "dim out"),
    *norm("blocks.{i}.norm2", "encoder.layers.{i}.layer_norm2"),
    *linear("blocks.{i}.mlp.fc1", "encoder.layers.{i}.mlp.fc1", "mlp dim"),
    *linear("blocks.{i}.mlp.fc2", "encoder.layers.{i}.mlp.fc2", "dim mlp"),
)
_POSITIONS = Row(
    "position_embedding", "embeddings.position_embedding.weight", "tokens dim -> 1 tokens dim"
)
_HF_VISION = (
    Row("patch_embedding.projection.weight", "embeddings.patch_embedding.weight", "dim c h w"),
    Row("class_token", "embeddings.class_embedding", "dim -> 1 1 dim"),
    _POSITIONS,
    *norm("norm_pre", "pre_layrnorm"),
    *_HF_LAYERS,
    *norm("norm", "post_layernorm"),
)
_HF_TEXT = (
    Row("token_embedding.weight", "embeddings.token_embedding.weight", "vocab dim"),
    _POSITIONS,
    *_HF_LAYERS,
    *norm("norm", "final_layer_norm"),
)
_HF_FIELDS = {
    "image_size": "vision_config.image_size",
    "patch_size": "vision_config.patch_size",
    "num_channels": "vision_config.num_channels",
    "dim": "vision_config.hidden_size",
    "depth": "vision_config.num_hidden_layers",
    "num_heads": "vision_config.num_attention_heads",
    "mlp_dim": "vision_config.intermediate_size",
    "vocab_size": "text_config.vocab_size",
    "context_length": "text_config.max_position_embeddings",
    "text_dim": "text_config.hidden_size",
    "text_depth": "text_config.num_hidden_layers",
    "text_num_heads": "text_config.num_attention_heads",
    "text_mlp_dim": "text_config.intermediate_size",
    "embed_dim": "projection_dim",
    "activation": ("vision_config.hidden_act", "text_config.hidden_act"),
    "norm_eps": ("vision_config.layer_norm_eps", "text_config.layer_norm_eps"),
}

LAYOUTS = (
    _OPENAI,
    replace(
        _OPENAI,
        name="clip-openai-resnet",
        rows=(*_tower(_OPENAI_RESNET, "image", "visual."), *_OPENAI_TEXT),
        source="openai/CLIP, clip/model.py",
    ),
    Layout(
        name="clip-hf",
        rows=(
            *_tower(_HF_VISION, "image", "vision_model."),
            _projection("image", "visual_projection.weight", "embed dim"),
            *_tower(_HF_TEXT, "text", "text_model."),
            _projection("text", "text_projection.weight", "embed dim"),
            _LOGIT_SCALE,
        ),
        source="transformers CLIPModel",
        config=_CONFIG,
        # Buffers of old files.
        ignored=(r".*\.embeddings\.position_ids",),
        hf_config=HFConfig(("clip",), _HF_FIELDS),
    ),
)
