"""Checkpoint layouts of BLIP-2.

Read in salesforce/LAVIS (``lavis/models/blip2_models``, ``eva_vit.py``, ``clip_vit.py``) and in
``transformers`` 5, which has EVA's encoder alone and neither the head of words nor the temperature.
LAVIS saves what learns, and the image encoder is frozen: its rows are optional as a whole. Those of
texts are missing in stage 2. Language models are no part of ours; their keys are passed over. What
a whole model needs is for the model to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mmlab.hub.mapping import UNUSED, HFConfig, Keys, Layout, Row, Tie, linear, norm, prefixed
from mmlab.hub.tables.bert import attention_rows, language_head_rows
from mmlab.hub.tables.clip import image_rows
from mmlab.hub.tables.vit import trunk_rows

_BLOCK, _LAYER = "blocks.{i}", "encoder.layer.{i}"
_TEXT, _CROSS, _WORDS = "text", "cross-attention", "words"

_OURS_QKV = tuple(f"blocks.{{i}}.attention.{name}_proj" for name in "qkv")


def _optional(rows: Iterable[Row], group: str) -> tuple[Row, ...]:
    """The rows of a part that a file may lack, but only as a whole."""
    return tuple(replace(row, group=group) for row in rows)


def _mlp(ours: str, ours_norm: str, suffix: str = "", group: str = "") -> tuple[Row, ...]:
    """An MLP and its norm; those of queries have ``suffix``."""
    return (
        *linear(f"{_BLOCK}.{ours}.fc1", f"{_LAYER}.intermediate{suffix}.dense", "mlp dim", group),
        *linear(f"{_BLOCK}.{ours}.fc2", f"{_LAYER}.output{suffix}.dense", "dim mlp", group),
        *norm(f"{_BLOCK}.{ours_norm}", f"{_LAYER}.output{suffix}.LayerNorm", group=group),
    )


_BLOCKS = (
    *attention_rows(f"{_BLOCK}.attention", f"{_LAYER}.attention"),
    *norm(f"{_BLOCK}.norm1", f"{_LAYER}.attention.output.LayerNorm"),
    *attention_rows(f"{_BLOCK}.cross_attention", f"{_LAYER}.crossattention", "context_dim", _CROSS),
    *norm(f"{_BLOCK}.cross_norm", f"{_LAYER}.crossattention.output.LayerNorm", group=_CROSS),
    *_mlp("mlp", "norm2", group=_TEXT),
    *_mlp("query_mlp", "query_norm", "_query"),
)


def _tables(theirs: str) -> tuple[Row, ...]:
    """Words and positions."""
    word, position = f"{theirs}word_embeddings.weight", f"{theirs}position_embeddings.weight"
    return (
        Row("embeddings.word_embedding.weight", word, "vocab dim", _TEXT),
        Row("embeddings.position_embedding.weight", position, "positions dim", _TEXT),
    )


def _heads(projection: str, prefix: str) -> tuple[Row, ...]:
    """All heads but that of words; ``prefix`` is the name of the one for a language model."""
    contrast = (
        *linear("image_projection", f"vision_{projection}", "embed_dim dim", "contrast"),
        *linear("text_projection", f"text_{projection}", "embed_dim dim", "contrast"),
    )
    match = linear("heads.match", "itm_head", "outcomes text_dim", "match")
    language = linear("heads.prefix", prefix, "prefix_dim text_dim", "prefix")
    return (*prefixed(contrast, "heads.contrast."), *match, *language)


def _bridge(theirs_norm: str) -> tuple[Row, ...]:
    """The norm of the image and the queries."""
    return (
        *norm("image_norm", theirs_norm, "image_dim", "bridge"),
        Row("qformer.queries", "query_tokens", "1 queries text_dim", "bridge"),
    )


_QFORMER = prefixed(
    (*_tables("embeddings."), *norm("embeddings.norm", "embeddings.LayerNorm"), *_BLOCKS),
    "qformer.",
    "Qformer.bert.",
)
_WORD_ROWS = prefixed(
    language_head_rows("heads.words", "cls.predictions", _WORDS), theirs="Qformer."
)
_TIES = (
    Tie(
        "Qformer.cls.predictions.decoder.weight",
        "Qformer.bert.embeddings.word_embeddings.weight",
        beside="Qformer.cls.predictions.bias",
    ),
    Tie("Qformer.cls.predictions.decoder.bias", "Qformer.cls.predictions.bias"),
)
_LAVIS_IGNORED = (r"Qformer\.bert\.embeddings\.position_ids", r"(opt|t5)_model\..*")


def _eva_rows() -> tuple[Row, ...]:
    """timm's names, but for the biases: keys have none."""
    dropped = {f"{name}.bias" for name in _OURS_QKV} | {"norm.weight", "norm.bias"}
    kept = (
        row for row in trunk_rows("vit-timm") if not {key for key in row.our_keys if key in dropped}
    )
    biases = (
        Row(f"{_OURS_QKV[0]}.bias", "blocks.{i}.attn.q_bias", "dim"),
        Row(f"{_OURS_QKV[2]}.bias", "blocks.{i}.attn.v_bias", "dim"),
    )
    return (*kept, *biases)


EVA_ROWS = _eva_rows()
"""The image encoder alone, as the files of EVA-CLIP have it, but for what BLIP-2 leaves out."""
_EVA_IMAGE = prefixed(EVA_ROWS, "image_encoder.", "visual_encoder.")


def _official(name: str, image: tuple[Row, ...], projection: str, **config: object) -> Layout:
    """LAVIS; the language model's projection is called after it."""
    return Layout(
        name=name,
        rows=(
            *_optional(image, "image encoder"),
            *_bridge("ln_vision"),
            *_QFORMER,
            *_WORD_ROWS,
            *_heads("proj", projection),
            Row("heads.contrast.temperature", "temp", "", "temperature"),
        ),
        source="salesforce/LAVIS, lavis/models/blip2_models",
        config={"image_norm_eps": 1e-5, "text_norm_eps": 1e-12} | config,
        interpolation="bicubic_aligned" if config["image_encoder"] == "clip" else "bicubic",
        strip=("module.",),
        ignored=_LAVIS_IGNORED,
        tied=_TIES,
    )


_EVA = {"image_encoder": "eva", "norm_eps": 1e-6, "activation": "gelu"}
_CLIP = {"image_encoder": "clip", "norm_eps": 1e-5, "activation": "quick_gelu"}


def _hf_image_encoder() -> tuple[Row, ...]:
    theirs = "encoder.layers.{i}"
    weights = tuple(f"{name}.weight" for name in _OURS_QKV)
    biases: Keys = (f"{_OURS_QKV[0]}.bias", UNUSED, f"{_OURS_QKV[2]}.bias")
    rows = (
        Row("class_token", "embeddings.class_embedding", "1 1 dim"),
        Row("position_embedding", "embeddings.position_embedding", "1 tokens dim"),
        *linear("patch_embedding.projection", "embeddings.patch_embedding", "dim c h w"),
        *norm(f"{_BLOCK}.norm1", f"{theirs}.layer_norm1"),
        Row(weights, f"{theirs}.self_attn.qkv.weight", "(qkv out) dim -> qkv out dim"),
        Row(biases, f"{theirs}.self_attn.qkv.bias", "(qkv out) -> qkv out"),
        *linear(f"{_BLOCK}.attention.out_proj", f"{theirs}.self_attn.projection", "dim out"),
        *norm(f"{_BLOCK}.norm2", f"{theirs}.layer_norm2"),
        *linear(f"{_BLOCK}.mlp.fc1", f"{theirs}.mlp.fc1", "mlp dim"),
        *linear(f"{_BLOCK}.mlp.fc2", f"{theirs}.mlp.fc2", "dim mlp"),
    )
    return prefixed(rows, "image_encoder.", "vision_model.")


def _hf_name(key: str) -> str:
    """``attention.self.query`` is ``attention.attention.query`` in transformers."""
    return key.replace(".self.", ".attention.")


_HF_QFORMER = (
    *prefixed(_tables("embeddings."), "qformer."),
    *prefixed(
        (
            *norm("embeddings.norm", "layernorm"),
            *(replace(row, theirs=_hf_name(row.theirs)) for row in _BLOCKS),
        ),
        "qformer.",
        "qformer.",
    ),
)

_HF_CONFIG = HFConfig(
    model_types=("blip-2",),
    fields={
        "image_size": "vision_config.image_size",
        "patch_size": "vision_config.patch_size",
        "dim": "vision_config.hidden_size",
        "depth": "vision_config.num_hidden_layers",
        "num_heads": "vision_config.num_attention_heads",
        "mlp_dim": "vision_config.intermediate_size",
        "num_queries": "num_query_tokens",
        "cross_every": "qformer_config.cross_attention_frequency",
        "text_dim": "qformer_config.hidden_size",
        "text_depth": "qformer_config.num_hidden_layers",
        "text_num_heads": "qformer_config.num_attention_heads",
        "text_mlp_dim": "qformer_config.intermediate_size",
        "activation": "vision_config.hidden_act",
        "norm_eps": "vision_config.layer_norm_eps",
        "image_norm_eps": "vision_config.layer_norm_eps",
        "text_norm_eps": "qformer_config.layer_norm_eps",
    },
)

_CLIP_ROWS = image_rows("image_encoder.", "visual_encoder.")
LAYOUTS = (
    _official("blip2", _EVA_IMAGE, "opt_proj", **_EVA),
    _official("blip2-t5", _EVA_IMAGE, "t5_proj", **_EVA),
    _official("blip2-clip", _CLIP_ROWS, "opt_proj", **_CLIP),
    _official("blip2-clip-t5", _CLIP_ROWS, "t5_proj", **_CLIP),
    Layout(
        name="blip2-hf",
        rows=(
            *_hf_image_encoder(),
            *_bridge("vision_model.post_layernorm"),
            *_HF_QFORMER,
            *_heads("projection", "language_projection"),
        ),
        source="transformers Blip2ForImageTextRetrieval and Blip2ForConditionalGeneration",
        # One epsilon for all norms of the image there; LAVIS has 1e-5 for the last.
        config=_EVA | {"image_norm_eps": 1e-6, "text_norm_eps": 1e-12, "temperature": None},
        ignored=(r"language_model\..*", r".*embeddings\.position_ids"),
        dropped=(
            "heads.contrast.temperature",
            *(key for row in _WORD_ROWS for key in row.our_keys),
        ),
        hf_config=_HF_CONFIG,
    ),
)
