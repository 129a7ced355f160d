import math
from dataclasses import replace

import jaxtyping
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis import count_parameters, record_attention
from mmlab.models import mae
from mmlab.models.mae import (
    MAE,
    MAEConfig,
    MAEPretraining,
    PatchAverageViT,
    mae_classifier,
    pixel_targets,
    reconstruction_loss,
)
from mmlab.models.vit import ViTClassification
from mmlab.nn import patchify, random_masking, sincos_positions

TINY = MAEConfig(
    image_size=16,
    patch_size=4,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=32,
    decoder_dim=16,
    decoder_depth=2,
    decoder_num_heads=2,
    decoder_mlp_dim=48,
)

# Computed from the official code at 224 pixels: all and trainable parameters of the whole, of the
# encoder, of the decoder. The two fixed position tables are what does not train.
COUNTS = {
    "MAE_B_16": [(111_907_840, 111_655_680), (85_798_656, 85_647_360), (26_109_184, 26_008_320)],
    "MAE_L_16": [(329_541_888, 329_239_296), (303_301_632, 303_099_904), (26_240_256, 26_139_392)],
    "MAE_H_14": [(657_074_508, 656_613_964), (630_764_800, 630_435_840), (26_309_708, 26_178_124)],
}
# GMAC of one image at 75 %: encoder, decoder; and the encoder at 0 %.
GMACS = {
    "MAE_B_16": (4.408, 5.373, 17.563),
    "MAE_L_16": (15.377, 5.379, 61.554),
    "MAE_H_14": (41.433, 7.129, 167.294),
}


def build(config=TINY, seed=0, **changes):
    torch.manual_seed(seed)
    return MAE(replace(config, **changes)).eval()


def random_images(config=TINY, batch=2, seed=1):
    shape = (batch, config.num_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_noise(config=TINY, batch=2, seed=2):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(batch, config.encoder.num_patches, generator=generator)


def random_mask(config=TINY, ratio=0.75, **options):
    return random_masking(random_noise(config, **options), ratio)


def on_meta(name, **changes):
    with torch.device("meta"):
        return MAE(replace(getattr(mae, name), **changes))


@pytest.fixture
def no_shape_checks():
    """torch.compile cannot trace the shape checker that the tests put around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Sizes


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = on_meta(name)
    for part, expected in zip((model, model.encoder, model.decoder), COUNTS[name], strict=True):
        counted = (count_parameters(part), count_parameters(part, trainable_only=True))
        assert counted == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [("MAE_B_16", 86_567_656), ("MAE_L_16", 304_326_632), ("MAE_H_14", 632_045_800)],
)
def test_parameter_counts_of_classifiers(name, expected):
    model = on_meta(name)
    with torch.device("meta"):
        for pool in ("average", "class_token"):
            classifier = mae_classifier(model, 1000, pool)
            assert count_parameters(classifier, trainable_only=True) == expected


def test_the_mini_model_is_small():
    assert count_parameters(MAE(mae.MAE_MINI)) < 1_000_000


@pytest.mark.parametrize(
    ("name", "visible", "values"),
    [("MAE_B_16", 50, 768), ("MAE_L_16", 50, 768), ("MAE_H_14", 65, 588), ("MAE_MINI", 17, 108)],
)
def test_visible_tokens_and_predicted_values(name, visible, values):
    model = on_meta(name)
    config = model.config
    with torch.device("meta"):
        images, noise = random_on_meta(config)
        mask = random_masking(noise, config.mask_ratio)
        assert model.encode_visible(images, mask.kept).shape == (1, visible, config.dim)
        predictions = model(images, mask)
    assert predictions.shape == (1, config.encoder.num_patches, values)


def random_on_meta(config):
    size = config.image_size
    return torch.empty(1, 3, size, size), torch.empty(1, config.encoder.num_patches)


def counted_macs(run):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops() / 2


def encoder_macs(config, ratio):
    """``N 3P^2 D + L (12 k D^2 + 2 k^2 D)`` for ``k`` visible tokens, the class token included."""
    num_patches, dim = config.encoder.num_patches, config.dim
    visible = 1 + int(num_patches * (1 - ratio))
    blocks = config.depth * (12 * visible * dim**2 + 2 * visible**2 * dim)
    return num_patches * config.patch_values * dim + blocks


def decoder_macs(config, ratio):
    num_patches, dim = config.encoder.num_patches, config.decoder_dim
    visible, tokens = 1 + int(num_patches * (1 - ratio)), num_patches + 1
    blocks = config.decoder_depth * (12 * tokens * dim**2 + 2 * tokens**2 * dim)
    return visible * config.dim * dim + blocks + num_patches * dim * config.patch_values


@pytest.mark.parametrize("name", GMACS)
def test_only_visible_patches_cost_in_the_encoder(name):
    model = on_meta(name, depth=1, decoder_depth=1)
    with torch.device("meta"):
        images, noise = random_on_meta(model.config)
        for ratio in (0.0, 0.5, 0.75):
            mask = random_masking(noise, ratio)
            encoder = counted_macs(lambda kept=mask.kept: model.encode_visible(images, kept))
            whole = counted_macs(lambda mask=mask: model(images, mask))
            assert encoder == encoder_macs(model.config, ratio)
            assert whole - encoder == decoder_macs(model.config, ratio)


@pytest.mark.parametrize("name", GMACS)
def test_macs_are_the_known_figures(name):
    config, (masked, decoder, full) = getattr(mae, name), GMACS[name]
    assert encoder_macs(config, 0.75) / 1e9 == pytest.approx(masked, abs=6e-4)
    # The official code predicts pixels for the class token too, and throws them away.
    thrown_away = config.decoder_dim * config.patch_values
    assert (decoder_macs(config, 0.75) + thrown_away) / 1e9 == pytest.approx(decoder, abs=6e-4)
    assert encoder_macs(config, 0.0) / 1e9 == pytest.approx(full, abs=6e-4)


# The forward pass


def test_forward_follows_the_paper_step_by_step():
    model, images, mask = build(), random_images(), random_mask()
    encoder, decoder = model.encoder, model.decoder
    patches = encoder.patch_embedding(images) + encoder.position_embedding[:, 1:]
    rows = []
    for image in range(2):
        visible = torch.cat([encoder.class_token[0], patches[image, mask.kept[image]]])[None]
        for block in encoder.blocks:
            visible = block(visible)
        visible = decoder.embedding(encoder.norm(visible))
        tokens = decoder.mask_token[0].repeat(17, 1)
        tokens[0] = visible[0, 0]
        tokens[1 + mask.kept[image]] = visible[0, 1:]
        tokens = tokens + decoder.position_embedding
        for block in decoder.blocks:
            tokens = block(tokens)
        rows.append(decoder.prediction(decoder.norm(tokens))[:, 1:])
    torch.testing.assert_close(model(images, mask), torch.cat(rows))


def test_with_all_patches_the_encoder_is_a_vit_up_to_their_order():
    model, images, mask = build(), random_images(), random_mask(ratio=0.0)
    class_token, patches = model.encode_visible(images, mask.kept).tensor_split([1], dim=1)
    expected = model.encoder.forward_tokens(images)
    torch.testing.assert_close(class_token, expected[:, :1])
    restored = patches.gather(1, mask.restore[..., None].expand_as(patches))
    torch.testing.assert_close(restored, expected[:, 1:])
    torch.testing.assert_close(model.encode_image(images), expected[:, 0])


def test_removed_patches_do_not_reach_the_encoder_nor_the_predictions():
    model, mask = build(), random_mask()
    images = random_images().requires_grad_()
    for output in (model.encode_visible(images, mask.kept), model(images, mask)):
        (gradient,) = torch.autograd.grad(output.square().sum(), images)
        reached = patchify(gradient, TINY.patch_size).abs().amax(dim=-1) > 0
        assert torch.equal(reached, ~mask.removed)


def test_the_order_of_the_kept_patches_does_not_matter():
    model, images = build(), random_images()
    mask = random_mask()
    kept = mask.kept.flip(1)
    restore = mask.restore.clone()
    restore[~mask.removed] = mask.kept.shape[1] - 1 - restore[~mask.removed]
    same = mask._replace(kept=kept, restore=restore)
    torch.testing.assert_close(model(images, same), model(images, mask))


def test_images_of_a_batch_do_not_see_each_other():
    model, images, mask = build(), random_images(batch=4), random_mask(batch=4)
    third = type(mask)(*(part[2:3] for part in mask))
    torch.testing.assert_close(model(images, mask)[2:3], model(images[2:3], third))


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="16 x 16 pixels"):
        build()(torch.zeros(2, 3, 20, 20), random_mask())


# The loss


@pytest.mark.parametrize("patch_size", [4, 8])
def test_predicting_zero_costs_the_biased_part_of_the_variance(patch_size):
    config = replace(TINY, patch_size=patch_size)
    images, mask = random_images(config, batch=8), random_mask(config, batch=8)
    targets = pixel_targets(images, patch_size, norm_pix=True)
    n = config.patch_values
    variance = patchify(images, patch_size).var(dim=-1)
    expected = ((n - 1) / n * variance / (variance + 1e-6))[mask.removed].mean()
    loss = reconstruction_loss(torch.zeros_like(targets), targets, mask.removed)
    torch.testing.assert_close(loss, expected)
    assert loss.item() == pytest.approx((n - 1) / n, abs=1e-5)


def test_constant_patches_have_nothing_to_predict():
    images, mask = torch.full((2, 3, 16, 16), 0.7), random_mask()
    targets = pixel_targets(images, 4, norm_pix=True)
    loss = reconstruction_loss(torch.zeros_like(targets), targets, mask.removed)
    assert loss.item() == pytest.approx(0, abs=1e-6)


def test_predicting_the_mean_of_raw_pixels_costs_their_variance():
    images, mask = random_images(), random_mask()
    targets = pixel_targets(images, 4, norm_pix=False)
    assert torch.equal(targets, patchify(images, 4))
    means = targets.mean(dim=-1, keepdim=True).expand_as(targets)
    expected = targets.var(dim=-1, unbiased=False)[mask.removed].mean()
    torch.testing.assert_close(reconstruction_loss(means, targets, mask.removed), expected)


def test_only_removed_patches_count():
    images, mask = random_images(), random_mask()
    targets = pixel_targets(images, 4, norm_pix=False)
    predictions = torch.zeros_like(targets).requires_grad_()
    reconstruction_loss(predictions, targets, mask.removed).backward()
    counted = predictions.grad.abs().amax(dim=-1) > 0
    assert torch.equal(counted, mask.removed)


def test_light_and_contrast_of_a_patch_do_not_change_normalised_targets():
    images = random_images().double()
    light = torch.rand(2, 1, 4, 4).double().repeat_interleave(4, 2).repeat_interleave(4, 3)
    shifted = pixel_targets(images * (1 + light) + 5 * light, 4, norm_pix=True)
    # 1e-6 in the denominator is all that tells contrast.
    torch.testing.assert_close(shifted, pixel_targets(images, 4, True), rtol=0, atol=1e-4)


def test_the_given_noise_or_else_the_seed_chooses_the_patches():
    model, images = MAEPretraining(build()), random_images()
    batch = {"images": images, "noise": random_noise()}
    losses = model.losses(batch)
    assert list(losses) == ["reconstruction"]
    mask = random_mask()
    predictions = model.network(images, mask)
    expected = reconstruction_loss(predictions, pixel_targets(images, 4, True), mask.removed)
    torch.testing.assert_close(losses["reconstruction"], expected)

    def drawn(seed):
        torch.manual_seed(seed)
        return model.losses({"images": images})["reconstruction"].item()

    assert drawn(0) == drawn(0) != drawn(1)


def test_pretraining_learns_to_fill_in_what_it_did_not_see():
    """Images of one colour each: what is missing follows from what is there."""
    colours = torch.randn(64, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    images = colours.expand(-1, -1, 16, 16)
    model = MAEPretraining(build(norm_pix=False))
    frozen = [p.clone() for p in model.parameters() if not p.requires_grad]
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for _ in range(100):
        loss = model.losses({"images": images})["reconstruction"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # All zeros would be the best prediction without a look at the visible patches.
    assert losses[-1] < 0.1 * images.square().mean()
    tables = [p for p in model.parameters() if not p.requires_grad]
    assert len(frozen) == len(tables) == 2
    assert all(torch.equal(old, new) for old, new in zip(frozen, tables, strict=True))


# Positions and initialisation


def test_position_tables_are_fixed_sines():
    model = build()
    for half, dim in ((model.encoder, 24), (model.decoder, 16)):
        table = half.position_embedding
        assert not table.requires_grad
        assert torch.equal(table, sincos_positions((4, 4), dim, num_prefix_tokens=1))
        assert (table[0, 0] == 0).all()
        torch.testing.assert_close(table[0, 1:].square().sum(-1), torch.full((16,), dim / 2))


def test_resized_positions_are_computed_anew():
    model = build()
    assert model.resize_positions(24) is model
    for half, dim in ((model.encoder, 24), (model.decoder, 16)):
        assert torch.equal(half.position_embedding, sincos_positions((6, 6), dim, 1))
        assert not half.position_embedding.requires_grad
    losses = MAEPretraining(model).losses({"images": random_images(model.config)})
    assert losses["reconstruction"].isfinite()
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size=4, got 25"):
        model.resize_positions(25)
    assert model.config.image_size == model.encoder.config.image_size == 24


def test_resized_positions_stay_on_the_device_and_in_the_precision_of_the_model():
    model = build().to("meta", torch.bfloat16).resize_positions(24)
    for half in (model.encoder, model.decoder):
        assert half.position_embedding.device.type == "meta"
        assert half.position_embedding.dtype == torch.bfloat16


@torch.no_grad()
def test_initialisation():
    model = build(dim=256, num_heads=4, decoder_dim=128)
    kernel = model.encoder.patch_embedding.projection
    assert kernel.weight.abs().max() == pytest.approx(math.sqrt(6 / (256 + 48)), rel=1e-2)
    assert kernel.bias.abs().max() == pytest.approx(1 / math.sqrt(48), rel=2e-2)
    for half, dim in ((model.encoder, 256), (model.decoder, 128)):
        bound = half.blocks[0].attention.k_proj.weight.abs().max()
        assert bound == pytest.approx(math.sqrt(6 / (4 * dim)), rel=1e-2)
        assert (half.blocks[0].attention.q_proj.bias == 0).all()
    for token in (model.encoder.class_token, model.decoder.mask_token):
        assert token.std() == pytest.approx(0.02, rel=0.2)
    assert (model.decoder.prediction.bias == 0).all()


# Fine-tuning


def test_the_class_token_classifier_is_the_encoder_with_a_head():
    model, images = build(), random_images()
    classifier = mae_classifier(model, 7, pool="class_token").eval()
    torch.testing.assert_close(classifier.encode_image(images), model.encode_image(images))
    assert classifier.position_embedding.requires_grad
    assert not model.encoder.position_embedding.requires_grad
    assert classifier(images).shape == (2, 7)
    assert classifier.head.weight.abs().max() < 1e-4


def test_the_average_classifier_reads_the_patches_and_normalises_their_average():
    model, images = build(), random_images()
    torch.nn.init.normal_(model.encoder.norm.weight)
    classifier = mae_classifier(model, 7, drop_path=0.1).eval()
    assert isinstance(classifier, PatchAverageViT)
    patches = model.encoder.run_blocks(model.encoder.embed(images))[:, 1:]
    expected = torch.nn.functional.layer_norm(patches.mean(dim=1), (24,), eps=1e-6)
    torch.testing.assert_close(classifier.encode_image(images), expected)
    assert {"fc_norm.weight", "fc_norm.bias"} <= classifier.state_dict().keys()
    assert not {"norm.weight", "norm.bias"} & classifier.state_dict().keys()
    rates = [block.drop_path.rate for block in classifier.blocks]
    assert rates == pytest.approx([0, 0.1])


def test_fine_tuning_leaves_the_pretrained_model_alone():
    model, images = build(), random_images(batch=8)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    training = ViTClassification(mae_classifier(model, 2))
    optimizer = torch.optim.AdamW(training.parameters(), lr=1e-3)
    labels = torch.arange(8) % 2
    losses = []
    for _ in range(60):
        loss = training.losses({"images": images, "labels": labels})["cross_entropy"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(math.log(2), abs=1e-3)
    assert losses[-1] < 0.2
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_a_classifier_takes_larger_images():
    classifier = mae_classifier(build(), 7).resize_positions(24, variant="bicubic")
    assert classifier(torch.randn(2, 3, 24, 24)).shape == (2, 7)


def test_an_unknown_pool_is_refused():
    with pytest.raises(ValueError, match="pool must be one of 'average', 'class_token', got 'max'"):
        mae_classifier(build(), 7, pool="max")


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 225}, "image_size must be a multiple of patch_size=16, got 225"),
        ({"dim": 770}, "dim must be a multiple of num_heads=12, got 770"),
        ({"depth": 0}, "depth must be an integer of at least 1, got 0"),
        ({"decoder_dim": 500}, "decoder_dim must be a multiple of decoder_num_heads=16, got 500"),
        ({"decoder_dim": 510, "decoder_num_heads": 3}, "decoder_dim must be a multiple of 4"),
        ({"decoder_depth": 0}, "decoder_depth must be an integer of at least 1, got 0"),
        ({"mask_ratio": 1.0}, r"mask_ratio must be in \[0, 1\), got 1.0"),
        ({"mask_ratio": 0.999}, "mask_ratio must .* leave at least one of 196 patches, got 0.999"),
        ({"patch_size": 1, "num_channels": 1}, "norm_pix must be False where a patch is a single"),
        ({"activation": "silu"}, "activation must be one of"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        MAEConfig(**changes)


def test_there_is_no_loss_where_nothing_is_hidden():
    with pytest.raises(ValueError, match="mask_ratio must be large enough to hide a patch, got 0"):
        MAEPretraining(build(mask_ratio=0.0))


# Precision, compilation, checkpointing, attention


def pretraining_gradients(model, batch):
    model.zero_grad()
    model.losses(batch)["reconstruction"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_activation_checkpointing_gives_the_same_gradients():
    model = MAEPretraining(build()).train()
    batch = {"images": random_images(), "noise": random_noise()}
    expected = pretraining_gradients(model, batch)
    assert all(
        gradient.abs().max() > 0 for name, gradient in expected.items() if "k_proj.bias" not in name
    )
    model.network.activation_checkpointing = True
    assert model.network.activation_checkpointing
    runs = []
    for half in (model.network.encoder, model.network.decoder):
        half.blocks[0].norm1.register_forward_hook(lambda *_: runs.append(1))
    for name, gradient in pretraining_gradients(model, batch).items():
        assert torch.equal(gradient, expected[name])
    assert len(runs) == 4  # both halves forward, and again during backward


def test_bf16_autocast_stays_close():
    model = MAEPretraining(build())
    batch = {"images": random_images(), "noise": random_noise()}
    expected = model.network(batch["images"], random_mask())
    with torch.autocast("cpu", torch.bfloat16):
        predictions = model.network(batch["images"], random_mask())
        loss = model.losses(batch)["reconstruction"]
    loss.backward()
    # bfloat16 keeps 8 bits: relative steps of 2^-8.
    assert (predictions - expected).abs().max() < 2**-4 * expected.abs().max()
    assert loss.dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


def test_the_encoder_compiles_without_graph_breaks(no_shape_checks):
    model, images, mask = build(depth=1), random_images(), random_mask()
    compiled = torch.compile(model.encode_visible, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images, mask.kept), model.encode_visible(images, mask.kept))


@pytest.mark.parametrize("given", [True, False])
def test_the_pretraining_loss_compiles_without_graph_breaks(given, no_shape_checks):
    model = MAEPretraining(build(depth=1, decoder_depth=1)).train()
    batch = {"images": random_images()} | ({"noise": random_noise()} if given else {})
    compiled = torch.compile(model.losses, fullgraph=True, backend="aot_eager")
    loss = compiled(batch)["reconstruction"]
    loss.backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    if given:
        torch.testing.assert_close(loss, model.losses(batch)["reconstruction"])


def test_compiles_with_checkpointing_and_autocast(no_shape_checks):
    model, images, mask = build(depth=1, decoder_depth=1), random_images(), random_mask()
    model.activation_checkpointing = True
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        expected = model(images, mask)
        torch.testing.assert_close(compiled(images, mask), expected, rtol=2**-5, atol=2**-7)


@pytest.mark.slow
def test_compiles_to_machine_code(no_shape_checks):
    model, images, mask = build(), random_images(), random_mask()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images, mask), model(images, mask))


def test_attention_of_both_halves_is_recorded():
    model, images, mask = build(), random_images(), random_mask()
    with record_attention(model) as maps:
        model(images, mask)
    tokens = {name: weights.shape[-1] for name, weights in maps.items()}
    assert len(tokens) == 4
    assert {tokens[name] for name in tokens if name.startswith("encoder.")} == {5}
    assert {tokens[name] for name in tokens if name.startswith("decoder.")} == {17}


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    model = MAEPretraining(build())
    batch = {"images": random_images(), "noise": random_noise()}
    expected = model.losses(batch)["reconstruction"]
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        loss = model.cuda().losses({key: t.cuda() for key, t in batch.items()})["reconstruction"]
        assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
        drawn = model.losses({"images": batch["images"].cuda()})["reconstruction"]
    assert drawn.isfinite()
