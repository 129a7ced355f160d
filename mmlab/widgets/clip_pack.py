"""The towers of a CLIP as few bytes, for a page that runs them: read by ``weights.js``."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mmlab.datasets.tokenizer import Tokenizer
from mmlab.models.clip import CLIP, CLIPImageEncoder
from mmlab.models.clip_resnet import CLIPResNet
from mmlab.nn import ConvStem
from mmlab.tasks.dual_encoder import DualEncoder

TOWERS = ("text", "image")
BITS = {"text": (11,), "image": (7, 6)}
"""Bits of a weight, the first choice first. At the first, cosines of captions differ from PyTorch's
by less than 1e-3 and those of the reader's own pictures by about a hundredth; one bit less doubles
that."""

MAX_BYTES = 2_680_000
"""Of all scripts together: with the figure itself, the page gets less than 3 MB more."""

# The first convolutions: one in a thousand weights, and most of the error when rounded.
_SMALL_CONVOLUTION = 1200

_PART = 135_000  # bytes in one script, a multiple of 15: enough scripts for a progress bar
_BITS_PER_CHARACTER = 15
_FIRST_CODE = 0x100


def pack_towers(encoder: DualEncoder, max_bytes: int = MAX_BYTES) -> dict[str, bytes]:
    """``"text"``, and ``"image"`` where a page can run it and its scripts leave it room.

    The image tower takes the most of its ``BITS`` that fit into ``max_bytes``. ValueError for an
    encoder whose text tower or tokenizer a page cannot run.
    """
    packed = {"text": pack_tower(encoder, "text")}
    room = max_bytes - _script_bytes(packed["text"])
    if _missing(encoder.network, "image") is None:
        sizes = (pack_tower(encoder, "image", bits) for bits in BITS["image"])
        fitting = next((data for data in sizes if _script_bytes(data) <= room), None)
        packed |= {} if fitting is None else {"image": fitting}
    return packed


def pack_tower(encoder: DualEncoder, tower: str, bits: int | None = None) -> bytes:
    """The weights of ``"text"`` (with its tokenizer) or ``"image"``, compressed.

    Every row of a matrix becomes whole numbers of ``bits`` bits (default: the first of ``BITS``)
    and one scale; all other numbers, and the smallest convolutions, stay in single precision.
    ValueError for a network or a tokenizer that a page cannot run.
    """
    network = encoder.network
    missing = _missing(network, tower)
    if missing is not None:
        raise ValueError(f"encoder holds {missing}; a page can run {_RUNS[tower]} only")
    state = {k: v.cpu() for k, v in network.state_dict().items() if k.startswith(f"{tower}_")}
    state = {k: v.float() for k, v in state.items() if not k.endswith("num_batches_tracked")}
    levels = 2 ** ((BITS[tower][0] if bits is None else bits) - 1)
    coded = {k: _row_codes(v, levels) for k, v in state.items() if _is_matrix(k, v)}
    plain = [coded[k][1] if k in coded else v for k, v in state.items()]
    codes = torch.cat([codes.flatten() for codes, _ in coded.values()]).numpy().astype(np.uint16)
    header = {
        "config": asdict(network.config),
        "tensors": [
            {"name": k, "shape": list(v.shape), "coded": k in coded} for k, v in state.items()
        ],
        "num_codes": len(codes),
        "offset": levels,
    }
    if tower == "text":
        header["tokenizer"] = page_tokenizer(encoder.tokenizer, network.config.context_length)
    else:
        header |= _image_details(network.image_encoder)
    text = json.dumps(header, ensure_ascii=False).encode("utf-8")
    numbers = np.concatenate([v.flatten().numpy() for v in plain]).astype("<f4")
    # Low bytes, then high bytes: alike ones together compress better.
    planes = (codes & 255).astype(np.uint8).tobytes() + (codes >> 8).astype(np.uint8).tobytes()
    return zlib.compress(struct.pack("<I", len(text)) + text + planes + numbers.tobytes(), 9)


def packed_header(packed: bytes) -> dict[str, Any]:
    """What stands before the numbers: the configuration and the names and shapes of the tensors."""
    data = zlib.decompress(packed)
    (length,) = struct.unpack_from("<I", data)
    return json.loads(data[4 : 4 + length])


def tower_contents(packed: bytes) -> dict[str, object]:
    """What a figure has to know of a packed tower before it loads it."""
    bits = packed_header(packed)["offset"].bit_length()
    return {"files": list(script_parts(packed)), "num_bytes": len(packed), "bits": bits}


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


_RUNS = {
    "text": "a CLIP",
    "image": "CLIP's transformer, with linear patches or a stem of convolutions, or its ResNet",
}


def _missing(network: nn.Module, tower: str) -> str | None:
    """What it is in ``network`` that a page cannot run; None if it can."""
    if not isinstance(network, CLIP):
        return f"a {type(network).__name__}"
    if tower == "text":
        return None
    image = network.image_encoder
    if type(image) not in (CLIPImageEncoder, CLIPResNet):
        return f"a {type(image).__name__}"
    stem = getattr(image, "patch_embedding", None)
    if isinstance(stem, ConvStem) and not all(map(_stage_runs, stem.layers)):
        return "a stem of other layers"
    return None


def _stage_runs(stage: nn.Module) -> bool:
    if [type(layer) for layer in stage] != [nn.Conv2d, nn.BatchNorm2d, nn.GELU]:
        return False
    conv, _, activation = stage
    kernel, stride = conv.kernel_size[0], conv.stride[0]
    square = conv.kernel_size == (kernel,) * 2 and conv.stride == (stride,) * 2
    usual = (conv.groups, conv.dilation, conv.padding) == (1, (1, 1), (kernel // 2,) * 2)
    return square and usual and activation.approximate == "none"


def _image_details(image_encoder: nn.Module) -> dict[str, object]:
    """What the page needs and neither the configuration nor the shapes of the weights say."""
    details: dict[str, object] = {"batch_norm_eps": nn.BatchNorm2d(1).eps}
    if isinstance(image_encoder, CLIPResNet):
        return details | {"pool_heads": image_encoder.pool.num_heads}
    stem = image_encoder.patch_embedding
    stages = stem.layers if isinstance(stem, ConvStem) else ()
    return details | {"stem_strides": [stage[0].stride[0] for stage in stages]}


def _script_bytes(packed: bytes) -> int:
    return sum(map(len, script_parts(packed).values()))


def _is_matrix(name: str, tensor: Tensor) -> bool:
    small = tensor.ndim == 4 and tensor.numel() <= _SMALL_CONVOLUTION
    return tensor.ndim >= 2 and name.endswith(".weight") and not small


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
