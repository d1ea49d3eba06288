"""Whatever a person hands in is read right or refused with one clear line."""

import base64
import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps
from small_vlm import make_processor, noise

from vlm.pictures import MAX_PIXELS, PictureError, open_picture


def encoded(image, kind="PNG", **kwargs):
    buffer = io.BytesIO()
    image.save(buffer, kind, **kwargs)
    return buffer.getvalue()


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_declaring(width, height):
    """A PNG of a few bytes that says it is this large."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


def animation():
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "green", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def rotated():
    """A picture wider than high, stored on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(half_and_half().transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)


def half_and_half():
    image = Image.new("RGB", (16, 8), "white")
    image.paste("black", (0, 0, 8, 8))
    return image


def test_a_plain_picture_comes_back_as_it_was_from_every_kind_of_source(tmp_path):
    image = noise(9, 7)
    path = tmp_path / "plain.png"
    image.save(path)
    data = path.read_bytes()
    address = "data:image/png;base64," + base64.b64encode(data).decode()
    for source in (path, str(path), data, bytearray(data), io.BytesIO(data), path.open("rb"), image, address):
        read = open_picture(source)
        assert read.mode == "RGB" and np.array_equal(read, image)
    assert open_picture(image) is not image


def test_one_pixel():
    assert open_picture(encoded(Image.new("RGB", (1, 1), (1, 2, 3)))).getpixel((0, 0)) == (1, 2, 3)


def test_cmyk():
    read = open_picture(encoded(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF"))
    assert read.mode == "RGB" and read.getpixel((1, 1)) == (255, 0, 0)
    red, green, blue = open_picture(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG")).getpixel((8, 8))
    assert red > 240 and green < 15 and blue < 15


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_transparency_lies_over_white(mode):
    image = Image.new(mode, (2, 1))
    black = (0, 0, 0) if mode == "RGBA" else (0,)
    image.putpixel((0, 0), (*black, 0))
    image.putpixel((1, 0), (*black, 128))
    read = open_picture(image)
    assert read.getpixel((0, 0)) == (255, 255, 255)
    assert abs(read.getpixel((1, 0))[0] - 127) <= 1


def test_a_palette_with_and_without_a_transparent_colour():
    image = half_and_half().convert("P")
    assert np.array_equal(open_picture(encoded(image)), half_and_half())
    black = image.getpixel((0, 0))
    assert open_picture(encoded(image, transparency=black)).getpixel((0, 0)) == (255, 255, 255)
    alphas = bytearray(b"\xff" * 256)
    alphas[black] = 0
    assert open_picture(encoded(image, transparency=bytes(alphas))).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_and_not_clipped(kind):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    read = np.asarray(open_picture(encoded(Image.fromarray(ramp), kind)))
    assert np.abs(read[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1


@pytest.mark.parametrize("white", [1.0, 255.0, 4000.0])
def test_float_grey_is_scaled_from_the_range_it_has(white):
    ramp = np.linspace(0, white, 256, dtype=np.float32).reshape(16, 16)
    read = np.asarray(open_picture(Image.fromarray(ramp)))
    assert np.abs(read[..., 0].astype(int) - np.arange(256).reshape(16, 16)).max() <= 1
    ramp[0, :3] = np.nan, np.inf, -np.inf
    assert np.asarray(open_picture(Image.fromarray(ramp)))[0, :3, 0].tolist() == [0, 255, 0]


def test_integers_of_32_bits_that_hold_8_stay_as_bright():
    assert open_picture(Image.new("I", (2, 2), 200)).getpixel((0, 0)) == (200, 200, 200)


def test_black_and_white():
    assert np.array_equal(open_picture(encoded(half_and_half().convert("1"))), half_and_half())


def test_an_animation_gives_its_first_frame():
    red, green, blue = open_picture(animation()).getpixel((4, 4))
    assert red > 200 and green < 50 and blue < 50


def test_the_camera_s_orientation_is_applied():
    assert np.array_equal(open_picture(rotated()), half_and_half())
    # Broken tags are no reason to refuse sound pixels.
    assert open_picture(encoded(half_and_half(), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")).size == (16, 8)


BAD = {
    "truncated.png": (encoded(noise(64, 64))[:3000], "damaged"),
    "truncated.jpg": (encoded(noise(64, 64), "JPEG")[:1500], "damaged"),
    "empty.png": (b"", "empty (0 bytes)"),
    "huge.png": (png_declaring(20000, 20000), "400,000,000 pixels"),
    "large.png": (png_declaring(10001, 10000), "10001x10000 pixels"),
    "text.png": (b"I am a text, whatever my name says.\n" * 20, "not a picture"),
    "header.png": (b"\x89PNG\r\n\x1a\n", "not a picture"),
    "svg.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_read_is_refused_in_one_line(name, tmp_path):
    data, reason = BAD[name]
    path = tmp_path / name
    path.write_bytes(data)
    for source, called in ((path, repr(str(path))), (str(path), repr(str(path))), (data, "the picture")):
        with pytest.raises(PictureError) as caught:
            open_picture(source)
        message = str(caught.value)
        assert called in message and "\n" not in message and len(message) < 500
        assert reason.replace(" (0 bytes)", "") in message
        assert ";" in message or ":" in message  # the remedy follows


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nowhere.png", "no file 'nowhere.png'"),
        ("https://example.com/cat.png", "is a web address, which is not fetched"),
        ("HTTP://example.com/cat.png", "is a web address, which is not fetched"),
        ("data:image/png,plain", "not base64"),
        ("a\0b", "no file|cannot be opened"),
        ("x" * 5000, "no file|cannot be opened"),
        (".", "is a folder"),
        (None, "a picture cannot be a NoneType"),
        (7, "a picture cannot be a int"),
    ],
)
def test_what_is_not_there_is_refused_in_one_line(source, reason):
    with pytest.raises(PictureError, match=reason) as caught:
        open_picture(source)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500


def test_the_declared_size_is_refused_before_anything_is_decoded():
    class Watched(Image.Image):
        size = (MAX_PIXELS, 2)

        def load(self):
            raise AssertionError("decoded")

    with pytest.raises(PictureError, match="declares"):
        open_picture(Watched())


def test_no_warning_escapes():
    large = Image.new("1", (9500, 9500))  # above what Pillow warns of, below the limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_picture(encoded(large)).size == (9500, 9500)
        open_picture(encoded(half_and_half().convert("P"), transparency=bytes(256)))
    assert not [
        entry for entry in warnings.filters if entry[0] == "ignore" and entry[2] is Warning and entry[3] is None
    ]


@pytest.mark.parametrize("name", BAD)
def test_the_processor_refuses_them_too(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(BAD[name][0])
    processor = make_processor()
    with pytest.raises(PictureError):
        processor(text="<im_patch>", images=[str(path)])
    with pytest.raises(PictureError):
        processor.image_processor(path)


def test_the_processor_reads_every_good_kind(tmp_path):
    processor = make_processor()
    upright = processor(text="<im_patch>", images=[half_and_half()], return_tensors="pt")["pixel_values"]
    path = tmp_path / "side.png"
    path.write_bytes(rotated())
    for source in (str(path), path, Image.open(path), rotated(), ImageOps.exif_transpose(Image.open(path))):
        inputs = processor(text="<im_patch>", images=[source], return_tensors="pt")
        assert inputs["pixel_values"].equal(upright)
    assert processor.image_processor(encoded(Image.new("L", (1, 1))))["pixel_values"].shape == (1, 3, 32, 32)
