"""Rows of the parts of BERT, under the names of google-research/bert as PyTorch ports keep them.

Every system that grew out of BERT stores its blocks so (``attention.self.query``,
``attention.output.dense``, …); their tables place these rows with ``prefixed``.
"""

from __future__ import annotations

from mmlab.hub.mapping import Row, linear, norm


def attention_rows(
    ours: str, theirs: str, context: str = "dim", group: str = "", number: str = ""
) -> tuple[Row, ...]:
    """An attention without its norm; ``context`` names the axis that keys and values come from.

    ``number`` is theirs where there are several in one place (``self0``, ``dense0``).
    """
    attention, output = f"{theirs}.self{number}", f"{theirs}.output"
    return (
        *linear(f"{ours}.q_proj", f"{attention}.query", "inner dim", group),
        *linear(f"{ours}.k_proj", f"{attention}.key", f"inner {context}", group),
        *linear(f"{ours}.v_proj", f"{attention}.value", f"inner {context}", group),
        *linear(f"{ours}.out_proj", f"{output}.dense{number}", "dim inner", group),
    )


def block_rows(
    ours: str = "blocks.{i}",
    theirs: str = "encoder.layer.{i}",
    cross_attention: bool = False,
    context: str = "dim",
) -> tuple[Row, ...]:
    """A ``PostNormBlock``. Cross-attention rows are optional in each block of its own."""
    group = "cross-attention"
    cross = (
        *attention_rows(f"{ours}.cross_attention", f"{theirs}.crossattention", context, group),
        *norm(f"{ours}.cross_norm", f"{theirs}.crossattention.output.LayerNorm", group=group),
    )
    return (
        *attention_rows(f"{ours}.attention", f"{theirs}.attention"),
        *norm(f"{ours}.norm1", f"{theirs}.attention.output.LayerNorm"),
        *(cross if cross_attention else ()),
        *linear(f"{ours}.mlp.fc1", f"{theirs}.intermediate.dense", "mlp dim"),
        *linear(f"{ours}.mlp.fc2", f"{theirs}.output.dense", "dim mlp"),
        *norm(f"{ours}.norm2", f"{theirs}.output.LayerNorm"),
    )


def embedding_rows(
    ours: str = "embeddings", theirs: str = "embeddings", types: bool = True
) -> tuple[Row, ...]:
    """``BertEmbeddings``; ``types=False`` where the system has no token types."""
    type_row = Row(
        f"{ours}.type_embedding.weight", f"{theirs}.token_type_embeddings.weight", "types dim"
    )
    return (
        Row(f"{ours}.word_embedding.weight", f"{theirs}.word_embeddings.weight", "vocab dim"),
        Row(
            f"{ours}.position_embedding.weight",
            f"{theirs}.position_embeddings.weight",
            "positions dim",
        ),
        *((type_row,) if types else ()),
        *norm(f"{ours}.norm", f"{theirs}.LayerNorm"),
    )


def language_head_rows(
    ours: str = "language_head", theirs: str = "cls.predictions", group: str = ""
) -> tuple[Row, ...]:
    """``BertLanguageHead``, without the copies of tied tensors that files may also carry."""
    return (
        *linear(f"{ours}.dense", f"{theirs}.transform.dense", "out dim", group),
        *norm(f"{ours}.norm", f"{theirs}.transform.LayerNorm", group=group),
        Row(f"{ours}.bias", f"{theirs}.bias", "vocab", group),
    )
