import math
from dataclasses import FrozenInstanceError, replace

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mmlab.analysis import count_parameters, record_attention
from mmlab.models import clip
from mmlab.models.clip import CLIP, CLIPConfig, CLIPPretraining
from mmlab.models.clip_resnet import Bottleneck, CLIPResNet

TINY = CLIPConfig(
    image_size=16,
    patch_size=4,
    dim=24,
    depth=2,
    num_heads=3,
    mlp_dim=40,
    vocab_size=50,
    context_length=12,
    text_dim=16,
    text_depth=2,
    text_num_heads=2,
    text_mlp_dim=28,
    embed_dim=10,
)
TINY_RESNET = replace(TINY, image_size=64, dim=4, stages=(1, 2, 1, 1))
BOTH = pytest.mark.parametrize("config", [TINY, TINY_RESNET], ids=["transformer", "resnet"])

# Exact counts of learnable parameters, as the sheet gives them.
# name, all, image encoder with its projection, text encoder with its projection
COUNTS = [
    ("CLIP_VIT_B_32", 151_277_313, 87_849_216, 63_428_096),
    ("CLIP_VIT_B_16", 149_620_737, 86_192_640, 63_428_096),
    ("CLIP_VIT_L_14", 427_616_513, 303_966_208, 123_650_304),
    ("CLIP_VIT_L_14_336", 427_944_193, 304_293_888, 123_650_304),
    ("CLIP_RN50", 102_007_137, 38_316_896, 63_690_240),
    ("CLIP_RN101", 119_688_033, 56_259_936, 63_428_096),
    ("CLIP_RN50X4", 178_300_601, 87_137_080, 91_163_520),
    ("CLIP_RN50X16", 290_979_217, 167_328_912, 123_650_304),
    ("CLIP_RN50X64", 623_258_305, 420_380_352, 202_877_952),
]


def build(config=TINY, seed=0, **changes):
    torch.manual_seed(seed)
    return CLIP(replace(config, **changes)).eval()


def randomise(model, seed=0):
    """Noise on every parameter and every running mean, so that no zero hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*model.parameters(), *model.buffers()):
        if tensor.is_floating_point() and tensor.ndim:
            tensor.data += 0.2 * torch.rand(tensor.shape, generator=generator)
    return model


def images(config=TINY, batch=3, seed=1):
    shape = (batch, 3, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def captions(lengths=(3, 7, 12), num_tokens=12, end=49, seed=2):
    """Random words, then the end token, then zeros."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, 49, (len(lengths), num_tokens), generator=generator)
    for row, length in zip(ids, lengths, strict=True):
        row[length - 1], row[length:] = end, 0
    return ids


@pytest.fixture
def no_shape_checks():
    """torch.compile cannot trace the shape checker that the tests put around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Sizes


@pytest.mark.parametrize(("name", "total", "image_side", "text_side"), COUNTS)
def test_parameter_counts(name, total, image_side, text_side):
    with torch.device("meta"):
        model = CLIP(getattr(clip, name))
    assert count_parameters(model) == total
    projection = model.image_projection
    projected = count_parameters(projection) if projection is not None else 0
    assert count_parameters(model.image_encoder) + projected == image_side
    text = count_parameters(model.text_encoder) + count_parameters(model.text_projection)
    assert text == text_side
    assert total == image_side + text_side + 1


def test_every_size_is_counted():
    names = {name for name, value in vars(clip).items() if isinstance(value, CLIPConfig)}
    assert names == {name for name, *_ in COUNTS} | {"CLIP_MINI", "CLIP_VIT_MINI"}


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("VIT_B_32", 50),
        ("VIT_B_16", 197),
        ("VIT_L_14", 257),
        ("VIT_L_14_336", 577),
        ("RN50", 50),
        ("RN50X4", 82),
        ("RN50X16", 145),
        ("RN50X64", 197),
    ],
)
def test_number_of_image_tokens(name, tokens):
    assert getattr(clip, f"CLIP_{name}").num_image_tokens == tokens


def test_heads_are_64_wide():
    for name, *_ in COUNTS:
        config = getattr(clip, name)
        assert config.text_dim // config.text_num_heads == 64
        assert config.stages or config.dim // config.num_heads == 64
    with torch.device("meta"):
        resnets = [CLIP(c) for c in (clip.CLIP_RN50, clip.CLIP_RN50X4, clip.CLIP_RN50X64)]
    assert [model.image_encoder.pool.num_heads for model in resnets] == [32, 40, 64]


# The forward pass


def block(x, p, key, num_heads, mask):
    """A block as the sheet writes it, from named parameters."""

    def linear(x, name):
        return x @ p[f"{key}.{name}.weight"].T + p[f"{key}.{name}.bias"]

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], p[f"{key}.{name}.weight"], p[f"{key}.{name}.bias"])

    y = norm(x, "norm1")
    q, k, v = (linear(y, f"attention.{n}_proj").chunk(num_heads, -1) for n in "qkv")
    scores = [a @ b.mT / math.sqrt(a.shape[-1]) + mask for a, b in zip(q, k, strict=True)]
    mixed = torch.cat([s.softmax(-1) @ c for s, c in zip(scores, v, strict=True)], dim=-1)
    x = x + linear(mixed, "attention.out_proj")
    hidden = linear(norm(x, "norm2"), "mlp.fc1")
    return x + linear(hidden * torch.sigmoid(1.702 * hidden), "mlp.fc2")


def test_images_are_encoded_as_the_sheet_says():
    model, pixels = randomise(build()), images()
    p = model.state_dict()
    patches = F.conv2d(pixels, p["image_encoder.patch_embedding.projection.weight"], stride=4)
    x = patches.flatten(2).mT
    x = torch.cat([p["image_encoder.class_token"].expand(3, 1, -1), x], dim=1)
    x = model.image_encoder.norm_pre(x + p["image_encoder.position_embedding"])
    for i in range(2):
        x = block(x, p, f"image_encoder.blocks.{i}", 3, 0.0)
    x = model.image_encoder.norm(x[:, 0]) @ p["image_projection.weight"].T
    expected = x / x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(model.encode_image(pixels), expected, rtol=0, atol=1e-6)


def test_captions_are_encoded_as_the_sheet_says():
    model, ids = randomise(build()), captions()
    p = model.state_dict()
    x = p["text_encoder.token_embedding.weight"][ids] + p["text_encoder.position_embedding"]
    mask = torch.full((12, 12), -math.inf).triu(1)
    for i in range(2):
        x = block(x, p, f"text_encoder.blocks.{i}", 2, mask)
    x = model.text_encoder.norm(x)[torch.arange(3), ids.argmax(dim=1)]
    x = x @ p["text_projection.weight"].T
    expected = x / x.norm(dim=-1, keepdim=True)
    torch.testing.assert_close(model.encode_text(ids), expected, rtol=0, atol=1e-6)


@BOTH
def test_logits_are_scaled_cosines(config):
    model = randomise(build(config))
    logits = model(images(config), captions((4, 9)))
    assert logits.shape == (3, 2)
    image_features, text_features = model.encode_image(images(config)), captions((4, 9))
    text_features = model.encode_text(text_features)
    for features in (image_features, text_features):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(len(features)))
    expected = F.cosine_similarity(image_features[:, None], text_features[None], dim=-1)
    torch.testing.assert_close(logits, model.logit_scale.exp() * expected)
    assert logits.abs().max() <= model.scale()


def test_the_scale_starts_at_the_papers_temperature():
    model = build()
    assert model.logit_scale.item() == pytest.approx(2.659260, abs=1e-6)
    assert model.scale().item() == pytest.approx(1 / 0.07)


def test_nothing_after_the_end_matters():
    model = randomise(build())
    ids = captions((5, 8, 11))
    changed = ids.clone()
    for row, length in zip(changed, (5, 8, 11), strict=True):
        row[length:] = 7
    assert torch.equal(model.encode_text(ids), model.encode_text(changed))
    embedding = model.text_encoder.token_embedding(ids).detach().requires_grad_()
    model.text_encoder.token_embedding.forward = lambda _: embedding
    model.encode_text(ids).square().mul(torch.arange(10.0)).sum().backward()
    used = embedding.grad.abs().sum(-1) > 0
    assert torch.equal(used, torch.arange(12) < torch.tensor([[5], [8], [11]]))


def test_short_rows_give_the_same_features():
    model = randomise(build())
    ids = captions((3, 5, 6))
    for num_tokens in (6, 8, 11):
        short = model.encode_text(ids[:, :num_tokens])
        torch.testing.assert_close(short, model.encode_text(ids), rtol=0, atol=1e-6)


def test_the_end_is_the_highest_number_or_the_token_that_is_named():
    ids = torch.tensor([[2, 9, 3, 4, 3, 0], [2, 3, 8, 8, 0, 0]])
    assert build().text_encoder.ends(ids).tolist() == [1, 2]
    assert build(end_id=3).text_encoder.ends(ids).tolist() == [2, 1]


def test_examples_do_not_see_each_other():
    model, pixels = randomise(build()), images()
    alone = torch.cat([model.encode_image(image[None]) for image in pixels])
    torch.testing.assert_close(model.encode_image(pixels), alone, rtol=0, atol=1e-6)


def test_the_last_norm_is_for_the_class_token():
    model, pixels = randomise(build()), images()
    tokens = model.image_encoder.forward_tokens(pixels)
    assert tokens.shape == (3, 17, 24)
    torch.testing.assert_close(
        model.image_encoder(pixels), model.image_encoder.norm(tokens[:, 0]), rtol=0, atol=0
    )


# The ResNet


def test_a_fresh_bottleneck_is_its_shortcut():
    torch.manual_seed(0)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(Bottleneck(16, 4).eval()(x), x)
    strided = Bottleneck(16, 8, stride=2).eval()
    expected = F.relu(strided.shortcut_norm(strided.shortcut(F.avg_pool2d(x, 2))))
    assert torch.equal(strided(x), expected)


def test_the_last_map_is_32_times_smaller():
    encoder = build(TINY_RESNET).image_encoder
    assert encoder.forward_map(images(TINY_RESNET)).shape == (3, 128, 2, 2)
    assert encoder.pool.num_heads == 2


def test_pooling_does_not_depend_on_the_order_of_the_cells_without_positions():
    pool = build(TINY_RESNET).image_encoder.pool
    pool.position_embedding.data.zero_()
    x = torch.randn(2, 128, 2, 2)
    torch.testing.assert_close(pool(x), pool(x.flip(2, 3)), rtol=0, atol=1e-6)


# Attention, gradients, precision


@BOTH
def test_attention_is_recorded_in_both_encoders(config):
    model = randomise(build(config))
    expected = model(images(config), captions())
    with record_attention(model) as maps:
        logits = model(images(config), captions())
    assert torch.equal(logits, expected)
    texts = {f"text_encoder.blocks.{i}.attention": (3, 2, 12, 12) for i in range(2)}
    if config.stages:
        image_maps = {"image_encoder.pool": (3, 2, 1, 5)}
    else:
        image_maps = {f"image_encoder.blocks.{i}.attention": (3, 3, 17, 17) for i in range(2)}
    assert {key: tuple(m.shape) for key, m in maps.items()} == texts | image_maps
    for key, weights in maps.items():
        torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
        if key in texts:
            assert not weights.triu(1).any()


@BOTH
def test_activation_checkpointing_changes_no_gradient(config):
    gradients = []
    for wanted in (False, True):
        model = randomise(build(config)).train()
        model.activation_checkpointing = wanted
        assert model.image_encoder.activation_checkpointing is wanted
        # Batch norms count each pass; the loss does not depend on it.
        batch = {"images": images(config), "input_ids": captions()}
        CLIPPretraining(model).losses(batch)["contrastive"].backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        assert gradient is not None, name
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-5, atol=1e-7, msg=name)


@BOTH
def test_bf16_autocast_is_close(config):
    model = build(config)
    expected = model(images(config), captions())
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images(config), captions())
    torch.testing.assert_close(logits.float(), expected, rtol=0, atol=0.4)


def test_the_encoders_compile_without_graph_breaks(no_shape_checks):
    model = build()
    with torch.no_grad():
        for encode, inputs in ((model.encode_image, images()), (model.encode_text, captions())):
            compiled = torch.compile(encode, fullgraph=True, backend="eager")
            torch.testing.assert_close(compiled(inputs), encode(inputs), rtol=0, atol=1e-6)


# Initialisation


def test_initialisation_of_the_official_code():
    config = CLIPConfig(
        image_size=32,
        patch_size=8,
        dim=256,
        depth=2,
        num_heads=4,
        mlp_dim=1024,
        vocab_size=3000,
        text_dim=128,
        text_depth=4,
        text_num_heads=2,
        text_mlp_dim=512,
    )
    model = build(config)
    image, text = model.image_encoder, model.text_encoder
    depth_std = 128**-0.5 * (2 * 4) ** -0.5
    expected = {
        text.token_embedding.weight: 0.02,
        text.position_embedding: 0.01,
        text.blocks[1].attention.q_proj.weight: 128**-0.5,
        text.blocks[1].attention.out_proj.weight: depth_std,
        text.blocks[1].mlp.fc1.weight: 256**-0.5,
        text.blocks[1].mlp.fc2.weight: depth_std,
        model.text_projection.weight: 128**-0.5,
        image.position_embedding: 256**-0.5,
        model.image_projection.weight: 256**-0.5,
        # PyTorch's defaults: Xavier for one matrix of queries, keys, values; 1/sqrt(3 fan-in).
        image.blocks[1].attention.v_proj.weight: (2 / (256 + 3 * 256)) ** 0.5,
        image.blocks[1].attention.out_proj.weight: (3 * 256) ** -0.5,
        image.blocks[1].mlp.fc2.weight: (3 * 1024) ** -0.5,
        image.patch_embedding.projection.weight: (3 * 192) ** -0.5,
    }
    for parameter, std in expected.items():
        assert parameter.std().item() == pytest.approx(std, rel=0.05)
    for layer in (*image.blocks, *text.blocks):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            assert not getattr(layer.attention, name).bias.any()
        assert layer.mlp.fc1.bias.any()


def test_initialisation_of_the_resnet():
    pool = build(replace(TINY_RESNET, dim=8)).image_encoder.pool
    for name in ("q_proj", "k_proj", "v_proj"):
        weight = getattr(pool, name).weight
        assert weight.std().item() == pytest.approx(256**-0.5, rel=0.05)
    encoder = build(TINY_RESNET).image_encoder
    lasts = [m.norm3.weight for m in encoder.modules() if isinstance(m, Bottleneck)]
    assert len(lasts) == 5 and not any(weight.any() for weight in lasts)


# Training


def batch_of(config, size=4):
    lengths = [3 + n % 9 for n in range(size)]
    return {"images": images(config, size), "input_ids": captions(lengths)}


@BOTH
def test_the_loss_is_cross_entropy_in_both_directions(config):
    model = randomise(build(config))
    batch = batch_of(config)
    losses = CLIPPretraining(model).losses(batch)
    logits = model(batch["images"], batch["input_ids"])
    places = torch.arange(4)
    expected = (F.cross_entropy(logits, places) + F.cross_entropy(logits.T, places)) / 2
    assert losses.keys() == {"contrastive"}
    torch.testing.assert_close(losses["contrastive"], expected)
    chunked = CLIPPretraining(model, chunk_size=3).losses(batch)["contrastive"]
    torch.testing.assert_close(chunked, expected)


def test_the_scale_stays_below_100_and_may_fall_again():
    model = build()
    training = CLIPPretraining(model)
    optimizer = torch.optim.SGD([model.logit_scale], lr=1e6)
    training.losses(batch_of(TINY))["contrastive"].backward()
    optimizer.step()
    assert not 1 <= model.scale() <= 100
    model.logit_scale.data.fill_(50.0)
    training.losses(batch_of(TINY))["contrastive"].backward()
    assert model.scale().item() == pytest.approx(100)
    assert model.logit_scale.grad != 0


MINIS = pytest.mark.parametrize("mini", [clip.CLIP_MINI, clip.CLIP_VIT_MINI], ids=["rn", "vit"])


@MINIS
def test_a_small_model_learns_its_batch(mini):
    torch.manual_seed(0)
    model = CLIP(replace(mini, vocab_size=50))
    training = CLIPPretraining(model).train()
    batch = batch_of(mini, size=8)
    batch["input_ids"][batch["input_ids"] == 49] = 3
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    history = []
    for _ in range(15):
        loss = training.losses(batch)["contrastive"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[0] > 1.5 and history[-1] < 0.3


@MINIS
def test_a_mini_model_is_small(mini):
    assert count_parameters(CLIP(mini)) < 2_500_000


# Wrong values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(image_size=30), "image_size must be a multiple of patch_size=4, got 30"),
        (dict(dim=25), "dim must be a multiple of num_heads=3, got 25"),
        (dict(text_dim=15), "text_dim must be a multiple of text_num_heads=2, got 15"),
        (dict(vocab_size=0), "vocab_size must be an integer of at least 1, got 0"),
        (dict(end_id=50), "end_id must be below vocab_size=50, got 50"),
        (dict(end_id=-1), "end_id must be an integer of at least 0, got -1"),
        (dict(activation="swish"), "activation must be one of"),
        (dict(stem="cubic"), "stem must be one of 'linear', 'conv', got 'cubic'"),
        (dict(stages=(3, 4, 6)), "stages must be () or four numbers of at least 1, got (3, 4, 6)"),
        (dict(stages=(3, 4, 6, 0)), "stages must be () or four numbers"),
        (dict(stages=(1, 1, 1, 1), image_size=48), "image_size must be a multiple of 32, got 48"),
        (dict(stages=(1, 1, 1, 1), image_size=64, dim=5), "dim must be a multiple of 2"),
        (dict(norm_eps=0.0), "norm_eps must be positive, got 0.0"),
    ],
)
def test_wrong_values_are_named(change, message):
    with pytest.raises(ValueError) as error:
        replace(TINY, **change)
    assert message in str(error.value)


def test_configurations_do_not_change():
    with pytest.raises(FrozenInstanceError):
        TINY.dim = 3


@BOTH
def test_images_that_do_not_fit_are_named(config, no_shape_checks):
    model = build(config)
    with pytest.raises(ValueError, match="images must be floating point"):
        model.encode_image(images(config).byte())
    with pytest.raises(
        ValueError, match=r"images must have shape \(batch, 3, .* got \(3, 3, 96, 96\)"
    ):
        model.encode_image(torch.zeros(3, 3, 96, 96))


def test_captions_that_are_too_long_are_named():
    with pytest.raises(ValueError, match="a caption may have 12 tokens, got 13"):
        build().encode_text(torch.zeros(2, 13, dtype=torch.long))


@BOTH
def test_resized_positions(config):
    model = build(config)
    holder = model.image_encoder.pool if config.stages else model.image_encoder
    table = holder.position_embedding
    assert model.resize_positions(2 * config.image_size) is model
    larger = replace(config, image_size=2 * config.image_size)
    assert model.config == larger
    assert holder.position_embedding.shape[1] == larger.num_image_tokens
    assert torch.equal(holder.position_embedding[:, 0], table[:, 0])
    assert model(images(larger), captions()).shape == (3, 3)
    assert isinstance(holder.position_embedding, nn.Parameter)
    assert isinstance(model.image_encoder, CLIPResNet) == bool(config.stages)
