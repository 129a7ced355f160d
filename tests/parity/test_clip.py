"""CLIP against independent implementations: transformers, and the ResNet as its sheet tells it.

All parameters are random, so that no zero or one hides a mistake.
"""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import CLIPConfig, CLIPModel

from mmlab.hub import create_model, detect_layout, from_mmlab, read_checkpoint, save, to_mmlab
from mmlab.models.clip import CLIPPretraining

TOLERANCE = dict(rtol=0, atol=1e-5)

# Two sizes, in which no two numbers that could be confused are equal.
SIZES = {
    "small": dict(
        image_size=16,
        patch_size=4,
        dim=32,
        depth=2,
        num_heads=4,
        mlp_dim=64,
        vocab_size=60,
        context_length=14,
        text_dim=24,
        text_depth=3,
        text_num_heads=3,
        text_mlp_dim=40,
        embed_dim=12,
    ),
    "wide": dict(
        image_size=24,
        patch_size=8,
        dim=48,
        depth=3,
        num_heads=3,
        mlp_dim=80,
        vocab_size=99,
        context_length=77,
        text_dim=40,
        text_depth=2,
        text_num_heads=5,
        text_mlp_dim=72,
        embed_dim=20,
    ),
}
BOTH = pytest.mark.parametrize("size", SIZES)


def hf_config(c: dict) -> CLIPConfig:
    vision = dict(
        image_size=c["image_size"],
        patch_size=c["patch_size"],
        hidden_size=c["dim"],
        num_hidden_layers=c["depth"],
        num_attention_heads=c["num_heads"],
        intermediate_size=c["mlp_dim"],
    )
    text = dict(
        vocab_size=c["vocab_size"],
        max_position_embeddings=c["context_length"],
        hidden_size=c["text_dim"],
        num_hidden_layers=c["text_depth"],
        num_attention_heads=c["text_num_heads"],
        intermediate_size=c["text_mlp_dim"],
        bos_token_id=c["vocab_size"] - 2,
        eos_token_id=c["vocab_size"] - 1,
        pad_token_id=0,
    )
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=c["embed_dim"])


def randomise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Add noise to every parameter, ones and zeros included, and make logits of usual size."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if name == "logit_scale":
            parameter.data.fill_(1.3)
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        scale = 1 / parameter.shape[-1] ** 0.5 if parameter.ndim == 2 else 0.3
        parameter.data = parameter.data + scale * noise
    return model.eval()


def batch(size: str, num: int = 4, num_tokens: int | None = None):
    """Images, and captions of random lengths whose end token is the highest, once in a row."""
    c = SIZES[size]
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(num, 3, c["image_size"], c["image_size"], generator=generator)
    length = num_tokens or c["context_length"]
    end = c["vocab_size"] - 1
    ids = torch.randint(1, end - 1, (num, length), generator=generator)
    ends = torch.randint(1, length, (num,), generator=generator)
    ids[torch.arange(num), ends] = end
    ids[torch.arange(length) > ends[:, None]] = 0
    return images, ids


def load_from_disk(theirs, size, tmp_path):
    """As ``save_pretrained`` writes it, through our own reader."""
    theirs.save_pretrained(tmp_path)
    assert detect_layout(read_checkpoint(tmp_path).tensors) == "clip-hf"
    return create_model("clip-vit-b-32", pretrained=tmp_path, **SIZES[size])


def load_from_memory(theirs, size, tmp_path):
    """The names of ``state_dict()``."""
    model = create_model("clip-vit-b-32", **SIZES[size])
    model.load_state_dict(to_mmlab("clip-hf", theirs.state_dict()))
    return model


@BOTH
@pytest.mark.parametrize("load", [load_from_disk, load_from_memory])
def test_features_logits_loss_and_gradients_agree_with_transformers(size, load, tmp_path):
    theirs = randomise(CLIPModel(hf_config(SIZES[size])))
    ours = load(theirs, size, tmp_path).eval()
    images, ids = batch(size)
    expected = theirs(pixel_values=images, input_ids=ids, return_loss=True)
    logits = ours(images, ids)
    torch.testing.assert_close(ours.encode_image(images), expected.image_embeds, **TOLERANCE)
    torch.testing.assert_close(ours.encode_text(ids), expected.text_embeds, **TOLERANCE)
    torch.testing.assert_close(logits, expected.logits_per_image, **TOLERANCE)
    torch.testing.assert_close(logits.T, expected.logits_per_text, **TOLERANCE)
    loss = CLIPPretraining(ours).losses({"images": images, "input_ids": ids})["contrastive"]
    torch.testing.assert_close(loss, expected.loss, **TOLERANCE)
    loss.backward()
    expected.loss.backward()
    # Gradients have the names and axes of their weights, so the same table converts them.
    gradients = to_mmlab("clip-hf", {name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], **TOLERANCE, msg=name)
        assert gradients[name].abs().max() > 1e-5 or name.endswith("k_proj.bias"), name


@pytest.mark.parametrize("num_tokens", [2, 3, 7, 40, 77])
def test_captions_of_every_length_agree(num_tokens):
    theirs = randomise(CLIPModel(hf_config(SIZES["wide"])))
    ours = load_from_memory(theirs, "wide", None).eval()
    images, ids = batch("wide", num_tokens=num_tokens)
    with torch.no_grad():
        expected = theirs(pixel_values=images, input_ids=ids).text_embeds
        torch.testing.assert_close(ours.encode_text(ids), expected, **TOLERANCE)


@BOTH
def test_transformers_takes_our_weights_back(size):
    ours = randomise(create_model("clip-vit-b-32", **SIZES[size]), seed=5)
    theirs = CLIPModel(hf_config(SIZES[size])).eval()
    theirs.load_state_dict(from_mmlab("clip-hf", ours.state_dict()), strict=True)
    images, ids = batch(size)
    with torch.no_grad():
        expected = theirs(pixel_values=images, input_ids=ids).logits_per_image
        torch.testing.assert_close(ours(images, ids), expected, **TOLERANCE)


def test_from_pretrained_reads_what_we_save(tmp_path):
    ours = randomise(create_model("clip-vit-b-32", **SIZES["small"]), seed=6)
    save(ours, tmp_path / "model.safetensors", layout="clip-hf")
    hf_config(SIZES["small"]).save_pretrained(tmp_path)
    theirs, report = CLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys"))
    images, ids = batch("small")
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=images, input_ids=ids).logits_per_image
        torch.testing.assert_close(ours(images, ids), expected, **TOLERANCE)


def test_exact_gelu_is_taken_from_config_json(tmp_path):
    config = hf_config(SIZES["small"])
    config.vision_config.hidden_act = config.text_config.hidden_act = "gelu"
    theirs = randomise(CLIPModel(config))
    ours = load_from_disk(theirs, "small", tmp_path).eval()
    assert ours.config.activation == "gelu"
    images, ids = batch("small")
    with torch.no_grad():
        expected = theirs(pixel_values=images, input_ids=ids).logits_per_image
        torch.testing.assert_close(ours(images, ids), expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["clip-vit-b-32", "clip-vit-l-14-336"])
def test_published_sizes_fit_transformers_strictly(name):
    with torch.device("meta"):
        ours = create_model(name)
        theirs = CLIPModel(hf_config(vars(ours.config)))
    state = from_mmlab("clip-hf", ours.state_dict())
    theirs.load_state_dict(state, strict=True, assign=True)
    count = sum(parameter.numel() for parameter in ours.parameters())
    assert sum(parameter.numel() for parameter in theirs.parameters()) == count


# The ResNet of OpenAI, written down from the sheet, straight from the keys of the official files.


def batch_norm(x, p, key):
    mean, variance = p[f"{key}.running_mean"], p[f"{key}.running_var"]
    x = (x - mean[:, None, None]) / (variance[:, None, None] + 1e-5).sqrt()
    return x * p[f"{key}.weight"][:, None, None] + p[f"{key}.bias"][:, None, None]


def pooled(x, size):
    """The average of each ``size`` x ``size`` square."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // size, size, width // size, size)
    return x.mean(dim=(3, 5))


def bottleneck(x, p, key, stride):
    y = batch_norm(F.conv2d(x, p[f"{key}.conv1.weight"]), p, f"{key}.bn1").clamp(min=0)
    y = batch_norm(F.conv2d(y, p[f"{key}.conv2.weight"], padding=1), p, f"{key}.bn2").clamp(min=0)
    y = batch_norm(F.conv2d(pooled(y, stride), p[f"{key}.conv3.weight"]), p, f"{key}.bn3")
    if f"{key}.downsample.0.weight" in p:
        x = F.conv2d(pooled(x, stride), p[f"{key}.downsample.0.weight"])
        x = batch_norm(x, p, f"{key}.downsample.1")
    return (x + y).clamp(min=0)


def attention_pool(x, p, key):
    """One head after the other; the query is the mean token."""
    tokens = x.flatten(2).mT
    tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1) + p[f"{key}.positional_embedding"]
    query, keys, values = (
        tokens @ p[f"{key}.{n}_proj.weight"].T + p[f"{key}.{n}_proj.bias"] for n in "qkv"
    )
    heads = []
    for start in range(0, x.shape[1], 64):
        part = slice(start, start + 64)
        scores = query[:, :1, part] @ keys[..., part].mT / math.sqrt(64)
        heads.append(scores.softmax(-1) @ values[..., part])
    mixed = torch.cat(heads, dim=-1)[:, 0]
    return mixed @ p[f"{key}.c_proj.weight"].T + p[f"{key}.c_proj.bias"]


def openai_resnet(p, images, stages):
    x, strides = images, {1: 2, 2: 1, 3: 1}
    for number, stride in strides.items():
        x = F.conv2d(x, p[f"visual.conv{number}.weight"], stride=stride, padding=1)
        x = batch_norm(x, p, f"visual.bn{number}").clamp(min=0)
    x = pooled(x, 2)
    for stage, num_blocks in enumerate(stages, start=1):
        for number in range(num_blocks):
            stride = 2 if stage > 1 and number == 0 else 1
            x = bottleneck(x, p, f"visual.layer{stage}.{number}", stride)
    return attention_pool(x, p, "visual.attnpool")


@pytest.mark.parametrize(
    ("stages", "width", "image_size"), [((1, 2, 1, 1), 4, 64), ((2, 1, 3, 2), 6, 96)]
)
def test_the_resnet_agrees_with_its_sheet_through_openais_layout(
    stages, width, image_size, tmp_path
):
    options = SIZES["small"] | dict(stages=stages, dim=width, image_size=image_size)
    generator = torch.Generator().manual_seed(3)
    ours = create_model("clip-rn50", **options)
    for name, tensor in ours.state_dict().items():
        if name.endswith("running_var"):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif tensor.is_floating_point() and tensor.ndim:
            scale = 1 / tensor[0].numel() ** 0.5 if tensor.ndim > 1 else 0.3
            tensor.add_(scale * torch.randn(tensor.shape, generator=generator))
    path = tmp_path / "resnet.safetensors"
    save(ours, path, layout="clip-openai-resnet")
    loaded = create_model("clip-rn50", pretrained=path, **options).eval()
    p = {key: tensor.double() for key, tensor in read_checkpoint(path).tensors.items()}
    images = torch.randn(3, 3, image_size, image_size, generator=generator)
    expected = openai_resnet(p, images.double(), stages)
    with torch.no_grad():
        features = loaded.image_encoder(images)
        torch.testing.assert_close(features.double(), expected, rtol=1e-5, atol=1e-5)
        unit = F.normalize(expected, dim=-1).float()
        torch.testing.assert_close(loaded.encode_image(images), unit, **TOLERANCE)
        texts = F.normalize(torch.randn(2, 12, generator=generator), dim=-1)
        assert (unit @ texts.T).std() > 1e-2
