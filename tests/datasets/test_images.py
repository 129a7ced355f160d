import struct
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from mmlab.datasets.images import MAX_PIXELS, ImageError, decode_image, load_image


@pytest.fixture
def picture():
    """A picture without symmetry: red at the top left, blue at the bottom right."""
    y, x = np.mgrid[:20, :30]
    return np.stack([255 - 8 * x, 6 * y, 8 * x], axis=-1).astype(np.uint8)


def channels_first(picture):
    return torch.from_numpy(picture.copy()).permute(2, 0, 1)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_rgb_is_read_as_it_is(tmp_path, picture, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(picture).save(path, **({"lossless": True} if suffix == "webp" else {}))
    image = load_image(path)
    assert image.is_contiguous()
    assert torch.equal(image, channels_first(picture))
    assert torch.equal(load_image(str(path)), image)
    assert torch.equal(decode_image(path.read_bytes()), image)


def test_jpeg_is_close(tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    difference = load_image(tmp_path / "a.jpg").float() - channels_first(picture).float()
    assert difference.abs().mean() < 4


def test_grey_is_repeated(tmp_path, picture):
    Image.fromarray(picture[..., 0]).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert torch.equal(image, torch.from_numpy(picture[..., 0].copy()).expand(3, -1, -1))


def test_a_palette_is_looked_up(tmp_path):
    colors = Image.new("P", (2, 1))
    colors.putpalette([10, 20, 30, 200, 150, 100])
    colors.putpixel((1, 0), 1)
    colors.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[:, 0].T.tolist() == [[10, 20, 30], [200, 150, 100]]


def test_black_and_white(tmp_path):
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[0].tolist() == [[255, 0]]


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = Image.new(mode, (3, 1), 0)
    for x, alpha in enumerate((0, 128, 255)):
        image.putpixel((x, 0), (0, alpha) if mode == "LA" else (0, 0, 0, alpha))
    image.save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png")[:, 0].tolist() == [[255, 127, 0]] * 3


def test_a_transparent_color_of_a_palette_is_white(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 150, 100])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.gif", transparency=0)
    assert load_image(tmp_path / "a.gif")[:, 0].T.tolist() == [[255] * 3, [200, 150, 100]]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_become_eight_over_the_whole_range(tmp_path, suffix):
    values = np.array([[0, 257, 25_700, 65_535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / f"a.{suffix}")
    assert load_image(tmp_path / f"a.{suffix}")[0].tolist() == [[0, 1, 100, 255]]


def test_cmyk_becomes_rgb(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    red, green, blue = load_image(tmp_path / "a.jpg").float().mean((1, 2))
    assert red > 200 and green < 50 and blue < 50


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_cameras_orientation_is_applied(tmp_path, picture, orientation):
    """The stored pixels of a picture that was taken under each of the eight orientations."""
    upright = Image.fromarray(picture)
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "a.png", exif=exif)
    assert torch.equal(load_image(tmp_path / "a.png"), channels_first(picture))


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif")[:, 0, 0].tolist() == [255, 0, 0]


def test_one_pixel_is_an_image(tmp_path):
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").flatten().tolist() == [1, 2, 3]


def test_twenty_thousand_pixels_in_a_row_are_fine(tmp_path):
    Image.new("L", (20_000, 2), 7).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").shape == (3, 2, 20_000)


# Bad files.


def png_header(width, height):
    """A PNG file that claims a size and holds no pixels."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_001, 10_000, 20_000])
def test_too_many_pixels(tmp_path, side):
    (tmp_path / "a.png").write_bytes(png_header(side, side))
    with pytest.raises(ImageError, match=rf"a\.png' has more than {MAX_PIXELS:,} pixels"):
        load_image(tmp_path / "a.png")


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_where_warnings_are_errors(tmp_path):
    (tmp_path / "a.png").write_bytes(png_header(10_000, 10_000))
    with pytest.raises(ImageError, match="has more than"):
        load_image(tmp_path / "a.png")


def test_a_missing_file(tmp_path):
    with pytest.raises(ImageError, match=r"^there is no image at '.*none\.png'$"):
        load_image(tmp_path / "none.png")


def test_a_folder(tmp_path):
    with pytest.raises(ImageError, match=r"is a folder, not an image$"):
        load_image(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"])
def test_not_an_image(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(ImageError, match=r"a\.png' is (not an image|damaged)"):
        load_image(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "webp", "bmp", "tiff"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_truncated_file_is_an_error_or_nothing_else(kind, share):
    rng = np.random.default_rng(0)
    file = BytesIO()
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, kind)
    data = file.getvalue()
    with pytest.raises(ImageError, match=r"'cut' is (not an image|damaged or cut short)"):
        decode_image(data[: int(len(data) * share)], "cut")


def test_damage_anywhere_raises_only_image_errors():
    """Random bytes of a PNG overwritten: an image comes out, or an ImageError."""
    rng = np.random.default_rng(0)
    file = BytesIO()
    Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(file, "png")
    errors = 0
    for _ in range(200):
        data = bytearray(file.getvalue())
        data[rng.integers(len(data))] = rng.integers(256)
        try:
            decode_image(bytes(data))
        except ImageError as error:
            errors += 1
            assert "\n" not in str(error)
    assert errors > 100


def test_floating_point_and_32_bit_pixels_have_no_agreed_range(tmp_path):
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path / "f.tiff")
    with pytest.raises(ImageError, match="floating-point pixels"):
        load_image(tmp_path / "f.tiff")
    Image.fromarray(np.full((2, 2), 10**6, np.int32)).save(tmp_path / "i.tiff")
    with pytest.raises(ImageError, match="32-bit pixels"):
        load_image(tmp_path / "i.tiff")
