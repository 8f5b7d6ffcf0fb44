"""Any image file comes out as upright 8-bit RGB, or is named; crops are square and antialiased."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from vqjax.data.images import (
    BrokenImageError,
    center_crop,
    decode_image,
    random_crop,
    random_flip,
)

RNG = np.random.default_rng(0)


def encoded(image, format="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def photo(height=40, width=60):
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def rgb16_png(values):
    """A 16-bit RGB PNG, which Pillow cannot write."""
    height, width, _ = values.shape

    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def test_rgb_is_unchanged():
    pixels = photo()
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(pixels)), "x"), pixels)


@pytest.mark.parametrize("format", ["PNG", "PPM", "TIFF"])
def test_16_bit_grey_is_scaled_not_clipped(format):
    values = np.linspace(0, 65535, 600).reshape(20, 30).astype(np.uint16)
    decoded = decode_image(encoded(Image.fromarray(values), format), "x")
    expected = np.round(values / 257).astype(np.uint8)
    np.testing.assert_array_equal(decoded, np.repeat(expected[..., None], 3, axis=-1))


def test_16_bit_rgb_is_scaled_not_clipped():
    values = np.linspace(0, 65535, 600).reshape(10, 20, 3)
    decoded = decode_image(rgb16_png(values.astype(np.uint16)), "x")
    np.testing.assert_allclose(decoded, values / 257, atol=1)


def test_grey_and_bilevel_become_rgb():
    grey = photo()[..., 0]
    decoded = decode_image(encoded(Image.fromarray(grey)), "x")
    np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], 3, axis=-1))
    bits = Image.fromarray(np.where(grey > 127, 255, 0).astype(np.uint8)).convert("1")
    assert set(np.unique(decode_image(encoded(bits), "x"))) == {0, 255}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_become_white_and_opaque_ones_stay(mode):
    image = Image.new("RGBA", (4, 2), (100, 100, 100, 255))
    image.paste((0, 0, 0, 0), (0, 0, 2, 2))
    decoded = decode_image(encoded(image.convert(mode)), "x")
    assert (decoded[:, :2] == 255).all()
    np.testing.assert_allclose(decoded[:, 2:], 100, atol=3)


def test_half_transparent_pixels_blend_with_white():
    decoded = decode_image(encoded(Image.new("RGBA", (2, 2), (0, 0, 0, 128))), "x")
    np.testing.assert_allclose(decoded, 127, atol=1)


def test_colour_key_of_an_rgb_png_is_transparency():
    image = Image.new("RGB", (2, 1), (0, 0, 0))
    image.putpixel((1, 0), (9, 9, 9))
    decoded = decode_image(encoded(image, transparency=(0, 0, 0)), "x")
    np.testing.assert_array_equal(decoded[0], [[255] * 3, [9] * 3])


def test_palette_and_cmyk():
    colours = Image.new("RGB", (16, 16), (200, 30, 30))
    palette = decode_image(encoded(colours.convert("P", palette=Image.Palette.ADAPTIVE)), "x")
    cmyk = decode_image(encoded(colours.convert("CMYK"), "JPEG", quality=95), "x")
    for decoded in (palette, cmyk):
        np.testing.assert_allclose(decoded, np.broadcast_to([200, 30, 30], (16, 16, 3)), atol=6)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (32, 16), "black")
    image.paste("white", (0, 0, 32, 8))
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer turns it a quarter clockwise: the upper half lands on the right
    decoded = decode_image(encoded(image, "JPEG", exif=exif), "x")
    assert decoded.shape == (32, 16, 3)
    assert decoded[:, 10:].min() > 200
    assert decoded[:, :6].max() < 50


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "BMP"])
def test_truncated_file_is_named_wherever_it_is_cut(format):
    data = encoded(Image.fromarray(photo()), format)
    for share in (0.0, 0.01, 0.1, 0.5, 0.9):
        with pytest.raises(BrokenImageError, match=r"some/where\.img"):
            decode_image(data[: int(len(data) * share)], "some/where.img")


@pytest.mark.parametrize("data", [b"", b"hello, not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 99])
def test_what_is_not_an_image_is_named(data):
    with pytest.raises(BrokenImageError, match=r"notes\.png") as caught:
        decode_image(data, "notes.png")
    assert "\n" not in str(caught.value)


def test_float_pixels_are_refused():
    with pytest.raises(BrokenImageError, match="8 or 16 bits"):
        decode_image(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "x")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_decompression_bomb_is_a_broken_image(monkeypatch):
    data = encoded(Image.fromarray(photo()))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1500)  # a warning from here, an error from 2x
    assert decode_image(data, "x").shape == (40, 60, 3)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(BrokenImageError, match="x: "):
        decode_image(data, "x")


def test_center_crop_is_the_middle_square():
    pixels = photo(40, 61)
    np.testing.assert_array_equal(center_crop(pixels, 40), pixels[:, 10:50])
    np.testing.assert_array_equal(
        center_crop(pixels.swapaxes(0, 1), 40), pixels.swapaxes(0, 1)[10:50]
    )


def test_shrinking_is_antialiased():
    checkers = np.repeat(((np.indices((64, 64)).sum(0) % 2) * 255)[..., None], 3, -1)
    small = center_crop(checkers.astype(np.uint8), 16)
    np.testing.assert_allclose(small[2:-2, 2:-2], 127.5, atol=3)


def test_small_images_are_enlarged():
    gradient = np.repeat(np.linspace(0, 255, 8).astype(np.uint8)[None, :, None], 8, 0)
    large = center_crop(np.repeat(gradient, 3, -1), 32)
    assert large.shape == (32, 32, 3)
    assert len(np.unique(large[16, :, 0])) > 20


def test_random_crops_reach_both_ends_and_every_scale():
    # The red channel says how far right a pixel is, the green one how far down.
    ys, xs = np.indices((50, 100))
    image = np.stack([xs, ys, ys], -1).astype(np.uint8)
    rng = np.random.default_rng(0)
    whole = [random_crop(image, 50, rng)[0, 0, 0] for _ in range(400)]
    assert min(whole) == 0
    assert max(whole) == 50
    heights = [np.ptp(random_crop(image, 50, rng, 0.5)[..., 1].astype(int)) for _ in range(400)]
    assert 23 <= min(heights) <= 26
    assert max(heights) >= 48


def test_flips_are_half_of_the_images_and_mirror_left_to_right():
    image = photo(4, 4)
    rng = np.random.default_rng(0)
    flipped = [np.array_equal(random_flip(image, rng), image[:, ::-1]) for _ in range(400)]
    assert 160 < sum(flipped) < 240
