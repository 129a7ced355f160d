"""FLIP: CLIP's objective on images of which most patches were dropped.

Li et al. 2022, "Scaling Language-Image Pre-training via Masking" (arXiv 2212.00794); the official
code is facebookresearch/flip. FLIP fills nothing in: there is no decoder and no mask token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, Int64
from torch import Tensor, nn

from mmlab.models.checks import check, check_choice, check_integers, check_multiple, check_rates
from mmlab.models.vit import ViT, ViTConfig
from mmlab.nn import (
    TransformerBlock,
    init_xavier,
    keep_patches,
    num_kept,
    random_masking,
    run_blocks,
    shared_checkpointing,
)
from mmlab.objectives.contrastive import INITIAL_SCALE, MAX_SCALE, contrastive_loss

TEXT_MASKS = ("none", "random", "padding_first")


@dataclass(frozen=True)
class FLIPConfig:
    """Everything that fixes the shape and the training of a ``FLIP``.

    ``dim``, ``depth``, ``num_heads`` and ``mlp_dim`` are the image tower's, ``text_…`` the text
    tower's; ``embed_dim`` is the width of the space that both are projected to.

    - ``vocab_size``, ``context_length``: BERT's uncased word pieces and one unknown; 32 a caption.
    - ``pad_id``: the token that fills captions up.
    - ``mask_ratio``: share of the patches that training drops.
    - ``text_mask``: ``"none"``, or as in the paper's ablation ``"random"`` or ``"padding_first"``,
      which drop ``text_mask_ratio`` of the tokens; the latter words only when no padding is left.

    A wrong value raises ValueError.
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    vocab_size: int = 30523
    context_length: int = 32
    pad_id: int = 0
    text_dim: int = 512
    text_depth: int = 12
    text_num_heads: int = 8
    text_mlp_dim: int = 2048
    embed_dim: int = 512
    mask_ratio: float = 0.5
    text_mask: str = "none"
    text_mask_ratio: float = 0.5
    activation: str = "gelu_tanh"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_integers(self, "vocab_size", "context_length", "embed_dim")
        check_integers(self, "text_dim", "text_depth", "text_num_heads", "text_mlp_dim")
        check_integers(self, "pad_id", minimum=0)
        check_multiple(self, "text_dim", "text_num_heads")
        check(self.pad_id < self.vocab_size, "pad_id", self.pad_id, f"below {self.vocab_size}")
        check_choice(self, "text_mask", TEXT_MASKS)
        check_rates(self, "mask_ratio", "text_mask_ratio")
        num_kept(self.image.num_patches, self.mask_ratio)
        num_kept(self.context_length, self.text_mask_ratio)

    @property
    def image(self) -> ViTConfig:
        """The image tower is a ViT with fixed positions and no head."""
        return ViTConfig(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            dim=self.dim,
            depth=self.depth,
            num_heads=self.num_heads,
            mlp_dim=self.mlp_dim,
            num_classes=0,
            positions="sincos2d",
            activation=self.activation,
            norm_eps=self.norm_eps,
        )


class FLIP(nn.Module):
    """Fast language-image pretraining (FLIP, section 3): two towers that meet in one space.

    Images are floats, normalised with ImageNet's mean and standard deviation, not with CLIP's. Used
    as it is, the model sees whole images and whole captions; ``FLIPPretraining`` drops patches. Set
    ``model.activation_checkpointing = True`` to trade time for memory in training. New weights come
    from PyTorch's global random state.
    """

    def __init__(self, config: FLIPConfig):
        super().__init__()
        self.config = config
        self.image_encoder = ViT(config.image)
        self.image_projection = nn.Linear(config.dim, config.embed_dim, bias=False)
        self.text_encoder = FLIPTextEncoder(config)
        self.text_projection = nn.Linear(config.text_dim, config.embed_dim, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(INITIAL_SCALE)))
        _init_flip(self)

    activation_checkpointing = shared_checkpointing("image_encoder", "text_encoder")

    def forward(
        self,
        images: Float[Tensor, "images channels height width"],
        input_ids: Int[Tensor, "texts tokens"],
    ) -> Float[Tensor, "images texts"]:
        """Logits of every caption for every image: cosine times ``scale``."""
        return self.scale() * self.encode_image(images) @ self.encode_text(input_ids).T

    def scale(self) -> Float[Tensor, ""]:
        """The learned factor on cosines, between 1 and 100.

        The limits are part of the forward pass, as in the code: outside of them the gradient is 0.
        """
        return self.logit_scale.clamp(0, math.log(MAX_SCALE)).exp()

    def encode_image(
        self,
        images: Float[Tensor, "batch channels height width"],
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch embed_dim"]:
        """Image features of length 1; with ``kept`` (see ``random_masking``) of these patches only.

        The image is the average of all tokens, the class token among them.
        """
        tokens = self.image_encoder.embed(images)
        if kept is not None:
            tokens = keep_patches(tokens, kept, num_prefix_tokens=1)
        tokens = self.image_encoder.norm(self.image_encoder.run_blocks(tokens))
        return F.normalize(self.image_projection(tokens.mean(dim=1)), dim=-1)

    def encode_text(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch embed_dim"]:
        """Text features of length 1; with ``kept`` of these tokens only, the one to read first.

        The caption is read at its first token: ``[CLS]`` with the tokenizers of mmlab, the first
        word piece in the official code, which puts nothing before it.
        """
        tokens = self.text_encoder(input_ids, kept)
        return F.normalize(self.text_projection(tokens[:, 0]), dim=-1)

    def resize_positions(self, image_size: int) -> FLIP:
        """Take images of ``image_size`` pixels from now on; returns the model itself.

        The positions of the patches are fixed, so they are computed anew.
        """
        self.config = replace(self.config, image_size=image_size)
        self.image_encoder.resize_positions(image_size)
        return self


class FLIPTextEncoder(nn.Module):
    """A transformer in which every token sees every other, padding too (FLIP, section 3).

    The code computes a mask for the padding and does not use it. So padding takes part, and every
    caption must be filled up to one length for its features to be its own.
    """

    def __init__(self, config: FLIPConfig):
        super().__init__()
        self.config = config
        self.activation_checkpointing = False
        self.token_embedding = nn.Embedding(config.vocab_size, config.text_dim)
        table = torch.zeros(1, config.context_length, config.text_dim)
        self.position_embedding = nn.Parameter(table)
        self.blocks = nn.ModuleList(_text_block(config) for _ in range(config.text_depth))
        self.norm = nn.LayerNorm(config.text_dim, eps=config.norm_eps)

    def forward(
        self,
        input_ids: Int[Tensor, "batch tokens"],
        kept: Int64[Tensor, "batch kept"] | None = None,
    ) -> Float[Tensor, "batch visible dim"]:
        """All tokens after the last norm, or only those ``kept``.

        Captions shorter than ``context_length`` are filled up with ``pad_id``. ValueError if they
        are longer.
        """
        tokens = self.token_embedding(self.pad(input_ids)) + self.position_embedding
        if kept is not None:
            tokens = keep_patches(tokens, kept)
        tokens = run_blocks(self.blocks, tokens, None, self.activation_checkpointing)
        return self.norm(tokens)

    def pad(self, input_ids: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch context"]:
        """Captions of ``context_length`` tokens; ValueError if they have more."""
        missing = self.config.context_length - input_ids.shape[1]
        if missing < 0:
            raise ValueError(
                f"a caption may have {self.config.context_length} tokens, got "
                f"{input_ids.shape[1]}; cut them with the tokenizer's max_length"
            )
        return F.pad(input_ids, (0, missing), value=self.config.pad_id)


def _text_block(config: FLIPConfig) -> TransformerBlock:
    return TransformerBlock(
        config.text_dim,
        config.text_num_heads,
        config.text_mlp_dim,
        activation=config.activation,
        norm_eps=config.norm_eps,
    )


def _init_flip(model: FLIP) -> None:
    """Initialisation "mae_jax_v2" of the official code; the ViT has set all its biases to 0."""
    model.apply(init_xavier)
    nn.init.xavier_uniform_(model.image_encoder.patch_embedding.projection.weight.flatten(1))
    text = model.text_encoder
    learned = (model.image_encoder.class_token, text.token_embedding.weight)
    for parameter in (*learned, text.position_embedding):
        nn.init.normal_(parameter, std=0.02)


# Sizes: FLIP, table 8 and the configurations of the code. L/14 is an L/16 with other patches.
FLIP_B_16 = FLIPConfig()
FLIP_L_16 = FLIPConfig(
    dim=1024,
    depth=24,
    num_heads=16,
    mlp_dim=4096,
    text_dim=768,
    text_depth=12,
    text_num_heads=12,
    text_mlp_dim=3072,
    embed_dim=768,
)
FLIP_L_14 = replace(FLIP_L_16, patch_size=14)
FLIP_H_14 = FLIPConfig(
    patch_size=14,
    dim=1280,
    depth=32,
    num_heads=16,
    mlp_dim=5120,
    text_dim=1024,
    text_depth=24,
    text_num_heads=16,
    text_mlp_dim=4096,
    embed_dim=1024,
)

# Ours, for 48-pixel images and CPU cores. The patches are smaller than CLIP_VIT_MINI's, 64 an
# image, so that there is something to drop; a convolutional stem would let the pixels of dropped
# patches in. Give the vocabulary of your tokenizer, as with CLIP_VIT_MINI.
FLIP_MINI = FLIPConfig(
    image_size=48,
    patch_size=6,
    dim=128,
    depth=4,
    num_heads=4,
    mlp_dim=512,
    vocab_size=4096,
    text_dim=128,
    text_depth=3,
    text_num_heads=4,
    text_mlp_dim=512,
    embed_dim=128,
)


class FLIPPretraining(nn.Module):
    """A ``FLIP`` in training: contrast the images that masks left over with their captions.

    ``network`` is the model. Patches are dropped in training mode only, at the rate of its
    configuration or at ``mask_ratio`` if given: 0 is the short unmasked tuning that ends FLIP's
    training (section 3, "Unmasking"). ``chunk_size`` as in ``contrastive_loss``. ValueError for a
    ratio that leaves no patch.
    """

    def __init__(
        self, network: FLIP, mask_ratio: float | None = None, chunk_size: int | None = None
    ):
        super().__init__()
        config = network.config
        self.mask_ratio = config.mask_ratio if mask_ratio is None else mask_ratio
        num_kept(network.image_encoder.config.num_patches, self.mask_ratio)
        self.network = network
        self.chunk_size = chunk_size

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss on ``batch["images"]`` (floats) and their captions, ``batch["input_ids"]``.

        ``batch["image_noise"]`` (batch, patches) and ``batch["text_noise"]`` (batch, context), both
        uniform in [0, 1), choose what is kept; without them they are drawn from PyTorch's global
        random state.
        """
        images, input_ids = batch["images"], batch["input_ids"]
        kept_patches = self._keep_patches(images, batch.get("image_noise"))
        kept_tokens = self._keep_tokens(input_ids, batch.get("text_noise"))
        image_features = self.network.encode_image(images, kept_patches)
        text_features = self.network.encode_text(input_ids, kept_tokens)
        scale = self.network.scale()
        loss = contrastive_loss(image_features, text_features, scale, self.chunk_size)
        return {"contrastive": loss}

    def _keep_patches(self, images: Tensor, noise: Tensor | None) -> Tensor | None:
        if not self.training or self.mask_ratio == 0:
            return None
        num_patches = self.network.image_encoder.config.num_patches
        noise = _noise(images, num_patches) if noise is None else noise
        return random_masking(noise, self.mask_ratio).kept

    def _keep_tokens(self, input_ids: Tensor, noise: Tensor | None) -> Tensor | None:
        config = self.network.config
        if not self.training or config.text_mask == "none" or config.text_mask_ratio == 0:
            return None
        noise = _noise(input_ids, config.context_length) if noise is None else noise
        if config.text_mask == "padding_first":
            noise = noise + (self.network.text_encoder.pad(input_ids) == config.pad_id)
        # The first token is the one that is read, so it always stays, and stays the first.
        noise = F.pad(noise[:, 1:], (1, 0), value=-1.0)
        return random_masking(noise, config.text_mask_ratio).kept


def _noise(inputs: Tensor, num_tokens: int) -> Float[Tensor, "batch tokens"]:
    return torch.rand(len(inputs), num_tokens, device=inputs.device)
