"""ViLT: words and image patches in one transformer, without a convolution and without regions.

Kim, Son and Kim 2021, "ViLT: Vision-and-Language Transformer Without Convolution or Region
Supervision" (arXiv 2102.03334); the official code is dandelin/ViLT.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
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
from mmlab.models.vit import ViT
from mmlab.nn import (
    ACTIVATIONS,
    BertConfig,
    BertEmbeddings,
    BertLanguageHead,
    BertPooler,
    Grid,
    PatchEmbedding,
    TransformerBlock,
    find_head,
    init_bert,
    interpolate_positions,
    padding_mask,
    run_blocks,
    valid_tokens,
)
from mmlab.objectives.masked_language import (
    IGNORED,
    MaskedTokens,
    mask_tokens,
    masked_language_loss,
)
from mmlab.objectives.matching import matching_loss
from mmlab.objectives.transport import word_patch_alignment_loss

HEADS = ("words", "match", "patches", "answer", "rank")
TEXT_ROW = 0
"""The modality table's row for text; image number n has row n."""

INITS = ("normal", "xavier")
NUM_SHADES = 256
MASKED_SHARE, HIDDEN_SHARE = 0.15, 0.8
"""How many patches are to be predicted, and how many of these the mask token hides."""
ALIGNMENT_WEIGHT = 0.1


@dataclass(frozen=True)
class ViLTConfig:
    """Everything that fixes the shape and the training behaviour of a ``ViLT``.

    - ``image_size``: the square that the position table is made for; images may have any size.
    - ``context_length``: the most tokens of a text.
    - ``num_images``: how many images one text is about, 2 for NLVR2; each has a modality row.
    - ``heads``: which of ``"words"`` (masked words), ``"match"`` (does the text fit the image?),
      ``"patches"`` (masked patches), ``"answer"`` (``num_classes`` answers about the image or
      images; VQA, NLVR2) and ``"rank"`` (one score, for retrieval).
    - ``tied_words``: the last matrix of the words head is the table of word vectors. Official
      weights are not tied; a fresh model of ``transformers`` is.
    - ``text_norm_eps`` is for the norms that come from BERT: word embeddings and words head.
    - ``init``: the matrices of blocks, pooler and heads start with a spread of 0.02, as published
      (``"normal"``), or with one that grows as the width shrinks (``"xavier"``): 0.02 is for a
      width of 768, and in a narrow model so small that it learns little at first.

    A wrong value raises ValueError.
    """

    image_size: int = 384
    patch_size: int = 32
    num_channels: int = 3
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    vocab_size: int = 30522
    context_length: int = 40
    num_images: int = 1
    heads: tuple[str, ...] = ("words", "match")
    num_classes: int = 0
    tied_words: bool = False
    activation: str = "gelu"
    norm_eps: float = 1e-6
    text_norm_eps: float = 1e-12
    dropout: float = 0.1
    init: str = "normal"

    def __post_init__(self) -> None:
        check_integers(self, "image_size", "patch_size", "num_channels", "dim", "depth")
        check_integers(self, "num_heads", "mlp_dim", "vocab_size", "context_length", "num_images")
        check_choice(self, "init", INITS)
        check_integers(self, "num_classes", minimum=0)
        check_choice(self, "activation", tuple(ACTIVATIONS))
        check_positive(self, "norm_eps", "text_norm_eps")
        check_rates(self, "dropout")
        check_multiple(self, "image_size", "patch_size")
        check_multiple(self, "dim", "num_heads")
        check_heads(self, HEADS, classifier="answer")

    @property
    def grid(self) -> Grid:
        """Rows and columns of the position table."""
        return (self.image_size // self.patch_size,) * 2

    @property
    def bert(self) -> BertConfig:
        """The parts that come from BERT."""
        names = {"max_positions": self.context_length, "norm_eps": self.text_norm_eps}
        return BertConfig.part_of(self, **names)


class ViLTFeatures(NamedTuple):
    """All tokens after the last norm, and the vector of the pair.

    - ``pooled``: the text's first token, [CLS], through a linear layer and tanh.
    - ``places``: the number of each patch in the batch's grid, row by row.
    - ``patch_valid``: False on patches that only fill up the batch.
    """

    text: Float[Tensor, "batch tokens dim"]
    class_token: Float[Tensor, "batch dim"]
    patches: Float[Tensor, "batch kept dim"]
    pooled: Float[Tensor, "batch dim"]
    places: Int64[Tensor, "batch kept"]
    patch_valid: Bool[Tensor, "batch kept"]


class _ImageTokens(NamedTuple):
    """What enters the first block of one image: the class token, then the kept patches."""

    tokens: Float[Tensor, "batch 1+kept dim"]
    places: Int64[Tensor, "batch kept"]
    valid: Bool[Tensor, "batch kept"]


class ViLT(nn.Module):
    """Vision-and-language transformer (ViLT, section 3.1).

    A ViT whose sequence is ``[words | class token | patches]``. Images are floats, normalised with
    mean and standard deviation 0.5. Set ``model.activation_checkpointing = True`` to trade time for
    memory in training: the blocks are then recomputed during the backward pass. New weights come
    from PyTorch's global random state.
    """

    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.text_embeddings = BertEmbeddings(config.bert)
        sizes = (config.patch_size, config.dim, config.num_channels)
        self.patch_embedding = PatchEmbedding(*sizes)
        self.class_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        table = torch.zeros(1, 1 + math.prod(config.grid), config.dim)
        self.position_embedding = nn.Parameter(table)
        self.modality_embedding = nn.Embedding(1 + config.num_images, config.dim)
        masks = "patches" in config.heads
        self.mask_token = nn.Parameter(torch.zeros(1, 1, config.dim)) if masks else None
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(_block(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=config.norm_eps)
        self.pooler = BertPooler(config.dim)
        self.heads = nn.ModuleDict({name: _HEADS[name](config) for name in config.heads})
        _init_vilt(self)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        images: Float[Tensor, "batch channels height width"],
        text_valid: Bool[Tensor, "batch tokens"] | None = None,
        image_sizes: Int64[Tensor, "batch 2"] | None = None,
        kept: Int64[Tensor, "batch kept"] | None = None,
        image_number: int = 1,
        masked_patches: Bool[Tensor, "batch patches"] | None = None,
    ) -> ViLTFeatures:
        """Features of each pair of a text and an image.

        - ``text_valid``: a tokenizer's attention mask; None where no text is padded.
        - ``image_sizes``: height and width in pixels of each image, which lies at the top left of
          its zero-padded place in the batch (see ``pad_images``); None where no image is padded.
        - ``kept``: which patches to use (see ``choose_patches``); all valid ones if None.
        - ``image_number``: 1, or 2 for the second image of a pair.
        - ``masked_patches``: True on patches that the mask token replaces.

        ValueError for a text that is too long, images that are no floats or do not consist of whole
        patches, and sizes that do not fit the images.
        """
        text = self.embed_text(input_ids)
        image = self.embed_image(images, image_sizes, kept, image_number, masked_patches)
        padded = text_valid is not None or image_sizes is not None
        mask = self._mask(input_ids, text_valid, image.valid) if padded else None
        tokens = torch.cat([text, image.tokens], dim=1)
        tokens = run_blocks(self.blocks, tokens, mask, self.activation_checkpointing)
        tokens = self.norm(tokens)
        words, class_token, patches = tokens.tensor_split([text.shape[1], text.shape[1] + 1], 1)
        pooled = self.pooler(tokens)
        return ViLTFeatures(
            words, class_token.squeeze(1), patches, pooled, image.places, image.valid
        )

    def embed_text(
        self, input_ids: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch tokens dim"]:
        """BERT's embeddings and the modality row of text (ViLT, equations 1 and 3)."""
        return self.text_embeddings(input_ids) + self.modality_embedding.weight[TEXT_ROW]

    def embed_image(
        self,
        images: Float[Tensor, "batch channels height width"],
        image_sizes: Int64[Tensor, "batch 2"] | None = None,
        kept: Int64[Tensor, "batch kept"] | None = None,
        image_number: int = 1,
        masked_patches: Bool[Tensor, "batch patches"] | None = None,
    ) -> _ImageTokens:
        """Class token and patches with positions and modality (ViLT, equations 2 and 3).

        Each image has the position table stretched over its own patches, not over the padding. The
        arguments are those of ``forward``.
        """
        self._check_images(images, image_number)
        patches = self._embed_patches(images, image_sizes, masked_patches)
        valid = self.valid_patches(images, image_sizes)
        if kept is None and image_sizes is not None:
            kept = choose_patches(valid)
        if kept is None:
            places = torch.arange(patches.shape[1], device=images.device).expand(len(images), -1)
        else:
            patches, valid, places = _take(patches, kept), valid.gather(1, kept), kept
        class_token = self.class_token + self.position_embedding[:, :1]
        tokens = torch.cat([class_token.expand(len(images), -1, -1), patches], dim=1)
        tokens = self.dropout(tokens) + self.modality_embedding.weight[image_number]
        return _ImageTokens(tokens, places, valid)

    def _embed_patches(
        self,
        images: Float[Tensor, "batch channels height width"],
        image_sizes: Int64[Tensor, "batch 2"] | None,
        masked_patches: Bool[Tensor, "batch patches"] | None,
    ) -> Float[Tensor, "batch patches dim"]:
        """All patches of the batch with their positions."""
        patches = self.patch_embedding(images)
        if masked_patches is not None:
            patches = torch.where(masked_patches[..., None], self._mask_token(), patches)
        return patches + self._positions(self._canvas(images), image_sizes)

    def valid_patches(
        self,
        images: Float[Tensor, "batch channels height width"],
        image_sizes: Int64[Tensor, "batch 2"] | None = None,
    ) -> Bool[Tensor, "batch patches"]:
        """Which patches of the batch hold a piece of their image; ValueError as in ``forward``."""
        rows, columns = self._canvas(images)
        if image_sizes is None:
            return torch.ones(len(images), rows * columns, dtype=torch.bool, device=images.device)
        _check_sizes(images, image_sizes)
        grids = self._grids(image_sizes)[:, :, None]
        in_height = torch.arange(rows, device=images.device) < grids[:, 0]
        in_width = torch.arange(columns, device=images.device) < grids[:, 1]
        return (in_height[:, :, None] & in_width[:, None]).flatten(1)

    def word_logits(self, features: ViLTFeatures) -> Float[Tensor, "batch tokens vocab"]:
        """Scores of words at each text token. ValueError, here and below, without this head."""
        return self.head("words")(features.text, self.text_embeddings.word_embedding.weight)

    def matching_logits(self, features: ViLTFeatures) -> Float[Tensor, "batch 2"]:
        """Output 1 is for "the text fits the image", output 0 for "it does not"."""
        return self.head("match")(features.pooled)

    def patch_logits(self, features: ViLTFeatures) -> Float[Tensor, "batch kept channels 256"]:
        """Scores of the mean shade, 0 to 255, of each patch and channel."""
        return self.head("patches")(features.patches)

    def answer_logits(self, *features: ViLTFeatures) -> Float[Tensor, "batch classes"]:
        """Scores of the answers; takes the features of each of the ``num_images`` images."""
        head = self.head("answer")
        count, given = self.config.num_images, len(features)
        if given != count:
            raise ValueError(f"features must be given for num_images={count} images, got {given}")
        return head(torch.cat([f.pooled for f in features], dim=-1))

    def rank_scores(self, features: ViLTFeatures) -> Float[Tensor, " batch"]:
        """One number a pair; the better the text fits the image, the higher."""
        return self.head("rank")(features.pooled).squeeze(-1)

    def head(self, name: str) -> nn.Module:
        """The head called ``name``; ValueError if there is none."""
        return find_head(self, name)

    def _mask_token(self) -> Float[Tensor, "1 1 dim"]:
        self.head("patches")
        return self.mask_token

    def _canvas(self, images: Tensor) -> Grid:
        """Rows and columns of patches of the whole batch."""
        size = self.config.patch_size
        return images.shape[-2] // size, images.shape[-1] // size

    def _grids(self, image_sizes: Int64[Tensor, "batch 2"]) -> Int64[Tensor, "batch 2"]:
        """Rows and columns of each image; a patch counts if its top-left pixel does."""
        size = self.config.patch_size
        return (image_sizes + size - 1) // size

    def _positions(
        self, canvas: Grid, image_sizes: Int64[Tensor, "batch 2"] | None
    ) -> Float[Tensor, "#batch patches dim"]:
        if image_sizes is None:
            return self._stretched(canvas, canvas)
        grids = [tuple(grid) for grid in self._grids(image_sizes).tolist()]
        tables = {grid: self._stretched(grid, canvas) for grid in set(grids)}
        return torch.cat([tables[grid] for grid in grids])

    def _stretched(self, grid: Grid, canvas: Grid) -> Float[Tensor, "1 patches dim"]:
        """The position table over ``grid`` patches, zeros to the right and below."""
        old = self.config.grid
        table = interpolate_positions(self.position_embedding, old, grid, "bilinear_aligned")
        table = rearrange(table[:, 1:], "1 (h w) d -> 1 h w d", h=grid[0])
        table = F.pad(table, (0, 0, 0, canvas[1] - grid[1], 0, canvas[0] - grid[0]))
        return table.flatten(1, 2)

    def _mask(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        text_valid: Bool[Tensor, "batch tokens"] | None,
        patch_valid: Bool[Tensor, "batch kept"],
    ) -> Bool[Tensor, "batch 1 1 keys"]:
        if text_valid is None:
            text_valid = torch.ones_like(input_ids, dtype=torch.bool)
        class_valid = torch.ones_like(patch_valid[:, :1])
        return padding_mask(torch.cat([text_valid, class_valid, patch_valid], dim=1))

    def _check_images(self, images: Tensor, image_number: int) -> None:
        if not images.is_floating_point():
            raise ValueError(
                f"images must be floating point, got {images.dtype}; convert and normalise them "
                "with mmlab.datasets.transforms first"
            )
        if images.shape[1] != self.config.num_channels:
            raise ValueError(
                f"images must have shape (batch, {self.config.num_channels}, height, width), got "
                f"{tuple(images.shape)}"
            )
        if not 1 <= image_number <= self.config.num_images:
            allowed = f"from 1 to num_images={self.config.num_images}"
            raise ValueError(f"image_number must be {allowed}, got {image_number}")


def pad_images(
    images: list[Float[Tensor, "channels _ _"]],
) -> tuple[Float[Tensor, "batch channels height width"], Int64[Tensor, "batch 2"]]:
    """One batch of images of different sizes, zeros to the right and below, and their sizes.

    ValueError if there is no image.
    """
    if not images:
        raise ValueError("images must hold at least one image, got none")
    sizes = torch.tensor([image.shape[-2:] for image in images])
    height, width = sizes.amax(0).tolist()
    padded = [F.pad(i, (0, width - i.shape[-1], 0, height - i.shape[-2])) for i in images]
    return torch.stack(padded), sizes.to(images[0].device)


def choose_patches(
    valid: Bool[Tensor, "batch patches"],
    limit: int | None = None,
    noise: Float[Tensor, "batch patches"] | None = None,
) -> Int64[Tensor, "batch kept"]:
    """Places of the patches to use: the valid ones in their order, then padding.

    As many as the image with the most valid patches has, at most ``limit``. Where there are more,
    those with the least ``noise`` stay; without noise, the first. The official code
    (``visual_embed``) draws them in random order, and the padding, which nobody sees, too.
    """
    most = int(valid.sum(1).max())
    kept = most if limit is None else min(most, limit)
    noise = torch.zeros_like(valid, dtype=torch.float32) if noise is None else noise
    chosen = (noise + 2 * ~valid).argsort(dim=1, stable=True)[:, :kept]
    order = chosen + valid.shape[1] * ~valid.gather(1, chosen)
    return chosen.gather(1, order.argsort(dim=1))


def _take(
    tokens: Float[Tensor, "batch tokens dim"], places: Int64[Tensor, "batch kept"]
) -> Float[Tensor, "batch kept dim"]:
    return tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[-1]))


def _check_sizes(images: Tensor, image_sizes: Int64[Tensor, "batch 2"]) -> None:
    canvas = torch.tensor(images.shape[-2:], device=image_sizes.device)
    fits = ((image_sizes >= 1) & (image_sizes <= canvas)).all(1)
    if not fits.all():
        row = int((~fits).nonzero()[0])
        raise ValueError(
            f"image_sizes must lie between 1 and the batch's {tuple(canvas.tolist())} pixels, got "
            f"{tuple(image_sizes[row].tolist())} for image {row}"
        )


def _block(config: ViLTConfig) -> TransformerBlock:
    return TransformerBlock(
        config.dim,
        config.num_heads,
        config.mlp_dim,
        activation=config.activation,
        norm_eps=config.norm_eps,
        dropout=config.dropout,
    )


class WordsHead(nn.Module):
    """BERT's head for masked words, with a last matrix of its own unless ``tied``."""

    def __init__(self, bert: BertConfig, tied: bool):
        super().__init__()
        self.transform = BertLanguageHead(bert)
        self.decoder = None if tied else nn.Linear(bert.dim, bert.vocab_size, bias=False)

    def forward(
        self, x: Float[Tensor, "*batch dim"], words: Float[Tensor, "vocab dim"]
    ) -> Float[Tensor, "*batch vocab"]:
        """Logits over the vocabulary; ``words`` is the table of word vectors."""
        return self.transform(x, words if self.decoder is None else self.decoder.weight)


class PatchesHead(nn.Module):
    """The mean shade of a masked patch in each channel, as a choice among 256 (``MPPHead``)."""

    def __init__(self, config: ViLTConfig):
        super().__init__()
        self.num_channels = config.num_channels
        self.dense = nn.Linear(config.dim, config.dim)
        self.activation = ACTIVATIONS[config.activation]()
        self.norm = nn.LayerNorm(config.dim, eps=config.text_norm_eps)
        self.decoder = nn.Linear(config.dim, config.num_channels * NUM_SHADES)

    def forward(
        self, x: Float[Tensor, "batch kept dim"]
    ) -> Float[Tensor, "batch kept channels 256"]:
        """Logits over the shades."""
        logits = self.decoder(self.norm(self.activation(self.dense(x))))
        return logits.unflatten(-1, (self.num_channels, NUM_SHADES))


class AnswerHead(nn.Module):
    """A hidden layer and a linear one: VQA's on one pooled vector, NLVR2's on two in a row."""

    def __init__(self, dim: int, num_images: int, num_classes: int):
        super().__init__()
        hidden = dim * max(2, num_images)
        self.fc1 = nn.Linear(dim * num_images, hidden)
        self.norm = nn.LayerNorm(hidden, eps=1e-5)
        self.activation = nn.GELU()
        self.fc2 = nn.Linear(hidden, num_classes)

    def forward(self, pooled: Float[Tensor, "batch width"]) -> Float[Tensor, "batch classes"]:
        """Logits over the answers."""
        return self.fc2(self.activation(self.norm(self.fc1(pooled))))


_HEADS = {
    "words": lambda config: WordsHead(config.bert, config.tied_words),
    "match": lambda config: nn.Linear(config.dim, 2),
    "patches": PatchesHead,
    "answer": lambda c: AnswerHead(c.dim, c.num_images, c.num_classes),
    "rank": lambda config: nn.Linear(config.dim, 1),
}


def _init_vilt(model: ViLT) -> None:
    """Text parts, modalities and heads as BERT, the trunk as timm's ViT, which the paper loads."""
    model.apply(init_bert)
    for matrix in _matrices(model.blocks):
        nn.init.trunc_normal_(matrix, std=0.02)
    if model.config.init == "xavier":
        for matrix in _matrices(model.blocks, model.pooler, model.heads):
            nn.init.xavier_uniform_(matrix)
    for token in (model.class_token, model.position_embedding, model.mask_token):
        if token is not None:
            nn.init.trunc_normal_(token, std=0.02)


def _matrices(*parts: nn.Module) -> list[nn.Parameter]:
    modules = [module for part in parts for module in part.modules()]
    return [module.weight for module in modules if isinstance(module, nn.Linear)]


@torch.no_grad()
def start_from_vit(model: ViLT, vit: ViT) -> None:
    """Give the trunk of ``model`` the weights of a pretrained ViT (ViLT, section 3.1).

    Positions are interpolated to the grid of ``model``. ValueError if the ViT is of another shape
    or has other tokens than a class token before the patches.
    """
    parts = ("patch_embedding.", "class_token", "position_embedding", "blocks.", "norm.")
    theirs = {key: t for key, t in vit.state_dict().items() if key.startswith(parts)}
    own = {key: t for key, t in model.state_dict().items() if key.startswith(parts)}
    if theirs.keys() == own.keys() and vit.config.num_prefix_tokens == 1:
        grids = (vit.config.grid, model.config.grid)
        theirs["position_embedding"] = interpolate_positions(theirs["position_embedding"], *grids)
    if {key: t.shape for key, t in theirs.items()} != {key: t.shape for key, t in own.items()}:
        raise ValueError("the trunk of the ViLT and the ViT must have the same shape")
    model.load_state_dict(model.state_dict() | theirs)


# The one published size (ViLT, section 3.1), and its fine-tuned forms.
VILT_B_32 = ViLTConfig()
VILT_B_32_VQA = replace(VILT_B_32, heads=("answer",), num_classes=3129)
VILT_B_32_NLVR2 = replace(VILT_B_32, heads=("answer",), num_classes=2, num_images=2)
VILT_B_32_RETRIEVAL = replace(VILT_B_32, heads=("rank",))

# Ours, for 64-pixel scenes and CPU cores. With patches of 16 pixels a step costs less than half,
# but a shape then hardly fills a patch, and its color is learnt much later. Captions are word
# pieces of mmlab.datasets.train_wordpiece; give the vocabulary of your tokenizer:
# create_model("vilt-mini", vocab_size=tokenizer.vocab_size).
VILT_MINI = ViLTConfig(
    image_size=64,
    patch_size=8,
    dim=96,
    depth=4,
    num_heads=4,
    mlp_dim=384,
    vocab_size=4096,
    context_length=32,
    dropout=0.0,
    init="xavier",
)


class ViLTPretraining(nn.Module):
    """A ``ViLT`` in pre-training (ViLT, sections 3.2 and 3.3); ``network`` is the model.

    ``mask_id`` is the number of the tokenizer's mask token (103 in BERT's vocabulary). Images with
    more than ``max_patches`` patches keep a random choice of them in each forward pass (section
    4.2: 200); None keeps all. Every random choice is drawn from ``generator``, or from PyTorch's
    global random state.

    With a ``"patches"`` head the network also learns to predict masked patches, which the paper
    tried and gave up (section 4.5). ValueError if it lacks a ``"words"`` or a ``"match"`` head, or
    if its vocabulary ends before ``mask_id``.
    """

    def __init__(
        self,
        network: ViLT,
        mask_id: int = 103,
        max_patches: int | None = 200,
        generator: torch.Generator | None = None,
    ):
        super().__init__()
        network.head("words")
        network.head("match")
        below = f"from 0 to below vocab_size={network.config.vocab_size}"
        check(0 <= mask_id < network.config.vocab_size, "mask_id", mask_id, below)
        self.network = network
        self.mask_id = mask_id
        self.max_patches = max_patches
        self.generator = generator

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Masked words, matching, a tenth of the word-patch alignment, masked patches if wanted.

        ``batch`` has ``"input_ids"`` and ``"attention_mask"`` of a tokenizer, ``"images"``, and

        - ``"word_ids"``, with which whole words are masked, else single tokens;
        - ``"masked_ids"`` and ``"labels"`` where the data have masked the words themselves, and
          ``"matched"`` where they have drawn which rows keep their image;
        - ``"image_sizes"`` where images are padded;
        - ``"false_images"`` (``"false_image_sizes"``), one wrong image for each text, padded to the
          same size. Official code draws them from the whole data set. Without them they are images
          of other rows.

        Masked words and matching are two forward passes, as in the official code: the first has
        the true images and the masked text, the second true or false images and the whole text.
        """
        images, sizes = batch["images"], batch.get("image_sizes")
        losses = {"masked_words": self._masked_words(batch, images, sizes)}
        losses |= self._matching(batch)
        if "patches" in self.network.heads:
            losses["masked_patches"] = self._masked_patches(batch, images, sizes)
        return losses

    def _masked_words(
        self, batch: dict[str, Tensor], images: Tensor, sizes: Tensor | None
    ) -> Float[Tensor, ""]:
        vocab_size = self.network.config.vocab_size
        masked = masked_words_of(batch, self.mask_id, vocab_size, self.generator)
        features = self._features(masked.ids, batch["attention_mask"], images, sizes)
        return masked_language_loss(self.network.word_logits(features), masked.labels)

    def _matching(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        matched, images, sizes = self._true_and_false(batch)
        ids, valid = batch["input_ids"], batch["attention_mask"]
        features = self._features(ids, valid, images, sizes)
        logits = self.network.matching_logits(features)
        # As in the official code, transport is not computed in half precision.
        with torch.autocast(images.device.type, enabled=False):
            alignment = word_patch_alignment_loss(
                features.text.float(),
                features.patches.float(),
                matched,
                inner_words(valid),
                features.patch_valid,
            )
        return {
            "matching": matching_loss(logits, matched),
            "alignment": ALIGNMENT_WEIGHT * alignment,
        }

    def _masked_patches(
        self, batch: dict[str, Tensor], images: Tensor, sizes: Tensor | None
    ) -> Float[Tensor, ""]:
        network = self.network
        valid = network.valid_patches(images, sizes)
        asked = (self._uniform(valid) < MASKED_SHARE) & valid
        hidden = asked & (self._uniform(valid) < HIDDEN_SHARE)
        shades = mean_shades(images, network.config.patch_size)
        labels = torch.where(asked[..., None], shades, IGNORED)
        features = self._features(
            batch["input_ids"], batch["attention_mask"], images, sizes, hidden
        )
        labels = labels.gather(1, features.places[..., None].expand(-1, -1, labels.shape[-1]))
        return masked_language_loss(network.patch_logits(features).flatten(1, 2), labels.flatten(1))

    def _features(
        self,
        ids: Tensor,
        text_valid: Tensor,
        images: Tensor,
        sizes: Tensor | None,
        masked_patches: Tensor | None = None,
    ) -> ViLTFeatures:
        kept, limit = None, self.max_patches
        valid = self.network.valid_patches(images, sizes)
        if limit is not None and valid.shape[1] > limit:
            kept = choose_patches(valid, limit, self._uniform(valid))
        return self.network(
            ids, images, text_valid, sizes, kept=kept, masked_patches=masked_patches
        )

    def _true_and_false(
        self, batch: dict[str, Tensor]
    ) -> tuple[Bool[Tensor, " batch"], Tensor, Tensor | None]:
        """Half of the rows, rounded down, keep their image; the others get a false one.

        Unless ``batch`` tells which do.
        """
        images, sizes = batch["images"], batch.get("image_sizes")
        false_images, false_sizes = self._false_images(batch)
        matched = batch.get("matched")
        if matched is None:
            matched = self._permutation(images) < len(images) // 2
        images = torch.where(matched[:, None, None, None], images, false_images)
        if sizes is not None:
            sizes = torch.where(matched[:, None], sizes, false_sizes)
        return matched, images, sizes

    def _false_images(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        images, sizes = batch["images"], batch.get("image_sizes")
        if "false_images" in batch:
            false_sizes = batch.get("false_image_sizes")
            if (sizes is None) != (false_sizes is None):
                raise ValueError("'image_sizes' and 'false_image_sizes' must be given together")
            return batch["false_images"], false_sizes
        count = len(images)
        if count < 2:
            raise ValueError("a batch of one row needs 'false_images': no other row has an image")
        step = self._draw(torch.randint, count - 1, (count,), device=images.device) + 1
        other = (torch.arange(count, device=images.device) + step) % count
        return images[other], None if sizes is None else sizes[other]

    def _uniform(self, like: Tensor) -> Float[Tensor, ...]:
        return self._draw(torch.rand, like.shape, device=like.device)

    def _permutation(self, images: Tensor) -> Int64[Tensor, " batch"]:
        return self._draw(torch.randperm, len(images), device=images.device)

    def _draw(self, draw: Callable[..., Tensor], *args: object, device: torch.device) -> Tensor:
        """A generator draws on its own device."""
        own = device if self.generator is None else self.generator.device
        return draw(*args, generator=self.generator, device=own).to(device)


def masked_words_of(
    batch: dict[str, Tensor],
    mask_id: int,
    vocab_size: int,
    generator: torch.Generator | None = None,
) -> MaskedTokens:
    """``"masked_ids"`` and ``"labels"`` of a batch, or else its text with words masked now.

    Whole words with ``"word_ids"``, else single tokens. Without ``"attention_mask"`` all but token
    0 is valid.
    """
    if "masked_ids" in batch:
        return MaskedTokens(batch["masked_ids"], batch["labels"])
    maskable = inner_words(valid_tokens(batch["input_ids"], batch.get("attention_mask")))
    options = {"word_ids": batch.get("word_ids"), "generator": generator}
    return mask_tokens(batch["input_ids"], maskable, mask_id, vocab_size, **options)


def inner_words(valid: Bool[Tensor, "batch tokens"]) -> Bool[Tensor, "batch tokens"]:
    """The tokens of the text itself: without the first, [CLS], and the last valid one, [SEP]."""
    followed = F.pad(valid[:, 1:], (0, 1))
    return valid & followed & (torch.arange(valid.shape[1], device=valid.device) > 0)


def mean_shades(
    images: Float[Tensor, "batch channels height width"], patch_size: int
) -> Int64[Tensor, "batch patches channels"]:
    """The mean of each patch and channel, 0 to 255; images are normalised with 0.5 and 0.5."""
    means = F.avg_pool2d(images * 0.5 + 0.5, patch_size)
    return (means * 255).long().clamp(0, 255).flatten(2).mT
