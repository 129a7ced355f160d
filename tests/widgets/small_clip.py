"""A small CLIP that a page runs, and the same with the weights that the page gets."""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from mmlab.datasets import emoji
from mmlab.datasets.tokenizer import train_wordpiece
from mmlab.hub.shipped import list_mini_checkpoints
from mmlab.models.clip import CLIP, CLIP_VIT_MINI
from mmlab.tasks.dual_encoder import DualEncoder
from mmlab.widgets.clip_pack import packed_header
from mmlab.widgets.clip_search import packed_towers

needs_shipped = pytest.mark.skipif(
    "clip-mini" not in list_mini_checkpoints(), reason="no trained clip-mini came with mmlab"
)

SMALL = {"dim": 32, "depth": 2, "num_heads": 2, "mlp_dim": 48, "image_size": 32, "embed_dim": 24}
SMALL_TEXT = {"text_dim": 40, "text_depth": 2, "text_num_heads": 5, "text_mlp_dim": 64}
LENGTH = 24  # tokens of a caption
SENTENCES = [
    "a happy cat",
    "the red heart",
    "grinning face with big eyes",
    "Smiling Face With Heart-Eyes!",
    "something to drink",
    "a",
    "two dogs, three cats and 4 fish",
    "café in the rain",
    "zyzzyva",
    "thumbs up; thumbs down",
    "one two three four five six seven eight nine ten " * 5,
    "A VERY LOUD SENTENCE?",
    "开心的猫",
    "一只猫",
    "红心",
    "下雨",
    "笑脸和红心",
    "吃的东西",
    "绿色的苹果。",
    "音乐",
    "狗 and 猫",
    "房子，树、太阳",
    "生日蛋糕",
    "哭泣的脸",
]


@cache
def tokenizer():
    data = emoji("train", "fluent")
    captions = [*data.captions("en"), *data.captions("zh"), "café the rain zürich istanbul"]
    return train_wordpiece(captions, vocab_size=1900)


@cache
def encoder(seed=0, **options):
    """A small CLIP whose features differ from each other as those of a trained one."""
    words = tokenizer()
    sizes = {"vocab_size": words.vocab_size, "context_length": LENGTH}
    config = replace(CLIP_VIT_MINI, **SMALL | SMALL_TEXT | sizes | options)
    torch.manual_seed(seed)
    network = CLIP(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in network.state_dict().items():
            if value.ndim > 1:
                value.mul_(3.0)
            elif "running_mean" in name or name.endswith("bias"):
                value.normal_(0.0, 0.2, generator=generator)
            elif "running_var" in name or (value.ndim == 1 and value.is_floating_point()):
                value.uniform_(0.5, 1.5, generator=generator)
    return DualEncoder(network, words)


def unpacked(packed):
    """The header and the tensors, read as weights.js says that it reads them."""
    data = zlib.decompress(packed)
    (length,) = struct.unpack_from("<I", data)
    header = packed_header(packed)
    total, start = header["num_codes"], 4 + length
    low = np.frombuffer(data, np.uint8, total, start).astype(np.int64)
    high = np.frombuffer(data, np.uint8, total, start + total).astype(np.int64)
    codes = torch.from_numpy(low + 256 * high - header["offset"]).float()
    plain = torch.from_numpy(np.frombuffer(data, "<f4", offset=start + 2 * total).copy())
    tensors = {}
    for entry in header["tensors"]:
        shape, count = entry["shape"], math.prod(entry["shape"])
        kept = shape[0] if entry["coded"] else count
        values, plain = plain[:kept], plain[kept:]
        if entry["coded"]:
            rows, codes = codes[:count].view(shape[0], -1), codes[count:]
            values = rows * values[:, None]
        tensors[entry["name"]] = values.view(shape)
    assert len(plain) == len(codes) == 0
    return header, tensors


@cache
def rounded(original):
    """The encoder with the weights that the page gets."""
    network = CLIP(original.network.config).eval()
    network.load_state_dict(original.network.state_dict())
    for packed in packed_towers(original).values():
        network.load_state_dict(unpacked(packed)[1], strict=False)
    return DualEncoder(network, original.tokenizer)
