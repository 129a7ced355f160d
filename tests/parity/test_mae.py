"""MAE against transformers: loss, predictions and mask for the same noise, and gradients.

All parameters are random, position tables and tokens included: a fresh model of transformers 5 has
zeros there, and a zero hides mistakes.
"""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTMAEConfig, ViTMAEForPreTraining

from mmlab.hub.mapping import convert
from mmlab.hub.tables.mae import LAYOUTS
from mmlab.models.mae import MAE, MAEConfig, MAEPretraining
from mmlab.nn import patchify, random_masking
from tests.parity.test_vit import images, randomise

TOLERANCE = dict(rtol=0, atol=1e-5)
TABLES = {layout.name: layout for layout in LAYOUTS}
SIZES = {
    "small": dict(
        image_size=16,
        patch_size=4,
        dim=32,
        depth=2,
        num_heads=4,
        mlp_dim=64,
        decoder_dim=24,
        decoder_depth=3,
        decoder_num_heads=2,
        decoder_mlp_dim=40,
    ),
    "wide": dict(
        image_size=40,
        patch_size=8,
        dim=48,
        depth=3,
        num_heads=3,
        mlp_dim=80,
        decoder_dim=32,
        decoder_depth=1,
        decoder_num_heads=4,
        decoder_mlp_dim=64,
        mask_ratio=0.6,
    ),
}
NAMES = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_dim": "intermediate_size",
    "decoder_dim": "decoder_hidden_size",
    "decoder_depth": "decoder_num_hidden_layers",
    "decoder_num_heads": "decoder_num_attention_heads",
    "decoder_mlp_dim": "decoder_intermediate_size",
    "mask_ratio": "mask_ratio",
    "norm_pix": "norm_pix_loss",
    "norm_eps": "layer_norm_eps",
}


def our_config(size: str, norm_pix: bool = True) -> MAEConfig:
    return MAEConfig(**SIZES[size], norm_pix=norm_pix, norm_eps=1e-12)


def hf_model(config: MAEConfig) -> ViTMAEForPreTraining:
    options = {theirs: getattr(config, ours) for ours, theirs in NAMES.items()}
    return randomise(ViTMAEForPreTraining(ViTMAEConfig(**options)))


def to_ours(layout: str, state: dict) -> dict:
    return convert(layout, TABLES[layout].rows, state)[0]


def from_ours(layout: str, state: dict) -> dict:
    return convert(layout, [row.reversed() for row in TABLES[layout].rows], state)[0]


def our_model(config: MAEConfig, theirs: ViTMAEForPreTraining) -> MAE:
    model = MAE(config).eval()
    model.load_state_dict(to_ours("mae-hf-memory", theirs.state_dict()))
    return model


def noise_for(config: MAEConfig, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.rand(batch, config.encoder.num_patches, generator=generator)


def hf_order(values: torch.Tensor, patch_size: int) -> torch.Tensor:
    """The values of patches in the order (row, column, channel)."""
    apart = values.unflatten(-1, (3, patch_size, patch_size))
    return apart.permute(0, 1, 3, 4, 2).flatten(2)


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Zeros where nothing trains, so that the tables can convert them."""
    named = model.named_parameters()
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in named}


@pytest.mark.parametrize("norm_pix", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_loss_predictions_mask_and_gradients_agree_with_transformers(size, norm_pix):
    config = our_config(size, norm_pix)
    theirs = hf_model(config)
    ours = our_model(config, theirs)
    pixels, noise = images(config.image_size), noise_for(config)
    mask = random_masking(noise, config.mask_ratio)
    expected = theirs(pixel_values=pixels, noise=noise)
    expected.loss.backward()
    loss = MAEPretraining(ours).losses({"images": pixels, "noise": noise})["reconstruction"]
    loss.backward()
    torch.testing.assert_close(loss, expected.loss, **TOLERANCE)
    predictions = hf_order(ours(pixels, mask), config.patch_size)
    torch.testing.assert_close(predictions, expected.logits, **TOLERANCE)
    assert torch.equal(mask.removed, expected.mask.bool())
    assert torch.equal(mask.restore, expected.ids_restore)
    our_gradients = gradients(ours)
    for name, gradient in to_ours("mae-hf-memory", gradients(theirs)).items():
        torch.testing.assert_close(our_gradients[name], gradient, **TOLERANCE, msg=name)
        trains = not name.endswith(("k_proj.bias", "position_embedding"))
        assert gradient.abs().max() > 1e-6 or not trains, name


@pytest.mark.parametrize("size", SIZES)
def test_patches_are_cut_as_transformers_cuts_them(size):
    config = our_config(size)
    pixels = images(config.image_size)
    ours = hf_order(patchify(pixels, config.patch_size), config.patch_size)
    assert torch.equal(ours, hf_model(config).patchify(pixels))


@pytest.mark.parametrize("size", SIZES)
def test_encoder_tokens_agree_with_transformers(size):
    config = our_config(size)
    theirs = hf_model(config)
    ours = our_model(config, theirs)
    pixels, noise = images(config.image_size), noise_for(config)
    with torch.no_grad():
        expected = theirs.vit(pixel_values=pixels, noise=noise).last_hidden_state
        tokens = ours.encode_visible(pixels, random_masking(noise, config.mask_ratio).kept)
    torch.testing.assert_close(tokens, expected, **TOLERANCE)


@pytest.mark.parametrize("size", SIZES)
def test_files_that_transformers_saves_are_read(size, tmp_path):
    config = our_config(size)
    theirs = hf_model(config)
    theirs.save_pretrained(tmp_path)
    read = to_ours("mae-hf-saved", load_file(tmp_path / "model.safetensors"))
    expected = to_ours("mae-hf-memory", theirs.state_dict())
    assert read.keys() == expected.keys()
    assert all(torch.equal(read[key], expected[key]) for key in read)


@pytest.mark.parametrize("layout", ["mae-hf", "mae-hf-saved"])
def test_transformers_reads_what_we_write(layout, tmp_path):
    config = our_config("small")
    theirs = hf_model(config)
    torch.manual_seed(5)
    ours = randomise(MAE(config), seed=6)
    theirs.config.save_pretrained(tmp_path)
    state = from_ours(layout, ours.state_dict())
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs, report = ViTMAEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys"))
    pixels, noise = images(config.image_size), noise_for(config)
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=pixels, noise=noise).loss
        loss = MAEPretraining(ours).losses({"images": pixels, "noise": noise})["reconstruction"]
    torch.testing.assert_close(loss, expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["MAE_B_16", "MAE_L_16", "MAE_H_14"])
def test_published_sizes_fit_transformers_strictly(name):
    from mmlab.models import mae

    with torch.device("meta"):
        ours = MAE(getattr(mae, name))
        options = {theirs: getattr(ours.config, field) for field, theirs in NAMES.items()}
        theirs = ViTMAEForPreTraining(ViTMAEConfig(**options))
    state = from_ours("mae-hf-memory", ours.state_dict())
    theirs.load_state_dict(state, strict=True, assign=True)
