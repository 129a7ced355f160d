"""ViT against independent implementations: transformers, and a plain Flax-like forward.

All parameters are random, so that no zero or one hides a mistake.
"""

import numpy as np
import pytest
import torch
from transformers import (
    DeiTConfig,
    DeiTForImageClassificationWithTeacher,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from mmlab.hub import create_model, detect_layout, from_mmlab, read_checkpoint, save, to_mmlab

TOLERANCE = dict(rtol=0, atol=1e-5)

# Two sizes, and two resolutions (in patches a side) for each.
SIZES = {
    "small": dict(dim=32, depth=2, num_heads=4, mlp_dim=64, patch_size=4, num_classes=7),
    "wide": dict(dim=48, depth=3, num_heads=3, mlp_dim=80, patch_size=8, num_classes=11),
}
SIDES = (3, 4)
FAMILIES = {
    "vit-hf": ("vit-b-16", ViTConfig, ViTForImageClassification),
    "deit-hf": ("deit-b-16-distilled", DeiTConfig, DeiTForImageClassificationWithTeacher),
}


def options(size: str, side: int) -> dict:
    return SIZES[size] | dict(image_size=side * SIZES[size]["patch_size"])


def hf_options(config: dict) -> dict:
    return dict(
        hidden_size=config["dim"],
        num_hidden_layers=config["depth"],
        num_attention_heads=config["num_heads"],
        intermediate_size=config["mlp_dim"],
        patch_size=config["patch_size"],
        image_size=config["image_size"],
        num_labels=config["num_classes"],
    )


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Add noise to every parameter, ones and zeros included."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 1 / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.3
        parameter.data = parameter.data + scale * noise
    return model.eval()


def hf_model(layout: str, config: dict) -> torch.nn.Module:
    _, config_class, model_class = FAMILIES[layout]
    return randomise(model_class(config_class(**hf_options(config))))


def images(image_size: int, batch: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 3, image_size, image_size, generator=generator)


def run(forward, model, size):
    """Logits, and the gradients of a random projection of them by parameter and by image."""
    pixels = images(size).requires_grad_()
    logits = forward(pixels)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(2))
    model.zero_grad()
    (logits * weights).sum().backward()
    return logits, pixels.grad, {name: p.grad for name, p in model.named_parameters()}


def load_from_disk(layout, theirs, config, tmp_path):
    """As ``save_pretrained`` writes it, through our own reader."""
    theirs.save_pretrained(tmp_path)
    assert detect_layout(read_checkpoint(tmp_path).tensors) == layout
    return create_model(FAMILIES[layout][0], pretrained=tmp_path, **config, drop_path=0.0)


def load_from_memory(layout, theirs, config, tmp_path):
    """The names of ``state_dict()``."""
    assert detect_layout(theirs.state_dict()) == f"{layout}-memory"
    model = create_model(FAMILIES[layout][0], norm_eps=1e-12, drop_path=0.0, **config)
    model.load_state_dict(to_mmlab(f"{layout}-memory", theirs.state_dict()))
    return model


@pytest.mark.parametrize("load", [load_from_disk, load_from_memory])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", FAMILIES)
def test_outputs_and_gradients_agree_with_transformers(layout, size, side, load, tmp_path):
    config = options(size, side)
    theirs = hf_model(layout, config)
    ours = load(layout, theirs, config, tmp_path).eval()
    expected, pixel_grad, gradients = run(
        lambda pixels: theirs(pixel_values=pixels).logits, theirs, config["image_size"]
    )
    logits, our_pixel_grad, our_gradients = run(ours, ours, config["image_size"])
    torch.testing.assert_close(logits, expected, **TOLERANCE)
    torch.testing.assert_close(our_pixel_grad, pixel_grad, **TOLERANCE)
    # Gradients have the names and axes of their weights, so the same table converts them.
    gradients = to_mmlab(f"{layout}-memory", gradients)
    assert our_gradients.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(our_gradients[name], gradient, **TOLERANCE, msg=name)
        assert gradient.abs().max() > 1e-5 or name.endswith("k_proj.bias"), name


@pytest.mark.parametrize("layout", FAMILIES)
def test_transformers_takes_our_weights_back(layout):
    config = options("small", 3)
    name = FAMILIES[layout][0]
    ours = randomise(create_model(name, norm_eps=1e-12, **config), seed=5)
    theirs = hf_model(layout, config)
    theirs.load_state_dict(from_mmlab(f"{layout}-memory", ours.state_dict()), strict=True)
    with torch.no_grad():
        expected = ours(images(config["image_size"]))
        logits = theirs(pixel_values=images(config["image_size"])).logits
    torch.testing.assert_close(logits, expected, **TOLERANCE)


@pytest.mark.parametrize("layout", FAMILIES)
def test_from_pretrained_reads_what_we_save(layout, tmp_path):
    config = options("small", 3)
    name, config_class, model_class = FAMILIES[layout]
    ours = randomise(create_model(name, norm_eps=1e-12, **config), seed=6)
    save(ours, tmp_path / "model.safetensors", layout=layout)
    config_class(**hf_options(config)).save_pretrained(tmp_path)
    theirs, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys"))
    with torch.no_grad():
        expected = ours(images(config["image_size"]))
        logits = theirs.eval()(pixel_values=images(config["image_size"])).logits
    torch.testing.assert_close(logits, expected, **TOLERANCE)


def test_the_pooler_of_transformers_is_our_pre_logits(tmp_path):
    config = options("small", 3) | dict(num_classes=0)
    theirs = randomise(ViTModel(ViTConfig(**hf_options(config))))
    theirs.save_pretrained(tmp_path)
    for pre_logits, output in ((True, "pooler_output"), (False, None)):
        ours = create_model("vit-b-16", pretrained=tmp_path, **config, pre_logits=pre_logits)
        with torch.no_grad():
            result = theirs(pixel_values=images(config["image_size"]))
            features = ours.eval().encode_image(images(config["image_size"]))
        expected = result[output] if output else result.last_hidden_state[:, 0]
        torch.testing.assert_close(features, expected, **TOLERANCE)


@pytest.mark.parametrize("layout", FAMILIES)
@pytest.mark.parametrize("new_side", [3, 6])
def test_interpolated_positions_agree_with_transformers(layout, new_side, tmp_path):
    config = options("small", 4)
    theirs = hf_model(layout, config)
    theirs.save_pretrained(tmp_path)
    config |= dict(image_size=new_side * config["patch_size"])
    ours = create_model(FAMILIES[layout][0], pretrained=tmp_path, **config).eval()
    with torch.no_grad():
        pixels = images(config["image_size"])
        expected = theirs(pixel_values=pixels, interpolate_pos_encoding=True).logits
        torch.testing.assert_close(ours(pixels), expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["vit-b-16", "vit-l-32", "vit-h-14"])
def test_published_sizes_fit_transformers_strictly(name):
    with torch.device("meta"):
        ours = create_model(name)
        config = {**vars(ours.config)}
        theirs = ViTForImageClassification(ViTConfig(**hf_options(config)))
    state = from_mmlab("vit-hf-memory", ours.state_dict())
    theirs.load_state_dict(state, strict=True, assign=True)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert sum(parameter.numel() for parameter in theirs.parameters()) == count


def layer_norm(x, p, key):
    variance = x.var(-1, keepdims=True)
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(variance + 1e-6) * p[f"{key}/scale"] + p[
        f"{key}/bias"
    ]


def dense(x, p, key):
    return x @ p[f"{key}/kernel"] + p[f"{key}/bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def softmax(x):
    exponent = np.exp(x - x.max(-1, keepdims=True))
    return exponent / exponent.sum(-1, keepdims=True)


def project_heads(x, p, key):
    return np.einsum("td,dhe->hte", x, p[f"{key}/kernel"]) + p[f"{key}/bias"][:, None]


def flax_like_vit(p, image, depth, patch):
    """One image (height, width, 3) through ViT, straight from the keys of the official .npz."""
    side = image.shape[0] // patch
    cells = image.reshape(side, patch, side, patch, 3).transpose(0, 2, 1, 3, 4)
    x = np.tensordot(cells, p["embedding/kernel"], axes=3).reshape(side * side, -1)
    x = np.concatenate([p["cls"][0], x + p["embedding/bias"]])
    x = x + p["Transformer/posembed_input/pos_embedding"][0]
    for i in range(depth):
        block = f"Transformer/encoderblock_{i}"
        attention = f"{block}/MultiHeadDotProductAttention_1"
        y = layer_norm(x, p, f"{block}/LayerNorm_0")
        q, k, v = (project_heads(y, p, f"{attention}/{n}") for n in ("query", "key", "value"))
        mixed = softmax(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])) @ v
        out = np.einsum("hte,hed->td", mixed, p[f"{attention}/out/kernel"])
        x = x + out + p[f"{attention}/out/bias"]
        y = dense(layer_norm(x, p, f"{block}/LayerNorm_2"), p, f"{block}/MlpBlock_3/Dense_0")
        x = x + dense(gelu(y), p, f"{block}/MlpBlock_3/Dense_1")
    x = layer_norm(x, p, "Transformer/encoder_norm")[0]
    if "pre_logits/kernel" in p:
        x = np.tanh(dense(x, p, "pre_logits"))
    return dense(x, p, "head")


@pytest.mark.parametrize("pre_logits", [False, True])
@pytest.mark.parametrize("size", SIZES)
def test_npz_files_agree_with_a_flax_like_forward(size, pre_logits, tmp_path):
    config = options(size, 3)
    ours = randomise(
        create_model("vit-b-16", activation="gelu_tanh", pre_logits=pre_logits, **config)
    )
    save(ours, tmp_path / "model.npz", layout="vit-npz")
    loaded = create_model("vit-b-16", pretrained=tmp_path / "model.npz", **config).eval()
    with np.load(tmp_path / "model.npz") as file:
        params = {key: file[key].astype(np.float64) for key in file.files}
    pixels = images(config["image_size"])
    channels_last = pixels.permute(0, 2, 3, 1).double().numpy()
    depth, patch = config["depth"], config["patch_size"]
    expected = np.stack([flax_like_vit(params, image, depth, patch) for image in channels_last])
    with torch.no_grad():
        torch.testing.assert_close(loaded(pixels), torch.from_numpy(expected).float(), **TOLERANCE)
