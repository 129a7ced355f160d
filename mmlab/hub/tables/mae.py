"""Checkpoint layouts of MAE.

Read in facebookresearch/mae (``models_mae.py``, ``models_vit.py``) and in ``transformers`` 5, whose
decoder has three spellings: the one of the Hub's files, the one in memory, and the one that it
saves. Files with the encoder alone have the names of a ViT: ``vit-timm`` and ``vit-hf-base`` read
them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from mmlab.hub.mapping import HFConfig, Layout, Row, linear, norm, prefixed
from mmlab.hub.tables.vit import LAYOUTS as VIT_LAYOUTS

_VIT = {layout.name: layout for layout in VIT_LAYOUTS}

_HF_CONFIG = HFConfig(
    model_types=("vit_mae",),
    fields={
        "image_size": "image_size",
        "patch_size": "patch_size",
        "num_channels": "num_channels",
        "dim": "hidden_size",
        "depth": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "mlp_dim": "intermediate_size",
        "decoder_dim": "decoder_hidden_size",
        "decoder_depth": "decoder_num_hidden_layers",
        "decoder_num_heads": "decoder_num_attention_heads",
        "decoder_mlp_dim": "decoder_intermediate_size",
        "norm_eps": "layer_norm_eps",
        "activation": "hidden_act",
    },
)


def _needed(layout: str) -> tuple[Row, ...]:
    """The rows of a ViT table that an MAE has: no head, no distillation; the class token always."""
    rows = _VIT[layout].rows
    return tuple(replace(row, group="") for row in rows if row.group in ("", "class token"))


def _blocks(layout: str) -> tuple[Row, ...]:
    return tuple(row for row in _VIT[layout].rows if row.our_keys[0].startswith("blocks."))


def _renamed(rows: Iterable[Row], old: str, new: str) -> tuple[Row, ...]:
    """The rows with another beginning of their keys."""
    return tuple(replace(row, theirs=new + row.theirs.removeprefix(old)) for row in rows)


def _decoder(theirs: str) -> tuple[Row, ...]:
    """What surrounds the decoder's blocks; ``theirs`` is a prefix.

    The rows share the scope of the encoder, whose patch embedding tells ``c``, ``h`` and ``w``:
    they order the values of a patch (row, column, channel), we order them like its kernel.
    """
    rows = (
        Row("decoder.mask_token", f"{theirs}mask_token", "1 1 width"),
        Row("decoder.position_embedding", f"{theirs}decoder_pos_embed", "1 tokens width"),
        *linear("decoder.embedding", f"{theirs}decoder_embed", "width dim"),
        *norm("decoder.norm", f"{theirs}decoder_norm", "width"),
        Row(
            "decoder.prediction.weight",
            f"{theirs}decoder_pred.weight",
            "(h w c) width -> (c h w) width",
        ),
        Row("decoder.prediction.bias", f"{theirs}decoder_pred.bias", "(h w c) -> (c h w)"),
    )
    return tuple(replace(row, scope="encoder.") for row in rows)


def _official() -> Layout:
    blocks = prefixed(_blocks("vit-timm"), ours="decoder.", theirs="decoder_")
    return Layout(
        name="mae",
        rows=(*prefixed(_needed("vit-timm"), ours="encoder."), *_decoder(""), *blocks),
        source="facebookresearch/mae, models_mae.py",
        config=_VIT["vit-timm"].config,
        strip=("module.",),
    )


def _fine_tuned() -> Layout:
    """A ``PatchAverageViT``: its norm comes after the average, and has another name for it."""
    vit = _needed("vit-timm")
    rest = tuple(row for row in vit if not row.our_keys[0].startswith("norm."))
    head = tuple(row for row in _VIT["vit-timm"].rows if row.group == "head")
    return Layout(
        name="mae-fine-tuned",
        rows=(*rest, *norm("fc_norm", "fc_norm"), *head),
        source="facebookresearch/mae, models_vit.py with global_pool",
        config=_VIT["vit-timm"].config,
        strip=("module.",),
    )


def _hf(name: str, vit: str, stack: str, where: str) -> Layout:
    """transformers' names; the decoder's layers are called ``stack``."""
    old = "layers." if vit.endswith("memory") else "encoder.layer."
    blocks = prefixed(_renamed(_blocks(vit), old, stack), ours="decoder.", theirs="decoder.")
    encoder = prefixed(_needed(vit), ours="encoder.", theirs="vit.")
    return Layout(
        name=name,
        rows=(*encoder, *_decoder("decoder."), *blocks),
        source=f"transformers ViTMAEForPreTraining, {where}",
        config=_VIT[vit].config,
        hf_config=_HF_CONFIG,
    )


LAYOUTS = (
    _official(),
    _fine_tuned(),
    _hf("mae-hf", "vit-hf-base", "decoder_layers.", "files of the Hub"),
    _hf("mae-hf-saved", "vit-hf-base", "decoder_encoder.layer.", "files that version 5 saves"),
    _hf("mae-hf-memory", "vit-hf-base-memory", "decoder_layers.", "in memory"),
)
