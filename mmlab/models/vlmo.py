"""VLMo: one transformer that reads images, texts and both, with an MLP for each of the three.

Bao, Wang, Dong, Liu, Mohammed, Aggarwal, Som, Piao and Wei 2021, "VLMo: Unified Vision-Language
Pre-Training with Mixture-of-Modality-Experts" (arXiv 2111.02358); the official code is the folder
``vlmo`` of microsoft/unilm. How it is trained is in ``vlmo_pretraining`` and ``vlmo_tasks``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
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
from mmlab.models.image_checks import check_images
from mmlab.models.vilt import AnswerHead, WordsHead
from mmlab.nn import (
    ACTIVATIONS,
    MLP,
    Attention,
    AttentionMask,
    BertConfig,
    BertEmbeddings,
    BertPooler,
    DropPath,
    Grid,
    PatchEmbedding,
    find_head,
    init_bert,
    interpolate_positions,
    padding_mask,
    run_blocks,
    valid_tokens,
)
from mmlab.nn.relative_positions import RelativePositionBias
from mmlab.objectives.contrastive import INITIAL_SCALE

IMAGE, TEXT, FUSION = "image", "text", "fusion"
"""The experts, and what a pass through the blocks may read: one modality, or both together."""

HEADS = ("contrast", "fusion_contrast", "match", "words", "answer", "codes")
POSITIONS = ("relative", "absolute")
INITS = ("normal", "xavier")
TEXT_ROW = 0
"""The modality table's row for text; image number n has row n."""

_Biases = Float[Tensor, "depth heads tokens tokens"] | None


@dataclass(frozen=True)
class VLMoConfig:
    """Everything that fixes the shape and the training behaviour of a ``VLMo``.

    - ``fusion_depth``: how many blocks at the top have an expert for text and image together; in
      the others each token goes to the expert of its own modality. 0 while only images or only
      texts are learned from.
    - ``context_length``: the most tokens of a text.
    - ``positions``: ``"relative"``, a bias on the attention scores, or ``"absolute"``, tables that
      are added to the tokens.
    - ``longest_text``: the text length that the table of relative positions has rows for.
    - ``layer_scale``: what the factors on each branch's channels start at; 0 leaves them out.
    - ``num_images``: how many images one text is about, 2 for NLVR2; each has a modality row.
    - ``heads``: which of ``"contrast"`` (features that can be compared), ``"fusion_contrast"`` (the
      same by the fusion experts), ``"match"`` (does the text fit the image?), ``"words"`` (masked
      words), ``"answer"`` (one of ``num_classes``; VQA, NLVR2) and ``"codes"`` (which of
      ``num_codes`` a masked patch has).
    - ``tied_words``: the last matrix of the words head is the table of word vectors; not so in
      official models.
    - ``text_norm_eps`` is for the norms that come from BERT: word embeddings and words head.
    - ``dropout`` falls on word embeddings, ``drop_path`` on whole branches, from 0 in the first
      block up to this in the last.
    - ``init``: how matrices start, as in ``ViLTConfig``.

    A wrong value raises ValueError.
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    fusion_depth: int = 2
    vocab_size: int = 30522
    context_length: int = 40
    positions: str = "relative"
    longest_text: int = 196
    layer_scale: float = 0.1
    num_images: int = 1
    heads: tuple[str, ...] = ("contrast", "fusion_contrast", "match", "words")
    num_classes: int = 0
    num_codes: int = 0
    tied_words: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-6
    text_norm_eps: float = 1e-12
    dropout: float = 0.1
    drop_path: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "image_size", "patch_size", "num_channels", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "vocab_size", "num_images")
        check_integers(self, "context_length", "longest_text", minimum=2)
        check_integers(self, "fusion_depth", "num_classes", "num_codes", minimum=0)
        check_choice(self, "positions", POSITIONS)
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_choice(self, "init", INITS)
        check_positive(self, "norm_eps", "text_norm_eps")
        check_rates(self, "dropout", "drop_path")
        check(0 <= self.layer_scale < math.inf, "layer_scale", self.layer_scale, "at least 0")
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "dim", "num_heads")
        check_heads(self, HEADS, classifier="answer")
        check_heads(self, HEADS, classifier="codes", size="num_codes")
        at_most = f"at most depth={self.depth}"
        check(self.fusion_depth <= self.depth, "fusion_depth", self.fusion_depth, at_most)
        lone = "fusion_contrast" in self.heads and not self.fusion_depth
        check(not lone, "fusion_depth", self.fusion_depth, "at least 1 with 'fusion_contrast'")
        at_most = f"at most longest_text={self.longest_text}"
        fits = self.context_length <= self.longest_text or self.positions == "absolute"
        check(fits, "context_length", self.context_length, at_most)

    @property
    def grid(self) -> Grid:
        """Patches per column and per row."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def fusion_start(self) -> int:
        """The first block with a fusion expert."""
        return self.depth - self.fusion_depth

    @property
    def bert(self) -> BertConfig:
        """The parts that come from BERT."""
        names = {"max_positions": self.context_length, "norm_eps": self.text_norm_eps}
        return BertConfig.part_of(self, **names)


class VLMoFeatures(NamedTuple):
    """A text and an image together: all tokens after the last norm, and the pair's vector.

    ``image`` begins with its class token; ``pooled`` is the text's first token, [CLS], through a
    linear layer and tanh.
    """

    text: Float[Tensor, "batch tokens dim"]
    image: Float[Tensor, "batch image_tokens dim"]
    pooled: Float[Tensor, "batch dim"]


class VLMoPaths(NamedTuple):
    """One modality alone, on the two paths that pre-training compares (VLMo, section 3).

    - ``tokens``: through the experts of its own modality, after the last norm.
    - ``first``: the first of them before that norm.
    - ``fused``: through the fusion experts at the top instead, after the last norm; None in a
      model without.
    """

    tokens: Float[Tensor, "batch tokens dim"]
    first: Float[Tensor, "batch dim"]
    fused: Float[Tensor, "batch tokens dim"] | None


class VLMo(nn.Module):
    """A transformer of modality experts (VLMo, section 3).

    Images are floats, normalised with mean and standard deviation 0.5. Texts are token numbers with
    0 as padding, from [CLS] to [SEP]. The official code wants every text padded to
    ``context_length``; here shorter ones give the same numbers, as padding has no influence. Set
    ``model.activation_checkpointing = True`` to trade time for memory in training: the blocks are
    then recomputed during the backward pass. New weights come from PyTorch's global random state.

    With relative positions the text's table of positions is never used. Official files have it, so
    it is here, and it does not learn.
    """

    def __init__(self, config: VLMoConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.text_embeddings = BertEmbeddings(config.bert)
        sizes = (config.patch_size, config.dim, config.num_channels)
        self.patch_embedding = PatchEmbedding(*sizes)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self._make_positions(config)
        self.modality_embedding = nn.Embedding(1 + config.num_images, config.dim)
        masks = "codes" in config.heads
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if masks else None
        self.blocks = nn.ModuleList(ExpertBlock(config, i) for i in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.pooler = BertPooler(config.dim)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        _init_vlmo(self)

    def _make_positions(self, config: VLMoConfig) -> None:
        relative = config.positions == "relative"
        table = torch.zeros(1, 1 + math.prod(config.grid), config.dim)
        self.position_embedding = None if relative else nn.Parameter(table)
        self.text_embeddings.position_embedding.requires_grad_(not relative)
        lengths = (config.context_length, config.longest_text)
        heads = (config.depth, config.num_heads)
        bias = RelativePositionBias(config.grid, *lengths, *heads) if relative else None
        self.position_bias = bias

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        images: Float[Tensor, "batch channels height width"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
        image_number: int = 1,
    ) -> VLMoFeatures:
        """Features of each pair of a text and an image, which attend to each other in all blocks.

        ``text_valid`` is a tokenizer's attention mask; if None, all but token 0 is valid.
        ``image_number`` is 2 for the second image of a pair. ValueError for images or texts that do
        not fit the configuration.
        """
        text, image = self.embed_text(input_ids), self.embed_image(images, image_number)
        valid = valid_tokens(input_ids, text_valid)
        mask = padding_mask(F.pad(valid, (0, image.shape[1]), value=True))
        num_text = text.shape[1]
        biases = None if self.position_bias is None else self.position_bias.pair(num_text)
        tokens = torch.cat([text, image], dim=1)
        tokens = self.norm(self._run(tokens, 0, FUSION, biases, mask, num_text))
        words, patches = tokens.tensor_split([num_text], dim=1)
        return VLMoFeatures(words, patches, self.pooler(tokens))

    def image_paths(
        self,
        images: Float[Tensor, "batch channels height width"],
        masked_patches: Bool[Tensor, "batch patches"] | None = None,
        fused: bool = True,
    ) -> VLMoPaths:
        """Images alone; ``fused=False`` leaves the second path out.

        The mask token replaces ``masked_patches``. ValueError as in ``forward``.
        """
        tokens = self.embed_image(images, masked_patches=masked_patches)
        biases = None if self.position_bias is None else self.position_bias.image()
        return self._paths(tokens, IMAGE, biases, None, fused)

    def text_paths(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
        fused: bool = True,
    ) -> VLMoPaths:
        """Texts alone; see ``image_paths`` and ``forward``."""
        mask = padding_mask(valid_tokens(input_ids, text_valid))
        tokens = self.embed_text(input_ids)
        biases = None if self.position_bias is None else self.position_bias.text(tokens.shape[1])
        return self._paths(tokens, TEXT, biases, mask, fused)

    def encode_image(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Image features of length 1, to compare with those of texts. ValueError without head."""
        return self.image_features(self.image_paths(images, fused=False).tokens)

    def encode_text(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        text_valid: Bool[Tensor, "batch tokens"] | Int[Tensor, "batch tokens"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """Text features of length 1."""
        return self.text_features(self.text_paths(input_ids, text_valid, fused=False).tokens)

    def image_features(
        self, tokens: Float[Tensor, "batch tokens dim"], head: str = "contrast"
    ) -> Float[Tensor, "batch dim"]:
        """The projected class token, of length 1, by ``"contrast"`` or ``"fusion_contrast"``."""
        return F.normalize(self.head(head).image_projection(tokens[:, 0]), dim=-1)

    def text_features(
        self, tokens: Float[Tensor, "batch tokens dim"], head: str = "contrast"
    ) -> Float[Tensor, "batch dim"]:
        """The projected first token, of length 1."""
        return F.normalize(self.head(head).text_projection(tokens[:, 0]), dim=-1)

    def scale(self, head: str = "contrast") -> Float[Tensor, ""]:
        """The learned factor on cosines; nothing bounds it."""
        return self.head(head).logit_scale.exp()

    def matching_logits(self, features: VLMoFeatures) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "the text fits the image", output 0 for "it does not"."""
        return self.head("match")(features.pooled)

    def word_logits(self, tokens: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch vocab"]:
        """Scores of words at each text token."""
        return self.head("words")(tokens, self.text_embeddings.word_embedding.weight)

    def code_logits(
        self, tokens: Float[Tensor, "batch image_tokens dim"]
    ) -> Float[Tensor, "batch patches num_codes"]:
        """Scores of the codes of each patch; ``tokens`` begin with the class token."""
        return self.head("codes")(tokens[:, 1:])

    def answer_logits(self, *features: VLMoFeatures) -> Float[Tensor, "batch classes"]:
        """Scores of the answers; takes the features of each of the ``num_images`` images."""
        head, count = self.head("answer"), self.config.num_images
        if len(features) != count:
            raise ValueError(
                f"features must be given for num_images={count} images, got {len(features)}"
            )
        return head(torch.cat([f.pooled for f in features], dim=-1))

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        return find_head(self, name)

    def embed_text(
        self, input_ids: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """BERT's embeddings and the modality row of text: two rows that say "text" in all."""
        length, longest = input_ids.shape[1], self.config.context_length
        if length > longest:
            raise ValueError(f"a text may have {longest} tokens, this one has {length}")
        embeddings = self.text_embeddings
        tokens = embeddings.word_embedding(input_ids) + embeddings.type_embedding.weight[0]
        if self.position_bias is None:
            tokens = tokens + embeddings.position_embedding.weight[:length]
        tokens = embeddings.dropout(embeddings.norm(tokens))
        return tokens + self.modality_embedding.weight[TEXT_ROW]

    def embed_image(
        self,
        images: Float[Tensor, "batch channels height width"],
        image_number: int = 1,
        masked_patches: Bool[Tensor, "batch patches"] | None = None,
    ) -> Float[Tensor, "batch image_tokens dim"]:
        """Class token and patches with positions and modality; arguments as in ``forward``."""
        config = self.config
        check_images(images, config.num_channels, config.image_size)
        allowed = f"from 1 to num_images={config.num_images}"
        check(1 <= image_number <= config.num_images, "image_number", image_number, allowed)
        patches = self.patch_embedding(images)
        if masked_patches is not None:
            self.head("codes")
            patches = torch.where(masked_patches[..., None], self.mask_token, patches)
        tokens = torch.cat([self.class_token.expand(len(images), -1, -1), patches], dim=1)
        if self.position_embedding is not None:
            tokens = tokens + self.position_embedding
        return tokens + self.modality_embedding.weight[image_number]

    def resize_positions(self, image_size: int) -> VLMo:
        """Take images of ``image_size`` pixels from now on; returns the model itself.

        The table of absolute positions or of patch offsets (see
        ``mmlab.nn.relative_positions.resize_offsets``) is interpolated into a new parameter: call
        this before making an optimiser.
        """
        new = replace(self.config, image_size=image_size)
        if self.position_bias is not None:
            self.position_bias.resize(new.grid)
        else:
            table, grids = self.position_embedding, (self.config.grid, new.grid)
            stretched = interpolate_positions(table.detach(), *grids, "bicubic").clone()
            self.position_embedding = nn.Parameter(stretched, requires_grad=table.requires_grad)
        self.config = new
        return self

    def _paths(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        route: str,
        biases: _Biases,
        mask: AttentionMask | None,
        fused: bool,
    ) -> VLMoPaths:
        """The two paths have the blocks without fusion expert in common."""
        start = self.config.fusion_start
        branch = self._run(tokens, 0, route, biases, mask, end=start)
        own = self._run(branch, start, route, biases, mask)
        both = fused and start < self.config.depth
        mixed = self.norm(self._run(branch, start, FUSION, biases, mask)) if both else None
        return VLMoPaths(self.norm(own), own[:, 0], mixed)

    def _run(
        self,
        tokens: Float[Tensor, "batch tokens dim"],
        start: int,
        route: str,
        biases: _Biases,
        mask: AttentionMask | None,
        num_text: int = 0,
        end: int | None = None,
    ) -> Float[Tensor, "batch tokens dim"]:
        """The blocks from ``start`` to before ``end``."""
        steps = [
            partial(
                self.blocks[i],
                bias=None if biases is None else biases[i],
                route=route,
                num_text=num_text,
            )
            for i in range(self.config.depth)[start:end]
        ]
        return run_blocks(steps, tokens, mask, self.activation_checkpointing)


class Expert(nn.Module):
    """An MLP and the norm before it, for the tokens of one modality, or of both."""

    def __init__(self, config: VLMoConfig):
        super().__init__()
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.mlp = MLP(config.dim, config.mlp_dim, config.activation)

    def forward(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens dim"]:
        """Same shape as ``x``."""
        return self.mlp(self.norm(x))


class ExpertBlock(nn.Module):
    """Pre-norm block with one attention for all, and an expert for each kind of token.

    VLMo, section 3; block ``index`` has a fusion expert if it is among the top
    ``fusion_depth``.
    """

    def __init__(self, config: VLMoConfig, index: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.attention = Attention(config.dim, config.num_heads, key_bias=False)
        names = [TEXT, IMAGE] + [FUSION] * (index >= config.fusion_start)
        self.experts = nn.ModuleDict({name: Expert(config) for name in names})
        self.gamma1, self.gamma2 = (_layer_scale(config) for _ in range(2))
        self.drop_path = DropPath(config.drop_path * index / max(1, config.depth - 1))

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        mask: AttentionMask | None = None,
        bias: Float[Tensor, "heads tokens tokens"] | None = None,
        route: str = FUSION,
        num_text: int = 0,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Same shape as ``x``.

        ``mask`` hides padding, ``bias`` is added to the scores. ``route`` says whose expert reads
        all tokens; a block without fusion expert has the first ``num_text`` tokens of a pair read
        by the text's and the others by the image's.
        """
        attended = self.attention(self.norm1(x), mask=_biased(mask, bias))
        x = x + self.drop_path(_scaled(attended, self.gamma1))
        if route in self.experts:
            return self._by(x, route)
        text, image = x.tensor_split([num_text], dim=1)
        return torch.cat([self._by(text, TEXT), self._by(image, IMAGE)], dim=1)

    def _by(
        self, x: Float[Tensor, "batch tokens dim"], expert: str
    ) -> Float[Tensor, "batch tokens dim"]:
        return x + self.drop_path(_scaled(self.experts[expert](x), self.gamma2))


def _layer_scale(config: VLMoConfig) -> nn.Parameter | None:
    size = config.layer_scale
    return nn.Parameter(torch.full((config.dim,), float(size))) if size else None


def _scaled(branch: Tensor, gamma: nn.Parameter | None) -> Tensor:
    return branch if gamma is None else branch * gamma


def _biased(
    mask: Bool[Tensor, "batch 1 1 tokens"] | None,
    bias: Float[Tensor, "heads tokens tokens"] | None,
) -> AttentionMask | None:
    """One mask that hides what ``mask`` hides and adds ``bias`` elsewhere."""
    if bias is None:
        return mask
    return bias[None] if mask is None else bias.masked_fill(~mask, -torch.inf)


class ContrastProjections(nn.Module):
    """Features of images and texts as wide as the tokens, and the scale of their cosines."""

    def __init__(self, config: VLMoConfig):
        super().__init__()
        self.image_projection = nn.Linear(config.dim, config.dim, bias=False)
        self.text_projection = nn.Linear(config.dim, config.dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))


_HEADS = {
    "contrast": ContrastProjections,
    "fusion_contrast": ContrastProjections,
    "match": lambda config: nn.Linear(config.dim, 2),
    "words": lambda config: WordsHead(config.bert, config.tied_words),
    "answer": lambda c: AnswerHead(c.dim, c.num_images, c.num_classes),
    "codes": lambda config: nn.Linear(config.dim, config.num_codes),
}


def _init_vlmo(model: VLMo) -> None:
    """Text parts, modalities and heads as BERT, the trunk as timm's ViT."""
    model.apply(init_bert)
    for matrix in _matrices(model.blocks):
        nn.init.trunc_normal_(matrix, std=0.02)
    if model.config.init == "xavier":
        for matrix in _matrices(model.blocks, model.pooler, model.heads):
            nn.init.xavier_uniform_(matrix)
    for token in (model.class_token, model.position_embedding, model.mask_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)


def _matrices(*parts: nn.Module) -> Sequence[nn.Parameter]:
    modules = [module for part in parts for module in part.modules()]
    return [module.weight for module in modules if isinstance(module, nn.Linear)]


# The published sizes (VLMo, section 4; base+ is in the released code alone), and their fine-tuned
# forms: 384 pixels for retrieval and NLVR2, 480 for questions.
VLMO_B_16 = VLMoConfig()
VLMO_B_PLUS_16 = replace(
    VLMO_B_16,
    dim=544,
    depth=24,
    num_heads=16,
    mlp_dim=2176,
    fusion_depth=3,
    positions="absolute",
    layer_scale=0.0,
)
VLMO_L_16 = replace(VLMO_B_16, dim=1024, depth=24, num_heads=16, mlp_dim=4096, fusion_depth=3)

_RETRIEVAL = {"image_size": 384, "heads": ("contrast",)}
_VQA = {"image_size": 480, "heads": ("answer",), "num_classes": 3129}
_NLVR2 = {"image_size": 384, "heads": ("answer",), "num_classes": 2, "num_images": 2}
VLMO_B_16_RETRIEVAL = replace(VLMO_B_16, **_RETRIEVAL)
VLMO_B_16_VQA = replace(VLMO_B_16, **_VQA)
VLMO_B_16_NLVR2 = replace(VLMO_B_16, **_NLVR2)
VLMO_B_PLUS_16_RETRIEVAL = replace(VLMO_B_PLUS_16, **_RETRIEVAL)
VLMO_B_PLUS_16_VQA = replace(VLMO_B_PLUS_16, **_VQA)
VLMO_B_PLUS_16_NLVR2 = replace(VLMO_B_PLUS_16, **_NLVR2)
VLMO_L_16_RETRIEVAL = replace(VLMO_L_16, **_RETRIEVAL)
VLMO_L_16_VQA = replace(VLMO_L_16, **_VQA)
VLMO_L_16_NLVR2 = replace(VLMO_L_16, **_NLVR2)

# Ours, for 64-pixel scenes and CPU cores. Captions are word pieces of
# mmlab.datasets.train_wordpiece; give the vocabulary of your tokenizer:
# create_model("vlmo-mini", vocab_size=tokenizer.vocab_size).
VLMO_MINI = VLMoConfig(
    image_size=64,
    patch_size=8,
    dim=96,
    depth=3,
    num_heads=4,
    mlp_dim=384,
    fusion_depth=1,
    vocab_size=4096,
    context_length=32,
    longest_text=32,
    dropout=0.0,
    drop_path=0.0,
    init="xavier",
)
