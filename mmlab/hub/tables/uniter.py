"""Checkpoint layout of UNITER.

Read in ChenRocks/UNITER (``model``); one class there for each task, here one table, in which every
head is optional. Weights are stored twice where they are tied: the table of words as the last
matrix of the words head, and the matrix that features come in through as the one that predicts
them. There is no UNITER in transformers, and no file of Unicoder-VL at all.
"""

from __future__ import annotations

from mmlab.hub.mapping import Layout, Row, Tie, linear, norm, prefixed
from mmlab.hub.tables.bert import block_rows, embedding_rows, language_head_rows

_REGIONS, _IMAGES = "region_embedding", "uniter.img_embeddings"


def _network() -> tuple[Row, ...]:
    return (
        *prefixed(embedding_rows("text_embeddings"), theirs="uniter."),
        *linear(f"{_REGIONS}.feature_projection", f"{_IMAGES}.img_linear", "dim feature"),
        *norm(f"{_REGIONS}.feature_norm", f"{_IMAGES}.img_layer_norm"),
        *linear(f"{_REGIONS}.location_projection", f"{_IMAGES}.pos_linear", "dim location"),
        *norm(f"{_REGIONS}.location_norm", f"{_IMAGES}.pos_layer_norm"),
        Row(f"{_REGIONS}.mask_embedding.weight", f"{_IMAGES}.mask_embedding.weight", "two feature"),
        *norm(f"{_REGIONS}.norm", f"{_IMAGES}.LayerNorm"),
        *block_rows("trunk.blocks.{i}", "uniter.encoder.layer.{i}"),
        *linear("trunk.pooler.dense", "uniter.pooler.dense", "out dim"),
    )


def _classifier(head: str, theirs: str, hidden: str, outputs: str, group: str) -> tuple[Row, ...]:
    """A ``Sequential`` there, whose second module is the activation."""
    ours = f"heads.{head}"
    return (
        *linear(f"{ours}.transform.dense", f"{theirs}.0", f"{hidden} dim", group),
        *norm(f"{ours}.transform.norm", f"{theirs}.2", hidden, group),
        *linear(f"{ours}.decoder", f"{theirs}.3", f"{outputs} {hidden}", group),
    )


def _features() -> tuple[Row, ...]:
    ours, group = "heads.features", "features"
    return (
        *linear(f"{ours}.transform.dense", "feat_regress.net.0", "out dim", group),
        *norm(f"{ours}.transform.norm", "feat_regress.net.2", group=group),
        Row(f"{ours}.bias", "feat_regress.bias", "feature", group),
    )


def _cross_attention(side: str, theirs: str) -> tuple[Row, ...]:
    """Queries, keys and values in one matrix, as in ``nn.MultiheadAttention``."""
    ours, group = f"heads.pair.{side}_attention", "pair"
    kinds = ("weight", "(qkv out) dim -> qkv out dim"), ("bias", "(qkv out) -> qkv out")
    return (
        *(
            Row(
                tuple(f"{ours}.{name}_proj.{kind}" for name in "qkv"),
                f"{theirs}.in_proj_{kind}",
                axes,
                group,
            )
            for kind, axes in kinds
        ),
        *linear(f"{ours}.out_proj", f"{theirs}.out_proj", "dim out", group),
    )


def _pair() -> tuple[Row, ...]:
    group = "pair"
    return (
        *_cross_attention("left", "attn1"),
        *_cross_attention("right", "attn2"),
        *linear("heads.pair.joint", "fc.0", "dim joined", group),
        *linear("heads.pair.weight", "attn_pool.fc.0", "1 dim", group),
        *linear("heads.pair.decoder", "nlvr2_output", "truths joined", group),
    )


LAYOUTS = (
    Layout(
        name="uniter",
        rows=(
            *_network(),
            *language_head_rows("heads.words", "cls.predictions", "words"),
            *_features(),
            *_classifier("classes", "region_classifier.net", "dim", "classes", "classes"),
            *linear("heads.match", "itm_output", "outcomes dim", "match"),
            *linear("heads.rank", "rank_output", "1 dim", "rank"),
            *_classifier("answer", "vqa_output", "hidden", "answers", "answer"),
            *_classifier("choice", "vcr_output", "hidden", "rights", "choice"),
            *_pair(),
            *linear("heads.refer", "re_output", "1 dim", "refer"),
            *_classifier("refer", "re_output", "dim", "1", "refer with two layers"),
        ),
        source="ChenRocks/UNITER, model/pretrain.py and the files of the tasks beside it",
        config={"norm_eps": 1e-12, "activation": "gelu"},
        strip=("module.",),
        tied=(
            Tie(
                "cls.predictions.decoder.weight",
                "uniter.embeddings.word_embeddings.weight",
                beside="cls.predictions.bias",
            ),
            Tie(
                "feat_regress.weight",
                f"{_IMAGES}.img_linear.weight",
                beside="feat_regress.bias",
            ),
        ),
    ),
)
