"""MAE, the masked autoencoder: a ViT that learns by filling in the patches it was not shown.

He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners" (arXiv 2111.06377); the official
code is facebookresearch/mae.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from mmlab.models.checks import check, check_integers, check_multiple, check_rates
from mmlab.models.vit import ViT, ViTConfig
from mmlab.nn import (
    PatchMask,
    TransformerBlock,
    init_xavier,
    keep_patches,
    num_kept,
    patchify,
    random_masking,
    restore_patches,
    run_blocks,
    shared_checkpointing,
    sincos_positions,
)


@dataclass(frozen=True)
class MAEConfig:
    """Everything that fixes the shape and the training of an ``MAE``.

    Sizes are in pixels (``image_size``, ``patch_size``) and vector entries (``dim``, ``mlp_dim``).

    - ``decoder_…``: the small transformer that only pretraining needs.
    - ``mask_ratio``: share of the patches that the encoder does not see.
    - ``norm_pix``: predict each patch with its own mean and variance taken off (section 4.1,
      "Reconstruction target"); the released models use it, the paper's ablations mostly not.

    A wrong value raises ValueError.
    """

    image_size: int = 224
    patch_size: int = 16
    num_channels: int = 3
    dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_dim: int = 3072
    decoder_dim: int = 512
    decoder_depth: int = 8
    decoder_num_heads: int = 16
    decoder_mlp_dim: int = 2048
    mask_ratio: float = 0.75
    norm_pix: bool = True
    activation: str = "gelu"
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        check_integers(self, "decoder_dim", "decoder_depth", "decoder_num_heads", "decoder_mlp_dim")
        check_multiple(self, "decoder_dim", "decoder_num_heads")
        check(self.decoder_dim % 4 == 0, "decoder_dim", self.decoder_dim, "a multiple of 4")
        check_rates(self, "mask_ratio")
        has_variance = self.patch_values > 1 or not self.norm_pix
        check(has_variance, "norm_pix", self.norm_pix, "False where a patch is a single number")
        num_kept(self.encoder.num_patches, self.mask_ratio)

    @property
    def encoder(self) -> ViTConfig:
        """The encoder is a ViT with fixed positions and no head."""
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
            init="trunc_normal",
        )

    @property
    def patch_values(self) -> int:
        """Numbers in one patch, ``3 P^2``."""
        return self.num_channels * self.patch_size**2


class MAE(nn.Module):
    """Masked autoencoder (MAE, section 3).

    ``encoder`` is a whole ``ViT`` that is given only some of its patches; ``decoder`` predicts the
    pixels of all patches from them. Images are floats, normalised with ImageNet's mean and standard
    deviation in the released models. Set ``model.activation_checkpointing = True`` to trade time
    for memory in training. New weights come from PyTorch's global random state.
    """

    def __init__(self, config: MAEConfig):
        super().__init__()
        self.config = config
        self.encoder = ViT(config.encoder)
        self.decoder = MAEDecoder(config)
        _init_mae(self)

    activation_checkpointing = shared_checkpointing("encoder", "decoder")

    def forward(
        self, images: Float[Tensor, "batch channels height width"], mask: PatchMask
    ) -> Float[Tensor, "batch patches values"]:
        """Predicted pixels of every patch, seen or not, in the order of ``mmlab.nn.patchify``.

        ``mask`` comes from ``mmlab.nn.random_masking``. ValueError if the images do not fit the
        configuration.
        """
        return self.decoder(self.encode_visible(images, mask.kept), mask.restore)

    def encode_visible(
        self,
        images: Float[Tensor, "batch channels height width"],
        kept: Int64[Tensor, "batch kept"],
    ) -> Float[Tensor, "batch visible dim"]:
        """Class token and the patches ``kept`` after the encoder, which sees no others."""
        tokens = keep_patches(self.encoder.embed(images), kept, num_prefix_tokens=1)
        return self.encoder.norm(self.encoder.run_blocks(tokens))

    def encode_image(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim"]:
        """Image features: the class token after the encoder has seen the whole image."""
        return self.encoder.encode_image(images)

    def resize_positions(self, image_size: int) -> MAE:
        """Take images of ``image_size`` pixels from now on; returns the model itself.

        Both position tables are fixed, so they are computed anew.
        """
        self.config = replace(self.config, image_size=image_size)
        self.encoder.resize_positions(image_size)
        table = _decoder_positions(self.config).to(self.decoder.position_embedding)
        self.decoder.position_embedding = nn.Parameter(table, requires_grad=False)
        return self


class MAEDecoder(nn.Module):
    """Predicts the pixels of all patches from the encoder's tokens (MAE, section 3, "MAE decoder").

    It is used in pretraining only. One learned vector, ``mask_token``, stands in every empty place;
    only the position that is added to it says which one.
    """

    def __init__(self, config: MAEConfig):
        super().__init__()
        dim = config.decoder_dim
        self.activation_checkpointing = False
        self.embedding = nn.Linear(config.dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        table = _decoder_positions(config)
        self.position_embedding = nn.Parameter(table, requires_grad=False)
        self.blocks = nn.ModuleList(_decoder_block(config) for _ in range(config.decoder_depth))
        self.norm = nn.LayerNorm(dim, eps=config.norm_eps)
        self.prediction = nn.Linear(dim, config.patch_values)

    def forward(
        self,
        visible: Float[Tensor, "batch visible dim"],
        restore: Int64[Tensor, "batch patches"],
    ) -> Float[Tensor, "batch patches values"]:
        """Predicted pixels from the class token and the kept patches, and where they belong."""
        class_token, patches = self.embedding(visible).tensor_split([1], dim=1)
        patches = restore_patches(patches, self.mask_token, restore)
        tokens = torch.cat([class_token, patches], dim=1) + self.position_embedding
        tokens = run_blocks(self.blocks, tokens, None, self.activation_checkpointing)
        return self.prediction(self.norm(tokens)[:, 1:])


def _decoder_positions(config: MAEConfig) -> Float[Tensor, "1 tokens width"]:
    return sincos_positions(config.encoder.grid, config.decoder_dim, num_prefix_tokens=1)


def _decoder_block(config: MAEConfig) -> TransformerBlock:
    return TransformerBlock(
        config.decoder_dim,
        config.decoder_num_heads,
        config.decoder_mlp_dim,
        activation=config.activation,
        norm_eps=config.norm_eps,
    )


def _init_mae(model: MAE) -> None:
    """Initialisation of ``models_mae.py``; the bias of the patch embedding keeps PyTorch's."""
    model.apply(init_xavier)
    nn.init.xavier_uniform_(model.encoder.patch_embedding.projection.weight.flatten(1))
    nn.init.normal_(model.encoder.class_token, std=0.02)
    nn.init.normal_(model.decoder.mask_token, std=0.02)


# Sizes: MAE, sections 4 and A; the decoder is the same for all.
MAE_B_16 = MAEConfig(dim=768, depth=12, num_heads=12, mlp_dim=3072)
MAE_L_16 = MAEConfig(dim=1024, depth=24, num_heads=16, mlp_dim=4096)
MAE_H_14 = MAEConfig(patch_size=14, dim=1280, depth=32, num_heads=16, mlp_dim=5120)

# Ours, for 48-pixel images and CPU cores: the encoder sees 16 of 64 patches.
MAE_MINI = MAEConfig(
    image_size=48,
    patch_size=6,
    dim=128,
    depth=4,
    num_heads=4,
    mlp_dim=512,
    decoder_dim=64,
    decoder_depth=2,
    decoder_num_heads=4,
    decoder_mlp_dim=256,
)


def pixel_targets(
    images: Float[Tensor, "batch channels height width"], patch_size: int, norm_pix: bool
) -> Float[Tensor, "batch patches values"]:
    """What the decoder shall predict: the pixels of each patch, as they are or normalised.

    With ``norm_pix`` each patch has its mean taken off and is divided by ``sqrt(variance + 1e-6)``,
    over all its values, channels together; the variance is the unbiased one, as in the code.
    """
    patches = patchify(images, patch_size)
    if not norm_pix:
        return patches
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + 1e-6).sqrt()


def reconstruction_loss(
    predictions: Float[Tensor, "batch patches values"],
    targets: Float[Tensor, "batch patches values"],
    removed: Bool[Tensor, "batch patches"],
) -> Float[Tensor, ""]:
    """Mean squared error of the removed patches; the others do not count (MAE, section 3)."""
    error = (predictions.float() - targets.float()).square().mean(dim=-1)
    return (error * removed).sum() / removed.sum()


class MAEPretraining(nn.Module):
    """An ``MAE`` in pretraining: hide patches at random, predict their pixels (MAE, section 3).

    ``network`` is the model. ValueError if its ``mask_ratio`` hides no patch: nothing would be left
    to predict.
    """

    def __init__(self, network: MAE):
        super().__init__()
        ratio, num_patches = network.config.mask_ratio, network.encoder.config.num_patches
        hides = num_kept(num_patches, ratio) < num_patches
        check(hides, "mask_ratio", ratio, "large enough to hide a patch")
        self.network = network

    def losses(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The loss on ``batch["images"]`` (floats).

        ``batch["noise"]``, uniform in [0, 1) and of shape (batch, patches), chooses the patches;
        without it, it is drawn from PyTorch's global random state.
        """
        images, config = batch["images"], self.network.config
        noise = batch.get("noise")
        if noise is None:
            num_patches = self.network.encoder.config.num_patches
            noise = torch.rand(len(images), num_patches, device=images.device)
        mask = random_masking(noise, config.mask_ratio)
        predictions = self.network(images, mask)
        targets = pixel_targets(images, config.patch_size, config.norm_pix)
        return {"reconstruction": reconstruction_loss(predictions, targets, mask.removed)}


class PatchAverageViT(ViT):
    """The ViT that MAE fine-tunes: its image features are the average of the patch tokens.

    The class token stays in the sequence but is not read, and the only norm after the blocks,
    ``fc_norm``, comes after the average, not before (``models_vit.py`` with ``global_pool``).
    """

    def __init__(self, config: ViTConfig):
        super().__init__(config)
        # Another name than in a ViT, so that neither takes the other's weights unnoticed.
        self.fc_norm, self.norm = self.norm, nn.Identity()

    def encode_image(
        self, images: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch dim"]:
        """The normalised average of the patch tokens."""
        patches = self.forward_tokens(images)[:, 1:]
        return self.fc_norm(patches.mean(dim=1))


def mae_classifier(
    model: MAE, num_classes: int, pool: str = "average", drop_path: float = 0.0
) -> ViT:
    """A ViT for fine-tuning that starts from the encoder of a pretrained ``model``.

    ``pool="average"`` is MAE's own way, with a fresh norm (``PatchAverageViT``);
    ``"class_token"`` gives a plain ``ViT`` with the encoder's norm, whose ``encode_image`` is what
    a linear probe reads. Either way the positions may now learn, and the head is fresh and close to
    zero. ``num_classes=0`` leaves it out. ValueError for another ``pool``.
    """
    kinds = {"average": PatchAverageViT, "class_token": ViT}
    check(pool in kinds, "pool", pool, "one of " + ", ".join(map(repr, kinds)))
    config = replace(
        model.config.encoder, num_classes=num_classes, positions="learned", drop_path=drop_path
    )
    classifier = kinds[pool](config)
    pretrained = model.encoder.state_dict()
    if pool == "average":
        pretrained = {key: t for key, t in pretrained.items() if not key.startswith("norm.")}
    classifier.load_state_dict(classifier.state_dict() | pretrained)
    if classifier.head is not None:
        nn.init.trunc_normal_(classifier.head.weight, std=2e-5)
    return classifier
