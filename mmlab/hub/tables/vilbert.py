"""The checkpoint layout of ViLBERT.

Read in facebookresearch/vilbert-multi-task (``vilbert/vilbert.py``). Files of pre-training
(``BertForMultiModalPreTraining``) and of 12-in-1 (``VILBertForVLTasks``) share their names; the
second has more heads and the table of task tokens. In the names of a connection (``c_layer``), 1
stands for regions and 2 for text.
"""

from __future__ import annotations

from mmlab.hub.mapping import Layout, Row, Tie, linear, norm, prefixed
from mmlab.hub.tables.bert import block_rows, embedding_rows, language_head_rows

_WORDS = "bert.embeddings.word_embeddings.weight"
_OWN, _OTHER = {"text": 2, "regions": 1}, {"text": 1, "regions": 2}
_WIDTHS = {"text": ("dim", "mlp"), "regions": ("region_dim", "region_mlp")}


def _stream(ours: str, theirs: str) -> tuple[Row, ...]:
    return prefixed(block_rows("{i}", "{i}"), f"{ours}.", f"bert.encoder.{theirs}.")


def _half(stream: str) -> tuple[Row, ...]:
    """What one stream does in a co-attention: its own queries, the other's keys and values."""
    ours, theirs = f"connections.{{i}}.{stream}", "bert.encoder.c_layer.{i}"
    attention, output = f"{theirs}.biattention", f"{theirs}.biOutput"
    letter = "t" if stream == "text" else "v"
    own, other = _OWN[stream], _OTHER[stream]
    dim, mlp = _WIDTHS[stream]
    context = _WIDTHS["regions" if stream == "text" else "text"][0]
    return (
        *linear(f"{ours}.attention.q_proj", f"{attention}.query{own}", f"fusion {dim}"),
        *linear(f"{ours}.attention.k_proj", f"{attention}.key{other}", f"fusion {context}"),
        *linear(f"{ours}.attention.v_proj", f"{attention}.value{other}", f"fusion {context}"),
        *linear(f"{ours}.attention.out_proj", f"{output}.dense{own}", f"{dim} fusion"),
        *norm(f"{ours}.norm1", f"{output}.LayerNorm{own}", dim),
        *linear(f"{ours}.unused", f"{output}.q_dense{own}", f"{dim} fusion"),
        *linear(f"{ours}.mlp.fc1", f"{theirs}.{letter}_intermediate.dense", f"{mlp} {dim}"),
        *linear(f"{ours}.mlp.fc2", f"{theirs}.{letter}_output.dense", f"{dim} {mlp}"),
        *norm(f"{ours}.norm2", f"{theirs}.{letter}_output.LayerNorm", dim),
    )


def _classifier(head: str, theirs: str) -> tuple[Row, ...]:
    """A ``Sequential`` there, whose second module is the activation."""
    ours, fc = f"heads.{head}", f"{theirs}.logit_fc"
    return (
        *linear(f"{ours}.transform.dense", f"{fc}.0", f"{head}_hidden {head}_in", head),
        *norm(f"{ours}.transform.norm", f"{fc}.2", f"{head}_hidden", head),
        *linear(f"{ours}.decoder", f"{fc}.3", f"{head}_out {head}_hidden", head),
    )


def _regions_head() -> tuple[Row, ...]:
    ours, theirs, dim = "heads.regions", "cls.imagePredictions", "region_dim"
    return (
        *linear(
            f"{ours}.transform.dense",
            f"{theirs}.transform.dense",
            f"region_hidden {dim}",
            "regions",
        ),
        *norm(
            f"{ours}.transform.norm", f"{theirs}.transform.LayerNorm", "region_hidden", "regions"
        ),
        *linear(f"{ours}.decoder", f"{theirs}.decoder", "region_outputs region_hidden", "regions"),
    )


_ROWS = (
    *embedding_rows("embeddings", "bert.embeddings"),
    Row(
        "task_embedding.weight", "bert.embeddings.task_embeddings.weight", "tasks dim", "task token"
    ),
    *linear(
        "region_embeddings.features", "bert.v_embeddings.image_embeddings", "region_dim feature"
    ),
    *linear(
        "region_embeddings.locations",
        "bert.v_embeddings.image_location_embeddings",
        "region_dim location",
    ),
    *norm("region_embeddings.norm", "bert.v_embeddings.LayerNorm", "region_dim"),
    *_stream("text_blocks", "layer"),
    *_stream("region_blocks", "v_layer"),
    *_half("regions"),
    *_half("text"),
    *linear("text_pooler.dense", "bert.t_pooler.dense", "fusion dim"),
    *linear("region_pooler.dense", "bert.v_pooler.dense", "fusion region_dim"),
    *language_head_rows("heads.words", "cls.predictions", "words"),
    *_regions_head(),
    *linear("heads.match", "cls.bi_seq_relationship", "outcomes fusion", "match"),
    *_classifier("answer", "vil_prediction"),
    *_classifier("gqa", "vil_prediction_gqa"),
    *_classifier("pair", "vil_binary_prediction"),
    *linear("heads.rank", "vil_logit", "1 fusion", "rank"),
    *linear("heads.entailment", "vil_tri_prediction", "three fusion", "entailment"),
    *linear("heads.grounding", "vision_logit", "1 region_dim", "grounding"),
    *linear("heads.word_scores", "linguisic_logit", "1 dim", "word scores"),
)

LAYOUTS = (
    Layout(
        name="vilbert",
        rows=_ROWS,
        source="facebookresearch/vilbert-multi-task, vilbert/vilbert.py",
        config={"norm_eps": 1e-12, "activation": "gelu"},
        strip=("module.",),
        tied=(Tie("cls.predictions.decoder.weight", _WORDS, beside="cls.predictions.bias"),),
        mark="bert.v_embeddings.image_embeddings.weight",
    ),
)
