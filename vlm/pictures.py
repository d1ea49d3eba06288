"""Any picture a person may hand in, read as RGB or refused with one clear line."""

import base64
import binascii
import io
import os
import re
import threading
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# 300 MB decoded. A camera's picture is well below; what is above is a mistake or an attack.
MAX_PIXELS = 100_000_000

_REMEDY = "use a PNG, JPEG, WebP, GIF, BMP or TIFF file"

# The filter that silences Pillow is the whole process's, so only one thread at a time may set and restore it.
_SILENCE = threading.Lock()


class PictureError(ValueError):
    """The picture cannot be read; the message is one line that names it, the limit and the remedy."""


def open_picture(source: str | os.PathLike | bytes | Image.Image | Any) -> Image.Image:
    """Reads a picture as an upright, opaque, 8-bit RGB image.

    The first frame of an animation is taken, transparency is laid over white, 16-bit and float greys are scaled to
    8 bits, and the camera's orientation tag is applied.

    Args:
        source: a path, a `data:` address, the encoded bytes, a PIL image or a binary file object.

    Raises:
        PictureError: nothing there, not a picture, damaged, an address on the web, or more than `MAX_PIXELS` pixels
            (checked on the declared size, before anything is decoded).
    """
    name = _name(source)
    # Pillow warns about large pictures, odd palettes and broken tags; what matters of that is decided below.
    with _SILENCE, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if isinstance(source, Image.Image):
            return _to_rgb(source, name)
        with _open(source, name) as image:
            return _to_rgb(image, name)


def _name(source: Any) -> str:
    """What a message calls the picture."""
    if isinstance(source, Image.Image):
        source = getattr(source, "filename", None) or ""
    elif not isinstance(source, str | os.PathLike | bytes):
        source = getattr(source, "name", "")
    if isinstance(source, bytes):
        return f"the picture of {len(source)} bytes"
    if not isinstance(source, str | os.PathLike) or source == "":
        return "the picture"
    text = repr(os.fspath(source))
    return text if len(text) <= 200 else f"{text[:90]}…{text[-90:]}"


def _open(source: Any, name: str) -> Image.Image:
    """The image with its header read; nothing is decoded yet."""
    if isinstance(source, str) and re.match(r"(?i)(https?|ftp)://", source):
        raise PictureError(f"{name} is a web address, which is not fetched; download it and give the file's path.")
    if isinstance(source, str) and source.startswith("data:"):
        source = _inline_bytes(source)
    if isinstance(source, str | os.PathLike):
        source = _existing_file(Path(source), name)
    elif isinstance(source, bytes | bytearray | memoryview):
        if not len(source):
            raise PictureError(f"{name} is empty; {_REMEDY}.")
        source = io.BytesIO(source)
    elif not hasattr(source, "read"):
        raise PictureError(
            f"a picture cannot be a {type(source).__name__}; give a path, bytes, a PIL image or a binary file."
        )
    try:
        return Image.open(source)
    except Image.DecompressionBombError as error:
        pixels = re.search(r"\d+", str(error))
        raise _too_large(name, f"{int(pixels[0]):,} pixels" if pixels else "too many pixels") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, TypeError, EOFError) as error:
        raise PictureError(f"{name} is not a picture that can be read; {_REMEDY}.") from error


def _inline_bytes(address: str) -> bytes:
    """The bytes of a `data:image/…;base64,…` address, the form in which chat clients send pictures."""
    header, comma, encoded = address.partition(",")
    try:
        if not comma or not header.endswith(";base64"):
            raise binascii.Error
        return base64.b64decode(encoded, validate=True)
    except binascii.Error as error:
        raise PictureError("the data: address is not base64; write data:image/png;base64,… .") from error


def _existing_file(path: Path, name: str) -> Path:
    try:
        if path.is_dir():
            raise PictureError(f"{name} is a folder; give the path of one picture in it.")
        if not path.exists():
            raise PictureError(f"there is no file {name}; check the path.")
        if not path.stat().st_size:
            raise PictureError(f"{name} is empty (0 bytes); {_REMEDY}.")
        with path.open("rb"):
            return path
    except PictureError:
        raise
    except (OSError, ValueError) as error:  # no permission, a name too long, a null byte
        raise PictureError(f"{name} cannot be opened ({_reason(error)}); check the path.") from error


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise _too_large(name, f"{width}x{height} pixels")
    if not width * height:
        raise PictureError(f"{name} has no pixels ({width}x{height}); {_REMEDY}.")
    try:
        image.load()
    except Exception as error:  # a decoder's own error types (struct.error, zlib.error …) are listed nowhere
        raise PictureError(f"{name} is damaged ({_reason(error)}); save it again as PNG or JPEG.") from error
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:
        image = image.copy()  # unreadable tags say nothing about the orientation, and the pixels are sound
    try:
        return _flatten(image)
    except (ValueError, OSError) as error:
        raise PictureError(f"{name} has the pixel format {image.mode!r}, which has no RGB form; {_REMEDY}.") from error


def _flatten(image: Image.Image) -> Image.Image:
    """Any decoded mode as opaque RGB."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = _grey_to_8_bits(image)
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _grey_to_8_bits(image: Image.Image) -> Image.Image:
    """Pillow's own conversion clips at 255; here the range of the pixel type becomes 0 to 255."""
    values = np.asarray(image, dtype=np.float64)
    top = values[np.isfinite(values)].max(initial=0.0)
    values = np.nan_to_num(values, nan=0.0, posinf=top, neginf=0.0)
    if image.mode == "F":
        # Floats come as 0 to 1, as 0 to 255, or in a unit of their own; only the last is stretched to its maximum.
        white = 1.0 if top <= 1.0 else max(255.0, top)
    elif image.mode == "I" and top <= 255:
        white = 255.0  # 8-bit values held in 32-bit integers
    else:
        white = max(65535.0, top)
    return Image.fromarray(np.clip(values * (255.0 / white), 0, 255).round().astype(np.uint8))


def _too_large(name: str, size: str) -> PictureError:
    return PictureError(f"{name} declares {size}; at most {MAX_PIXELS:,} (10,000x10,000) are read: make it smaller.")


def _reason(error: BaseException) -> str:
    """The library's own words on one line."""
    return " ".join(str(error).split())[:120] or type(error).__name__
