"""The pictures of a request, from data URLs and, where allowed, from the web."""

import asyncio

from pacore.fetching import FetchError, fetch_picture
from pacore.requests import Limits
from vlm.receiving import RequestError, decoded_picture, inline_bytes, shown

SECONDS = 60.0  # for a request's pictures together: it has its turn, and slow web servers must not hold it


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
                        image = await asyncio.to_thread(decoded_picture, encoded, where, pixels)
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
        return inline_bytes(url, where, limit)
    if scheme not in ("http", "https"):
        raise RequestError(f"{where}: {shown(url)} is no data: URL; send data:image/png;base64,… .", where)
    if not allow_http:
        message = f"{where}: {shown(url)} is a web address, which this server does not fetch; send a data: URL."
        raise RequestError(message, where)
    try:
        return await fetch_picture(url, limit)
    except FetchError as error:
        raise RequestError(f"{where}: {error}", where, "picture_not_fetched") from error
