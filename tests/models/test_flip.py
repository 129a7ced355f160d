import math
from dataclasses import replace

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmlab.analysis import count_parameters, record_attention
from mmlab.models import flip
from mmlab.models.clip import CLIP, CLIPConfig
from mmlab.models.flip import FLIP, FLIPConfig, FLIPPretraining
from mmlab.nn import num_kept, patchify, random_masking, sincos_positions

TINY = FLIPConfig(
    image_size=16,
    patch_size=4,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=32,
    vocab_size=50,
    context_length=8,
    text_dim=16,
    text_depth=2,
    text_num_heads=2,
    text_mlp_dim=40,
    embed_dim=12,
)

# Computed from the official code at 224 pixels: image encoder without its table, the table, image
# projection, text encoder, text projection, all that trains (with the logit scale).
COUNTS = {
    "FLIP_B_16": (85_647_360, 151_296, 393_216, 53_473_792, 262_144, 139_776_513),
    "FLIP_L_16": (303_099_904, 201_728, 786_432, 108_522_240, 589_824, 412_998_401),
    "FLIP_L_14": (302_915_584, 263_168, 786_432, 108_522_240, 589_824, 412_814_081),
    "FLIP_H_14": (630_435_840, 328_960, 1_310_720, 333_599_744, 1_048_576, 966_394_881),
}
STORED = {
    "FLIP_B_16": 139_927_809,
    "FLIP_L_16": 413_200_129,
    "FLIP_L_14": 413_077_249,
    "FLIP_H_14": 966_723_841,
}
# GMAC of an image with 0, 50 and 75 % of its patches dropped, and of a caption.
GMACS = {
    "FLIP_B_16": ((17.563, 8.705, 4.409), 1.221),
    "FLIP_L_16": ((61.554, 30.534, 15.377), 2.737),
    "FLIP_H_14": ((167.295, 82.717, 41.435), 9.715),
}
RATIOS = (0.0, 0.5, 0.75)


def build(config=TINY, seed=0, **changes):
    torch.manual_seed(seed)
    return FLIP(replace(config, **changes)).eval()


def random_images(config=TINY, batch=4, seed=1):
    shape = (batch, config.num_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_ids(config=TINY, batch=4, length=None, seed=2):
    """Captions without padding."""
    shape = (batch, length or config.context_length)
    return torch.randint(1, config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def uniform(batch, tokens, seed=3):
    return torch.rand(batch, tokens, generator=torch.Generator().manual_seed(seed))


def random_batch(config=TINY, batch=4):
    return {
        "images": random_images(config, batch),
        "input_ids": random_ids(config, batch),
        "image_noise": uniform(batch, config.image.num_patches),
        "text_noise": uniform(batch, config.context_length, seed=4),
    }


def on_meta(name, **changes):
    with torch.device("meta"):
        return FLIP(replace(getattr(flip, name), **changes))


@pytest.fixture
def no_shape_checks():
    """torch.compile cannot trace the shape checker that the tests put around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Sizes and costs


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_counts(name):
    model = on_meta(name)
    assert (
        count_parameters(model.image_encoder, trainable_only=True),
        model.image_encoder.position_embedding.numel(),
        count_parameters(model.image_projection),
        count_parameters(model.text_encoder, trainable_only=True),
        count_parameters(model.text_projection),
        count_parameters(model, trainable_only=True),
    ) == COUNTS[name]
    assert count_parameters(model) == STORED[name]


def test_the_mini_model_is_small():
    assert count_parameters(FLIP(flip.FLIP_MINI)) < 3_000_000


def image_macs(config, ratio):
    """``N 3P^2 D + L (12 k D^2 + 2 k^2 D) + D E``, ``k`` the kept patches and the class token."""
    num_patches, dim = config.image.num_patches, config.dim
    visible = 1 + num_kept(num_patches, ratio)
    stem = num_patches * config.num_channels * config.patch_size**2 * dim
    blocks = config.depth * (12 * visible * dim**2 + 2 * visible**2 * dim)
    return stem + blocks + dim * config.embed_dim


def text_macs(config):
    """``l (12 T d^2 + 2 T^2 d) + d E``."""
    tokens, dim = config.context_length, config.text_dim
    blocks = config.text_depth * (12 * tokens * dim**2 + 2 * tokens**2 * dim)
    return blocks + dim * config.embed_dim


def counted_macs(run):
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops() / 2


@pytest.mark.parametrize("name", COUNTS)
def test_dropped_patches_cost_nothing(name):
    model = on_meta(name, depth=2, text_depth=1)
    config = model.config
    with torch.device("meta"):
        images = torch.empty(1, 3, config.image_size, config.image_size)
        ids = torch.empty(1, config.context_length, dtype=torch.int64)
        noise = torch.empty(1, config.image.num_patches)
        for ratio in RATIOS:
            kept = random_masking(noise, ratio).kept
            counted = counted_macs(lambda kept=kept: model.encode_image(images, kept))
            assert counted == image_macs(config, ratio)
        assert counted_macs(lambda: model.encode_image(images)) == image_macs(config, 0.0)
        assert counted_macs(lambda: model.encode_text(ids)) == text_macs(config)


@pytest.mark.parametrize("name", GMACS)
def test_macs_are_the_known_figures(name):
    config, (image, text) = getattr(flip, name), GMACS[name]
    for ratio, expected in zip(RATIOS, image, strict=True):
        assert image_macs(config, ratio) / 1e9 == pytest.approx(expected, abs=6e-4)
    assert text_macs(config) / 1e9 == pytest.approx(text, abs=6e-4)


def test_macs_explain_the_cost_that_the_paper_prints_for_l_16():
    config = flip.FLIP_L_16
    full, half, quarter = (image_macs(config, ratio) + text_macs(config) for ratio in RATIOS)
    # FLIP, table 1a: 0.52 and 0.28 of the FLOPs; section 3: the text tower costs 4.4 %.
    assert half / full == pytest.approx(0.52, abs=0.005)
    assert quarter / full == pytest.approx(0.28, abs=0.005)
    assert text_macs(config) / image_macs(config, 0.0) == pytest.approx(0.044, abs=6e-4)


# The image tower


def test_images_are_the_average_of_all_tokens_after_the_last_norm():
    model, images = build(), random_images()
    vit = model.image_encoder
    patches = vit.patch_embedding(images) + sincos_positions((4, 4), 24)
    tokens = torch.cat([vit.class_token.expand(4, 1, -1), patches], dim=1)
    for block in vit.blocks:
        tokens = block(tokens)
    pooled = F.layer_norm(tokens, (24,), vit.norm.weight, vit.norm.bias, 1e-6).mean(dim=1)
    expected = pooled @ model.image_projection.weight.T
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(model.encode_image(images), expected)


def test_a_masked_image_is_the_average_over_what_is_left():
    model, images = build(), random_images()
    kept = random_masking(uniform(4, 16), 0.75).kept
    vit = model.image_encoder
    patches = vit.patch_embedding(images) + sincos_positions((4, 4), 24)
    left = torch.stack([patches[image, kept[image]] for image in range(4)])
    tokens = vit.run_blocks(torch.cat([vit.class_token.expand(4, 1, -1), left], dim=1))
    assert tokens.shape[1] == 5
    pooled = vit.norm(tokens).mean(dim=1)
    expected = F.normalize(model.image_projection(pooled), dim=-1)
    torch.testing.assert_close(model.encode_image(images, kept), expected)


def test_dropped_patches_cannot_influence_the_features():
    model, images = build(), random_images().requires_grad_()
    mask = random_masking(uniform(4, 16), 0.5)
    features = model.encode_image(images, mask.kept)
    (gradient,) = torch.autograd.grad((features * torch.randn(4, 12)).sum(), images)
    reached = patchify(gradient, TINY.patch_size).abs().amax(dim=-1) > 0
    assert torch.equal(reached, ~mask.removed)


def test_keeping_all_patches_in_any_order_is_the_unmasked_model():
    model, images = build(), random_images()
    kept = random_masking(uniform(4, 16), 0.0).kept
    torch.testing.assert_close(model.encode_image(images, kept), model.encode_image(images))


def test_the_order_of_the_kept_patches_does_not_matter_but_their_place_does():
    model, images = build(), random_images()
    kept = random_masking(uniform(4, 16), 0.5).kept
    expected = model.encode_image(images, kept)
    torch.testing.assert_close(model.encode_image(images, kept.flip(1)), expected)
    assert not torch.allclose(model.encode_image(images.flip(2), 15 - kept), expected, atol=1e-4)


def test_without_masks_it_is_a_clip_with_average_pooling_fixed_positions_and_one_norm_less():
    ours, images, ids = build(), random_images(), random_ids()
    sizes = {name: getattr(TINY, name) for name in vars(TINY).keys() & vars(CLIPConfig()).keys()}
    theirs = CLIP(CLIPConfig(**sizes)).eval()
    torch.nn.init.zeros_(ours.image_encoder.patch_embedding.projection.bias)
    missing, left_over = theirs.load_state_dict(ours.state_dict(), strict=False)
    assert all(key.startswith("image_encoder.norm_pre.") for key in missing)
    assert left_over == ["image_encoder.patch_embedding.projection.bias"]
    encoder = theirs.image_encoder
    encoder.norm_pre = torch.nn.Identity()
    tokens = encoder.norm(encoder.forward_tokens(images))
    features = F.normalize(theirs.image_projection(tokens.mean(dim=1)), dim=-1)
    torch.testing.assert_close(ours.encode_image(images), features)
    # The text towers differ in who sees whom, and in what is read out.
    assert not torch.allclose(ours.encode_text(ids), theirs.encode_text(ids), atol=1e-3)


def test_resized_positions_are_computed_anew():
    model = build()
    assert model.resize_positions(24) is model
    assert torch.equal(model.image_encoder.position_embedding, sincos_positions((6, 6), 24, 1))
    assert model.encode_image(random_images(model.config)).shape == (4, 12)
    with pytest.raises(ValueError, match="image_size must be a multiple of patch_size=4, got 25"):
        model.resize_positions(25)
    assert model.config.image_size == model.image_encoder.config.image_size == 24


# The text tower


def test_captions_are_their_first_token_after_the_last_norm():
    model, ids = build(), random_ids()
    text = model.text_encoder
    tokens = text.token_embedding.weight[ids] + text.position_embedding
    for block in text.blocks:
        tokens = block(tokens)
    expected = text.norm(tokens)[:, 0] @ model.text_projection.weight.T
    expected = expected / expected.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(model.encode_text(ids), expected)


def test_padding_takes_part():
    model, ids = build(), random_ids(length=3)
    before = model.encode_text(ids)
    with torch.no_grad():
        model.text_encoder.token_embedding.weight[TINY.pad_id, 0] += 1
    assert not torch.allclose(model.encode_text(ids), before, atol=1e-3)


def test_every_token_sees_every_other():
    model, ids = build(), random_ids()
    with record_attention(model) as maps:
        model.encode_text(ids)
    for weights in maps.values():
        assert weights.shape == (4, 2, 8, 8)
        assert (weights > 0).all()


def test_how_far_a_batch_was_padded_does_not_matter():
    model, ids = build(), random_ids(length=3)
    longer = F.pad(ids, (0, 2), value=TINY.pad_id)
    assert torch.equal(model.encode_text(ids), model.encode_text(longer))


def test_captions_that_are_too_long_are_refused():
    with pytest.raises(ValueError, match="a caption may have 8 tokens, got 9"):
        build().encode_text(random_ids(length=9))


# Logits and loss


def test_features_have_length_one_and_logits_are_scaled_cosines():
    model, images, ids = build(), random_images(batch=3), random_ids(batch=5)
    image_features, text_features = model.encode_image(images), model.encode_text(ids)
    for features in (image_features, text_features):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
    assert model.scale().item() == pytest.approx(1 / 0.07, rel=1e-5)
    expected = model.scale() * image_features @ text_features.T
    torch.testing.assert_close(model(images, ids), expected)


@pytest.mark.parametrize(
    ("value", "scale", "moves"),
    [(-0.1, 1.0, False), (2.0, math.exp(2), True), (math.log(100) + 0.1, 100.0, False)],
)
def test_the_scale_is_limited_and_does_not_learn_outside(value, scale, moves):
    model = FLIPPretraining(build())
    model.network.logit_scale.data.fill_(value)
    assert model.network.scale().item() == pytest.approx(scale, rel=1e-5)
    model.losses(random_batch())["contrastive"].backward()
    assert (model.network.logit_scale.grad != 0).item() is moves


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_is_the_symmetric_cross_entropy_of_the_kept_patches(training):
    model, batch = FLIPPretraining(build()).train(training), random_batch()
    kept = random_masking(batch["image_noise"], 0.5).kept if training else None
    images = model.network.encode_image(batch["images"], kept)
    texts = model.network.encode_text(batch["input_ids"])
    logits = images @ texts.T / 0.07
    rows = logits.logsumexp(dim=1) - logits.diagonal()
    columns = logits.logsumexp(dim=0) - logits.diagonal()
    losses = model.losses(batch)
    assert list(losses) == ["contrastive"]
    torch.testing.assert_close(losses["contrastive"], (rows.mean() + columns.mean()) / 2)


def test_mask_ratio_zero_is_exactly_the_unmasked_model():
    batch = random_batch()
    unmasked = FLIPPretraining(build(mask_ratio=0.75)).eval().losses(batch)["contrastive"]
    from_config = FLIPPretraining(build(mask_ratio=0.0)).train()
    assert torch.equal(from_config.losses(batch)["contrastive"], unmasked)
    tuning = FLIPPretraining(build(mask_ratio=0.75), mask_ratio=0.0).train()
    assert torch.equal(tuning.losses(batch)["contrastive"], unmasked)


def test_the_lean_loss_is_the_same():
    network, batch = build(), random_batch()
    expected = FLIPPretraining(network).train().losses(batch)["contrastive"]
    lean = FLIPPretraining(network, chunk_size=3).train().losses(batch)["contrastive"]
    torch.testing.assert_close(lean, expected)


def test_masks_differ_by_draw_and_agree_by_seed():
    model, batch = FLIPPretraining(build()).train(), random_batch()
    del batch["image_noise"]

    def drawn(seed):
        torch.manual_seed(seed)
        return model.losses(batch)["contrastive"].item()

    assert drawn(0) == drawn(0) != drawn(1)


def kept_tokens(text_mask, ids, ratio=0.5, batch=None):
    """The tokens that enter the text tower while training."""
    model = FLIPPretraining(build(text_mask=text_mask, text_mask_ratio=ratio)).train()
    seen = []
    model.network.text_encoder.register_forward_hook(lambda _, inputs, output: seen.append(inputs))
    model.losses((batch or random_batch()) | {"input_ids": ids})
    return seen[0][1]


def test_text_masking_drops_tokens_and_keeps_the_first():
    ids = random_ids()
    assert kept_tokens("none", ids) is None
    kept = kept_tokens("random", ids)
    assert kept.shape == (4, 4)
    assert (kept[:, 0] == 0).all()
    assert all(len(set(row)) == 4 for row in kept.tolist())
    other = random_batch() | {"text_noise": uniform(4, 8, seed=9)}
    assert not torch.equal(kept_tokens("random", ids, batch=other), kept)


@pytest.mark.parametrize("length", [2, 4, 6])
def test_padding_first_drops_words_only_when_no_padding_is_left(length):
    kept = kept_tokens("padding_first", random_ids(length=length))
    words_kept = (kept < length).sum(dim=1)
    assert (words_kept == min(length, 4)).all()


def test_masked_text_costs_less_and_dropped_tokens_do_not_reach_the_features():
    model, ids = build(), random_ids()
    kept = torch.tensor([[0, 2, 5, 6]] * 4)
    changed = ids.clone()
    changed[:, [1, 3, 4, 7]] = 1
    assert torch.equal(model.encode_text(changed, kept), model.encode_text(ids, kept))
    with record_attention(model) as maps:
        model.encode_text(ids, kept)
    assert {weights.shape[-1] for weights in maps.values()} == {4}


def test_text_masking_acts_only_in_training():
    batch = random_batch()
    masked = FLIPPretraining(build(text_mask="random")).eval()
    plain = FLIPPretraining(build()).eval()
    assert torch.equal(masked.losses(batch)["contrastive"], plain.losses(batch)["contrastive"])


@pytest.mark.parametrize("ratio", RATIOS)
def test_training_matches_images_with_their_captions(ratio):
    """Eight colours and their names: half of an image tells its colour as well as all of it."""
    colours = torch.randn(8, 3, 1, 1, generator=torch.Generator().manual_seed(0))
    batch = {"images": colours.expand(-1, -1, 16, 16), "input_ids": torch.arange(1, 9)[:, None]}
    model = FLIPPretraining(build(mask_ratio=ratio)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(50):
        loss = model.losses(batch)["contrastive"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    logits = model.network.eval()(batch["images"], batch["input_ids"])
    assert losses[-1] < 0.3 < math.log(8) - 0.5 < losses[0]
    assert (logits.argmax(dim=1) == torch.arange(8)).all()


# Initialisation


@torch.no_grad()
def test_initialisation():
    model = build(dim=256, num_heads=4, text_dim=128, vocab_size=500)
    vit, text = model.image_encoder, model.text_encoder
    kernel = vit.patch_embedding.projection
    assert kernel.weight.abs().max() == pytest.approx(math.sqrt(6 / (256 + 48)), rel=1e-2)
    assert (kernel.bias == 0).all()
    for tower, dim in ((vit, 256), (text, 128)):
        bound = tower.blocks[0].attention.q_proj.weight.abs().max()
        assert bound == pytest.approx(math.sqrt(6 / (4 * dim)), rel=1e-2)
        assert (tower.blocks[0].mlp.fc1.bias == 0).all()
    for learned in (vit.class_token, text.token_embedding.weight, text.position_embedding):
        assert learned.std() == pytest.approx(0.02, rel=0.15)
    assert not vit.position_embedding.requires_grad
    assert text.position_embedding.requires_grad


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 225}, "image_size must be a multiple of patch_size=16, got 225"),
        ({"dim": 770}, "dim must be a multiple of num_heads=12, got 770"),
        ({"text_dim": 500}, "text_dim must be a multiple of text_num_heads=8, got 500"),
        ({"text_depth": 0}, "text_depth must be an integer of at least 1, got 0"),
        ({"embed_dim": 0}, "embed_dim must be an integer of at least 1, got 0"),
        ({"pad_id": 30523}, "pad_id must be below 30523, got 30523"),
        ({"mask_ratio": 1.0}, r"mask_ratio must be in \[0, 1\), got 1.0"),
        ({"mask_ratio": 0.999}, "leave at least one of 196 patches, got 0.999"),
        ({"text_mask": "words"}, "text_mask must be one of 'none', 'random', 'padding_first'"),
        ({"text_mask_ratio": -0.5}, r"text_mask_ratio must be in \[0, 1\), got -0.5"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        FLIPConfig(**changes)


def test_a_tuning_ratio_that_leaves_nothing_is_refused():
    with pytest.raises(ValueError, match=r"mask_ratio must be .* leave at least one of 16"):
        FLIPPretraining(build(), mask_ratio=0.99)


# Precision, compilation, checkpointing, devices


def gradients(model, batch):
    model.zero_grad()
    model.losses(batch)["contrastive"].backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_activation_checkpointing_gives_the_same_gradients():
    model, batch = FLIPPretraining(build()).train(), random_batch()
    expected = gradients(model, batch)
    model.network.activation_checkpointing = True
    assert model.network.activation_checkpointing
    runs = []
    for tower in (model.network.image_encoder, model.network.text_encoder):
        tower.blocks[0].norm1.register_forward_hook(lambda *_: runs.append(1))
    for name, gradient in gradients(model, batch).items():
        assert torch.equal(gradient, expected[name])
    assert len(runs) == 4  # both towers forward, and again during backward


def test_bf16_autocast_stays_close():
    model, batch = FLIPPretraining(build()).train(), random_batch()
    expected = model.losses(batch)["contrastive"]
    with torch.autocast("cpu", torch.bfloat16):
        loss = model.losses(batch)["contrastive"]
    loss.backward()
    # bfloat16 keeps 8 bits, and cosines are multiplied by 14.
    assert abs(loss - expected) < 14 * 2**-6
    assert all(p.grad.dtype == torch.float32 for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("masked", [True, False])
def test_both_encoders_compile_without_graph_breaks(masked, no_shape_checks):
    model, images, ids = build(depth=1, text_depth=1), random_images(), random_ids()
    options = {"fullgraph": True, "backend": "aot_eager"}
    kept = random_masking(uniform(4, 16), 0.5).kept if masked else None
    encode_image = torch.compile(model.encode_image, **options)
    torch.testing.assert_close(encode_image(images, kept), model.encode_image(images, kept))
    kept = random_masking(uniform(4, 8), 0.5).kept if masked else None
    encode_text = torch.compile(model.encode_text, **options)
    torch.testing.assert_close(encode_text(ids, kept), model.encode_text(ids, kept))


@pytest.mark.slow
def test_compiles_to_machine_code(no_shape_checks):
    model, batch = FLIPPretraining(build()).train(), random_batch()
    expected = gradients(model, batch)
    compiled = torch.compile(model.losses, fullgraph=True)
    model.zero_grad()
    compiled(batch)["contrastive"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-5)


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@gpu
@pytest.mark.gpu
def test_cuda_agrees_with_the_cpu():
    model, batch = FLIPPretraining(build()).train(), random_batch()
    expected = model.losses(batch)["contrastive"].item()
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        loss = model.cuda().losses({key: t.cuda() for key, t in batch.items()})["contrastive"]
    assert loss.item() == pytest.approx(expected, abs=1e-4)
