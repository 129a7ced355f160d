import math
from dataclasses import FrozenInstanceError, replace

import jaxtyping
import pytest
import torch
import torch.nn.functional as F

from mmlab.analysis import count_parameters, record_attention
from mmlab.models import vit
from mmlab.models.vit import ViT, ViTConfig
from mmlab.nn import interpolate_positions, patchify, sincos_positions, unpatchify

TINY = ViTConfig(
    image_size=16,
    patch_size=4,
    dim=24,
    depth=3,
    num_heads=3,
    mlp_dim=32,
    num_classes=7,
    init="trunc_normal",
)

# Exact counts: L (12 D^2 + 13 D) + (3 P^2 D + D) + D + (N + 1) D + 2 D, the head D C + C, and
# pre_logits D^2 + D. With 1000 classes at 224 pixels they are those of the size table in the test
# of the official repository (google-research/vision_transformer, models_test.py).
# name, image size, without head, with 1000 classes, with 21843 classes and pre_logits
COUNTS = [
    ("VIT_TI_16", 224, 5_524_416, 5_717_416, 9_777_171),
    ("VIT_S_16", 224, 21_665_664, 22_050_664, 30_223_059),
    ("VIT_S_32", 224, 22_493_952, 22_878_952, 31_051_347),
    ("VIT_B_8", 224, 85_807_872, 86_576_872, 103_195_731),
    ("VIT_B_16", 224, 85_798_656, 86_567_656, 103_186_515),
    ("VIT_B_16", 384, 86_090_496, 86_859_496, 103_478_355),
    ("VIT_B_32", 224, 87_455_232, 88_224_232, 104_843_091),
    ("VIT_B_32", 384, 87_528_192, 88_297_192, 104_916_051),
    ("VIT_L_16", 224, 303_301_632, 304_326_632, 326_740_307),
    ("VIT_L_16", 384, 303_690_752, 304_715_752, 327_129_427),
    ("VIT_L_32", 224, 305_510_400, 306_535_400, 328_949_075),
    ("VIT_H_14", 224, 630_764_800, 632_045_800, 660_385_363),
    ("VIT_H_14", 518, 632_189_440, 633_470_440, 661_810_003),
]
AVERAGE_COUNTS = [
    ("VIT_B_16", 86_566_120),
    ("VIT_B_32", 88_222_696),
    ("VIT_S_16", 22_049_896),
]
# Two heads of 1000 classes.
DISTILLED_COUNTS = [
    ("DEIT_TI_16_DISTILLED", 224, 5_910_800),
    ("DEIT_S_16_DISTILLED", 224, 22_436_432),
    ("DEIT_B_16_DISTILLED", 224, 87_338_192),
    ("DEIT_B_16_DISTILLED", 384, 87_630_032),
]


def build(config=TINY, seed=0, **changes):
    torch.manual_seed(seed)
    return ViT(replace(config, **changes)).eval()


def random_images(config=TINY, batch=2, seed=1):
    shape = (batch, config.num_channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def count(name, image_size=224, **changes):
    with torch.device("meta"):
        return count_parameters(ViT(replace(getattr(vit, name), image_size=image_size, **changes)))


@pytest.fixture
def no_shape_checks():
    """torch.compile cannot trace the shape checker that the tests put around every function."""
    jaxtyping.config.update("jaxtyping_disable", True)
    torch.compiler.reset()
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


# Sizes


@pytest.mark.parametrize(("name", "image_size", "backbone", "with_head", "pre_training"), COUNTS)
def test_parameter_counts(name, image_size, backbone, with_head, pre_training):
    assert count(name, image_size, num_classes=0) == backbone
    assert count(name, image_size) == with_head
    assert count(name, image_size, num_classes=21843, pre_logits=True) == pre_training


@pytest.mark.parametrize(("name", "expected"), AVERAGE_COUNTS)
def test_parameter_counts_with_average_pooling(name, expected):
    assert count(name, pool="average") == expected


@pytest.mark.parametrize(("name", "image_size", "expected"), DISTILLED_COUNTS)
def test_parameter_counts_of_distilled_models(name, image_size, expected):
    assert count(name, image_size) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("VIT_TI_16", 444_864),
        ("VIT_S_16", 1_774_464),
        ("VIT_B_16", 7_087_872),
        ("VIT_L_16", 12_596_224),
        ("VIT_H_14", 19_677_440),
    ],
)
def test_parameter_count_of_one_block(name, expected):
    config = getattr(vit, name)
    assert count(name) - count(name, depth=config.depth - 1) == expected


def test_the_mini_model_is_small():
    assert count("VIT_MINI", vit.VIT_MINI.image_size) < 2_000_000


@pytest.mark.parametrize(
    ("image_size", "patch_size", "num_patches"),
    [(224, 16, 196), (224, 32, 49), (224, 14, 256), (384, 16, 576), (518, 14, 1369)],
)
def test_number_of_patches(image_size, patch_size, num_patches):
    config = ViTConfig(image_size=image_size, patch_size=patch_size)
    assert config.num_patches == num_patches
    assert config.num_tokens == num_patches + 1
    assert replace(config, distilled=True).num_tokens == num_patches + 2
    assert replace(config, pool="average").num_tokens == num_patches


def test_parameter_names():
    """Checkpoint tables are written on these names."""
    linear = ("weight", "bias")
    expected = {"class_token", "distillation_token", "position_embedding"}
    expected |= {f"patch_embedding.projection.{kind}" for kind in linear}
    expected |= {f"{head}.{kind}" for head in ("head", "distillation_head") for kind in linear}
    expected |= {f"norm.{kind}" for kind in linear}
    for part in (
        "norm1",
        "norm2",
        "attention.q_proj",
        "attention.k_proj",
        "attention.v_proj",
        "attention.out_proj",
        "mlp.fc1",
        "mlp.fc2",
    ):
        expected |= {f"blocks.{i}.{part}.{kind}" for i in range(TINY.depth) for kind in linear}
    assert set(build(distilled=True).state_dict()) == expected
    assert {"pre_logits.weight", "pre_logits.bias"} <= set(build(pre_logits=True).state_dict())


# The forward pass


def test_forward_follows_the_equations():
    model, images = build(), random_images()
    projection = model.patch_embedding.projection
    patches = patchify(images, TINY.patch_size) @ projection.weight.flatten(1).T + projection.bias
    z = torch.cat([model.class_token.expand(2, 1, -1), patches], dim=1)
    z = z + model.position_embedding
    for block in model.blocks:
        z = z + block.attention(block.norm1(z))
        z = z + block.mlp(block.norm2(z))
    tokens = F.layer_norm(z, (24,), model.norm.weight, model.norm.bias, eps=1e-6)
    torch.testing.assert_close(model.forward_tokens(images), tokens)
    torch.testing.assert_close(model.encode_image(images), tokens[:, 0])
    torch.testing.assert_close(model(images), model.head(tokens[:, 0]))


def test_average_pooling_is_the_mean_of_the_patch_tokens():
    model, images = build(pool="average"), random_images()
    tokens = model.forward_tokens(images)
    assert tokens.shape[1] == TINY.num_patches
    torch.testing.assert_close(model(images), model.head(tokens.mean(dim=1)))


def test_pre_logits_is_a_tanh_layer_before_the_head():
    model, images = build(pre_logits=True), random_images()
    hidden = torch.tanh(model.pre_logits(model.forward_tokens(images)[:, 0]))
    torch.testing.assert_close(model(images), model.head(hidden))


def test_without_classes_the_model_returns_image_features():
    model, images = build(num_classes=0), random_images()
    assert model.head is None
    assert torch.equal(model(images), model.encode_image(images))


def test_a_distilled_model_averages_two_heads():
    model, images = build(distilled=True), random_images()
    tokens = model.forward_tokens(images)
    class_logits, distillation_logits = model.forward_distilled(images)
    torch.testing.assert_close(class_logits, model.head(tokens[:, 0]))
    torch.testing.assert_close(distillation_logits, model.distillation_head(tokens[:, 1]))
    torch.testing.assert_close(model(images), (class_logits + distillation_logits) / 2)
    with pytest.raises(ValueError, match="needs distilled=True"):
        build().forward_distilled(images)


def test_permuting_patches_with_their_positions_permutes_the_outputs():
    model, images = build(), random_images()
    order = torch.randperm(TINY.num_patches, generator=torch.Generator().manual_seed(2))
    before = model.forward_tokens(images)
    shuffled = unpatchify(patchify(images, TINY.patch_size)[:, order], TINY.patch_size, TINY.grid)
    rows = torch.cat([torch.tensor([0]), 1 + order])
    model.position_embedding.data = model.position_embedding.data[:, rows]
    torch.testing.assert_close(model.forward_tokens(shuffled), before[:, rows])


@pytest.mark.parametrize("pool", ["class_token", "average"])
@pytest.mark.parametrize(("positions", "same"), [("none", True), ("sincos2d", False)])
def test_only_positions_tell_the_order_of_the_patches(positions, same, pool):
    model, images = build(positions=positions, pool=pool), random_images()
    order = torch.randperm(TINY.num_patches, generator=torch.Generator().manual_seed(2))
    shuffled = unpatchify(patchify(images, TINY.patch_size)[:, order], TINY.patch_size, TINY.grid)
    assert torch.allclose(model(images), model(shuffled), atol=1e-6) is same


def test_images_of_a_batch_do_not_see_each_other():
    model, images = build(), random_images(batch=4)
    torch.testing.assert_close(model(images)[2:3], model(images[2:3]))


def test_dropout_and_drop_path_act_only_in_training():
    images = random_images(batch=8)
    plain = build()
    for rate in ("dropout", "attention_dropout", "drop_path"):
        model = build(**{rate: 0.5})
        assert torch.equal(model(images), plain(images))
        model.train()
        assert not torch.allclose(model(images), model(images))


def test_drop_path_rises_linearly_over_the_depth():
    rates = [block.drop_path.rate for block in build(depth=5, drop_path=0.2).blocks]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])


# Initialisation


def test_a_zero_head_makes_the_first_loss_exactly_the_logarithm_of_the_classes():
    model = build(init="flax", num_classes=1000)
    logits = model(random_images())
    assert (logits == 0).all()
    loss = F.cross_entropy(logits, torch.tensor([3, 999]))
    assert loss.item() == pytest.approx(math.log(1000), abs=1e-6)


@torch.no_grad()
def test_flax_initialisation():
    model = build(init="flax", dim=256, num_heads=4, mlp_dim=512, pre_logits=True)
    attention, mlp = model.blocks[0].attention, model.blocks[0].mlp
    for layer in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        bound = math.sqrt(6 / (256 + 256))
        assert layer.weight.abs().max() == pytest.approx(bound, rel=1e-3)
        assert layer.weight.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
        assert (layer.bias == 0).all()
    assert mlp.fc1.weight.abs().max() == pytest.approx(math.sqrt(6 / 768), rel=1e-3)
    for layer in (mlp.fc1, mlp.fc2):
        assert layer.bias.std() == pytest.approx(1e-6, rel=0.25)
    conv = model.patch_embedding.projection
    std = 1 / math.sqrt(3 * 4 * 4)
    assert conv.weight.std() == pytest.approx(std, rel=0.03)
    assert conv.weight.abs().max() <= 2 * std / 0.8796
    assert model.pre_logits.weight.std() == pytest.approx(1 / 16, rel=0.03)
    assert model.position_embedding.std() == pytest.approx(0.02, rel=0.06)
    for zeros in (model.class_token, conv.bias, model.pre_logits.bias, model.head.weight):
        assert (zeros == 0).all()


@torch.no_grad()
def test_trunc_normal_initialisation():
    model = build(init="trunc_normal", dim=256, num_heads=4, mlp_dim=512, distilled=True)
    for weight in (
        model.blocks[0].attention.q_proj.weight,
        model.blocks[0].mlp.fc2.weight,
        model.distillation_head.weight,
        model.position_embedding,
        model.class_token,
        model.distillation_token,
    ):
        assert weight.std() == pytest.approx(0.02, rel=0.15)
    for block in model.blocks:
        assert (block.mlp.fc1.bias == 0).all()
    # PyTorch's default for convolutions: uniform up to 1 / sqrt(fan-in).
    conv = model.patch_embedding.projection.weight
    assert conv.abs().max() == pytest.approx(1 / math.sqrt(48), rel=1e-2)


@pytest.mark.parametrize("init", ["flax", "trunc_normal"])
def test_the_seed_fixes_the_weights(init):
    first, second, other = (build(seed=seed, init=init) for seed in (0, 0, 1))
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, second.state_dict()[name])
    assert not torch.equal(first.position_embedding, other.position_embedding)


# Resolution


@pytest.mark.parametrize("variant", ["bilinear_aligned", "bicubic"])
def test_resized_positions(variant):
    model = build(distilled=True)
    old = model.position_embedding.detach().clone()
    assert model.resize_positions(24, variant=variant) is model
    expected = interpolate_positions(old, (4, 4), (6, 6), variant, num_prefix_tokens=2)
    assert torch.equal(model.position_embedding, expected)
    assert model.position_embedding.requires_grad
    assert model.config.image_size == 24
    assert model(random_images(model.config)).shape == (2, 7)


def test_sincos_positions_are_fixed_and_computed_anew_at_another_resolution():
    model = build(positions="sincos2d").resize_positions(24)
    assert torch.equal(model.position_embedding, sincos_positions((6, 6), 24, 1))
    assert not model.position_embedding.requires_grad
    assert model(random_images(model.config)).shape == (2, 7)


def test_a_model_without_positions_only_changes_its_configuration():
    model = build(positions="none").resize_positions(24)
    assert model(random_images(model.config)).shape == (2, 7)


def test_a_failed_resize_changes_nothing():
    model = build()
    before = model.position_embedding
    for arguments in ((18,), (24, "nearest")):
        with pytest.raises(ValueError, match="must be"):
            model.resize_positions(*arguments)
        assert model.config.image_size == 16
        assert model.position_embedding is before


# Bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_size": 225}, "image_size must be a multiple of patch_size=16, got 225"),
        ({"dim": 770}, "dim must be a multiple of num_heads=12, got 770"),
        ({"depth": 0}, "depth must be an integer of at least 1, got 0"),
        ({"num_classes": -1}, "num_classes must be an integer of at least 0, got -1"),
        ({"pool": "max"}, "pool must be one of 'class_token', 'average', got 'max'"),
        ({"positions": "1d"}, "positions must be one of 'learned', .*, got '1d'"),
        ({"activation": "swish"}, "activation must be one of 'gelu', .*'relu', got 'swish'"),
        ({"stem": "resnet"}, "stem must be one of 'linear', 'conv', got 'resnet'"),
        ({"init": "zeros"}, "init must be one of 'flax', 'trunc_normal', got 'zeros'"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"attention_dropout": -0.1}, r"attention_dropout must be in \[0, 1\), got -0.1"),
        ({"drop_path": float("nan")}, r"drop_path must be in \[0, 1\), got nan"),
        ({"norm_eps": 0.0}, "norm_eps must be positive, got 0.0"),
        ({"dim": 780, "num_heads": 10, "patch_size": 32, "stem": "conv"}, "multiple of 16"),
        ({"patch_size": 14, "stem": "conv"}, "patch_size must be a power of two .* got 14"),
        ({"dim": 6, "num_heads": 3, "positions": "sincos2d"}, "dim must be a multiple of 4"),
        ({"distilled": True, "pool": "average"}, "pool must be 'class_token' with distilled"),
        ({"distilled": True, "pre_logits": True}, "pre_logits must be False with distilled"),
    ],
)
def test_wrong_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        ViTConfig(**changes)


def test_configurations_are_frozen():
    with pytest.raises(FrozenInstanceError):
        TINY.dim = 48


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((2, 3, 24, 24), r"16 x 16 pixels for this model, got 24 x 24; .*resize_positions"),
        ((2, 3, 16, 24), "got 16 x 24"),
        ((2, 1, 16, 16), r"shape \(batch, 3, 16, 16\), got \(2, 1, 16, 16\)"),
    ],
)
def test_images_of_another_shape_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        build()(torch.zeros(shape))


def test_images_that_are_not_a_float_batch_are_refused(no_shape_checks):
    with pytest.raises(ValueError, match=r"floating point, got torch.uint8; .*transforms"):
        build()(torch.zeros(2, 3, 16, 16, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"got \(3, 16, 16\)"):
        build()(torch.zeros(3, 16, 16))


# Precision, compilation, checkpointing, devices


def gradients(model, images):
    model.zero_grad()
    torch.manual_seed(5)
    model(images).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def test_activation_checkpointing_gives_the_same_gradients():
    model, images = build(dropout=0.2, drop_path=0.3).train(), random_images()
    expected = gradients(model, images)
    model.activation_checkpointing = True
    runs = []
    model.blocks[0].norm1.register_forward_hook(lambda *_: runs.append(1))
    for name, gradient in gradients(model, images).items():
        assert torch.equal(gradient, expected[name])
    assert len(runs) == 2  # forward, and again during backward
    with torch.no_grad():
        model(images)
    assert len(runs) == 3


@pytest.mark.parametrize("changes", [{}, {"stem": "conv"}, {"distilled": True}])
def test_bf16_autocast_stays_close(changes):
    model, images = build(**changes), random_images()
    expected = model(images)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(images)
        logits.float().sum().backward()
    # bfloat16 keeps 8 bits: relative steps of 2^-8.
    assert (logits - expected).abs().max() < 2**-5 * expected.abs().max()
    assert all(p.grad.dtype == torch.float32 for p in model.parameters())


@pytest.mark.parametrize("changes", [{}, {"distilled": True}, {"stem": "conv", "drop_path": 0.1}])
def test_compiles_without_graph_breaks(changes, no_shape_checks):
    model, images = build(depth=1, **changes), random_images()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), model(images))
    model.train()
    compiled(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_compiles_with_checkpointing_and_autocast(no_shape_checks):
    model, images = build(depth=1), random_images()
    model.activation_checkpointing = True
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(compiled(images), model(images), rtol=2**-6, atol=2**-8)


def test_attention_of_a_compiled_model_is_recorded(no_shape_checks):
    model, images = build(depth=2), random_images()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(model, fullgraph=True, backend=backend)
    compiled(images)
    with record_attention(compiled) as maps:
        compiled(images)
    with record_attention(model) as expected:
        model(images)
    assert maps.keys() == expected.keys()
    for name in maps:
        assert torch.equal(maps[name], expected[name])
    compiled(images)
    assert len(graphs) == 1  # the compiled code is still in use, and was not compiled again


@pytest.mark.slow
def test_compiles_to_machine_code(no_shape_checks):
    model, images = build(), random_images()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images))
    expected = gradients(model, images)
    for name, gradient in gradients(compiled, images).items():
        torch.testing.assert_close(gradient, expected[name.removeprefix("_orig_mod.")])


gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.fixture
def full_precision():
    """Without TF32, which rounds the inputs of CUDA's convolutions to 10 bits by default."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@gpu
@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"stem": "conv"}, {"distilled": True}])
def test_cuda_agrees_with_the_cpu(changes, full_precision):
    model, images = build(**changes), random_images()
    expected, expected_gradients = model(images), gradients(model, images)
    model.cuda()
    torch.testing.assert_close(model(images.cuda()).cpu(), expected, rtol=1e-4, atol=1e-5)
    for name, gradient in gradients(model, images.cuda()).items():
        close = {"rtol": 1e-3, "atol": 1e-4}
        torch.testing.assert_close(gradient.cpu(), expected_gradients[name], **close)


@gpu
@pytest.mark.gpu
def test_cuda_in_bf16_stays_close_and_records_attention():
    model, images = build().cuda(), random_images().cuda()
    expected = model(images)
    with torch.autocast("cuda", torch.bfloat16), record_attention(model) as maps:
        logits = model(images)
    assert (logits - expected).abs().max() < 2**-5 * expected.abs().max()
    for weights in maps.values():
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones_like(weights[..., 0]))


@gpu
@pytest.mark.gpu
def test_cuda_compiles(no_shape_checks, full_precision):
    model, images = build().cuda(), random_images().cuda()
    compiled = torch.compile(model, fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)
    compiled(images).sum().backward()
