"""The FLIP table: no loss in either direction, the sheet's keys, what a JAX forward computes."""

import numpy as np
import pytest
import torch
from jaxtyping import Float

from mmlab.hub.mapping import CheckpointError, as_tensors, convert
from mmlab.hub.tables.flip import LAYOUTS
from mmlab.models.flip import FLIP, FLIP_B_16, FLIPConfig

(LAYOUT,) = LAYOUTS
TINY = FLIPConfig(
    image_size=12,
    patch_size=4,
    dim=12,
    depth=11,
    num_heads=3,
    mlp_dim=20,
    vocab_size=40,
    context_length=6,
    text_dim=8,
    text_depth=2,
    text_num_heads=2,
    text_mlp_dim=24,
    embed_dim=10,
)


def random_state(model):
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    return {key: 0.3 * torch.randn(t.shape, generator=generator) for key, t in state.items()}


def read(state):
    return convert("flip", LAYOUT.rows, state)[0]


def write(state):
    return convert("flip", [row.reversed() for row in LAYOUT.rows], state)[0]


def test_round_trip_is_exact():
    ours = random_state(FLIP(TINY))
    theirs = write(ours)
    back = read(theirs)
    assert back.keys() == ours.keys()
    for key, tensor in ours.items():
        assert back[key].shape == tensor.shape, key
        assert torch.equal(back[key], tensor), key
    assert LAYOUT.share_of_known(theirs) == 1
    assert LAYOUT.share_of_known(f"target/{key}" for key in theirs) == 1
    assert LAYOUT.share_of_known(ours) < 0.05


def test_keys_and_shapes_of_a_real_b_16():
    with torch.device("meta"):
        theirs = write(FLIP(FLIP_B_16).state_dict())
    image, text = "img_encoder/Transformer/encoderblock_", "txt_encoder/Transformer/encoderblock_"
    expected = {
        "img_encoder/embedding/kernel": (16, 16, 3, 768),
        "img_encoder/embedding/bias": (768,),
        "img_encoder/posembed_encoder/pos_embedding": (1, 197, 768),
        "img_encoder/cls": (1, 1, 768),
        f"{image}00/LayerNorm_0/scale": (768,),
        f"{image}09/MultiHeadDotProductAttention_0/query/kernel": (768, 768),
        f"{image}11/MultiHeadDotProductAttention_0/out/bias": (768,),
        f"{image}11/MlpBlock_0/Dense_0/kernel": (768, 3072),
        "img_encoder/Transformer/encoder_norm/bias": (768,),
        "txt_encoder/token_embedding/embedding": (30523, 512),
        "txt_encoder/posembed_encoder/pos_embedding": (1, 32, 512),
        f"{text}11/LayerNorm_1/bias": (512,),
        f"{text}00/MlpBlock_0/Dense_1/kernel": (2048, 512),
        "img_mlp1/kernel": (768, 512),
        "txt_mlp1/kernel": (512, 512),
        "logit_scale": (1,),
    }
    for key, shape in expected.items():
        assert tuple(theirs[key].shape) == shape, key
    assert sum(tensor.numel() for tensor in theirs.values()) == 139_927_809


def test_a_missing_layer_is_named():
    theirs = write(random_state(FLIP(TINY)))
    del theirs["img_encoder/Transformer/encoderblock_07/LayerNorm_0/scale"]
    with pytest.raises(CheckpointError, match=r"missing: 'img_encoder/.*encoderblock_07/LayerNorm"):
        read(theirs)


def layer_norm(x, p, key):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)
    return x * p[f"{key}/scale"] + p[f"{key}/bias"]


def dense(x, p, key):
    return x @ p[f"{key}/kernel"] + p[f"{key}/bias"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def attend(x, p, key, num_heads):
    q, k, v = (dense(x, p, f"{key}/{name}") for name in ("query", "key", "value"))
    q, k, v = (np.stack(np.split(part, num_heads, axis=-1)) for part in (q, k, v))
    scores = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1]))
    mixed = scores / scores.sum(-1, keepdims=True) @ v
    return dense(np.concatenate(list(mixed), axis=-1), p, f"{key}/out")


def tower(x, p, tower_key, depth, num_heads):
    for i in range(depth):
        block = f"{tower_key}/Transformer/encoderblock_{i:02d}"
        y = layer_norm(x, p, f"{block}/LayerNorm_0")
        x = x + attend(y, p, f"{block}/MultiHeadDotProductAttention_0", num_heads)
        y = dense(layer_norm(x, p, f"{block}/LayerNorm_1"), p, f"{block}/MlpBlock_0/Dense_0")
        x = x + dense(gelu(y), p, f"{block}/MlpBlock_0/Dense_1")
    return layer_norm(x, p, f"{tower_key}/Transformer/encoder_norm")


def unit(x):
    return x / (np.linalg.norm(x) + 1e-8)


def flax_like_image(p, image: Float[np.ndarray, "height width 3"], config):
    patch = config.patch_size
    side = image.shape[0] // patch
    cells = image.reshape(side, patch, side, patch, 3).transpose(0, 2, 1, 3, 4)
    x = np.tensordot(cells, p["img_encoder/embedding/kernel"], axes=3).reshape(side * side, -1)
    x = x + p["img_encoder/embedding/bias"]
    x = x + p["img_encoder/posembed_encoder/pos_embedding"][0, 1:]
    x = np.concatenate([p["img_encoder/cls"][0], x])
    x = tower(x, p, "img_encoder", config.depth, config.num_heads)
    return unit(x.mean(axis=0) @ p["img_mlp1/kernel"])


def flax_like_text(p, ids, config):
    x = p["txt_encoder/token_embedding/embedding"][ids]
    x = x + p["txt_encoder/posembed_encoder/pos_embedding"][0]
    x = tower(x, p, "txt_encoder", config.text_depth, config.text_num_heads)
    return unit(x[0] @ p["txt_mlp1/kernel"])


def test_our_model_computes_what_the_stored_names_say():
    """A plain forward in numpy, straight from the keys and axes of the official tree."""
    state = random_state(FLIP(TINY))
    state["image_encoder.position_embedding"][:, 0] = 0
    model = FLIP(TINY).eval()
    p = {key: tensor.double().numpy() for key, tensor in write(state).items()}
    model.load_state_dict(read(as_tensors({key: a.astype(np.float32) for key, a in p.items()})))
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, 12, 12, generator=generator)
    ids = torch.randint(0, 40, (2, 6), generator=generator)
    channels_last = images.permute(0, 2, 3, 1).double().numpy()
    image_features = np.stack([flax_like_image(p, image, TINY) for image in channels_last])
    text_features = np.stack([flax_like_text(p, row, TINY) for row in ids.numpy()])
    scale = np.exp(np.clip(p["logit_scale"][0], 0, np.log(100)))
    with torch.no_grad():
        close = dict(rtol=0, atol=1e-5)
        ours = model.encode_image(images).double()
        torch.testing.assert_close(ours, torch.from_numpy(image_features), **close)
        ours = model.encode_text(ids).double()
        torch.testing.assert_close(ours, torch.from_numpy(text_features), **close)
        expected = torch.from_numpy(scale * image_features @ text_features.T)
        torch.testing.assert_close(model(images, ids).double(), expected, rtol=0, atol=1e-4)
