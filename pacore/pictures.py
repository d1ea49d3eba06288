"""The pictures of a request, from data URLs and, where allowed, from the web."""

import asyncio
import base64
import io

from PIL import Image

from pacore.fetching import FetchError, fetch_picture
from pacore.requests import Limits, RequestError, shown
from vlm.pictures import PictureError, open_picture

SECONDS = 60.0  # for a request's pictures together: it has its turn, and slow web servers must not hold it

# Pillow knows formats that start other programs or read like a script (EPS, PSD …); strangers get the common ones.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")


async def read_pictures(messages: list[dict], limits: Limits, allow_http: bool) -> list[dict]:
    """A conversation for a backend: the messages of a `Chat` with every picture decoded to RGB.

    Raises:
        RequestError: not a data URL nor, where allowed, a public web address; not a picture; or above a limit.
    """
    conversation, pixels = [], limits.pixels
    try:
        async with asyncio.timeout(SECONDS):
            for number, message in enumerate(messages):
                content = []
                for part in message["content"]:
                    if part["type"] == "image_url":
                        where = f"messages[{number}].content"
                        encoded = await _encoded(part["url"], where, limits.picture_bytes, allow_http)
                        # In a thread, since decoding takes long enough to be felt by every other request.
                        image = await asyncio.to_thread(_decoded, encoded, where, pixels)
                        pixels -= image.width * image.height
                        part = {"type": "image", "image": image}
                    content.append(part)
                conversation.append({"role": message["role"], "content": content})
    except TimeoutError as error:
        message = f"the pictures were not there within {SECONDS:g} s; send fewer, or send data: URLs."
        raise RequestError(message, "messages", "picture_not_fetched") from error
    return conversation


async def _encoded(url: str, where: str, limit: int, allow_http: bool) -> bytes:
    """The encoded picture behind a URL. Raises RequestError."""
    scheme = url.partition(":")[0].lower()
    if scheme == "data":
        return _inline(url, where, limit)
    if scheme not in ("http", "https"):
        raise RequestError(f"{where}: {shown(url)} is no data: URL; send data:image/png;base64,… .", where)
    if not allow_http:
        message = f"{where}: {shown(url)} is a web address, which this server does not fetch; send a data: URL."
        raise RequestError(message, where)
    try:
        return await fetch_picture(url, limit)
    except FetchError as error:
        raise RequestError(f"{where}: {error}", where, "picture_not_fetched") from error


def _inline(url: str, where: str, limit: int) -> bytes:
    """The bytes of a `data:image/…;base64,…` URL. Raises RequestError."""
    header, _, payload = url.partition(",")
    if len(payload) > 4 * (limit // 3 + 1):
        message = f"{where}: a picture has more than {limit:,} bytes; send a smaller one."
        raise RequestError(message, where, "picture_too_large")
    try:
        if not header.lower().endswith(";base64"):
            raise ValueError(header)
        return base64.b64decode(payload, validate=True)
    except ValueError as error:  # binascii.Error is one
        message = f"{where}: the data: URL is not base64; send data:image/png;base64,… ."
        raise RequestError(message, where) from error


def _decoded(encoded: bytes, where: str, pixels: int) -> Image.Image:
    """The picture as upright RGB; refused before it is decoded where it is too large. Raises RequestError."""
    size = "too many"
    try:
        with Image.open(io.BytesIO(encoded), formats=FORMATS) as image:
            if image.width * image.height <= pixels:
                return open_picture(image)
            size = f"{image.width}x{image.height}"
    except PictureError as error:
        raise RequestError(f"{where}: {error}", where, "invalid_picture") from error
    except Image.DecompressionBombError:
        pass
    except Exception as error:  # a damaged header fails in types of each format's own
        message = f"{where}: {len(encoded):,} bytes are no picture that can be read; send {', '.join(FORMATS)}."
        raise RequestError(message, where, "invalid_picture") from error
    message = f"{where}: a picture has {size} pixels, the request has room for {pixels:,} more; send smaller ones."
    raise RequestError(message, where, "picture_too_large")
