"""Checkpoint layouts of BLIP.

Read in salesforce/BLIP (``models/blip_*.py``, ``models/med.py``, ``models/nlvr_encoder.py``) and in
``transformers`` 5, which renames the image encoder alone and keeps neither temperature nor twins.
What encoder and decoder share stands in a file under the names of both, and so it does with us. All
of the official classes call the same things the same, and each has what it needs: so all parts but
the image encoder are optional, each as a whole.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mmlab.hub.mapping import HFConfig, Layout, Row, Tie, linear, norm, prefixed
from mmlab.hub.tables.bert import (
    attention_rows,
    block_rows,
    embedding_rows,
    language_head_rows,
)
from mmlab.hub.tables.momentum import CLASSES, CONTRAST, MATCH, TEMPERATURE, queue_rows, twin_rows
from mmlab.hub.tables.vit import trunk_rows

_BLOCK, _LAYER = "blocks.{i}", "encoder.layer.{i}"
_CROSS = f"{_LAYER}.crossattention"


def _optional(rows: Iterable[Row], group: str) -> tuple[Row, ...]:
    """The rows of a part that a file may lack, but only as a whole."""
    return tuple(replace(row, group=row.group or group) for row in rows)


def _bert(ours: str, theirs: str, *more: Row) -> tuple[Row, ...]:
    """One of the two stacks; every block has a cross-attention to whatever it looks at."""
    cross = attention_rows(f"{_BLOCK}.cross_attention", _CROSS, "context_dim", "one image")
    own = (
        *embedding_rows(types=False),
        *block_rows(_BLOCK, _LAYER),
        *cross,
        *norm(f"{_BLOCK}.cross_norm", f"{_CROSS}.output.LayerNorm"),
        *more,
    )
    return prefixed(_optional(own, "text"), ours, theirs)


def _two_images() -> tuple[Row, ...]:
    """NLVR2: two cross-attentions a block, which call their numbers differently, and the merger."""
    return (
        *(
            row
            for i in "01"
            for row in attention_rows(
                f"{_BLOCK}.cross_attention.{i}", _CROSS, "context_dim", "two images", number=i
            )
        ),
        *linear(f"{_BLOCK}.merge", f"{_CROSS}.output.merge_layer", "dim both", "merge"),
    )


_ENCODER = _bert("text_encoder.", "text_encoder.", *_two_images())
_DECODER = (
    *_bert("text_decoder.", "text_decoder.bert."),
    *prefixed(language_head_rows("words", "cls.predictions", "words"), *2 * ("text_decoder.",)),
)
_TIES = (
    Tie(
        "text_decoder.cls.predictions.decoder.weight",
        "text_decoder.bert.embeddings.word_embeddings.weight",
    ),
    Tie("text_decoder.cls.predictions.decoder.bias", "text_decoder.cls.predictions.bias"),
)
_POSITION_IDS = r"text_(encoder(_m)?|decoder\.bert)\.embeddings\.position_ids"


def _official(name: str, pointer: str, source: str) -> Layout:
    """Pre-training and retrieval call the pointer of the queue differently."""
    averaged = (*trunk_rows("vit-timm", "image_encoder.", "visual_encoder."), *_ENCODER, *CONTRAST)
    temperature = replace(TEMPERATURE, group="temperature")
    alone = (*_DECODER, *MATCH, *CLASSES, temperature)
    return Layout(
        name=name,
        rows=(*averaged, *alone, *twin_rows(averaged), *queue_rows(pointer)),
        source=f"salesforce/BLIP, {source}",
        config={"norm_eps": 1e-6, "text_norm_eps": 1e-12, "activation": "gelu"},
        strip=("module.",),
        ignored=(_POSITION_IDS,),
        tied=_TIES,
    )


def _hf_image_encoder() -> tuple[Row, ...]:
    attention, theirs = "blocks.{i}.attention", "encoder.layers.{i}"
    qkv = tuple(f"{attention}.{name}_proj" for name in "qkv")
    weights, biases = (tuple(f"{name}.{kind}" for name in qkv) for kind in ("weight", "bias"))
    rows = (
        Row("class_token", "embeddings.class_embedding", "1 1 dim"),
        Row("position_embedding", "embeddings.position_embedding", "1 tokens dim"),
        *linear("patch_embedding.projection", "embeddings.patch_embedding", "dim c h w"),
        *norm("blocks.{i}.norm1", f"{theirs}.layer_norm1"),
        Row(weights, f"{theirs}.self_attn.qkv.weight", "(qkv out) dim -> qkv out dim"),
        Row(biases, f"{theirs}.self_attn.qkv.bias", "(qkv out) -> qkv out"),
        *linear(f"{attention}.out_proj", f"{theirs}.self_attn.projection", "dim out"),
        *norm("blocks.{i}.norm2", f"{theirs}.layer_norm2"),
        *linear("blocks.{i}.mlp.fc1", f"{theirs}.mlp.fc1", "mlp dim"),
        *linear("blocks.{i}.mlp.fc2", f"{theirs}.mlp.fc2", "dim mlp"),
        *norm("norm", "post_layernorm"),
    )
    return prefixed(rows, "image_encoder.", "vision_model.")


_HF_CONFIG = HFConfig(
    model_types=("blip",),
    fields={
        "image_size": "vision_config.image_size",
        "patch_size": "vision_config.patch_size",
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
        "activation": ("vision_config.hidden_act", "text_config.hidden_act"),
        "norm_eps": "vision_config.layer_norm_eps",
        "text_norm_eps": "text_config.layer_norm_eps",
    },
)


LAYOUTS = (
    _official(
        "blip-finetuned",
        "ptr_queue",
        "models/blip.py, blip_retrieval.py, blip_itm.py, blip_vqa.py and blip_nlvr.py",
    ),
    _official("blip", "queue_ptr", "models/blip_pretrain.py"),
    Layout(
        name="blip-hf",
        rows=(*_hf_image_encoder(), *_ENCODER, *_DECODER, *CONTRAST, *MATCH),
        source="transformers BlipForConditionalGeneration, BlipForQuestionAnswering and "
        "BlipForImageTextRetrieval",
        # The default of transformers for the image encoder; the official one has 1e-6.
        config={
            "norm_eps": 1e-5,
            "text_norm_eps": 1e-12,
            "activation": "gelu",
            "temperature": None,
        },
        ignored=(_POSITION_IDS,),
        dropped=("heads.contrast.temperature",),
        tied=_TIES,
        hf_config=_HF_CONFIG,
    ),
)
