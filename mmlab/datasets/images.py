"""Reading image files of every kind into one form: RGB, uint8, channels first."""

from __future__ import annotations

import os
from io import BufferedIOBase, BytesIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

MAX_PIXELS = 64_000_000
"""The largest image that is read, in pixels (192 MB as RGB): 8,000 x 8,000 or 20,000 x 3,200."""


class ImageError(ValueError):
    """An image file that cannot be used; the message is one sentence that says why."""


def load_image(path: str | os.PathLike[str]) -> UInt8[Tensor, "3 height width"]:
    """Read an image file as RGB, 0-255.

    Whatever Pillow reads becomes RGB: grey is repeated, transparency is laid on white, 16 bits
    become 8, an animation gives its first frame, and the camera's orientation (EXIF) is applied.

    Raises:
        ImageError: the file is missing, is no image, is damaged, has more than ``MAX_PIXELS``
            pixels, or holds pixel values without an agreed range (floats, 32-bit integers).
    """
    try:
        with open(path, "rb") as file:
            return _read(file, os.fspath(path))
    except FileNotFoundError:
        raise ImageError(f"there is no image at {os.fspath(path)!r}") from None
    except IsADirectoryError:
        raise ImageError(f"{os.fspath(path)!r} is a folder, not an image") from None
    except OSError as error:
        raise ImageError(f"cannot open {os.fspath(path)!r}: {error.strerror or error}") from None


def decode_image(data: bytes, name: str = "image") -> UInt8[Tensor, "3 height width"]:
    """The same for the bytes of a file; ``name`` is what an error calls it."""
    return _read(BytesIO(data), name)


def _read(file: BufferedIOBase, name: str) -> UInt8[Tensor, "3 height width"]:
    try:
        with Image.open(file) as image:
            _check_size(image, name)
            image.load()
            return _to_tensor(_to_rgb(ImageOps.exif_transpose(image), name))
    except ImageError:
        raise
    except UnidentifiedImageError:
        raise ImageError(f"{name!r} is not an image that Pillow can read") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(_too_large(name)) from None
    except MemoryError:
        raise
    # Pillow's decoders report damage with many kinds of exception (OSError, SyntaxError,
    # struct.error, EOFError …); for the reader they all mean the same.
    except Exception as error:
        raise ImageError(f"{name!r} is damaged or cut short: {error}") from error


def _check_size(image: Image.Image, name: str) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{_too_large(name)} (it has {image.width} x {image.height})")


def _too_large(name: str) -> str:
    return f"{name!r} has more than {MAX_PIXELS:,} pixels; make it smaller first"


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        raise ImageError(f"{name!r} holds floating-point pixels; save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        return _sixteen_to_eight_bits(image, name).convert("RGB")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image.convert("RGB")


def _sixteen_to_eight_bits(image: Image.Image, name: str) -> Image.Image:
    """Pillow would clip values above 255; 65,535 must become 255."""
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65_535:
        raise ImageError(f"{name!r} holds 32-bit pixels; save it with 8 or 16 bits")
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _to_tensor(image: Image.Image) -> UInt8[Tensor, "3 height width"]:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
