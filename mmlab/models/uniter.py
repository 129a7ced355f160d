"""UNITER: one BERT over words and regions, one modality masked at a time.

Chen et al. 2020, "UNITER: UNiversal Image-TExt Representation Learning" (arXiv 1909.11740); the
official code is ChenRocks/UNITER.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor, nn

from mmlab.models.checks import (
    check,
    check_choice,
    check_heads,
    check_integers,
    check_multiple,
    check_positive,
    check_rates,
)
from mmlab.nn import (
    ACTIVATIONS,
    Attention,
    BertClassifier,
    BertConfig,
    BertEmbeddings,
    BertLanguageHead,
    BertTransform,
    JointFeatures,
    SingleStream,
    find_head,
    init_bert,
    init_xavier,
    padding_mask,
    shared_checkpointing,
)
from mmlab.nn.region_locations import corner_size_area_locations
from mmlab.objectives.masked_language import (
    MaskedTokens,
    asked_words_loss,
    mask_tokens,
)
from mmlab.objectives.masked_region import (
    choose_regions,
    hide_regions,
    region_class_loss,
    region_distribution_loss,
    region_feature_loss,
)
from mmlab.objectives.matching import matching_loss, own_or_other
from mmlab.objectives.transport import word_patch_alignment_loss

HEADS = ("words", "features", "classes", "match", "answer", "rank", "pair", "choice", "refer")
INITS = ("normal", "xavier")
LOCATION_DIM = 7
TEXT_TYPE, REGION_TYPE = 0, 1
"""Rows of the table of token types, which words and regions share."""

HIDDEN_SCORE = -1e4
"""What padding scores where a softmax over regions or tokens follows."""


@dataclass(frozen=True)
class UNITERConfig:
    """Everything that fixes the shape and the training behaviour of a ``UNITER``.

    - ``context_length``: the most tokens of a text as the data cut it (60 WordPieces and two
      special tokens); ``max_positions``, the rows of the position table, is BERT's.
    - ``num_types``: token types; 3 for NLVR2 (a second image), 4 for VCR (answer and rationale).
    - ``feature_dim``: numbers in a region's feature; ``num_region_classes``: the detector's classes
      with the background, which is class 0.
    - ``heads``: which of ``"words"`` (masked words), ``"features"`` and ``"classes"`` (masked
      regions), ``"match"`` (does the text fit the image?), ``"answer"`` (``num_classes`` answers:
      VQA, SNLI-VE), ``"rank"`` (one score, for retrieval), ``"pair"`` (is a text true of two
      images? NLVR2), ``"choice"`` (does an answer fit? VCR) and ``"refer"`` (a score for each
      region, referring expressions).
    - ``refer_layers``: linear layers of the head ``"refer"``, 1 or 2.
    - ``init``: matrices start with a spread of 0.02, as published (``"normal"``), or with one that
      grows as the width shrinks (``"xavier"``).

    A wrong value raises ValueError.
    """

    vocab_size: int = 28996
    context_length: int = 62
    max_positions: int = 512
    num_types: int = 2
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    feature_dim: int = 2048
    num_region_classes: int = 1601
    heads: tuple[str, ...] = ("words", "features", "classes", "match")
    num_classes: int = 0
    refer_layers: int = 1
    activation: str = "gelu"
    norm_eps: float = 1e-12
    dropout: float = 0.1
    attention_dropout: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "context_length", "max_positions", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "feature_dim")
        check_integers(self, "num_types", "num_region_classes", minimum=2)
        check_integers(self, "num_classes", minimum=0)
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "init", INITS)
        check_positive(self, "norm_eps")
        check_rates(self, "dropout", "attention_dropout")
        check_multiple(self, "dim", "num_heads")
        fits = self.context_length <= self.max_positions
        allowed = f"at most max_positions={self.max_positions}"
        check(fits, "context_length", self.context_length, allowed)
        check(self.refer_layers in (1, 2), "refer_layers", self.refer_layers, "1 or 2")
        check_heads(self, HEADS, classifier="answer")

    @property
    def bert(self) -> BertConfig:
        """The trunk."""
        return BertConfig.part_of(self)


class UNITERRegionEmbedding(nn.Module):
    """A region as a vector, made of its feature, its location and its type (section 3.1).

    ``LN(LN(W f) + LN(V p) + type)``, then dropout (``UniterImageEmbeddings``).
    """

    def __init__(self, config: UNITERConfig):
        super().__init__()
        dim, eps = config.dim, config.norm_eps
        self.feature_projection = nn.Linear(config.feature_dim, dim)
        self.feature_norm = nn.LayerNorm(dim, eps=eps)
        self.location_projection = nn.Linear(LOCATION_DIM, dim)
        self.location_norm = nn.LayerNorm(dim, eps=eps)
        # Row 0, for regions that are not masked, exists in official files and is never used.
        self.mask_embedding = nn.Embedding(2, config.feature_dim, padding_idx=0)
        self.norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions 7"],
        types: Float[Tensor, "#batch #regions dim"],
        masked: Bool[Tensor, "batch regions"] | None = None,
    ) -> Float[Tensor, "batch regions dim"]:
        """Region vectors; to features that are ``masked`` the mask's own feature is added."""
        if masked is not None:
            features = features + masked[..., None] * self.mask_embedding.weight[1]
        what = self.feature_norm(self.feature_projection(features))
        where = self.location_norm(self.location_projection(locations))
        return self.dropout(self.norm(what + where + types))


class FeaturesHead(nn.Module):
    """The feature of a masked region from its vector (masked region feature regression).

    Its last matrix is the transpose of the one that features come in through, passed at each call.
    """

    def __init__(self, config: UNITERConfig):
        super().__init__()
        self.transform = BertTransform(config.dim, config.dim, norm_eps=config.norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.feature_dim))

    def forward(
        self, x: Float[Tensor, "*batch dim"], projection: Float[Tensor, "dim feature_dim"]
    ) -> Float[Tensor, "*batch feature_dim"]:
        """Features; ``projection`` is ``region_embedding.feature_projection.weight``."""
        return F.linear(self.transform(x), projection.T, self.bias)


class PairHead(nn.Module):
    """Is a text true of two images? Both encodings read each other (NLVR2, "paired-attn").

    ``UniterForNlvr2PairedAttn``: cross-attention both ways, a layer that joins it to what looked,
    attention pooling, and one linear layer on both pooled vectors.
    """

    def __init__(self, config: UNITERConfig):
        super().__init__()
        dim, dropout = config.dim, config.attention_dropout
        self.left_attention = Attention(dim, config.num_heads, dropout=dropout)
        self.right_attention = Attention(dim, config.num_heads, dropout=dropout)
        self.joint = nn.Linear(2 * dim, dim)
        self.dropout = nn.Dropout(config.dropout)
        self.weight = nn.Linear(dim, 1)
        self.weight_dropout = nn.Dropout(dropout)
        self.decoder = nn.Linear(2 * dim, 2)

    def forward(
        self,
        left: Float[Tensor, "batch left dim"],
        right: Float[Tensor, "batch right dim"],
        left_valid: Bool[Tensor, "batch left"],
        right_valid: Bool[Tensor, "batch right"],
    ) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "true"; all words and regions of the pair with either image."""
        seen_left = self.left_attention(left, right, padding_mask(right_valid))
        seen_right = self.right_attention(right, left, padding_mask(left_valid))
        pooled = [
            self._pool(self._join(seen, own), valid)
            for seen, own, valid in (
                (seen_left, left, left_valid),
                (seen_right, right, right_valid),
            )
        ]
        return self.decoder(torch.cat(pooled, dim=-1))

    def _join(
        self, seen: Float[Tensor, "batch tokens dim"], own: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        return self.dropout(F.relu(self.joint(torch.cat([seen, own], dim=-1))))

    def _pool(
        self, x: Float[Tensor, "batch tokens dim"], valid: Bool[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch dim"]:
        scores = F.relu(self.weight(x)).squeeze(-1) + HIDDEN_SCORE * ~valid
        weights = self.weight_dropout(scores.softmax(-1))
        return (weights[:, None] @ x).squeeze(1)


def _refer_head(config: UNITERConfig) -> nn.Module:
    if config.refer_layers == 1:
        return nn.Linear(config.dim, 1)
    return BertClassifier(config.dim, config.dim, 1, norm_eps=config.norm_eps)


def _pooled_head(config: UNITERConfig, num_outputs: int, activation: str) -> nn.Module:
    return BertClassifier(config.dim, 2 * config.dim, num_outputs, activation, config.norm_eps)


_HEADS = {
    "words": lambda config: BertLanguageHead(config.bert),
    "features": FeaturesHead,
    "classes": lambda c: BertClassifier(c.dim, c.dim, c.num_region_classes, norm_eps=c.norm_eps),
    "match": lambda config: nn.Linear(config.dim, 2),
    "answer": lambda config: _pooled_head(config, config.num_classes, "gelu"),
    "rank": lambda config: nn.Linear(config.dim, 1),
    "pair": PairHead,
    "choice": lambda config: _pooled_head(config, 2, "relu"),
    "refer": _refer_head,
}


class UNITER(nn.Module):
    """One transformer over ``[words | regions]`` (UNITER, section 3.1).

    The official code moves the regions of a pair to right behind its text (``gather_index``). Here
    texts and regions are padded apart: attention, to which their order is nothing, gives the same
    on valid positions. Set ``model.activation_checkpointing = True`` to trade time for memory in
    training. New weights come from PyTorch's global random state.
    """

    activation_checkpointing = shared_checkpointing("trunk")
    region_embedding_class: type[nn.Module] = UNITERRegionEmbedding

    def __init__(self, config: UNITERConfig):
        super().__init__()
        self.config = config
        self.text_embeddings = BertEmbeddings(config.bert)
        self.region_embedding = self.region_embedding_class(config)
        self.trunk = SingleStream(config.bert)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        self.apply(init_bert)
        if config.init == "xavier":
            self.apply(init_xavier)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions location_dim"],
        text_valid: Bool[Tensor, "batch tokens"] | None = None,
        region_valid: Bool[Tensor, "batch regions"] | None = None,
        masked_regions: Bool[Tensor, "batch regions"] | None = None,
        text_types: Int[Tensor, "batch tokens"] | None = None,
        region_types: Int[Tensor, "batch regions"] | None = None,
    ) -> JointFeatures:
        """Features of each pair of a text and the regions of an image.

        - ``locations``: ``corner_size_area_locations`` of the boxes.
        - ``text_valid``, ``region_valid``: False on padding; None where nothing is padded.
        - ``masked_regions``: True on regions whose features have been zeroed, to be predicted.
        - ``text_types``, ``region_types``: rows of the token-type table; 0 and 1 if None.

        There may be no regions at all: it is a BERT then, with token type 0. ValueError for a text
        that is too long.
        """
        text = self.text_embeddings(input_ids, text_types)
        regions = self.embed_regions(features, locations, masked_regions, region_types)
        return self.trunk(text, regions, text_valid, region_valid)

    def embed_regions(
        self,
        features: Float[Tensor, "batch regions feature_dim"],
        locations: Float[Tensor, "batch regions location_dim"],
        masked_regions: Bool[Tensor, "batch regions"] | None = None,
        types: Int[Tensor, "batch regions"] | None = None,
    ) -> Float[Tensor, "batch regions dim"]:
        """Regions as they enter the first block; the arguments are those of ``forward``."""
        table = self.text_embeddings.type_embedding
        rows = table.weight[None, None, REGION_TYPE] if types is None else table(types)
        return self.region_embedding(features, locations, rows, masked_regions)

    def word_logits(self, features: JointFeatures) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of words at each text token. ValueError, here and below, without this head."""
        return self.words_at(features.text)

    def words_at(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Scores of words at ``tokens``, such as the masked ones alone."""
        return self.head("words")(tokens, self.text_embeddings.word_embedding.weight)

    def region_features(
        self, regions: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch feature_dim"]:
        """The features that region vectors are thought to have had."""
        projection = self.region_embedding.feature_projection.weight
        return self.head("features")(regions, projection)

    def region_logits(
        self, regions: Float[Tensor, "*batch dim"]
    ) -> Float[Tensor, "*batch region_classes"]:
        """Scores of the detector's classes, background first, of region vectors."""
        return self.head("classes")(regions)

    def matching_logits(self, features: JointFeatures) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "the text fits the image", output 0 for "it does not"."""
        return self.head("match")(features.pooled)

    def answer_logits(self, features: JointFeatures) -> Float[Tensor, "batch classes"]:
        """Scores of the answers (VQA), or of what follows from the image (SNLI-VE)."""
        return self.head("answer")(features.pooled)

    def rank_scores(self, features: JointFeatures) -> Float[Tensor, " batch"]:
        """One number a pair; the better the text fits the image, the higher."""
        return self.head("rank")(features.pooled).squeeze(-1)

    def choice_logits(self, features: JointFeatures) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "the answer (or rationale) in the text is right"."""
        return self.head("choice")(features.pooled)

    def pair_logits(
        self,
        left: JointFeatures,
        right: JointFeatures,
        left_valid: Bool[Tensor, "batch left"],
        right_valid: Bool[Tensor, "batch right"],
    ) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "true of both images"; masks are over words and regions in one row."""
        both = [torch.cat([side.text, side.regions], dim=1) for side in (left, right)]
        return self.head("pair")(*both, left_valid, right_valid)

    def refer_scores(
        self, features: JointFeatures, region_valid: Bool[Tensor, "batch regions"] | None = None
    ) -> Float[Tensor, "batch regions"]:
        """How well the text refers to each region; padding has ``HIDDEN_SCORE``."""
        scores = self.head("refer")(features.regions).squeeze(-1)
        return scores if region_valid is None else scores.masked_fill(~region_valid, HIDDEN_SCORE)

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        return find_head(self, name)


_DECAYING_NORMS = ("feature_norm", "location_norm", "transform.norm")


def uniter_decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether official weight decay falls on a parameter of ours (``optim/misc.py``).

    It means to spare biases and norms, but finds norms by the name ``LayerNorm.weight``. So the
    scales of norms with other names decay as well: those of feature and location, and those inside
    the heads but the one for words.
    """
    if name.endswith("bias"):
        return False
    return parameter.ndim > 1 or any(f"{norm}.weight" in name for norm in _DECAYING_NORMS)


# The two published sizes (UNITER, section 4), and their fine-tuned forms. The vocabulary is that of
# bert-base-CASED; VCR adds 81 tokens for persons and things that its texts name by number.
UNITER_B = UNITERConfig()
UNITER_L = replace(UNITER_B, dim=1024, depth=24, num_heads=16, mlp_dim=4096)

_TASKS = {
    "vqa": {"heads": ("answer",), "num_classes": 3129},
    "ve": {"heads": ("answer",), "num_classes": 3},
    "retrieval": {"heads": ("match", "rank")},
    "nlvr2": {"heads": ("pair",), "num_types": 3},
    "vcr": {"heads": ("choice",), "num_types": 4, "vocab_size": 28996 + 81},
    "refcoco": {"heads": ("refer",)},
}
UNITER_TASKS = {
    f"uniter-{letter}-{task}": replace(size, **changes)
    for letter, size in (("b", UNITER_B), ("l", UNITER_L))
    for task, changes in _TASKS.items()
}
"""Configurations after fine-tuning, by name."""

# Ours, for the toy detector's regions of scenes and CPU cores: eight shapes and the background.
UNITER_MINI = UNITERConfig(
    vocab_size=1000,
    context_length=32,
    max_positions=64,
    dim=128,
    depth=4,
    num_heads=4,
    mlp_dim=512,
    feature_dim=64,
    num_region_classes=9,
    dropout=0.0,
    attention_dropout=0.0,
    init="xavier",
)


# Pre-training: what is drawn.


TaskPool = Mapping[str, int]
"""How many lots each task has in the draw of a step's task."""

TASKS = ("itm", "mlm", "mrfr", "mrc-kl", "mrc")
MASKED_SHARE, FALSE_SHARE = 0.15, 0.5

IN_DOMAIN_POOLS: Mapping[str, TaskPool] = {
    name: {"itm": 2, "mlm": 2, "mrfr": 1, "mrc-kl": 1} for name in ("coco", "vg")
}
"""``config/pretrain-indomain-base-8gpu.json``: data set → pool."""

ALL_DATA_POOLS: Mapping[str, TaskPool] = {
    "coco": {"itm": 6, "mlm": 8, "mrfr": 4, "mrc-kl": 4},
    "vg": {"itm": 9, "mlm": 12, "mrfr": 6, "mrc-kl": 6},
    "cc": {"itm": 9, "mlm": 12, "mrfr": 6, "mrc-kl": 6},
    "sbu": {"itm": 6, "mlm": 8, "mrfr": 4, "mrc-kl": 4},
}
"""``config/pretrain-alldata-base-8gpu.json``: the same with four data sets."""


def draw_task(pool: TaskPool, generator: torch.Generator | None = None) -> str:
    """One task of ``pool``, as likely as it has lots (``MetaLoader``).

    Accumulated batches share one task there, and so do all processes. ValueError for an unknown
    task, for lots that are no whole numbers, and if there is none.
    """
    for task, lots in pool.items():
        check(task in TASKS, "pool", dict(pool), "of " + ", ".join(map(repr, TASKS)))
        check(type(lots) is int and lots >= 0, "pool", dict(pool), "of whole numbers of at least 0")
    lots = [task for task, count in pool.items() for _ in range(count)]
    check(bool(lots), "pool", dict(pool), "not empty")
    device = None if generator is None else generator.device
    return lots[int(torch.randint(len(lots), (), generator=generator, device=device))]


def draw_data_and_task(
    pools: Mapping[str, TaskPool], generator: torch.Generator | None = None
) -> tuple[str, str]:
    """A data set and a task, all lots of all data sets in one pool. ValueError as above."""
    lots = {name: sum(pool.values()) for name, pool in pools.items()}
    check(sum(lots.values()) > 0, "pools", dict(pools), "not empty")
    weights = torch.tensor(list(lots.values()), dtype=torch.float64)
    device = torch.device("cpu") if generator is None else generator.device
    name = list(lots)[int(torch.multinomial(weights.to(device), 1, generator=generator))]
    return name, draw_task(pools[name], generator)


def uniter_lesson(
    pairs: dict[str, Tensor],
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator | None = None,
    pool: TaskPool = IN_DOMAIN_POOLS["coco"],
    joint: bool = False,
) -> dict[str, Tensor]:
    """One step of pre-training: its task, drawn from ``pool``, and all that is random in it.

    ``pairs`` are captions with the regions of their images and, under the prefix ``other_``, those
    of other images. All results have ``"input_ids"``, ``"attention_mask"``, ``"features"``,
    ``"locations"`` and ``"region_valid"``. The rest tells the task:

    - ``"labels"``: masked words (mlm); all regions are seen;
    - ``"masked_regions"`` with ``"feature_targets"`` (mrfr), ``"distribution_targets"`` (mrc-kl) or
      ``"class_targets"`` (mrc): masked regions; all words are seen;
    - ``"matched"``: false where the image is another one (itm); nothing is masked. The official
      data draw this once an epoch.

    That one modality is masked at a time is the paper's conditional masking (section 3.2). With
    ``joint`` both are, as it was before, while the step goes on asking for one of them. A text has
    at least one masked token, an image one masked region.
    """
    task = draw_task(pool, generator)
    batch = {
        "input_ids": pairs["input_ids"],
        "attention_mask": pairs["attention_mask"].bool(),
        **regions_of(pairs, corner_size_area_locations),
    }
    if task == "itm":
        return batch | _matching_lesson(batch, pairs, generator)
    if task == "mlm" or joint:
        masked = hide_words(batch, mask_id, vocab_size, special_ids, generator)
        batch |= {"input_ids": masked.ids}
    if task != "mlm" or joint:
        whole = batch["features"]
        chosen = choose_regions(batch["region_valid"], MASKED_SHARE, True, generator)
        hidden = hide_regions(whole, chosen, generator=generator)
        batch |= {"features": hidden, "masked_regions": chosen}
    if task == "mlm":
        return batch | {"labels": masked.labels}
    return batch | _region_targets(task, whole, pairs)


Locate = Callable[[Tensor, Tensor], Tensor]
"""From boxes and image sizes to locations, one of ``mmlab.nn.region_locations``."""


def regions_of(pairs: dict[str, Tensor], locate: Locate, prefix: str = "") -> dict[str, Tensor]:
    """The part of a batch that tells of regions, of raw pairs; ``prefix`` as in their names."""
    names = ("features", "boxes", "image_sizes", "region_valid")
    features, boxes, sizes, valid = (pairs[prefix + name] for name in names)
    locations = locate(boxes, sizes)
    return {"features": features, "locations": locations, "region_valid": valid.bool()}


def hide_words(
    batch: dict[str, Tensor],
    mask_id: int,
    vocab_size: int,
    special_ids: Sequence[int],
    generator: torch.Generator | None,
) -> MaskedTokens:
    """The texts of a batch with masked words, at least one in each; single tokens, not words."""
    ids = batch["input_ids"]
    special = torch.isin(ids, torch.tensor(list(special_ids), device=ids.device))
    return mask_tokens(
        ids,
        batch["attention_mask"] & ~special,
        mask_id,
        vocab_size,
        MASKED_SHARE,
        generator=generator,
        at_least_one=True,
        never_drawn=special_ids,
    )


def _region_targets(
    task: str, features: Tensor, pairs: dict[str, Tensor]
) -> dict[str, Float[Tensor, "batch regions target"] | Int64[Tensor, "batch regions"]]:
    if task == "mrfr":
        return {"feature_targets": features}
    if task == "mrc-kl":
        return {"distribution_targets": pairs["class_distributions"]}
    # The background, class 0, is never what is asked for.
    return {"class_targets": pairs["class_distributions"][..., 1:].argmax(-1) + 1}


def _matching_lesson(
    batch: dict[str, Tensor], pairs: dict[str, Tensor], generator: torch.Generator | None
) -> dict[str, Tensor]:
    ids = batch["input_ids"]
    device = ids.device if generator is None else generator.device
    luck = torch.rand(len(ids), generator=generator, device=device).to(ids.device)
    matched = luck >= FALSE_SHARE
    others = regions_of(pairs, corner_size_area_locations, "other_")
    mixed = {name: own_or_other(matched, batch[name], other) for name, other in others.items()}
    return mixed | {"matched": matched}


# Pre-training: what is learnt.


class UNITERPretraining(nn.Module):
    """A ``UNITER`` in pre-training (UNITER, section 3.2); ``network`` is the model.

    ``alignment_weight`` is that of word-region alignment beside image-text matching; 0 leaves it
    out, as did the paper's first version. ``beta`` and ``iterations`` are those of ``ipot``. The
    official code has mismatched pairs carry words to regions dearly, which the paper does not say.
    """

    def __init__(
        self,
        network: UNITER,
        alignment_weight: float | int = 0.1,
        beta: float = 0.5,
        iterations: int = 50,
    ):
        super().__init__()
        ok = 0 <= alignment_weight < float("inf")
        check(ok, "alignment_weight", alignment_weight, "a number of at least 0")
        self.network = network
        self.alignment_weight = alignment_weight
        self.beta = beta
        self.iterations = iterations

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss of one task, or two for matching; ``batch`` is that of ``uniter_lesson``.

        ``"masked_words"``, ``"masked_region_features"``, ``"masked_region_distributions"``,
        ``"masked_region_classes"``, ``"matching"`` and ``"alignment"``, by what the batch asks for.
        Regression and the divergence from a distribution are means over all numbers, so the latter
        is as many times smaller than a divergence as there are classes. ValueError for a batch that
        asks for nothing, or for what the network has no head for.
        """
        features = pair_features(self.network, batch)
        losses: dict[str, Tensor] = {}
        if "labels" in batch:
            losses["masked_words"] = self._masked_words(features, batch["labels"])
        losses |= self._masked_regions(features, batch)
        if "matched" in batch:
            losses |= self._matching(features, batch)
        if not losses:
            raise ValueError(
                "the batch must ask for something, by 'labels', 'matched' or targets of regions; "
                f"it has {', '.join(map(repr, batch))}"
            )
        return losses

    def _masked_words(
        self, features: JointFeatures, labels: Int64[Tensor, "batch tokens"]
    ) -> Float[Tensor, ""]:
        return asked_words_loss(self.network.words_at, features.text, labels)

    def _masked_regions(
        self, features: JointFeatures, batch: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        losses: dict[str, Tensor] = {}
        regions, chosen = features.regions, batch.get("masked_regions")
        if "feature_targets" in batch:
            loss = region_feature_loss(
                self.network.region_features(regions), batch["feature_targets"], chosen
            )
            losses["masked_region_features"] = loss
        if "distribution_targets" in batch:
            logits, targets = self.network.region_logits(regions), batch["distribution_targets"]
            loss = region_distribution_loss(logits, targets, chosen, per_class=True)
            losses["masked_region_distributions"] = loss
        if "class_targets" in batch:
            logits = self.network.region_logits(regions)
            loss = region_class_loss(logits, batch["class_targets"], chosen)
            losses["masked_region_classes"] = loss
        return losses

    def _matching(
        self, features: JointFeatures, batch: dict[str, Tensor]
    ) -> dict[str, Float[Tensor, ""]]:
        matched = batch["matched"].bool()
        losses = {"matching": matching_loss(self.network.matching_logits(features), matched)}
        if self.alignment_weight:
            # As in the official code, transport is not computed in half precision.
            with torch.autocast(matched.device.type, enabled=False):
                alignment = word_patch_alignment_loss(
                    features.text.float(),
                    features.regions.float(),
                    matched,
                    batch["attention_mask"].bool(),
                    batch["region_valid"].bool(),
                    self.beta,
                    self.iterations,
                )
            losses["alignment"] = self.alignment_weight * alignment
        return losses


def pair_features(
    network: nn.Module, batch: dict[str, Tensor], **more: Tensor | None
) -> JointFeatures:
    """What ``network`` makes of the texts and regions of a batch; ``more`` goes to its forward."""
    if "masked_regions" in batch:
        more = {"masked_regions": batch["masked_regions"].bool(), **more}
    return network(
        batch["input_ids"],
        batch["features"],
        batch["locations"],
        batch["attention_mask"].bool(),
        batch["region_valid"].bool(),
        **more,
    )
