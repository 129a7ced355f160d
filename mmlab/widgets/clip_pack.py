"""One tower of a CLIP as few bytes, for a page that runs it: read by ``weights.js``."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import asdict

import numpy as np
import torch
from torch import Tensor

from mmlab.datasets.tokenizer import Tokenizer
from mmlab.models.clip import CLIP
from mmlab.tasks.dual_encoder import DualEncoder

TOWERS = ("text", "image")
BITS = {"text": 11, "image": 7}
"""Bits of a weight. Cosines of captions then differ from PyTorch's by less than 1e-3, those of the
reader's own pictures by about a hundredth, and all of it stays under 3 MB."""

# The first convolution: one in a thousand weights, and nearly all of the error when rounded.
_PRECISE = "image_encoder.patch_embedding.layers.0.0.weight"

_PART = 135_000  # bytes in one script, a multiple of 15: enough scripts for a progress bar
_BITS_PER_CHARACTER = 15
_FIRST_CODE = 0x100


def pack_tower(encoder: DualEncoder, tower: str) -> bytes:
    """The weights of ``"text"`` (with its tokenizer) or ``"image"``, compressed.

    Every row of a matrix becomes whole numbers of ``BITS`` bits and one scale; all other numbers,
    and the first convolution, stay in single precision. ValueError for a network or a tokenizer
    that a page cannot run.
    """
    network = _checked(encoder)
    state = {k: v.cpu() for k, v in network.state_dict().items() if k.startswith(f"{tower}_")}
    state = {k: v.float() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    levels = 2 ** (BITS[tower] - 1)
    coded = {k: _row_codes(v, levels) for k, v in state.items() if _is_matrix(k, v)}
    plain = [coded[k][1] if k in coded else v for k, v in state.items()]
    codes = torch.cat([codes.flatten() for codes, _ in coded.values()]).numpy().astype(np.uint16)
    header = {
        "config": asdict(network.config),
        "batch_norm_eps": torch.nn.BatchNorm2d(1).eps,
        "tensors": [
            {"name": k, "shape": list(v.shape), "coded": k in coded} for k, v in state.items()
        ],
        "num_codes": len(codes),
        "offset": levels,
    }
    if tower == "text":
        header["tokenizer"] = page_tokenizer(encoder.tokenizer, network.config.context_length)
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    numbers = np.concatenate([v.flatten().numpy() for v in plain]).astype("<f4")
    # Low bytes, then high bytes: alike ones together compress better.
    planes = (codes & 255).astype(np.uint8).tobytes() + (codes >> 8).astype(np.uint8).tobytes()
    return zlib.compress(struct.pack("<I", len(text)) + text + planes + numbers.tobytes(), 9)


def script_parts(packed: bytes) -> dict[str, bytes]:
    """Name → script; each puts its share of ``packed`` into ``mmlabParts`` of the page.

    The scripts are UTF-16, whose byte order mark every browser obeys, with 15 bits in each
    character: base64 would be a quarter longer. The name holds a hash of the whole.
    """
    key = hashlib.sha256(packed).hexdigest()[:12]
    pieces = [packed[i : i + _PART] for i in range(0, len(packed), _PART)]
    return {
        f"{key}-{number:02}": _script(f"{key}-{number:02}", piece)
        for number, piece in enumerate(pieces)
    }


def page_tokenizer(tokenizer: Tokenizer, max_length: int) -> dict[str, object]:
    """What ``wordpiece.js`` needs; ValueError if the tokenizer is no WordPiece of ours."""
    engine = json.loads(tokenizer.engine.to_str())
    kinds = [(engine[part] or {}).get("type") for part in ("model", "normalizer", "pre_tokenizer")]
    if kinds != ["WordPiece", "BertNormalizer", "BertPreTokenizer"]:
        raise ValueError(f"tokenizer is {kinds[0]}; a page can run WordPiece only")
    return {
        "vocab": tokenizer.tokens(range(tokenizer.vocab_size)),
        "special": [token["content"] for token in engine["added_tokens"]],
        "unknown": engine["model"]["unk_token"],
        "first": tokenizer.layout.first,
        "last": tokenizer.layout.last,
        "lowercase": engine["normalizer"]["lowercase"],
        "max_length": max_length,
    }


def _checked(encoder: DualEncoder) -> CLIP:
    network = encoder.network
    if not isinstance(network, CLIP) or network.config.stages:
        kind = type(network).__name__
        raise ValueError(f"encoder holds a {kind}; a page can run a CLIP with transformers only")
    return network


def _is_matrix(name: str, tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and name.endswith(".weight") and name != _PRECISE


def _row_codes(matrix: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Whole numbers from 0 to ``2 levels - 1``, and what one step is worth in each row."""
    rows = matrix.flatten(1)
    steps = rows.abs().amax(dim=1) / (levels - 1)
    steps = torch.where(steps > 0, steps, 1.0)
    return (rows / steps[:, None]).round().to(torch.int32) + levels, steps


def _script(name: str, piece: bytes) -> bytes:
    bits = np.unpackbits(np.frombuffer(piece, np.uint8), bitorder="little")
    bits = np.pad(bits, (0, -len(bits) % _BITS_PER_CHARACTER)).reshape(-1, _BITS_PER_CHARACTER)
    codes = bits @ (1 << np.arange(_BITS_PER_CHARACTER)) + _FIRST_CODE
    head, tail = f'(globalThis.mmlabParts ??= {{}})["{name}"] = "', '";\n'
    text = codes.astype("<u2").tobytes()
    return b"\xff\xfe" + head.encode("utf-16-le") + text + tail.encode("utf-16-le")
