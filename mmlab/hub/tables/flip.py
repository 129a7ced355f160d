"""Checkpoint layout of FLIP.

Put together from the modules of facebookresearch/flip (Flax, saved by t5x), whose files were never
opened here. A t5x checkpoint is a folder of arrays: read it with tensorstore into one flat
dictionary, with ``/`` between the names.
"""

from __future__ import annotations

from mmlab.hub.mapping import Layout, Row, prefixed
from mmlab.hub.tables.vit import _dense, _flax_norm

_BLOCK = "Transformer/encoderblock_{ii}"
_ATTENTION = f"{_BLOCK}/MultiHeadDotProductAttention_0"

# Unlike Google's ViT, FLIP stores its projections flat, without an axis for the heads.
_TOWER = (
    Row("position_embedding", "posembed_encoder/pos_embedding", "1 tokens dim"),
    *_flax_norm("blocks.{i}.norm1", f"{_BLOCK}/LayerNorm_0"),
    *_dense("blocks.{i}.attention.q_proj", f"{_ATTENTION}/query", "dim out"),
    *_dense("blocks.{i}.attention.k_proj", f"{_ATTENTION}/key", "dim out"),
    *_dense("blocks.{i}.attention.v_proj", f"{_ATTENTION}/value", "dim out"),
    *_dense("blocks.{i}.attention.out_proj", f"{_ATTENTION}/out", "out dim"),
    *_flax_norm("blocks.{i}.norm2", f"{_BLOCK}/LayerNorm_1"),
    *_dense("blocks.{i}.mlp.fc1", f"{_BLOCK}/MlpBlock_0/Dense_0", "dim mlp"),
    *_dense("blocks.{i}.mlp.fc2", f"{_BLOCK}/MlpBlock_0/Dense_1", "mlp dim"),
    *_flax_norm("norm", "Transformer/encoder_norm"),
)

_IMAGE = (
    Row("patch_embedding.projection.weight", "embedding/kernel", "h w c dim -> dim c h w"),
    Row("patch_embedding.projection.bias", "embedding/bias", "dim"),
    Row("class_token", "cls", "1 1 dim"),
    *_TOWER,
)
_TEXT = (Row("token_embedding.weight", "token_embedding/embedding", "vocab dim"), *_TOWER)

LAYOUTS = (
    Layout(
        name="flip",
        rows=(
            *prefixed(_IMAGE, ours="image_encoder.", theirs="img_encoder/"),
            *prefixed(_TEXT, ours="text_encoder.", theirs="txt_encoder/"),
            Row(
                "image_projection.weight",
                "img_mlp1/kernel",
                "image_dim embed_dim -> embed_dim image_dim",
            ),
            Row(
                "text_projection.weight",
                "txt_mlp1/kernel",
                "text_dim embed_dim -> embed_dim text_dim",
            ),
            Row("logit_scale", "logit_scale", "1 -> "),
        ),
        source="facebookresearch/flip, target of a t5x checkpoint",
        config={"norm_eps": 1e-6, "activation": "gelu_tanh"},
        strip=("target/",),
    ),
)
